"""From scores to odds: what a difference of two scores says about a preference, and whether it is true.

A Bradley-Terry score is a log-odds: the difference of two says how many people in a hundred would choose the one.
A calibrated model's 0.8 means four to one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from rlhf_env.errors import DataError
from rlhf_env.types import Float


def win_probability(delta: npt.ArrayLike) -> Float:
    """P(a preferred to b) = sigmoid(delta), delta = score(a) - score(b) in log-odds; without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -np.asarray(delta, dtype=np.float64))))


def log_odds(probability: npt.ArrayLike) -> Float:
    """log(p / (1 - p)), the inverse of `win_probability`; -inf at 0, inf at 1. DataError outside [0, 1]."""
    p = np.asarray(probability, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError("a probability is between 0 and 1")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(p) - np.log1p(-p))


@dataclass(frozen=True)
class Bin:
    """Pairs of like confidence: what the model `stated` on average, and the share in which it was right (`observed`).

    `low` and `high` are the 95 % Wilson interval of `observed`.
    """

    pairs: int
    stated: float
    observed: float
    low: float
    high: float


def reliability(delta: npt.ArrayLike, *, bins: int = 10) -> list[Bin]:
    """The points of a reliability diagram; `delta` float[P] = score(chosen) - score(rejected) in log-odds.

    The model's confidence in a pair is that in the response it prefers, between 1/2 and 1; it is right where delta > 0
    (delta = 0 counts 1/2). Bins hold equally many pairs, so that none is empty.
    """
    delta = np.asarray(delta, dtype=np.float64)
    if delta.ndim != 1 or not delta.size:
        raise DataError("a reliability diagram needs the score differences of one or more pairs")
    confidence, right = win_probability(np.abs(delta)), _right(delta)
    order = np.argsort(confidence, kind="stable")
    points = []
    for rows in np.array_split(order, min(bins, len(order))):
        observed = float(right[rows].mean())
        low, high = wilson_interval(observed, len(rows))
        points.append(Bin(len(rows), float(confidence[rows].mean()), observed, low, high))
    return points


def expected_calibration_error(delta: npt.ArrayLike, *, bins: int = 10) -> float:
    """Mean over pairs of |stated - observed| of their bin (Naeini et al. 2015), with bins of equal size.

    Never 0 on finite data, not even for a calibrated model: compare with `calibration_error_by_chance`.
    """
    points = reliability(delta, bins=bins)
    return sum(it.pairs * abs(it.stated - it.observed) for it in points) / sum(it.pairs for it in points)


def calibration_error_by_chance(
    delta: npt.ArrayLike, rng: np.random.Generator, *, bins: int = 10, draws: int = 200
) -> float:
    """The mean calibration error that a calibrated model with these confidences would show on as many pairs."""
    size = np.abs(np.asarray(delta, dtype=np.float64))
    right = rng.random((draws, len(size))) < win_probability(size)
    return float(np.mean([expected_calibration_error(np.where(row, size, -size), bins=bins) for row in right]))


def brier_score(delta: npt.ArrayLike) -> float:
    """Mean of (1 - P(chosen preferred))^2 (Brier 1950): 0 is perfect, 1/4 is a coin."""
    return float(np.mean(np.square(win_probability(-np.asarray(delta, dtype=np.float64)))))


def wilson_interval(share: float, count: float, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share of `count` independent trials (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Accuracy:
    """A share of `pairs` judged rightly, and the interval around it."""

    value: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] on {self.pairs} pairs"


def accuracy_with_interval(chosen: Float, rejected: Float, confidence: float = 0.95) -> Accuracy:
    """How often the chosen response scores higher (equal scores count 1/2), with Wilson's interval.

    The interval takes the pairs to be independent: one pair per prompt.
    """
    if len(chosen) != len(rejected) or not len(chosen):
        raise DataError(f"accuracy needs as many chosen as rejected scores, got {len(chosen)} and {len(rejected)}")
    share = float(np.mean(_right(np.asarray(chosen) - np.asarray(rejected))))
    return Accuracy(share, *wilson_interval(share, len(chosen), confidence), len(chosen))


def _right(delta: Float) -> Float:
    return np.asarray((delta > 0) + 0.5 * (delta == 0), dtype=np.float64)
