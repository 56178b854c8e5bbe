"""Runs whose rewards change on the way: exact in resume, added up in every row, and evaluated as if nothing changed."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import train
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.workplace import build

from .resuming import UPDATES, Killed, assert_same_bits

MIXTURE = {
    "name": "mixture",
    "tasks": {"one": {"name": "echo", "length": 1}, "two": {"name": "echo", "length": 2}},
}
SHAPED: dict[str, Any] = {
    "task": {
        "tasks": {"one": 1.0, "two": 3.0},
        "shaping": {"normalise": "running", "by_task": True, "clip": [-1.5, 1.5]},
    },
    "length": {"target": 2, "tasks": {"two": 0.5}, "shaping": {"target": -0.1, "horizon": 20, "only_if": "task >= 0"}},
    "missing_end": {"shaping": {"schedule": [[0.0, 1.0], [1.0, 0.0]]}},
    "total": {"shaping": {"normalise": "group"}},
    "kl": {"weight": 0.1, "target": 0.01, "horizon": 16, "shaping": {"schedule": [[0.0, 0.2], [0.5, 0.1]]}},
}


def trained(experiment: Experiment, folder: Path, kill_after: int = 0) -> tuple[Any, list[Any]]:
    """State and rows of a run that goes on where one in the folder was killed."""
    workplace = build(experiment)
    setup = workplace.setup

    def kill(row: Any, _share: float) -> None:
        if row["update"] == kill_after:
            raise Killed

    with suppress(Killed), RunFolder(folder, experiment.to_toml(), resume=True, tensorboard=False) as run:
        source = workplace.source
        how: Any = {"run": run, "resume": True, "checkpoint_every": 1, "on_update": kill}
        train(workplace.agent, source, experiment.budget, spending=setup.spending, engine=setup.engine, **how)
    rows = [
        {name: value for name, value in row.items() if "time/" not in name and name != "spent/seconds"}
        for row in read_metrics(folder)
    ]
    return {"agent": workplace.agent.state_dict(), "source": workplace.source.state_dict()}, rows


def test_cut_anywhere_a_shaped_run_ends_in_the_same_bits(toy: Any, tmp_path: Path) -> None:
    experiment = toy("grpo", updates=UPDATES, task=MIXTURE, rewards=SHAPED)
    state, rows = trained(experiment, tmp_path / "uncut")
    for cut in (1, 3):
        trained(experiment, tmp_path / f"cut-{cut}", kill_after=cut)
        state_of_cut, rows_of_cut = trained(experiment, tmp_path / f"cut-{cut}")
        assert_same_bits(state_of_cut, state, f"cut after update {cut}")
        assert rows_of_cut == rows
    learned = state["source"]["rewards"]
    assert sorted(learned["task/shaping"]["tasks"]) == ["one", "two"]
    assert sum(learned["task/shaping"]["count"]) == 8 * UPDATES
    assert learned["length/shaping"]["weight"] != 1.0


def test_each_row_adds_up_and_says_the_weights_of_its_rollout(toy: Any, tmp_path: Path) -> None:
    _, rows = trained(toy("grpo", updates=UPDATES, task=MIXTURE, rewards=SHAPED), tmp_path)
    assert [row["rollout/weight/missing_end"] for row in rows] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert [row["rollout/weight/kl"] for row in rows] == pytest.approx([0.2, 0.15, 0.1, 0.1])
    for row in rows:
        earned = [value for name, value in row.items() if name.startswith("rollout/earned/")]
        assert math.fsum(earned) == pytest.approx(row["rollout/reward"], abs=1e-12)
        assert "rollout/earned/total/shaping" in row and "rollout/part/task/shaping" in row
        by_task = [(row[f"rollout/task/{label}/reward"], row[f"rollout/task/{label}/texts"])
                   for label in ("one", "two") if f"rollout/task/{label}/texts" in row]  # fmt: skip
        assert sum(reward * texts for reward, texts in by_task) / 8 == pytest.approx(row["rollout/reward"], abs=1e-12)
        assert sum(texts for _, texts in by_task) == 8


def test_evaluations_do_not_see_the_shaping(toy: Any) -> None:
    """Objective, parts and gold of an agent that has learned nothing are those without shaping, to the bit."""
    rewards = {**SHAPED, "kl": {"weight": 0.1, "shaping": SHAPED["kl"]["shaping"]}}
    plain = {name: {key: it for key, it in table.items() if key != "shaping"} for name, table in rewards.items()}
    plain["missing_end"], plain["length"]["weight"] = {"weight": 0.0}, 1.0
    del plain["total"]
    shaped = build(toy("grpo", task=MIXTURE, rewards=rewards))
    shaped.source.next(shaped.agent)  # its running moments and weights have moved
    found, expected = (Evaluator.of(it)().metrics for it in (shaped, build(toy("grpo", task=MIXTURE, rewards=plain))))
    assert {name: value for name, value in found.items() if "total" not in name} == expected


def test_the_objective_of_each_task_is_that_of_its_texts(toy: Any) -> None:
    workplace = build(toy("grpo", task=MIXTURE, rewards=SHAPED))
    evaluator = Evaluator.of(workplace)
    rollout, _ = evaluator.texts(workplace.agent)
    numbers = evaluator().metrics
    sums: dict[str, list[float]] = {"one": [], "two": []}
    for episode, score in zip(rollout.episodes, rollout.scores, strict=True):
        label = episode.prompt.meta["task"]
        part = {name.removeprefix("part/"): raw for name, raw in score.raw.items()}
        assert ("length" in part) == (label == "two")
        length = 0.5 * part["length"] if label == "two" else 0.0
        sums[label].append({"one": 1.0, "two": 3.0}[label] * part["task"] + length + 0.1 * part["kl"])
    for label, values in sums.items():
        assert numbers[f"task/{label}/replies"] == len(values) > 0
        assert numbers[f"task/{label}/objective"] == pytest.approx(math.fsum(values) / len(values), abs=1e-12)
    earned = [value for name, value in numbers.items() if name.startswith("earned/")]
    assert math.fsum(earned) == pytest.approx(numbers["objective"], abs=1e-12)
    assert "abstained/length" not in numbers
