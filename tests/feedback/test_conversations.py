"""Stored conversations are read in the model's own chat template, as the environment asks them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhf_env.cli.main import app
from rlhf_env.envs.file_task import File
from rlhf_env.envs.tokenizers import ByteTokenizer, FileTokenizer, load_tokenizer, prompt_ids
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.interchange import write_judgements
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.feedback.offline import load_preferences, pair_episode
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.evaluation.preparing import prepare
from rlhf_env.learning.experiment import Experiment
from rlhf_env.policies.tiny import tiny_language_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from chat_tokenizers import CHATML, save_chat_tokenizer

CHITCHAT = "rlhf-env/chitchat"
QUESTIONS = [[{"role": "user", "content": f"q{i}"}] for i in range(4)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    answers = {
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": asked, **answers}) + "\n" for asked in QUESTIONS))
    return path


def experiment(pairs: Path, model: str = CHITCHAT, template: str = CHITCHAT) -> Experiment:
    return Experiment.from_table(
        {
            "policy": {"model": model} if model != "tiny" else {"model": model, "tokenizer": "bytes"},
            "task": {"name": "file", "path": str(pairs), "chat_template": template},
            "environment": {"num_envs": 4, "max_new_tokens": 4, "max_prompt_tokens": 40},
            "rewards": {"length": {"target": 3}, "kl": 0.1},
            "agent": {"name": "dpo"},
            "preferences": str(pairs),
            "budget": {"updates": 1},
            "evaluation": {"prompts": 4},
        }
    )


def test_the_ids_are_those_that_the_environment_asks(pairs: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(CHITCHAT)
    assert isinstance(tokenizer, FileTokenizer)
    asked = File(str(pairs), chat_template=CHITCHAT)
    with PreferenceStore(tmp_path / "s.db") as store:
        store.add(load_preferences(pairs))
        stored = list(store.preferences())
    for place, preference in enumerate(load_preferences(pairs)):
        ids = pair_episode(preference.prompt, preference.chosen, tokenizer).prompt_ids.tolist()
        assert ids == prompt_ids(tokenizer, asked.prompt(place, {}))
        assert ids == tokenizer.own.apply_chat_template(
            QUESTIONS[place], add_generation_prompt=True, return_dict=False, tokenize=True
        )
    assert {tuple(prompt_ids(tokenizer, it.prompt)) for it in stored} == {
        tuple(prompt_ids(tokenizer, asked.prompt(place, {}))) for place in range(4)
    }


def test_what_is_trained_on_is_not_called_held_out(pairs: Path) -> None:
    """However the same messages are rendered."""
    from rlhf_env.lab.evaluation.evaluator import Evaluator

    assert str(Evaluator.of(prepare(experiment(pairs))).asked) == "4 prompts that training uses too"


def test_a_plain_layout_is_said(pairs: Path) -> None:
    with pytest.warns(RuntimeWarning, match="the model has no chat template"):
        workplace = prepare(experiment(pairs, model="tiny", template="own"))
    assert isinstance(workplace.setup.tokenizer, ByteTokenizer)


def test_a_stored_question_is_asked_as_the_task_asked_it(tmp_path: Path) -> None:
    """By the model that wrote the answers, and by a reward model with another template."""
    messages = [{"role": "system", "content": "Be brief."}, *QUESTIONS[0]]
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"messages": messages, "level": 3}))
    prompt = File(str(file)).prompt(0, {})
    chosen, rejected = (Response(text, Author("human", "ann")) for text in ("yes", "no"))
    pair = Preference(prompt=prompt, chosen=chosen, rejected=rejected, annotator="ann")
    with PreferenceStore(tmp_path / "s.db") as store:
        store.add([pair])
        (stored,) = store.preferences()
    write_judgements(tmp_path / "trl.jsonl", [Comparison.of(stored)], "trl-conversational")
    (exported,) = load_preferences(tmp_path / "trl.jsonl")
    assert json.loads((tmp_path / "trl.jsonl").read_text())["prompt"] == messages
    for template in (CHATML, "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"):
        tokenizer = FileTokenizer(save_chat_tokenizer(tmp_path / "model", template))
        theirs = tokenizer.own.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for read in (prompt, stored.prompt, exported.prompt):
            assert prompt_ids(tokenizer, read) == theirs
            assert read.meta["level"] == 3


def test_a_text_that_is_no_conversation_stays_as_it_is(pairs: Path) -> None:
    tokenizer = load_tokenizer(CHITCHAT)
    preference = load_preferences(pairs)[0]
    other = type(preference.prompt)(id="x", text="Q: q0 A:", meta=preference.prompt.meta)
    assert prompt_ids(tokenizer, other) == prompt_ids(tokenizer, type(other)(id="x", text="Q: q0 A:"))


def test_a_conversation_that_the_template_refuses_is_named(pairs: Path) -> None:
    told = {"role": "system", "content": "Be brief."}
    pairs.write_text(pairs.read_text() + json.dumps({"prompt": [told, *QUESTIONS[0]], "chosen": "y", "rejected": "n"}))
    wanted = experiment(pairs, template="own")
    with pytest.raises(ConfigError) as refused:
        prepare(replace(wanted, agent={"name": "reinforce"}, preferences=None))
    (problem,) = refused.value.problems
    assert str(problem).endswith(
        "pairs.jsonl:5: the model's chat template refuses it: this small model reads no system message: leave it out: "
        "change its messages, or leave it out"
    )


REFUSING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


def refused_pairs(folder: Path) -> Path:
    """Twelve pairs; the template takes the prompts of every third, and those of the others it does not."""
    roles = (("user",), ("system", "user"), ("user", "user"))
    rows = [
        {
            "prompt": [{"role": role, "content": f"{role} {i} {place}"} for place, role in enumerate(roles[i % 3])],
            "chosen": [{"role": "assistant", "content": f"yes {i}"}],
            "rejected": [{"role": "assistant", "content": f"no {i}"}],
        }
        for i in range(12)
    ]
    (folder / "refused.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "refused.jsonl"


def model_that_refuses(folder: Path) -> Path:
    save_chat_tokenizer(folder, REFUSING)
    tiny_language_model(vocab_size=262, hidden_size=8, layers=1, heads=1, end_id=257).model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("over_long", ["refuse", "cut left"])
@pytest.mark.parametrize("agent", ["dpo", "kto"])
def test_stored_conversations_that_the_template_refuses_are_named_by_line(
    agent: str, over_long: str, tmp_path: Path
) -> None:
    """Before training, all of them, and what to do."""
    pairs, model = refused_pairs(tmp_path), model_that_refuses(tmp_path / "model")
    wanted = {
        "policy": {"model": str(model)},
        "task": {"name": "prompts", "prompts": ["Hi"]},
        "environment": {"num_envs": 4, "max_new_tokens": 4, "over_long": over_long},
        "rewards": {"length": {"target": 2}, "kl": 0.1},
        "agent": {"name": agent},
        "preferences": str(pairs),
        "budget": {"updates": 1},
    }
    with pytest.raises(DataError) as refused:
        prepare(wanted)
    assert [str(problem).removeprefix(f"{pairs}:") for problem in refused.value.problems] == [
        f"{line}: the model's chat template refuses it: {said}: change its messages, or leave it out"
        for line, said in zip(
            (2, 3, 5, 6, 8, 9, 11, 12),
            ["System role not supported", "Conversation roles must alternate"] * 4,
            strict=True,
        )
    ]


def test_a_reward_model_names_them_too(tmp_path: Path) -> None:
    pairs, model = refused_pairs(tmp_path), model_that_refuses(tmp_path / "model")
    words = ["reward-model", str(pairs), "--base", str(model), "--out", str(tmp_path / "rm"), "--held-out", "0.4"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code != 0
    said = [str(problem) for problem in result.exception.problems]  # type: ignore[union-attr]
    assert said[0].startswith(f"{pairs}:2: the model's chat template refuses it: System role not supported: change its")
    assert len(said) > 3 and all(it.startswith(f"{pairs}:") for it in said)
    assert not (tmp_path / "rm").exists()
