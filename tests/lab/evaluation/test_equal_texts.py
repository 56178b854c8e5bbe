"""Cells of one process share what untrained agents write and earn, and every result is that of the cell alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.lab.benchmark.cells import run_cell
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.evaluation import equal_texts
from rlhf_env.lab.evaluation.equal_texts import kept
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.workplace import build
from rlhf_env.policies.language_model import LanguageModel

Toy = Mapping[str, Any]
AGENTS: dict[str, Any] = {
    "grpo": {"lr": 1e-2, "group_size": 4},
    "ppo": {"lr": 1e-2},
    "dpo": {"lr": 1e-2},
    "reference": {},
    "best_of_n": {"n": 2},
    "random": {},
}
CLOCKS = ("time/", "spent/seconds")


@pytest.fixture(autouse=True)
def nothing_known() -> None:
    equal_texts.forget_all()


def of_grid(toy: Toy, folder: Path, *, alone: bool) -> dict[str, Any]:
    """Results and rows of every cell, without what a clock decides."""
    experiment = {**toy, "budget": {"updates": 4}, "rewards": {"task": 1.0, "kl": 0.05}}
    found: dict[str, Any] = {}
    for cell in Grid(agents=AGENTS, experiment=experiment, seeds=2).cells(folder):
        if alone:
            equal_texts.forget_all()
        result = run_cell(cell, folder)
        del result["spending"]["seconds"]
        rows = [
            {name: value for name, value in row.items() if not name.startswith(CLOCKS)}
            for row in read_metrics(folder / cell.run)
        ]
        found[cell.key] = json.loads(json.dumps([result, rows]))
    return found


def test_cells_of_one_process_are_those_of_a_process_each(toy: Toy, tmp_path: Path) -> None:
    assert of_grid(toy, tmp_path / "together", alone=False) == of_grid(toy, tmp_path / "alone", alone=True)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a policy has written since."""
    calls: list[int] = []
    plain = LanguageModel.write

    def write(self: LanguageModel, *args: Any, **settings: Any) -> Any:
        calls.append(1)
        return plain(self, *args, **settings)

    monkeypatch.setattr(LanguageModel, "write", write)
    return calls


def evaluated(toy: Toy, agent: str = "grpo", **changes: Any) -> Mapping[str, float]:
    settings = {**toy, "agent": {"name": agent}, **changes}
    return Evaluator.of(build(Experiment.from_table(settings, "here")))().metrics


def test_the_second_agent_writes_nothing(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    with kept():
        first, second, third = (evaluated(toy, agent) for agent in ("grpo", "ppo", "reference"))
    assert len(calls) == 1
    assert first["objective"] == second["objective"] == third["objective"]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"evaluation": {"prompts": 5}},
        {"evaluation": {"prompts": 8, "seed": 1}},
        {"policy": {"tokenizer": "alphabet:ab=c:"}},
        {"rewards": {"length": {"weight": 1.0, "target": 2}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_question_is_asked(toy: Toy, monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, Any]) -> None:
    calls = counted(monkeypatch)
    with kept():
        evaluated(toy)
        shared = evaluated(toy, **changes)
    assert len(calls) == 2
    assert shared == evaluated(toy, **changes)


def test_other_weights_are_another_question(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model in a folder, the name says nothing about the weights."""
    calls = counted(monkeypatch)
    with kept():
        evaluated(toy)
        changed = build(Experiment.from_table({**toy, "agent": {"name": "grpo"}}, "here"))
        for parameter in changed.setup.policy.parameters():
            parameter.data.mul_(1.5)
        Evaluator.of(changed)()
    assert len(calls) == 2


def test_an_agent_that_has_learned_is_asked_itself(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    with kept():
        evaluated(toy)
        trained = build(Experiment.from_table({**toy, "agent": {"name": "grpo"}}, "here"))
        trained.setup.spending.add(updates=1)
        Evaluator.of(trained)()
    assert len(calls) == 2


def test_own_rewards_are_asked_again(toy: Toy, tmp_path: Path) -> None:
    """Nobody knows what they depend on."""
    asked = tmp_path / "asked"
    (tmp_path / "mine.py").write_text(
        "def pay(completions, **columns):\n"
        f"    print(file=open({str(asked)!r}, 'a'))\n"
        "    return [1.0] * len(completions)\n"
    )
    mine = {"mine": {"function": f"{tmp_path / 'mine.py'}:pay"}}
    with kept():
        evaluated(toy, "grpo", rewards=mine)
        once = len(asked.read_text())
        evaluated(toy, "ppo", rewards=mine)
    assert len(asked.read_text()) == 2 * once > 0


def test_what_is_kept_does_not_grow(toy: Toy) -> None:
    with kept():
        for seed in range(10):
            evaluated(toy, seed=seed)
    assert len(equal_texts._of_this_process) <= equal_texts._MOST


def test_nothing_is_shared_unless_asked(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    evaluated(toy), evaluated(toy)
    assert len(calls) == 2
    assert not equal_texts._of_this_process
