"""Answers that were judged one by one are what kto learns from: from a file, and from a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.interchange import read_judgements
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.evaluation.preparing import prepare
from rlhf_env.learning.experiment import Experiment

ROWS = [("a=", "b", True), ("b=", "aa", False), ("ab=", "ba", True), ("ba=", "a", False)]


def experiment(path: Path, agent: str) -> Experiment:
    return Experiment.from_table(
        {
            "policy": {"tokenizer": "alphabet:ab="},
            "task": {"name": "echo", "length": 2},
            "environment": {"num_envs": 4, "max_new_tokens": 4, "max_prompt_tokens": 4},
            "rewards": {"task": 1.0, "kl": 0.1},
            "agent": {"name": agent},
            "preferences": str(path),
            "budget": {"epochs": 2},
        }
    )


@pytest.mark.parametrize("place", ["file", "store"])
def test_each_answer_is_worth_its_label(tmp_path: Path, place: str) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "completion": c, "label": good}) + "\n" for p, c, good in ROWS))
    path = file
    if place == "store":
        path = tmp_path / "labels.db"
        with PreferenceStore(path) as store:
            store.add(read_judgements(file))
    workplace = prepare(experiment(path, "kto"))
    rollout = workplace.source.next(workplace.agent)
    worth = {
        (episode.prompt.text, episode.response): reward
        for episode, reward in zip(rollout.episodes, rollout.part("preference").tolist(), strict=True)
    }
    assert worth == {(prompt, answer): float(good) for prompt, answer, good in ROWS}
    assert len(workplace.train().rows) == 2, "two epochs of one rollout each"
    with pytest.raises(ConfigError):
        prepare(experiment(path, "dpo"))
