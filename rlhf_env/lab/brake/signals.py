"""What could tell that a run has gone too far, without asking anyone: one number an evaluation, larger is worse.

Each is read from the rows that a run's owner has, those since the evaluation before. NaN: nothing is known there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf_env.lab.brake.records import SavedRun
from rlhf_env.lab.evaluation.health import Watch
from rlhf_env.learning.loop import Row
from rlhf_env.types import Float

Signal = Callable[[SavedRun], Float]


def _over_windows(record: SavedRun, key: str) -> Float:
    """float64[E]: the mean of a number over the rows since the evaluation before."""
    found, before = np.full(len(record.evaluated), math.nan), -1
    for place, row in enumerate(record.evaluated):
        values = [
            value for value in (_number(it, key) for it in record.rows[before + 1 : row + 1]) if value is not None
        ]
        found[place] = float(np.mean(values)) if values else math.nan
        before = row
    return found


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _first(values: Float) -> float:
    known = values[np.isfinite(values)]
    return float(known[0]) if known.size else math.nan


def _level(key: str) -> Signal:
    return lambda record: _over_windows(record, key)


def _fallen(key: str) -> Signal:
    """The share of its first value that is gone."""

    def signal(record: SavedRun) -> Float:
        values = _over_windows(record, key)
        return 1.0 - values / (_first(values) or math.nan)

    return signal


def _risen(key: str) -> Signal:
    """How many times its first value it is."""

    def signal(record: SavedRun) -> Float:
        values = _over_windows(record, key)
        return values / (_first(values) or math.nan)

    return signal


def _drifted(key: str) -> Signal:
    """How far it is from its first value, either way: |log| of the ratio."""

    def signal(record: SavedRun) -> Float:
        values = _over_windows(record, key)
        return np.abs(np.log(np.maximum(values, 1e-9) / max(_first(values), 1e-9)))

    return signal


def _bimodal(record: SavedRun) -> Float:
    """Sarle's coefficient of the rewards of the last rollout, (skewness^2 + 1) / kurtosis: 5/9 is uniform, 1 two
    values alone."""
    found = []
    for place in record.evaluated:
        rewards = np.asarray(record.rows[place].get("texts/rewards", []), dtype=np.float64)
        spread = rewards.std() if rewards.size else 0.0
        if spread < 1e-9:
            found.append(math.nan)
            continue
        z = (rewards - rewards.mean()) / spread
        found.append(float(((z**3).mean() ** 2 + 1.0) / (z**4).mean()))
    return np.array(found)


def _alerts_of_health(record: SavedRun) -> Float:
    """How many of our own warnings a run has had."""
    watch, counts, found = Watch(), [], 0
    for row in record.rows:
        if row["update"] > 0:
            found += len(watch(row))
        counts.append(float(found))
    return np.array([counts[place] for place in record.evaluated])


def _no_better(record: SavedRun) -> Float:
    """Evaluations in a row whose objective is not above the best: what `patience` counts."""
    best, stale, found = -math.inf, 0, []
    for place in record.evaluated:
        value = _number(record.rows[place], "eval/objective")
        best, stale = (value, 0) if value is not None and value > best else (best, stale + 1)
        found.append(float(stale))
    return np.array(found)


def _updates(record: SavedRun) -> Float:
    return np.array([float(record.rows[place]["update"]) for place in record.evaluated])


SIGNALS: Mapping[str, Signal] = {
    "a fixed number of updates": _updates,
    "KL budget (`max_kl`)": _level("rollout/kl"),
    "the proxy itself, how high": _level("eval/proxy"),
    "no better objective (`patience`)": _no_better,
    "disagreement of an ensemble": _risen("texts/disagreement"),
    "entropy, share gone": _fallen("rollout/entropy"),
    "length, drift": _drifted("rollout/length"),
    "word pairs, share of different ones gone": _fallen("eval/distinct_2"),
    "different replies, share gone": _fallen("eval/distinct_replies"),
    "spread of rewards, risen": _risen("rollout/reward_std"),
    "spread of rewards, gone": _fallen("rollout/reward_std"),
    "two peaks of rewards": _bimodal,
    "gradient norm, risen": _risen("train/grad_norm"),
    "our `health` warnings": _alerts_of_health,
}


def thresholds_of(signals: Sequence[Float], most: int = 40) -> list[float]:
    """Places between the values that a signal takes: quantiles of all of them."""
    values = np.concatenate(signals) if signals else np.zeros(0)
    values = values[np.isfinite(values)]
    return sorted({float(it) for it in np.quantile(values, np.linspace(0.02, 0.99, most))}) if values.size else []
