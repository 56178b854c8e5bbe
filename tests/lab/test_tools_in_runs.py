"""Tools in a run: the example trains, what the tools are made of is on record, and only what the agent wrote counts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env.lab.evaluation.runs import run
from rlhf_env.learning.agent import Decision
from rlhf_env.learning.collect import collect
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build
from rlhf_env.types import Observation

EXAMPLE = Path(__file__).parents[2] / "examples/tools"
CALL = '<tool_call>\n{"name": "calculate", "arguments": {"a": 12, "b": 3, "operation": "*"}}\n</tool_call>'


def test_the_example_trains(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "copy")
    experiment = Experiment.load(tmp_path / "copy/tools.toml")
    assert experiment.code_named == ["calculator.py:calculate", "calculator.py:Asked"]
    run(experiment, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows if "train/grad_norm" in row] == [1, 2, 3]
    assert all(row["train/grad_norm"] > 0 for row in rows if "train/grad_norm" in row)
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert list(record["code"]) == ["calculator.py"]


class Scripted:
    """Says a call, then an answer, in every row."""

    def __init__(self, turns: list[list[int]], nothing: int) -> None:
        self.turns, self.nothing, self.said = turns, nothing, 0

    def begin(self) -> dict[str, Any]:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        tokens = np.full((len(observation["input_ids"]), 200), self.nothing)
        turn, self.said = self.turns[self.said], self.said + 1
        tokens[:, : len(turn)] = turn
        return Decision(tokens=tokens, logprobs=np.zeros(tokens.shape))


def test_what_the_tools_give_is_not_learned_from(tmp_path: Path) -> None:
    experiment = Experiment.load(EXAMPLE / "tools.toml")
    longer = replace(experiment, environment=replace(experiment.environment, max_new_tokens=200))
    env = build(longer).env
    tokenizer: Any = env.tokenizer
    turns = [[*tokenizer.encode(said), tokenizer.end_id] for said in (CALL, "36")]
    rollout = collect(env, Scripted(turns, tokenizer.vocab_size))  # type: ignore[arg-type]
    for row, episode in enumerate(rollout.episodes):
        written = rollout.tokens[row][rollout.actions[row]].tolist()
        assert written == [*turns[0], *turns[1]]
        answer = rollout.tokens[row][rollout.mask[row] & ~rollout.actions[row]].tolist()[len(episode.prompt_ids) :]
        assert tokenizer.own.decode(answer) == (
            "\n<|im_start|>user\n<tool_response>\n36\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        )
    assert [score.raw["asked"] for score in rollout.scores] == [1.0] * 8
