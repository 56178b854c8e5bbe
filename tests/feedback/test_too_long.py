"""A text that is longer than the context is named, with its line, before anything is trained on or scored."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_env.errors import DataError
from rlhf_env.feedback.asking.verification import opinions
from rlhf_env.feedback.interchange import read_jsonl
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.feedback.reward_models.scorecard import scorecard_of
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.evaluation.preparing import prepare
from rlhf_env.policies.tiny import tiny_language_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import save_chat_tokenizer

CONTEXT = 64
PAIRS = [
    {"prompt": "q", "chosen": "yes", "rejected": "no"},
    {"prompt": "x" * 80, "chosen": "yes", "rejected": "no"},
    {"prompt": "q", "chosen": "y" * 90, "rejected": "no"},
    {"prompt": "how", "chosen": "yes" * 7, "rejected": "no" * 9},
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = save_chat_tokenizer(tmp_path / "model", begins=False)
    made = tiny_language_model(
        vocab_size=262, context=CONTEXT, end_id=260, pad_id=258, hidden_size=16, layers=1, dtype=torch.float32
    )
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return file


def experiment(model: Path, **table: Any) -> dict[str, Any]:
    return {
        "task": {"name": "prompts", "prompts": ["q"]},
        "policy": {"model": str(model)},
        "rewards": {"length": {"target": 3}},
        "environment": {"num_envs": 4, "max_new_tokens": 8, "max_prompt_tokens": 200},
        "agent": {"name": "dpo"},
        "budget": {"updates": 1},
        **table,
    }


def lines_named(error: DataError, file: Path) -> list[int]:
    assert all("\n" not in problem for problem in error.problems)
    return [int(problem.removeprefix(f"{file}:").partition(":")[0]) for problem in error.problems]


def test_pairs_are_named_before_a_model_is_loaded(model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_env.lab.evaluation.preparing.build", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(
        DataError, match="have 84 tokens together, and the policy reads 65: shorten 'yes' or"
    ) as refused:
        prepare(experiment(model, preferences=str(pairs)))
    assert lines_named(refused.value, pairs) == [2, 3]


@pytest.mark.parametrize("length", [CONTEXT + 1, CONTEXT + 2])
def test_the_longest_that_fits(model: Path, tmp_path: Path, length: int) -> None:
    """The model never reads the last token, so a text may be one token longer than the context."""
    file = tmp_path / "edge.jsonl"
    file.write_text(json.dumps({"prompt": "q", "chosen": "y" * (length - 2), "rejected": "no"}))  # and the end token
    table = experiment(model, preferences=str(file), rewards={"length": {"target": 3}, "kl": 0.1})
    if length == CONTEXT + 1:
        workplace = prepare(table)
        assert workplace.source.next(workplace.agent).mask.sum(1).max() == length
    else:
        with pytest.raises(DataError, match=f"have {length} tokens"):
            prepare(table)


def test_prompts_are_named_with_the_answers_they_leave_no_room_for(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": "p" * length}) + "\n" for length in (57, 58, 5)))
    table = experiment(model, task={"name": "file", "path": str(file)}, agent={"name": "grpo", "group_size": 2})
    with pytest.raises(DataError, match="exceed the model's context of 64") as refused:
        prepare(table)
    (problem,) = refused.value.problems
    assert "'prompts.jsonl:2' has 58 tokens, which with 8 new ones" in problem


def test_a_scorecard_names_the_lines(model: Path, pairs: Path, tmp_path: Path) -> None:
    RewardModel.from_trunk(model).save(tmp_path / "reward")
    with pytest.raises(DataError, match="the reward model reads 64") as refused:
        scorecard_of(tmp_path / "reward", pairs)
    assert lines_named(refused.value, pairs) == [2, 3]


def test_edits_that_do_not_fit_cost_their_pairs_alone(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "q", "chosen": "yes it is", "rejected": "no"},
        {"prompt": "q", "chosen": "y" * 50 + " a" * 5, "rejected": "n"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    RewardModel.from_trunk(model).save(tmp_path / "reward")
    card = scorecard_of(tmp_path / "reward", file)
    assert any("1 pairs are too long for the model once they are edited" in note for note in card.notes)
    assert card.flips is not None


def test_verification_names_the_prompts_of_a_store(model: Path, pairs: Path, tmp_path: Path) -> None:
    with PreferenceStore(tmp_path / "prefs.sqlite") as store:
        store.add(read_jsonl(pairs))
        with pytest.raises(DataError, match=r"prompt 'xxxx.*have 84 tokens together, and the reward model reads 64"):
            opinions([RewardModel.from_trunk(model)], store.responses())


def test_lines_are_found_in_a_table(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text('prompt,chosen,rejected\n"two\nlines",yes,no\nq,' + "y" * 90 + ",no\n")
    RewardModel.from_trunk(model).save(tmp_path / "reward")
    with pytest.raises(DataError) as refused:
        scorecard_of(tmp_path / "reward", file)
    assert lines_named(refused.value, file) == [4]
