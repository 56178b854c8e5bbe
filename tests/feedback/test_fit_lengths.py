"""Stored judgements that are too long for a model: what is left out, what is cut where, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf_env
from rlhf_env.envs.over_long import OverLongCount
from rlhf_env.envs.tokenizers import ByteTokenizer
from rlhf_env.errors import DataError
from rlhf_env.feedback.asking.verification import opinions
from rlhf_env.feedback.interchange import read_jsonl
from rlhf_env.feedback.interchange.lengths import fit_lengths
from rlhf_env.feedback.judgements import Author, Judgement, Preference, Response
from rlhf_env.feedback.kinds import Comparison, Ranking, Rating, preferences_of
from rlhf_env.feedback.offline import load_fitting, pair_episode
from rlhf_env.feedback.reward_models.model import RewardModel
from rlhf_env.feedback.reward_models.scorecard import scorecard_of
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.evaluation.preparing import prepare
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Episode, Prompt

BYTES = ByteTokenizer()
PEOPLE = Author("human", "people")
CUTS = ["cut left", "cut right", "cut middle"]


def said(text: str, **known: Any) -> Response:
    return Response(text, PEOPLE, **known)


def pair(prompt: str, chosen: str, rejected: str) -> Comparison:
    return Comparison(Prompt(id=prompt[:8], text=prompt), said(chosen), said(rejected), "first", "ann")


def fit(judgements: Sequence[Judgement], most: int, how: Any) -> tuple[list[Judgement], OverLongCount]:
    return fit_lengths(
        judgements,
        most,
        how,
        lengths=lambda texts: [len(pair_episode(*text, BYTES).ids) for text in texts],
        reader="the policy",
        tokenizer=BYTES,
    )


def sides(judgement: Judgement) -> list[Episode]:
    return [pair_episode(judgement.prompt, response, BYTES) for response in judgement.responses]


def test_left_out_are_those_that_are_too_long_and_no_others() -> None:
    fits, exactly, long = pair("p", "yes", "no"), pair("p" * 6, "yes", "no"), pair("p" * 7, "no", "yes")
    kept, count = fit([fits, exactly, long], 10, "leave out")
    assert kept == [fits, exactly]
    assert count == OverLongCount(of=3, left_out=1)
    with pytest.raises(DataError, match="over_long = 'leave out' leaves nothing of 1 judgements: the policy reads 10"):
        fit([long], 10, "leave out")


@pytest.mark.parametrize("how", CUTS)
def test_both_sides_keep_one_prompt_and_their_whole_answers(how: Any) -> None:
    text = "".join(chr(65 + n) for n in range(26))
    ((judged,), count) = fit([pair(text, "yes", "no")], 20, how)
    first, second = sides(judged)
    room = 20 - len("yes") - 1
    assert first.prompt_ids.tolist() == second.prompt_ids.tolist() and len(first.prompt_ids) == room
    assert (
        first.prompt.text
        == {
            "cut left": text[-room:],
            "cut right": text[:room],
            "cut middle": text[: room // 2] + text[-(room // 2) :],
        }[how]
    )
    assert [it.response_ids.tolist()[-1] for it in (first, second)] == [BYTES.end_id] * 2
    assert (first.response, second.response) == ("yes", "no")
    assert count == OverLongCount(of=1, cut=1)


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize(("asked", "prompt_left"), [(4, 4), (50, 10)])
def test_an_answer_loses_its_end_where_the_prompt_has_given_half(how: Any, asked: int, prompt_left: int) -> None:
    ((judged,), _) = fit([pair("p" * asked, "y" * 40, "n")], 20, how)
    first, second = sides(judged)
    assert len(first.prompt_ids) == len(second.prompt_ids) == prompt_left
    assert first.response_ids.tolist() == [ord("y")] * (20 - prompt_left), "no end token: it was cut"
    assert first.finish_reason == "length" and second.response_ids.tolist() == [ord("n"), BYTES.end_id]


def test_the_end_token_alone_can_be_too_much() -> None:
    ((judged,), count) = fit([pair("p" * 4, "y" * 6, "n")], 10, "cut left")
    assert sides(judged)[0].response_ids.tolist() == [ord("y")] * 6 and len(sides(judged)[0].prompt_ids) == 4 - 1 + 1
    assert count.cut == 1


def test_ids_of_a_policy_are_kept_as_it_wrote_them() -> None:
    ids = (*BYTES.encode("yes please"), BYTES.end_id)
    wrote = said("yes please", ids=ids, prompt_ids=tuple(BYTES.encode("p" * 30)), finish_reason="stop")
    judged = replace(pair("p" * 30, "x", "no"), first=wrote)
    ((shorter,), _) = fit([judged], 25, "cut left")
    first = shorter.responses[0]
    assert first.ids == ids and first.prompt_ids == tuple(BYTES.encode("p" * 14)) and first.finish_reason == "stop"
    ((shorter,), _) = fit([judged], 12, "cut left")
    first = shorter.responses[0]
    assert (first.ids, first.text, first.finish_reason) == (ids[:6], "yes pl", "length")


def test_all_judgements_of_a_prompt_get_the_same_prompt() -> None:
    """Ratings become pairs by their prompt; so the longest answer of any of them decides."""
    prompt = Prompt(id="p", text="".join(chr(65 + n) for n in range(26)))
    ratings = [Rating(prompt, said(text), score, "ann") for text, score in (("a", 1), ("bbbbbb", 5), ("cc", 3))]
    assert len(list(preferences_of(ratings))) == 3
    kept, count = fit(ratings, 20, "cut left")
    assert {judged.prompt.text for judged in kept} == {prompt.text[-13:]}
    assert len(list(preferences_of(kept))) == 3 and all(judged.prompt.uncut == prompt for judged in kept)
    assert count.cut == 3


def test_answers_that_say_the_same_once_they_are_cut_cannot_be_compared() -> None:
    same = pair("p" * 10, "y" * 30 + "a", "y" * 30 + "b")
    fine = pair("q", "yes", "no")
    kept, count = fit([same, fine], 20, "cut right")
    assert kept == [fine] and count == OverLongCount(of=2, left_out=1)
    ranking = Ranking(same.prompt, (same.first, same.second, said("n")), (1, 2, 3), "ann")
    assert fit([ranking, fine], 20, "cut right")[0] == [fine]


def test_everything_else_that_was_said_is_kept() -> None:
    judged = replace(pair("p" * 30, "yes", "no"), margin=2.0, weight=0.5, note="sure", criterion="tone", group="g")
    ((shorter,), _) = fit([judged], 20, "cut middle")
    assert isinstance(shorter, Comparison)
    assert replace(shorter, prompt=judged.prompt, first=judged.first, second=judged.second) == judged
    preference = judged.preference
    assert isinstance(preference, Preference)
    kept, _ = fit_lengths([preference], 20, "cut middle", lengths=_lengths, reader="x", tokenizer=BYTES)
    assert kept == [shorter.preference]


def _lengths(texts: Any) -> list[int]:
    return [len(pair_episode(prompt, response, BYTES).ids) for prompt, response in texts]


# ---------------------------------------------------------------- the commands

CONTEXT = 32
ROWS: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": "yes", "rejected": "no"},
    {"prompt": "x" * 80, "chosen": "yes", "rejected": "no"},
    {"prompt": "w", "chosen": "y" * 90, "rejected": "no"},
    {"prompt": "how", "chosen": "yes" * 4, "rejected": "no" * 3},
]
LABELS = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0} for i, row in enumerate(ROWS)]


def written(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def experiment(model: Path, stored: str, over_long: str, agent: str = "dpo", **table: Any) -> dict[str, Any]:
    return {
        "task": {"name": "prompts", "prompts": ["q", "x" * 80, "h" * 30, "w"]},
        "policy": {"model": str(model), "tokenizer": "bytes"},
        "rewards": {"length": {"target": 3}, "kl": 0.1},
        "environment": {"num_envs": 4, "max_new_tokens": 8, "max_prompt_tokens": 200, "over_long": over_long},
        "agent": {"name": agent},
        "preferences": stored,
        "budget": {"updates": 3},
        "evaluation": {"prompts": 4},
        "checkpoint_every": 1,
        **table,
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = tiny_language_model(
        vocab_size=BYTES.vocab_size,
        context=CONTEXT,
        end_id=BYTES.end_id,
        pad_id=BYTES.pad_id,
        hidden_size=16,
        layers=1,
        dtype=torch.float32,
    )
    made.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("how", "prompts", "judgements"), [("leave out", 2, 2), ("cut left", 4, 4)])
def test_a_run_reads_what_fits_and_says_how_many_did_not(
    model: Path, tmp_path: Path, how: str, prompts: int, judgements: int
) -> None:
    stored = written(tmp_path / "pairs.jsonl", ROWS)
    run = rlhf_env.run(experiment(model, stored, how), tmp_path / "run")
    assert run.workplace.env.task.size == prompts
    word = "left out" if how == "leave out" else "cut"
    assert run.workplace.notes == (
        f"2 of 4 prompts have more than 25 tokens: 2 {word}",
        f"2 of 4 judgements have more than 33 tokens: 2 {word}",
    )
    assert json.loads((tmp_path / "run" / "record.json").read_text())["notes"] == list(run.workplace.notes)
    metrics = run.evaluation.metrics
    assert metrics["prompts"] == prompts and metrics[f"prompts_{word.replace(' ', '_')}"] == 2
    # "h" is asked and was not judged; "x..." is known by the whole prompt, which was cut differently.
    assert metrics["prompts_in_training"] == (1 if how == "leave out" else 3)
    read, _ = load_fitting(stored, BYTES, CONTEXT, how)  # type: ignore[arg-type]
    assert len(read) == judgements


@pytest.mark.parametrize("how", ["leave out", "cut middle"])
def test_a_killed_run_ends_in_the_same_bits(model: Path, tmp_path: Path, how: str) -> None:
    stored = written(tmp_path / "pairs.jsonl", ROWS)
    whole = rlhf_env.run(experiment(model, stored, how), tmp_path / "whole")
    rlhf_env.run(experiment(model, stored, how, budget={"updates": 1}), tmp_path / "parts")
    resumed = rlhf_env.run(experiment(model, stored, how), tmp_path / "parts", resume=True)
    for name, value in whole.policy.state_dict().items():
        assert torch.equal(value, resumed.policy.state_dict()[name]), name


def test_labels_and_scorecards_and_verification_have_the_choice(model: Path, tmp_path: Path) -> None:
    labels = written(tmp_path / "labels.jsonl", LABELS)
    with pytest.raises(DataError) as refused:
        prepare(experiment(model, labels, "refuse", "kto"))
    assert [problem.partition(": ")[0] for problem in refused.value.problems] == [f"{labels}:2", f"{labels}:3"]
    workplace = prepare(experiment(model, labels, "cut right", "kto"))
    assert workplace.notes[-1] == "2 of 4 judgements have more than 33 tokens: 2 cut"
    assert workplace.source.next(workplace.agent).mask.sum(1).max() == CONTEXT + 1

    pairs = written(tmp_path / "pairs.jsonl", ROWS)
    folder = tmp_path / "reward"
    RewardModel.from_trunk(_with_tokenizer(model)).save(folder)
    card = scorecard_of(folder, pairs, over_long="leave out")
    assert card.pairs == 2 and card.notes[0] == "over-long: 2 of 4 pairs have more than 32 tokens: 2 left out"
    assert scorecard_of(folder, pairs, over_long="cut left").pairs == 4
    with PreferenceStore(tmp_path / "s.db") as store:
        store.add(read_jsonl(Path(pairs)))
        counts: list[OverLongCount] = []
        scorer = RewardModel.load(folder)
        found = opinions([scorer], store.responses(), over_long="leave out", on_over_long=counts.append)
    assert {candidate.prompt.text for candidate in found} == {"q", "how"}
    assert counts == [OverLongCount(of=8, left_out=3)]


def _with_tokenizer(model: Path) -> Path:
    """A folder with a tokenizer of 259 tokens, which `tiny_language_model` was made for."""
    import tokenizers
    from tokenizers import decoders, pre_tokenizers

    letters = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=letters, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<end>"])
    inner.save(str(model / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<end>"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return model
