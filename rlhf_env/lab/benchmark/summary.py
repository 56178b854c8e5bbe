"""One row per agent: means over seeds, spreads, and what may be claimed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rlhf_env.lab.benchmark.results import CONTROLS, Results
from rlhf_env.lab.statistics import SEEDS_FOR_A_CLAIM


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
    """An agent on a task: each measure over its finished seeds, None where nothing was measured.

    What agents are ranked by on the task is over all seeds, `floored` of them at the floor for want of a score.
    `kl_is_bound`: the KL is the analytic upper bound of the agent (best-of-n), not an estimate; where texts are so few
    that it is a sum over all of them, it is that. `generated_tokens` were spent in training; `inference_tokens` are
    spent for each reply that is shown. The other measures are those of `evaluation.Evaluator`.
    """

    task: str
    agent: str
    control: bool
    seeds: int
    failed: int
    floored: int
    kl_is_bound: bool
    gold: Spread | None
    proxy: Spread | None
    kl: Spread | None
    length: Spread | None
    distinct_2: Spread | None
    distinct_replies: Spread | None
    entropy: Spread | None
    cut_at_limit: Spread | None
    format_failures: Spread | None
    generated_tokens: Spread | None
    inference_tokens: Spread | None
    seconds: Spread | None
    reward_calls: Spread | None
    preference_labels: Spread | None
    gradient_steps: Spread | None


def summary_rows(results: Results) -> list[SummaryRow]:
    """The table: a row per task and agent, in the order of the results.

    Failed seeds count with the floor in what agents are ranked by; the other measures are without them.
    """
    return [_summary_row(results, task, agent) for task in results.tasks for agent in results.agents_on(task)]


def _summary_row(results: Results, task: str, agent: str) -> SummaryRow:
    cells, ranked_by = results.of(task, agent), results.measure(task)
    finished = [cell for cell in cells if cell.finished]

    def measured(name: str) -> Spread | None:
        if name == ranked_by:
            return _spread(results.score(cell) for cell in cells)
        return _spread(cell.evaluation.get(name) for cell in finished)

    def spent(name: str) -> Spread | None:
        return _spread(cell.spending.get(name) for cell in finished)

    return SummaryRow(
        task=task,
        agent=agent,
        control=agent in CONTROLS,
        seeds=len(cells),
        failed=len(cells) - len(finished),
        floored=sum(results.own_score(cell) is None for cell in cells) if ranked_by else 0,
        kl_is_bound=any(cell.kl_is_bound for cell in finished),
        gold=measured("gold"),
        proxy=measured("proxy"),
        kl=measured("kl_exact") or measured("kl"),
        length=measured("length"),
        distinct_2=measured("distinct_2"),
        distinct_replies=measured("distinct_replies"),
        entropy=measured("entropy"),
        cut_at_limit=measured("cut_at_limit"),
        format_failures=measured("format_failures"),
        generated_tokens=spent("generated_tokens"),
        inference_tokens=measured("inference_tokens"),
        seconds=spent("seconds"),
        reward_calls=spent("reward_calls"),
        preference_labels=spent("preference_labels"),
        gradient_steps=spent("gradient_steps"),
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
    if shared < SEEDS_FOR_A_CLAIM:
        return f"{counted}: numbers, no claim"
    return f"{counted}: verdicts come from paired tests on the shared seeds"
