"""What a run of a track has cost, and what costs of several seeds allow to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_env.lab.board.tracks import Track
from rlhf_env.lab.statistics import Estimate, least_p, mean_of_seeds
from rlhf_env.types import Float, JsonView

_ALPHA = 0.05  # of all comparisons of a track together
_PENALTY = 2.0  # PAR-2, as the SAT competitions count a solver that found nothing


@dataclass(frozen=True)
class Cost:
    """Of one seed."""

    reached: bool
    """Whether gold was at the level before the track's limit was spent."""
    spent: float
    """Until then; twice the limit where it was not."""
    gold: float
    """The highest of all evaluations."""


def cost_of(track: Track, rows: Sequence[JsonView]) -> Cost:
    """What was spent at the first evaluation whose gold is at the track's level; `rows` as in metrics.jsonl."""
    spent, best = 0.0, -np.inf
    reached: float | None = None
    for row in rows:
        if track.counts == "processor_seconds":
            spent += float(row.get("time/processor_seconds") or 0.0)
        else:
            spent = float(row.get(f"spent/{track.counts}") or 0.0)
        gold = row.get("eval/gold")
        if isinstance(gold, (int, float)):
            best = max(best, float(gold))
            if reached is None and gold >= track.level and 0.0 < spent <= track.limit:
                reached = spent
    return Cost(reached is not None, _PENALTY * track.limit if reached is None else reached, float(best))


def typical(costs: Float) -> Estimate:
    """The geometric mean of costs float64[S], with its 95 % interval."""
    logs = mean_of_seeds(np.log(costs)[:, None])
    low, high = (None if end is None else float(np.exp(end)) for end in (logs.low, logs.high))
    return Estimate(float(np.exp(logs.value)), low, high)


def same_cost(claimed: Float, measured: Float, level: float = 0.999) -> bool:
    """Whether costs float64[S] of the same seeds, on two machines, can be of one entry.

    Their ratio is 1 within its interval. An honest entry is taken for another one in 1 - `level` of all cases.
    """
    ratio = np.log(measured / claimed)[:, None]
    if not ratio.any():
        return True
    found = mean_of_seeds(ratio, level, paired=True)
    return found.low is not None and not found.excludes_zero


def ranks(costs: Mapping[str, Float]) -> dict[str, int]:
    """1 + how many entries are cheaper outside of the interval; `costs` float64[S] by entry, of the same seeds.

    Compared are ratios of costs, seed by seed, on a log scale, where two equal entries differ symmetrically. The
    intervals hold together: each is at 1 - 0.05 / comparisons (Bonferroni), so that of equal entries any two have
    another rank on at most one board of twenty. What follows from them counts, too: who is cheaper than an entry is
    cheaper than those that it is cheaper than. So the cheaper of two that are told apart has the lower number.
    """
    order = sorted(costs, key=lambda name: float(np.log(costs[name]).mean()))
    comparisons = len(order) * (len(order) - 1) // 2
    cheaper: dict[str, set[str]] = {}
    for place, name in enumerate(order):
        cheaper[name] = set()
        for other in order[:place]:
            if is_cheaper(costs[other], costs[name], comparisons):
                cheaper[name] |= {other, *cheaper[other]}
    return {name: 1 + len(cheaper[name]) for name in costs}


def is_cheaper(costs: Float, others: Float, comparisons: int) -> bool:
    """Whether one entry is cheaper than another outside of the interval, which is one of so many."""
    ratio = np.log(costs / others)[:, None]
    found = mean_of_seeds(ratio, 1.0 - _ALPHA / comparisons, paired=True)
    alike = found.low is None and least_p(len(ratio), comparisons) < _ALPHA
    return found.value < 0.0 and (found.excludes_zero or alike)
