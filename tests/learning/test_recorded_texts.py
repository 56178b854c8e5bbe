"""Texts with the numbers of their tokens: what they say, that they are bounded, and that a resumed run has the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rlhf_env
from rlhf_env.envs.tokenizers import ByteTokenizer
from rlhf_env.errors import ConfigError
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import Row
from rlhf_env.learning.recorded_texts import RecordedTexts, pieces

TOY: dict[str, Any] = {
    "task": {"name": "echo", "length": 3},
    "policy": {"model": "tiny", "tokenizer": "alphabet:ab="},
    "environment": {"num_envs": 8, "max_new_tokens": 4, "max_prompt_tokens": 4},
    "rewards": {"task": 1.0, "kl": 0.05},
    "agent": {"name": "rloo", "lr": 1e-2, "group_size": 4},
    "budget": {"updates": 6},
    "evaluation": {"prompts": 6, "every": 2, "rewards": {"length": {"target": 3}}},
    "checkpoint_every": 2,
    "texts": {"rollouts_every": 3},
}


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()[1:]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "whole"
    rlhf_env.run(TOY, folder)
    return folder


def test_the_numbers_of_tokens_add_up_to_those_of_the_text(whole: Path) -> None:
    rows = rows_in(whole)
    assert [(r["source"], r["update"]) for r in rows if r["index"] == 0] == [
        ("evaluation", 0),
        ("evaluation", 2),
        ("rollout", 3),
        ("evaluation", 4),
        ("rollout", 6),
        ("evaluation", 6),
    ]
    for row in rows:
        assert "".join(row["tokens"]) == row["response"]
        assert len(row["tokens"]) == row["length"] == len(row["numbers"]["reward"])
        assert sum(row["numbers"]["reward"]) == pytest.approx(row["reward"], abs=1e-4)
        assert sum(row["numbers"]["log_ratio"]) == pytest.approx(row["kl"], abs=1e-4)
        assert row["reward"] == pytest.approx(row["parts"]["task"] - 0.05 * row["kl"], abs=1e-4)
        assert ("gold/length" in row["parts"]) == (row["source"] == "evaluation")
        paid = np.array(row["numbers"]["reward"]) + 0.05 * np.array(row["numbers"]["log_ratio"])
        assert paid[:-1] == pytest.approx(0.0, abs=1e-4), "the task pays at the last token"


def test_evaluations_say_what_the_log_says(whole: Path) -> None:
    """Of all six texts of the last evaluation the means are those of its metrics."""
    last = json.loads((whole / "evaluation.json").read_text())["metrics"]
    texts = [r for r in rows_in(whole) if r["source"] == "evaluation" and r["update"] == 6]
    assert len(texts) == 6
    assert np.mean([r["reward"] for r in texts]) == pytest.approx(last["objective"], abs=1e-4)
    assert np.mean([r["kl"] for r in texts]) == pytest.approx(last["kl"], abs=1e-4)


def test_advantages_are_those_of_the_update(whole: Path) -> None:
    """Leave-one-out: a text's reward less the mean of the three others of its group, for all its tokens."""
    rollout = [r for r in rows_in(whole) if r["source"] == "rollout" and r["update"] == 6]
    assert len(rollout) == 8
    for begin in (0, 4):
        rewards = np.array([r["reward"] for r in rollout[begin : begin + 4]])
        expected = rewards - (rewards.sum() - rewards) / 3
        for text, advantage in zip(rollout[begin : begin + 4], expected, strict=True):
            assert text["numbers"]["advantage"] == pytest.approx([advantage] * text["length"], abs=1e-4)
    assert all("advantage" not in r["numbers"] for r in rows_in(whole) if r["source"] == "evaluation")


@pytest.mark.parametrize("agent", ["ppo", "grpo", "reinforce", "options"])
def test_agents_with_advantages_tell_them(agent: str, tmp_path: Path) -> None:
    small = {**TOY, "agent": {"name": agent}, "budget": {"updates": 1}, "texts": {"rollouts_every": 1}}
    small["evaluation"] = {"prompts": 2}
    rlhf_env.run(small, tmp_path / "run")
    told = [r["numbers"]["advantage"] for r in rows_in(tmp_path / "run") if r["source"] == "rollout"]
    assert len(told) == 8 and any(abs(value) > 1e-3 for values in told for value in values)


def test_a_resumed_run_ends_with_the_same_file(whole: Path, tmp_path: Path) -> None:
    """Killed after update 5: the checkpoint is of update 4, and what came later comes again."""

    class Killed(BaseException):
        pass

    def kill(row: Row, _fraction: float) -> None:
        if row["update"] == 5:
            raise Killed

    with pytest.raises(Killed):
        rlhf_env.run(TOY, tmp_path / "run", on_update=kill)
    with (tmp_path / "run" / "texts.jsonl").open("a") as stream:
        stream.write('{"source": "rollout", "update": 5')  # half a line, as a killed process leaves it
    rlhf_env.run(TOY, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "texts.jsonl").read_bytes() == (whole / "texts.jsonl").read_bytes()


def test_a_longer_budget_ends_with_the_same_file_but_for_what_is_new(whole: Path, tmp_path: Path) -> None:
    """The last evaluation, which was none on the way, is not one of the longer run."""
    five = {**TOY, "budget": {"updates": 5}}
    rlhf_env.run(five, tmp_path / "run")
    assert rows_in(tmp_path / "run")[-1]["update"] == 5 and rows_in(tmp_path / "run")[-1]["last"]
    rlhf_env.run(TOY, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "texts.jsonl").read_bytes() == (whole / "texts.jsonl").read_bytes()


def write(file: Path, occasions: range, texts: RecordedTexts | None = None) -> RecordedTexts:
    texts = texts or RecordedTexts(file, 1)
    for occasion in occasions:
        texts.write("evaluation", 10 * occasion, occasion, [{"text": "x" * 1000, "prompt_id": "p"}] * 20)
    return texts


def test_the_file_is_bounded_and_keeps_the_whole_way(tmp_path: Path) -> None:
    """300 evaluations of 20 kB do not fit into a megabyte: every eighth is left, from the first to the last."""
    file = tmp_path / "texts.jsonl"
    write(file, range(300))
    updates = sorted({json.loads(line)["update"] for line in file.read_text().splitlines()[1:]})
    assert file.stat().st_size <= 1_000_000
    assert updates == list(range(0, 3000, 80))


def test_a_bounded_file_is_the_same_after_a_resumption(tmp_path: Path) -> None:
    """Also where more was left out after the checkpoint than before it."""
    write(tmp_path / "whole.jsonl", range(300))
    for killed, checkpoint in ((100, 90), (60, 40), (250, 120)):
        file = tmp_path / f"{killed}.jsonl"
        write(file, range(killed))
        again = RecordedTexts(file, 1)
        again.rewind(10 * checkpoint)
        write(file, range(checkpoint + 1, 300), again)
        assert file.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_was_written_twice_is_there_once(tmp_path: Path) -> None:
    """A run that was killed before its first row of metrics evaluates again."""
    write(tmp_path / "texts.jsonl", range(1))
    once = (tmp_path / "texts.jsonl").read_bytes()
    write(tmp_path / "texts.jsonl", range(1))
    assert (tmp_path / "texts.jsonl").read_bytes() == once


def test_one_that_is_too_large_is_cut_short(tmp_path: Path) -> None:
    texts = RecordedTexts(tmp_path / "texts.jsonl", 1)
    texts.write("evaluation", 0, 0, [{"text": "x" * 50_000}] * 20)
    assert len((tmp_path / "texts.jsonl").read_text().splitlines()) == 1 + 2
    texts.write("evaluation", 1, 1, [{"text": "x" * 500_000}])
    assert len((tmp_path / "texts.jsonl").read_text().splitlines()) == 1 + 2


def test_off_writes_nothing_and_the_run_is_the_same(whole: Path, tmp_path: Path) -> None:
    off = rlhf_env.run({**TOY, "texts": {"of_evaluation": 0, "of_rollout": 0}}, tmp_path / "off")
    assert not (tmp_path / "off" / "texts.jsonl").exists()
    kept = json.loads((whole / "evaluation.json").read_text())
    assert dict(off.evaluation.metrics) == kept["metrics"]


def test_defaults_stay_out_of_the_file() -> None:
    assert "texts" not in Experiment().to_toml()
    table = Experiment.from_table({"texts": {"of_rollout": 2}})
    assert "[texts]" in table.to_toml() and "of_rollout = 2" in table.to_toml()
    with pytest.raises(ConfigError, match="megabytes must be from 1 to 4,096, got 0"):
        Experiment.from_table({"texts": {"megabytes": 0}})


def test_a_character_of_several_tokens_stands_at_its_last() -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("aé€b")
    assert pieces(tokenizer, ids) == ["a", "", "é", "", "", "€", "b"]
    assert "".join(pieces(tokenizer, ids[:-2])) == "aé\ufffd", "half a character at the end is seen"
    assert pieces(tokenizer, [0xFF] * 20)[7] != "", "what never becomes a character does not wait for ever"
    assert pieces(tokenizer, []) == []
