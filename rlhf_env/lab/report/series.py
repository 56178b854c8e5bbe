"""From results to the lines of a figure: numbers along training, by agent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_env.lab.benchmark.results import Cell, Results
from rlhf_env.types import Float

_PARTS_POINTS = 40


@dataclass(frozen=True)
class Series:
    """One number of one agent along training, over its finished seeds."""

    agent: str
    x: Float
    """Tokens generated in training."""
    mean: Float
    low: Float
    """The lowest seed at each `x`."""
    high: Float
    level: bool = False
    """Whether the agent does not train: its value is a line across, not a curve."""
    broken: tuple[tuple[Float, Float], ...] = ()
    """The curves of failed seeds, as far as they came."""


def evaluation_curves(results: Results, task: str, metric: str) -> list[Series]:
    """A metric at every checkpoint, as the evaluator saw it, for each agent that has it."""

    def curve(cell: Cell) -> tuple[Float, Float]:
        return _xy([(point.generated_tokens, point.values.get(metric)) for point in cell.curve])

    lines = [_series(agent, results.of(task, agent), curve) for agent in results.agents_on(task)]
    return [series for series in lines if series is not None]


def part_curves(results: Results, task: str, part: str) -> list[Series]:
    """A reward part along training, from each run's own metrics; noisy updates are averaged to a few points."""

    def curve(cell: Cell) -> tuple[Float, Float]:
        rows = results.log(cell)
        return _thinned(*_xy([(row.get("spent/generated_tokens"), row.get(f"rollout/part/{part}")) for row in rows]))

    lines = [_series(agent, results.of(task, agent), curve) for agent in results.agents_on(task)]
    return [series for series in lines if series is not None]


def reward_parts(results: Results, task: str) -> list[str]:
    """The parts that some run on the task has logged."""
    prefix = "rollout/part/"
    cells = [cell for cell in results.cells if cell.task == task]
    keys = {key for cell in cells for row in results.log(cell) for key in row if key.startswith(prefix)}
    # "a_std" is the spread of the part "a"; unless it has a spread itself, for then it is a part that is called so.
    spreads = {key for key in keys if key.removesuffix("_std") in keys - {key} and f"{key}_std" not in keys}
    return sorted(key.removeprefix(prefix) for key in keys - spreads)


def trade_offs(results: Results, task: str, x: str, y: str) -> dict[str, list[Float]]:
    """By agent, the path of each seed: float64[checkpoints, 2], metrics `x` and `y` where both were measured."""
    paths: dict[str, list[Float]] = {}
    for cell in results.cells:
        taken = [(p.values[x], p.values[y]) for p in cell.curve if x in p.values and y in p.values]
        if cell.task == task and taken:
            paths.setdefault(cell.agent, []).append(np.array(taken, dtype=np.float64))
    return paths


def _series(agent: str, cells: Sequence[Cell], curve: Callable[[Cell], tuple[Float, Float]]) -> Series | None:
    finished = [xy for cell in cells if cell.finished and (xy := curve(cell))[0].size]
    broken = tuple(xy for cell in cells if not cell.finished and (xy := curve(cell))[0].size)
    if not finished and not broken:
        return None
    if not finished:
        nothing = np.empty(0)
        return Series(agent, nothing, nothing, nothing, nothing, broken=broken)
    level = all(x[-1] <= 0 for x, _ in finished)
    if level:
        grid, lines = np.zeros(1), np.array([[y[-1]] for _, y in finished])
    else:
        # Seeds do not spend the same number of tokens per update. Before its first and after its last checkpoint a
        # seed counts with that checkpoint: the policy it would hand over at this budget.
        grid = np.unique(np.concatenate([x for x, _ in finished]))
        lines = np.array([np.interp(grid, x, y) for x, y in finished])
    return Series(agent, grid, lines.mean(axis=0), lines.min(axis=0), lines.max(axis=0), level, broken)


def _xy(pairs: Sequence[tuple[Any, Any]]) -> tuple[Float, Float]:
    """The pairs with two finite numbers, by x."""
    kept = sorted((float(x), float(y)) for x, y in pairs if _is_finite(x) and _is_finite(y))
    array = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _thinned(x: Float, y: Float) -> tuple[Float, Float]:
    """At most a few dozen points, each the mean of neighbouring ones."""
    if x.size <= _PARTS_POINTS:
        return x, y
    bins = np.array_split(np.arange(x.size), _PARTS_POINTS)
    return np.array([x[b].mean() for b in bins]), np.array([y[b].mean() for b in bins])
