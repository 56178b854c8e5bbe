"""Reward against distance from the reference: the laws of over-optimisation, their peaks, and best-of-n.

Gao, Schulman and Hilton 2023 (arXiv 2210.10760) put all optimisation on one axis, d = sqrt(KL(policy || reference)),
and found the gold reward, in excess of the reference's, to follow

    best-of-n:  R(d) = d (a - b d)          with its peak at d = a / (2 b)
    RL:         R(d) = d (a - b log d)      with its peak at d = exp(a / b - 1)

Both are linear in a and b: least squares has one solution. Nothing here draws but from the `stream` that is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from rlhf_env.errors import DataError
from rlhf_env.lab.statistics import Estimate, widened_percentiles
from rlhf_env.types import Float, Int

LawForm = Literal["best-of-n", "rl"]

# Below this share of the variance explained, a fit is said to fail.
ENOUGH_EXPLAINED = 0.8


@dataclass(frozen=True)
class Law:
    """One of the two forms with its coefficients. `a` is what a first step earns, `b` how fast that wears off."""

    form: LawForm
    a: float
    b: float

    def __call__(self, distance: Float) -> Float:
        """R(d), of the shape of `distance` >= 0; 0 at 0."""
        bent, straight = _columns(self.form, np.asarray(distance, dtype=np.float64))
        return np.asarray(self.a * straight - self.b * bent)

    @property
    def peak(self) -> float | None:
        """The d of the highest reward; None where the curve does not bend down, or falls from the start."""
        if self.b <= 0.0 or (self.form == "best-of-n" and self.a <= 0.0):
            return None
        if self.form == "best-of-n":
            return self.a / (2.0 * self.b)
        exponent = self.a / self.b - 1.0
        return math.exp(exponent) if exponent < 700.0 else None

    def best_within(self, end: float) -> tuple[float, float]:
        """(d, R(d)) where the curve is highest on [0, `end`]: at the peak if that is inside, or else at an end."""
        places = np.array([0.0, end, *([self.peak] if self.peak is not None and self.peak < end else [])])
        heights = self(places)
        best = int(heights.argmax())
        return float(places[best]), float(heights[best])


def fit_law(form: LawForm, distance: Float, reward: Float) -> Law:
    """Least squares; `distance` and `reward` float64[C]. Raises DataError for fewer than two different d above 0."""
    d = np.asarray(distance, dtype=np.float64)
    if len(np.unique(d[d > 0.0])) < 2:
        raise DataError(f"a law of two coefficients needs two different distances above 0, got {len(d)} points")
    bent, straight = _columns(form, d)
    (a, b), *_ = np.linalg.lstsq(np.stack([straight, -bent], axis=1), np.asarray(reward, dtype=np.float64), rcond=None)
    return Law(form, float(a), float(b))


def explained(law: Law, distance: Float, reward: Float) -> float:
    """R^2: 1 - residual over total sum of squares; negative where the mean would do better, NaN of equal rewards."""
    values = np.asarray(reward, dtype=np.float64)
    total = float(((values - values.mean()) ** 2).sum())
    return 1.0 - float(((values - law(distance)) ** 2).sum()) / total if total > 0.0 else math.nan


def _columns(form: LawForm, d: Float) -> tuple[Float, Float]:
    """What -b and a multiply."""
    if form == "best-of-n":
        return d * d, d
    return d * np.log(np.where(d > 0.0, d, 1.0)), d


# ---------------------------------------------------------------- fits with intervals


@dataclass(frozen=True)
class Curve:
    """One seed's measurements: `distance` float64[C], and `reward` float64[C, P], a column per prompt that can be
    redrawn (P = 1: only means over prompts are known)."""

    distance: Float
    reward: Float


@dataclass(frozen=True)
class Fit:
    """A law fitted to the curves of all seeds, with bootstrap intervals.

    `r2` is of all points together, `r2_alone` the median over seeds of a law fitted to each alone: where only the
    former is low, seeds differ, and where both are, the form is wrong. `peak` and `highest` are d and R(d) where the
    fitted curve is highest on [0, `end`], the data's range; `beyond` is the share of redrawn experiments whose peak was
    not inside it.
    """

    law: Law
    r2: float
    r2_alone: float
    end: float
    a: Estimate
    b: Estimate
    peak: Estimate
    highest: Estimate
    beyond: float

    @property
    def doubts(self) -> list[str]:
        """Where the fit fails, in words; empty where it holds."""
        found = []
        if not self.r2_alone >= ENOUGH_EXPLAINED:
            found.append(
                f"R^2 is {self.r2:.2f}, {self.r2_alone:.2f} within a seed: the form does not describe the points"
            )
        elif not self.r2 >= ENOUGH_EXPLAINED:
            found.append(f"R^2 is {self.r2:.2f}, {self.r2_alone:.2f} within a seed: the form fits, and seeds differ")
        if self.b.low is None or self.b.high is None or not self.b.excludes_zero:
            found.append("the interval of b includes 0: whether the reward turns down is uncertain")
        elif self.b.high < 0.0:
            found.append("b is negative: the curve bends upwards and has no peak")
        if self.law.peak is None:
            found.append(f"no peak: the reward still rises, or only falls, over the data (d up to {self.end:.2f})")
        elif self.law.peak > self.end:
            found.append(f"the peak, at d = {self.law.peak:.2f}, lies outside the data, which end at {self.end:.2f}")
        elif self.beyond > 0.025:
            found.append(f"in {100 * self.beyond:.0f} % of redrawn experiments the peak lies outside the data")
        return found


def fit_with_intervals(
    form: LawForm,
    curves: Sequence[Curve],
    *,
    stream: np.random.Generator,
    level: float = 0.95,
    resamples: int = 1000,
) -> Fit:
    """Fit the points of all seeds together; seeds and, where there are several, prompts are redrawn for the intervals.

    The same prompts are taken of every seed: both are crossed, not nested. Percentiles are widened for few seeds as in
    `statistics.estimate`; from a single seed there are no intervals.
    """
    prompts = curves[0].reward.shape[1]
    if any(curve.reward.shape[1] != prompts for curve in curves):
        raise DataError("the curves of all seeds are over the same prompts")
    end = max(float(curve.distance.max()) for curve in curves)

    def refit(seeds: Sequence[int], columns: Int | slice) -> Law:
        d = np.concatenate([curves[i].distance for i in seeds])
        reward = np.concatenate([curves[i].reward[:, columns].mean(axis=1) for i in seeds])
        return fit_law(form, d, reward)

    everyone = range(len(curves))
    law = refit(everyone, slice(None))
    d = np.concatenate([curve.distance for curve in curves])
    r2 = explained(law, d, np.concatenate([curve.reward.mean(axis=1) for curve in curves]))
    alone = [
        explained(fit_law(form, curve.distance, means), curve.distance, means)
        for curve, means in ((curve, curve.reward.mean(axis=1)) for curve in curves)
    ]
    redrawn = []
    if len(curves) > 1:
        for _ in range(resamples):
            seeds = stream.integers(len(curves), size=len(curves)).tolist()
            redrawn.append(refit(seeds, np.asarray(stream.integers(prompts, size=prompts))))

    def interval(value: float, values: list[float]) -> Estimate:
        low, high = widened_percentiles(values, len(curves), level) if values else (None, None)
        return Estimate(value, low, high, level)

    best = [it.best_within(end) for it in redrawn]
    peak, highest = law.best_within(end)
    outside = [it.peak is None or it.peak > end for it in redrawn]
    return Fit(
        law,
        r2,
        float(np.median(alone)),
        end,
        interval(law.a, [it.a for it in redrawn]),
        interval(law.b, [it.b for it in redrawn]),
        interval(peak, [place for place, _ in best]),
        interval(highest, [height for _, height in best]),
        float(np.mean(outside)) if outside else math.nan,
    )


# ---------------------------------------------------------------- best-of-n from one pool


def best_of_n_weights(scores: Float, n: int) -> Float:
    """float64[N]: the chance that the best of `n` drawn from these N without replacement is this one.

    Weighting any measure of the N samples with it gives the unbiased estimate, of least variance, of that measure's
    mean under best-of-n (Nakano et al. 2021, arXiv 2112.09332, appendix I): of N ranked samples the i-th lowest is the
    best in C(i - 1, n - 1) of the C(N, n) draws. Samples of equal score share alike.
    """
    by_rank = _weights_by_rank(len(scores), n)
    _, same, copies = np.unique(scores, return_inverse=True, return_counts=True)
    ranked = np.sort(same)
    return np.asarray((np.bincount(ranked, weights=by_rank) / copies)[same])


@cache
def _weights_by_rank(size: int, n: int) -> Float:
    if not 1 <= n <= size:
        raise DataError(f"best of {n} from a pool of {size} samples: n is 1 to {size}")
    all_draws = math.comb(size, n)
    return np.array([math.comb(below, n - 1) / all_draws for below in range(size)])


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n nats: KL(best-of-n || policy) where no two samples are ever equal, otherwise a bound
    (Beirami et al. 2024, arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n


def estimated_best_of_n_kl(scores: Float, logprobs: Float, n: int) -> float:
    """KL(best-of-n || policy) in nats, of one prompt, from N samples of the policy and their log-probabilities.

    Best-of-n gives y with probability (F + p)^n - F^n, where p is y's own and F that of all scores below y's. p is
    known exactly; log F is estimated from ranks, H(below) - H(N) with harmonic numbers H, which is unbiased where
    samples do not repeat: then this is `best_of_n_kl`, exactly. What it adds is how far samples that do repeat lower
    it.
    """
    size = len(scores)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, size + 1))])
    ordered = np.sort(scores)
    below = np.searchsorted(ordered, scores, side="left")
    p = np.exp(np.asarray(logprobs, dtype=np.float64))
    lower = np.minimum(np.exp(harmonic[below] - harmonic[size]), 1.0 - p)
    upper = lower + p
    with np.errstate(divide="ignore"):
        # log((F + p)^n - F^n) - log p, in a form that keeps p as small as exp(-100)
        share = np.log(-np.expm1(n * np.log1p(-np.minimum(p / upper, 1.0))))
    ratio = n * np.log(upper) + share - logprobs
    return float(best_of_n_weights(scores, n) @ ratio)
