"""One row per agent: means over seeds, spreads, and what may be claimed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from rlhf_env.lab.benchmark.results import CONTROLS, Results
from rlhf_env.lab.evaluation.asked import PromptsAsked
from rlhf_env.lab.evaluation.metric import Metric
from rlhf_env.lab.statistics import SEEDS_FOR_A_CLAIM, seeds_for_a_verdict


@dataclass(frozen=True)
class Spread:
    """One measure over the seeds of an agent."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class SummaryRow:
    """An agent on a task: each metric over its finished seeds.

    What agents are ranked by on the task is over all seeds, `floored` of them at the floor for want of a score.
    """

    task: str
    agent: str
    control: bool
    seeds: int
    failed: int
    floored: int
    spreads: Mapping[str, Spread]
    """By metric; one that was not measured has no key."""
    bounds: Set[str]
    """The metrics that are an upper bound, and no estimate."""


def summary_rows(results: Results) -> list[SummaryRow]:
    """The table: a row per task and agent, in the order of the results.

    Failed seeds count with the floor in what agents are ranked by; the other metrics are without them.
    """
    return [_summary_row(results, task, agent) for task in results.tasks for agent in results.agents_on(task)]


def _summary_row(results: Results, task: str, agent: str) -> SummaryRow:
    cells, ranked_by = results.of(task, agent), results.measure(task)
    finished = [cell for cell in cells if cell.finished]

    def spread(metric: Metric) -> Spread | None:
        if metric.name == ranked_by:
            return _spread(results.score(cell) for cell in cells)
        exact = _spread(cell.evaluation.get(metric.exact) for cell in finished)
        return exact or _spread(cell.value(metric) for cell in finished)

    spreads = {metric.name: spread(metric) for metric in results.metrics}
    return SummaryRow(
        task=task,
        agent=agent,
        control=agent in CONTROLS,
        seeds=len(cells),
        failed=len(cells) - len(finished),
        floored=sum(results.own_score(cell) is None for cell in cells) if ranked_by else 0,
        spreads={name: values for name, values in spreads.items() if values is not None},
        bounds={
            metric.name
            for metric in results.metrics
            if metric.bound and any(cell.evaluation.get(metric.bound) for cell in finished)
        },
    )


def _spread(values: Iterable[float | None]) -> Spread | None:
    present = tuple(value for value in values if value is not None)
    return Spread(present) if present else None


def claim(results: Results) -> str:
    """What the number of seeds entitles a reader to conclude."""
    seeds, shared = results.seeds, min(len(results.shared_seeds(task)) for task in results.tasks)
    counted = f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"
    if shared < seeds:
        counted += f", {shared} of them shared by all agents"
    agents = max(len(results.agents_on(task)) for task in results.tasks)
    if shared < SEEDS_FOR_A_CLAIM:
        return f"{counted}: numbers, no claim"
    if agents > 1 and shared < (needed := seeds_for_a_verdict(agents - 1)):
        return f"{counted}: numbers, no claim ({agents} agents take {needed} seeds)"
    return f"{counted}: verdicts come from paired tests on the shared seeds"


def asked_words(results: Results) -> str:
    """On which prompts, as the end of a sentence: whether training used them is said task by task where it differs."""
    kinds: dict[str, list[str]] = {}
    for task in results.tasks:
        found = {PromptsAsked.of(cell.evaluation, 0) for cell in results.cells if cell.task == task and cell.finished}
        kind = " or ".join(sorted("prompts" if it is None else it.kind for it in found)) or "prompts"
        kinds.setdefault(kind, []).append(task)
    if kinds.keys() <= {"held-out prompts", "held-out prompt"}:
        return "on prompts none of them has seen"
    if len(kinds) == 1:
        return "on the same prompts for all" if "prompts" in kinds else f"on {next(iter(kinds))}"
    return "on " + "; ".join(f"{kind} ({', '.join(tasks)})" for kind, tasks in kinds.items())
