"""Rank correlations with intervals: Spearman and Kendall."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from rlhf_env.types import Float


def spearman(a: Float, b: Float) -> float | None:
    """Pearson's correlation of the ranks, those of ties averaged; None when one of the two does not vary."""
    one, other = (_ranks(np.asarray(side, dtype=np.float64)) for side in (a, b))
    if any(side.size < 2 or side.min() == side.max() for side in (one, other)):
        return None
    return float(np.corrcoef(one, other)[0, 1])


def kendall(a: Float, b: Float) -> float | None:
    """Kendall's tau-b (1945): (concordant - discordant) / sqrt(pairs untied in a * pairs untied in b); None without.

    Quadratic in time, linear in memory.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    balance = untied_a = untied_b = 0.0
    for i in range(len(a) - 1):
        one, other = np.sign(a[i + 1 :] - a[i]), np.sign(b[i + 1 :] - b[i])
        balance += float(one @ other)
        untied_a += float(one @ one)
        untied_b += float(other @ other)
    return balance / float(np.sqrt(untied_a * untied_b)) if untied_a and untied_b else None


def spearman_interval(rho: float, count: int) -> tuple[float, float]:
    """95 %, by Fisher's z with variance 1.06 / (count - 3) (Fieller, Hartley and Pearson 1957); [-1, 1] below 5."""
    return _fisher_interval(rho, 1.06 / (count - 3) if count > 4 else np.inf)


def kendall_interval(tau: float, count: int) -> tuple[float, float]:
    """95 %, by Fisher's z with variance 0.437 / (count - 4) (Fieller, Hartley and Pearson 1957); [-1, 1] below 5."""
    return _fisher_interval(tau, 0.437 / (count - 4) if count > 4 else np.inf)


def _fisher_interval(value: float, variance: float) -> tuple[float, float]:
    if abs(value) >= 1.0 and np.isfinite(variance):
        return value, value
    half = NormalDist().inv_cdf(0.975) * float(np.sqrt(variance))
    middle = float(np.arctanh(np.clip(value, -0.999999, 0.999999)))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


def _ranks(values: Float) -> Float:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: Float = (last - (count - 1) / 2)[place]
    return ranks
