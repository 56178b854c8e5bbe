"""Evaluation asks what training never asked: every built-in task, through the loop's own source and the Evaluator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env.envs.tasks import load_task
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.lab.evaluation import evaluator as evaluation
from rlhf_env.learning.agent import Decision
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.plugins import host
from rlhf_env.types import Observation

END = 258
QUESTIONS = [f"What is {i % 9} + {i % 8}?" for i in range(80)]  # 72 different ones, 8 of them twice

TOOLS = Path(__file__).parents[2] / "examples/tools"
HELD_OUT: dict[str, dict[str, Any]] = {
    "addition": {},
    "chitchat": {},
    "echo": {"length": 4},
    "file": {"path": "prompts.jsonl", "held_out_fraction": 0.2},
    "increasing": {},
    "mixture": {"tasks": ["echo", "count", {"name": "prompts", "prompts": QUESTIONS, "held_out_fraction": 0.2}]},
    "prompts": {"prompts": QUESTIONS, "held_out_fraction": 0.2},
    "reasoning_gym": {"dataset": "count_bits", "settings": {"max_n": 40}},  # so few that they come again
    "segments": {"segments": 4, "shuffled": True},
    "textarena": {"game": "GuessTheNumber-v0"},
    "tools": {"task": {"name": "echo", "length": 4}, "tools": [f"{TOOLS / 'calculator.py'}:calculate"]},
    "validation": {"task": {"name": "echo", "length": 4}},
}
TOKENIZERS = {"tools": str(TOOLS / "tokenizer")}  # whose template tells the model of its tools
ONE_WORLD = {"count", "enumerable", "guess"}  # asked in training or not at all
PACKAGES = {"chitchat": "chitchat_dataset", "reasoning_gym": "reasoning_gym", "textarena": "textarena"}


class SaysNothing:
    """Ends every text at once; asks for groups of two."""

    def begin(self) -> dict[str, Any]:
        return {"group_size": 2}

    def act(self, observation: Observation, /) -> Decision:
        rows = len(observation["input_ids"])
        return Decision(np.full(rows, END, dtype=np.int64), np.full(rows, -1.0))

    def update(self, rollout: Any, /) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


def workplace(name: str) -> Workplace:
    table: dict[str, Any] = {
        "task": {"name": name, **HELD_OUT[name]},
        "policy": {"tokenizer": TOKENIZERS.get(name, "bytes")},
        "environment": {"num_envs": 32, "max_new_tokens": 1, "max_prompt_tokens": 600, "action_length": 1},
        "rewards": {"length": {"target": 3}},
        "evaluation": {"prompts": 12},
    }
    return build(Experiment.from_table(table))


def test_every_built_in_task_is_looked_at() -> None:
    ours = {entry.name for entry in host() if entry.kind == "task" and entry.origin == "rlhf-env"}
    assert ours == set(HELD_OUT) | ONE_WORLD
    assert not any(hasattr(load_task(name), "held_out") for name in ONE_WORLD)


@pytest.mark.parametrize("name", sorted(HELD_OUT))
def test_training_never_sees_an_evaluation_prompt(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(PACKAGES.get(name, "rlhf_env"))
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS), "utf-8")
    asked: set[tuple[str, str]] = set()
    reset = TextVectorEnv.reset

    def spy(env: TextVectorEnv, **arguments: Any) -> Any:
        observation, infos = reset(env, **arguments)
        asked.update(zip(infos["prompt_id"].tolist(), infos["prompt"].tolist(), strict=True))
        return observation, infos

    monkeypatch.setattr(TextVectorEnv, "reset", spy)
    place, agent = workplace(name), SaysNothing()
    for _ in range(8):
        place.source.next(agent)
    trained = set(asked)
    asked.clear()
    evaluation.Evaluator.of(place)(agent)

    assert trained and asked
    assert not {id_ for id_, _ in trained} & {id_ for id_, _ in asked}
    if name != "textarena":  # its games begin with the same words
        assert not {text for _, text in trained} & {text for _, text in asked}
