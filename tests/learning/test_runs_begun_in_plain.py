"""A run that began with conversations in the plain layout goes on in it; a new one asks as the model does."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.envs.tokenizers import conversation_of
from rlhf_env.lab.evaluation.runs import Run, load_run, run

CHITCHAT = "rlhf-env/chitchat"


def experiment(tmp_path: Path, updates: int) -> dict[str, Any]:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"messages": [{"role": "user", "content": f"q{i}"}]}) + "\n" for i in range(4)))
    named = {"name": "file", "path": str(file)}
    return {
        "policy": {"model": CHITCHAT},
        "task": {"name": "mixture", "tasks": [named, {"name": "prompts", "prompts": ["Hello"]}]},
        "environment": {"num_envs": 2, "max_new_tokens": 2, "max_prompt_tokens": 40},
        "rewards": {"length": {"target": 1}, "kl": 0.1},
        "agent": {"name": "reinforce"},
        "budget": {"updates": updates},
        "evaluation": {"prompts": 2},
    }


def layouts(finished: Run) -> set[bool]:
    """Whether conversations were left to the model's own template."""
    asked = (finished.workplace.env.task.prompt(index, {}) for index in range(40))
    return {bool(conversation_of(prompt)) for prompt in asked if prompt.messages}


def test_how_a_run_began_is_how_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert layouts(run(experiment(tmp_path, 1), folder)) == {True}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layouts(load_run(folder)) == {True}
    record = json.loads((folder / "record.json").read_text())
    del record["conversations"]  # as an older version wrote it
    (folder / "record.json").write_text(json.dumps(record))
    assert layouts(load_run(folder)) == {False}
    assert layouts(run(experiment(tmp_path, 2), folder, resume=True)) == {False}
    assert "chat_template" not in (folder / "experiment.toml").read_text()


def test_it_is_said(tmp_path: Path) -> None:
    asked = experiment(tmp_path, 1)
    asked["task"] = asked["task"]["tasks"][0]
    folder = tmp_path / "run"
    run(asked, folder)
    record = json.loads((folder / "record.json").read_text())
    del record["conversations"]
    (folder / "record.json").write_text(json.dumps(record))
    with pytest.warns(RuntimeWarning, match="lines of 'User: .*as when the run began"):
        run({**asked, "budget": {"updates": 2}}, folder, resume=True)
