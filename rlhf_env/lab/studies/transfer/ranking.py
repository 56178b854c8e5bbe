"""Rank correlation of two rankings that were measured with noise, and what its two intervals cover.

**scores** are float64[S, A], a number per seed and setting, higher is better. A ranking orders the settings by their
mean over seeds. Two questions are asked of the correlation of two such rankings, and each has its own interval:

- *What would other seeds have given?* Seeds are redrawn within each setting (`redrawn`).
- *What is it between the rankings of the expected scores?* Where settings are close, noise alone makes an order, so the
  measured correlation is drawn towards 0, and redrawing draws it there again: that interval misses a true 1 as soon as
  noise is as large as the gaps. `compatible` is made for this question: each expected score lies in its Student
  interval, all of both sizes together with 95 % (Sidak), and the ends are the lowest and the highest correlation of
  rankings that these allow. It covers at least 95 %, whatever the gaps; it is wide where seeds are few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rlhf_env.errors import DataError
from rlhf_env.feedback.reward_models.ranks import spearman
from rlhf_env.lab.statistics import student_t, widened_percentiles
from rlhf_env.types import Float

_RESAMPLES = 2000
_EXPECTED = 1000  # draws of the expected scores of a size: every pair of a draw here and one there is a correlation


@dataclass(frozen=True)
class RankAgreement:
    """Spearman's correlation of the rankings by mean score."""

    rho: float | None
    """None where all settings of a size have one score: there is no order."""
    redrawn: tuple[float, float] | None
    """95 % of what other seeds would have given; None from a single seed."""
    compatible: tuple[float, float] | None
    """Of the rankings of the expected scores, with at least 95 %; None from a single seed."""

    @property
    def verdict(self) -> str:
        """Whether the ranking transfers, by the interval that covers the truth."""
        if self.compatible is None or self.compatible[0] <= 0.0 <= self.compatible[1]:
            return "inconclusive"
        return "transfers" if self.compatible[0] > 0.0 else "turns around"


def average_ranks(scores: Float) -> Float:
    """float64[..., A]: the rank of each score along the last axis, 1 for the lowest; equal scores share their mean.

    >>> average_ranks(np.array([0.3, 0.1, 0.3]))
    array([2.5, 1. , 2.5])
    """
    values = np.asarray(scores, dtype=np.float64)
    below = (values[..., None, :] < values[..., :, None]).sum(axis=-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(axis=-1)
    return np.asarray(below + (equal + 1) / 2.0, dtype=np.float64)


def rank_agreement(scores: Float, others: Float, *, stream: np.random.Generator, level: float = 0.95) -> RankAgreement:
    """The correlation of the rankings by `scores` and by `others`, settings in the same columns, seeds each its own."""
    a, b = _checked_scores(scores), _checked_scores(others)
    if a.shape[1] != b.shape[1]:
        raise DataError(f"rankings of the same settings are compared, got {a.shape[1]} and {b.shape[1]}")
    rho = spearman(a.mean(axis=0), b.mean(axis=0))
    measured = None if rho is None else min(1.0, max(-1.0, rho))
    seeds = min(len(a), len(b))
    if measured is None or seeds < 2:
        return RankAgreement(measured, None, None)
    drawn = (_unit_ranks(_means_redrawn(a, stream)) * _unit_ranks(_means_redrawn(b, stream))).sum(axis=1)
    drawn = drawn[np.isfinite(drawn)]
    low, high = widened_percentiles(drawn.tolist(), seeds, level)
    together = level ** (1.0 / (2 * a.shape[1]))
    possible = _unit_ranks(_means_allowed(a, together, stream)) @ _unit_ranks(_means_allowed(b, together, stream)).T
    lowest, highest = float(np.nanmin(possible)), float(np.nanmax(possible))
    return RankAgreement(
        measured,
        (_within(min(low, measured)), _within(max(high, measured))),
        (_within(min(lowest, measured)), _within(max(highest, measured))),
    )


def _unit_ranks(scores: Float) -> Float:
    """Ranks along the last axis, centred and of length 1, so that a product of two is their correlation."""
    ranks = average_ranks(scores)
    centred = ranks - ranks.mean(axis=-1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=-1, keepdims=True))
    return np.asarray(np.divide(centred, length, out=np.full_like(centred, np.nan), where=length > 0.0))


def _means_redrawn(scores: Float, stream: np.random.Generator) -> Float:
    """float64[R, A]: means over seeds that are redrawn within each setting."""
    seeds, settings = scores.shape
    rows = stream.integers(seeds, size=(_RESAMPLES, seeds, settings))
    return np.asarray(scores[rows, np.arange(settings)].mean(axis=1))


def _means_allowed(scores: Float, level: float, stream: np.random.Generator) -> Float:
    """float64[R, A]: expected scores within the Student interval of each setting at `level`, the means among them."""
    seeds, settings = scores.shape
    wide = student_t((1.0 + level) / 2.0, seeds - 1) * scores.std(axis=0, ddof=1) / math.sqrt(seeds)
    drawn = stream.uniform(-1.0, 1.0, size=(_EXPECTED, settings))
    drawn[0] = 0.0
    return np.asarray(scores.mean(axis=0) + wide * drawn)


def _within(correlation: float) -> float:
    """Without what a rounding has beyond 1."""
    return min(1.0, max(-1.0, correlation))


def _checked_scores(scores: Float) -> Float:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2:
        raise DataError(f"scores have a row per seed and a column per setting, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise DataError("a score is not finite: give runs that failed the score of the floor")
    return values
