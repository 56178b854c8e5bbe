"""What a benchmark measured, read back from its folder, and the rows of its table.

    runs/demo/agents/
      about.json           optional: title, what the gold reward is, the command, versions
      benchmark.toml       the grid
      statistics.json      optional: the seed of the intervals, and whom agents are compared with besides the reference
      results/*.json       one file per cell: a task, an agent and a seed
      cells/...            the run of each cell, with its metrics.jsonl
      tuning/*.json        optional: one file per trial, like a result
      reward_model.json    optional: how good the learned reward is on pairs it did not see

Every table and figure is made from `Results`, never from a run in memory: the report of an old folder is the report
it had on its first day. What is in those files is data, not trusted: each value is checked where it enters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_env.errors import DataError
from rlhf_env.lab.evaluation.metric import Metric
from rlhf_env.lab.evaluation.metrics import METRICS
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.types import JsonObject, JsonView

FORMAT = 1

# Agents that learn nothing, and that an agent has to beat. They stand last, in this order.
REFERENCE, RANDOM = "reference", "random"
CONTROLS = (REFERENCE, RANDOM)

# What agents are ranked by on a task: the first of these that was measured there.
SCORES = ("gold", "proxy", "objective")


_OF_A_TASK = re.compile(r"task/(.+)/(\w+)")


def label_in(name: str) -> str:
    """The task of a mixture that a measure is of, "task/LABEL/gold"; "" of other names."""
    found = _OF_A_TASK.fullmatch(name)
    return found[1] if found else ""


@dataclass(frozen=True)
class CurvePoint:
    """A checkpoint as the evaluator saw it."""

    update: int
    generated_tokens: float
    """Written in training until then."""
    values: Mapping[str, float] = field(default_factory=dict)
    """By metric; one that was not measured has no key."""


@dataclass(frozen=True)
class Sample:
    """One reply to a prompt of the evaluation."""

    prompt: str
    response: str
    gold: float | None = None
    proxy: float | None = None
    kl: float | None = None
    finish_reason: str = ""


@dataclass(frozen=True)
class Cell:
    """One agent on one task with one seed."""

    task: str
    agent: str
    seed: int
    status: str
    """Either "finished" or "failed"."""
    reason: str = ""
    """Why training ended."""
    error: str | None = None
    run: str = ""
    """The run folder, relative to the benchmark's."""
    config_hash: str = ""
    agent_settings: JsonView = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of the reward's parts."""
    optimum: float | None = None
    """The highest score there is on the task, where that is known."""
    spending: Mapping[str, float] = field(default_factory=dict)
    """By counter of `learning.spending.Spending`; one that was not kept has no key."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """By metric; one that was not measured has no key."""
    curve: tuple[CurvePoint, ...] = ()
    samples: tuple[Sample, ...] = ()

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def value(self, metric: Metric) -> float | None:
        """What was measured, or spent; None where it was not."""
        return (self.spending if metric.spent else self.evaluation).get(metric.name)


@dataclass(frozen=True)
class Trial:
    """One seed of one configuration of an agent's settings, tried on a task before the reported runs."""

    task: str
    agent: str
    configuration: int
    seed: int
    settings: JsonView
    objective: float | None = None
    """What training maximises, at its end, on prompts set apart for tuning; None, and an `error`, if it failed."""
    error: str = ""
    spending: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardModelCard:
    """How good the learned reward is on pairs that it did not see."""

    accuracy: float
    low: float | None = None
    high: float | None = None
    pairs: int | None = None
    """It was fitted on this many."""
    held_out_pairs: int | None = None
    ceiling: float | None = None
    """The accuracy of a perfect judge, which the noise of the labels keeps below 1."""
    annotator: str = ""


@dataclass(frozen=True)
class About:
    """The words around the numbers."""

    title: str = ""
    what_gold_is: str = ""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparing:
    """How a folder's runs are compared, so that its report comes out the same every time."""

    seed: int = 0
    """Of all resampling."""
    rival: str = ""
    """The agent that everyone is compared with besides the reference, on every task that it ran on; empty: the agent
    with the best mean on the task."""


@dataclass(frozen=True)
class Results:
    """A benchmark as measured."""

    folder: Path
    benchmark: str
    cells: tuple[Cell, ...]
    """By task, agent (controls last) and seed."""
    metrics: tuple[Metric, ...] = METRICS
    """The table of metrics, and below it those of plugins, which the result files describe."""
    about: About = field(default_factory=About)
    reward_model: RewardModelCard | None = None
    comparing: Comparing = field(default_factory=Comparing)
    trials: tuple[Trial, ...] = ()

    @property
    def tasks(self) -> list[str]:
        return _distinct(cell.task for cell in self.cells)

    @property
    def agents(self) -> list[str]:
        """Over all tasks, controls last: an agent's place decides its colour, so it has one colour everywhere."""
        return sorted({cell.agent for cell in self.cells}, key=agent_order)

    @property
    def seeds(self) -> int:
        """The seeds behind every row: the smallest count of any agent on any task."""
        return min(len(self.of(task, agent)) for task in self.tasks for agent in self.agents_on(task))

    @property
    def failed(self) -> int:
        return sum(not cell.finished for cell in self.cells)

    @property
    def has_gold(self) -> bool:
        return any("gold" in cell.evaluation for cell in self.cells)

    def agents_on(self, task: str) -> list[str]:
        return _distinct(cell.agent for cell in self.cells if cell.task == task)

    def of(self, task: str, agent: str) -> list[Cell]:
        return [cell for cell in self.cells if (cell.task, cell.agent) == (task, agent)]

    def shared_seeds(self, task: str) -> list[int]:
        """The seeds that every agent on the task has run, whatever came of them."""
        seeds = [{cell.seed for cell in self.of(task, agent)} for agent in self.agents_on(task)]
        return sorted(set.intersection(*seeds))

    def measure(self, task: str) -> str | None:
        """What agents are ranked by on the task: gold, else proxy, else objective; None if no run has any of them."""
        ended = [cell.evaluation for cell in self.cells if cell.task == task and cell.finished]
        return next((name for name in SCORES if any(name in evaluation for evaluation in ended)), None)

    def parts_of_mixture(self, task: str) -> list[str]:
        """The labels of the tasks that a mixture is of, as evaluations measured them; none of another task."""
        cells = [cell for cell in self.cells if cell.task == task and cell.finished]
        return _distinct(label for cell in cells for name in cell.evaluation if (label := label_in(name)))

    def floor(self, task: str) -> float | None:
        """The worst score of any finished run on the task: what a run without a score of its own is given."""
        return min(
            (s for cell in self.cells if cell.task == task and (s := self.own_score(cell)) is not None), default=None
        )

    def own_score(self, cell: Cell) -> float | None:
        """The cell's measure if it finished and has it. Failed and diverged runs have none."""
        measure = self.measure(cell.task)
        return cell.evaluation.get(measure) if cell.finished and measure else None

    def score(self, cell: Cell) -> float | None:
        """What the cell counts with: its own score or the floor; None where no run of the task finished."""
        own = self.own_score(cell)
        return self.floor(cell.task) if own is None else own

    def optimum(self, task: str) -> float | None:
        """The highest score there is on the task, if the benchmark knows it. Raises DataError where runs disagree."""
        known = {cell.optimum for cell in self.cells if cell.task == task and cell.optimum is not None}
        if len(known) > 1:
            raise DataError(f"{self.folder / 'results'}: several optima for task {task!r}: {sorted(known)}")
        return known.pop() if known else None

    def metric(self, name: str) -> Metric:
        """The entry of this name. Raises KeyError where there is none."""
        return {metric.name: metric for metric in self.metrics}[name]

    def log(self, cell: Cell) -> list[JsonObject]:
        """The rows of a cell's `metrics.jsonl`, empty without one. Raises DataError naming a file that is broken."""
        folder = self.run_folder(cell)
        if folder is None:
            return []
        try:
            rows = read_metrics(folder)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / 'metrics.jsonl'}: not a file of metrics: {error}") from error
        if not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{folder / 'metrics.jsonl'}: each line must be a JSON object")
        return rows

    def run_folder(self, cell: Cell) -> Path | None:
        """Where the cell ran, if that is still there."""
        folder = self.folder / cell.run
        return folder if cell.run and folder.is_dir() else None


def agent_order(agent: str) -> tuple[int, str]:
    return (1 + CONTROLS.index(agent) if agent in CONTROLS else 0, agent)


def _distinct(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
