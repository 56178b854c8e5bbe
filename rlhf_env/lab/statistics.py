"""What may be concluded from a few seeds: robust averages, intervals, tests, and the words they allow.

**scores** are float64[S, K], one number per seed and task, higher is better, for one agent; two agents that are
compared have the same seeds in the same rows. Averages and the stratified bootstrap (resampling seeds within each task)
follow Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice" (arXiv 2108.13264). All draws come from
the `stream` that is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Literal

import numpy as np

from rlhf_env.errors import DataError
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.types import Float

Statistic = Callable[[Float], float]
AgentVerdict = Literal["better", "worse", "inconclusive"]

# Fewer shared seeds than this carry numbers, but no statement about which agent is better.
SEEDS_FOR_A_CLAIM = 5
_EXACT_UP_TO = 14  # signs of this many seeds are all tried: 2^14 sums


# ---------------------------------------------------------------- averages


def mean(scores: Float) -> float:
    """The mean over seeds and tasks."""
    return float(_checked(scores).mean())


def interquartile_mean(scores: Float) -> float:
    """The mean of the middle half of all S * K scores: floor(S K / 4) are left out at each end.

    Less shaken by a single bad seed than the mean, and less wasteful than the median.

    >>> interquartile_mean(np.array([[0.0], [1.0], [2.0], [100.0]]))
    1.5
    """
    ordered = np.sort(_checked(scores), axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def optimality_gap(scores: Float, target: float = 1.0) -> float:
    """How far the scores fall short of `target` on average; what lies above it makes up for nothing."""
    return float(np.maximum(target - _checked(scores), 0.0).mean())


def performance_profile(scores: Float, thresholds: Float) -> Float:
    """float64[N]: the share of runs above each of the `thresholds` [N], every task weighing the same."""
    return np.asarray((_checked(scores)[..., None] > np.asarray(thresholds)).mean(axis=(0, 1)), dtype=np.float64)


def probability_of_improvement(scores: Float, others: Float) -> float:
    """How likely a run of the first agent scores above a run of the second on the same task, mean over tasks.

    The Mann-Whitney statistic: all S * S pairs are compared, and ties count half.

    >>> probability_of_improvement(np.array([[1.0], [2.0]]), np.array([[0.0], [2.0]]))
    0.625
    """
    a, b = _pair(scores, others, same_seeds=False)
    difference = a[:, None, :] - b[None, :, :]
    return float((np.sign(difference) / 2.0 + 0.5).mean())


def pass_at_k(answers: int, successes: int, k: int) -> float:
    """How likely k of the `answers` to a prompt, drawn without replacement, hold one of the `successes`.

    1 - C(n - c, k) / C(n, k): the unbiased estimator of "at least one of k new answers is a success" (Chen et al. 2021,
    arXiv 2107.03374, eq. 1). In whole numbers to the last division, so that it is exact to a rounding.

    >>> pass_at_k(10, 2, 5)
    0.7777777777777778
    """
    if not 0 <= successes <= answers or not 1 <= k <= answers:
        raise DataError(f"pass@{k} of {answers} answers, {successes} of them right: these numbers do not fit together")
    every = math.comb(answers, k)
    return (every - math.comb(answers - successes, k)) / every


# ---------------------------------------------------------------- intervals


@dataclass(frozen=True)
class Estimate:
    """A number and its interval."""

    value: float
    low: float | None
    """The lower end; None without an interval."""
    high: float | None
    level: float = 0.95
    """The share of experiments whose interval covers the truth."""

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


def estimate(
    statistic: Callable[..., float],
    *samples: Float,
    stream: np.random.Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> Estimate:
    """`statistic(*samples)` with its stratified bootstrap interval; no interval from a single seed.

    Seeds are redrawn within each task; where there are several samples, each by itself (for pairs take differences
    first). The percentiles are those of Hesterberg 2015 (arXiv 1411.5279, sec. 4.2), widened as Student's t and the
    n - 1 of a sample's variance demand: plain percentiles cover 90 % instead of 95 % at ten seeds.
    """
    checked = [_checked(sample) for sample in samples]
    value, seeds = statistic(*checked), min(len(sample) for sample in checked)
    if seeds < 2:
        return Estimate(value, None, None, level)
    redrawn = [statistic(*(_redraw(sample, stream) for sample in checked)) for _ in range(resamples)]
    low, high = widened_percentiles(redrawn, seeds, level)
    return Estimate(value, low, high, level)


def mean_of_seeds(scores: Float, level: float = 0.95, *, paired: bool = False) -> Estimate:
    """The mean of scores float64[S, K] and its interval, made for a few seeds of any shape.

    A seed is one number, its mean over the tasks. From three seeds on, each end is the outer one of two intervals:
    Student's, which holds for symmetric scores (the differences of pairs), and Hall's transformation of it (Hall 1992,
    JRSS B 54), which has the skewness in it. At ten seeds Student's alone covers 95 % where scores are normal, 89 %
    where they are exponential and 83 % where they are lognormal; this 96, 95 and 92 %
    (`benchmarks/interval_coverage.py`, also on what it costs in width).

    Where seeds have two values only (solved and not solved), it is Wilson's interval of their shares, unless they are
    `paired` differences: of those, a third value may just not have been seen. Where all are alike there is no interval:
    nothing says how far another seed would be.
    """
    of_seeds = _checked(scores).mean(axis=1)
    value, seeds = mean(scores), len(of_seeds)
    below, above = float(of_seeds.min()), float(of_seeds.max())
    rounding = 1e-12 * max(abs(below), abs(above))
    if above - below <= rounding:
        return Estimate(value, None, None, level)
    if not paired and seeds > 2 and bool((np.minimum(of_seeds - below, above - of_seeds) <= rounding).all()):
        low, high = wilson_interval(float((above - of_seeds <= rounding).mean()), seeds, level)
        return Estimate(value, below + (above - below) * low, below + (above - below) * high, level)
    error = float(of_seeds.std(ddof=1)) / math.sqrt(seeds)
    t = student_t((1.0 + level) / 2.0, seeds - 1)
    if seeds < 3:
        return Estimate(value, value - t * error, value + t * error, level)
    third = float(((of_seeds - value) ** 3).sum()) * seeds / ((seeds - 1) * (seeds - 2))
    skew = third / (error**3 * seeds**2)  # the unbiased third moment over the cubed deviation, over the root of seeds
    low, high = (-_hall(bound, skew) * error for bound in (t, -t))
    return Estimate(value, value + min(low, -t * error), value + max(high, t * error), level)


def _hall(x: float, skew: float) -> float:
    """The t at which Hall's g(t) = t + a t^2 / 3 + a^2 t^3 / 27 + a / 6 is `x`, with a = `skew` / sqrt(seeds)."""
    if abs(skew) < 1e-9:
        return x
    return 3.0 / skew * (float(np.cbrt(1.0 + skew * (x - skew / 6.0))) - 1.0)


def widened_percentiles(redrawn: Sequence[float], seeds: int, level: float = 0.95) -> tuple[float, float]:
    """The interval that bootstrap values of samples of this many `seeds` (two or more) give, as `estimate` has it."""
    wide = math.sqrt(seeds / (seeds - 1)) * student_t((1.0 + level) / 2.0, seeds - 1)
    tail = NormalDist().cdf(-wide)
    low, high = np.quantile(redrawn, [tail, 1.0 - tail])
    return float(low), float(high)


def student_mean(values: Float, units: Sequence[str] | None = None, level: float = 0.95) -> Estimate:
    """The mean of float64[N] with Student's interval; none from a single value.

    Values of one of the `units` (the prompt that each answers) are not independent: units are what is counted.
    """
    mean = float(values.mean())
    counted = values if units is None else by_unit(values, units)
    if len(counted) < 2:
        return Estimate(mean, None, None, level)
    wide = student_t((1.0 + level) / 2.0, len(counted) - 1) * float(counted.std(ddof=1)) / math.sqrt(len(counted))
    return Estimate(mean, mean - wide, mean + wide, level)


def by_unit(values: Float, units: Sequence[str]) -> Float:
    """float64[U]: a number for each unit (a prompt), with the mean of all values [N] and the spread of the units.

    Where each has as many values, it is the unit's mean; otherwise a unit counts by how many it has (the linearised
    ratio estimator of a cluster sample, Cochran 1977, "Sampling Techniques", 6.3). Of a single unit there is no spread
    between units: its own values are given back, and speak of that unit alone.
    """
    number = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
    if len(number) in (1, len(values)):
        return values
    mean, sums = float(values.mean()), np.zeros(len(number))
    np.add.at(sums, [number[unit] for unit in units], values - mean)
    return np.asarray(mean + sums * (len(number) / len(values)), dtype=np.float64)


def _redraw(scores: Float, stream: np.random.Generator) -> Float:
    rows = stream.integers(len(scores), size=scores.shape)
    return np.take_along_axis(scores, rows, axis=0)


def student_t(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution with a whole number of `degrees` of freedom."""
    if probability < 0.5:
        return -student_t(1.0 - probability, degrees)
    low, high = 0.0, 1.0
    while _student_cdf(high, degrees) < probability:
        low, high = high, 2.0 * high
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _student_cdf(middle, degrees) < probability else (low, middle)
    return high


def _student_cdf(t: float, degrees: int) -> float:
    """P(T <= t) for t >= 0 as a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(2 + odd, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if degrees == 1:
        total = 0.0
    return 0.5 + (angle + sine * total) / math.pi if odd else 0.5 + 0.5 * sine * total


# ---------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class PairedComparison:
    """One agent against another."""

    difference: Estimate
    """The mean of the paired differences."""
    p: float
    """Two-sided, of the test that neither is better."""
    adjusted: float
    """`p` after Holm's correction for all comparisons made together."""
    verdict: AgentVerdict


def compare(
    scores: Mapping[str, Float],
    against: str,
    *,
    stream: np.random.Generator,
    level: float = 0.95,
) -> dict[str, PairedComparison]:
    """Every other agent of `scores` compared with `against` on shared seeds.

    "better" or "worse" needs all of: five seeds, an interval that leaves out 0 (or differences that are all alike), and
    a p-value below 1 - `level` after Holm's correction (for which `seeds_for_a_verdict` are needed). Everything else is
    "inconclusive", which is not "equal".
    """
    if against not in scores:
        raise DataError(f"there are no scores of {against!r}, only of {', '.join(scores)}")
    others = [name for name in scores if name != against]
    pairs = [_pair(scores[name], scores[against]) for name in others]
    differences = [a - b for a, b in pairs]
    estimates = [mean_of_seeds(d, level, paired=True) for d in differences]
    tests = [sign_flip_p(d, stream=stream) for d in differences]
    return {
        name: PairedComparison(difference, p, adjusted, _verdict(difference, adjusted, len(d), 1.0 - level))
        for name, difference, d, p, adjusted in zip(others, estimates, differences, tests, holm(tests), strict=True)
    }


def _verdict(difference: Estimate, p: float, seeds: int, alpha: float) -> AgentVerdict:
    alike = difference.low is None and difference.value != 0.0
    if seeds < SEEDS_FOR_A_CLAIM or p >= alpha or not (difference.excludes_zero or alike):
        return "inconclusive"
    return "better" if difference.value > 0.0 else "worse"


def sign_flip_p(differences: Float, *, stream: np.random.Generator, draws: int = 20_000) -> float:
    """Two-sided p-value of paired differences float64[S, K]: how often random signs give a mean as far from 0.

    If neither agent is better, a seed's difference is as likely as its opposite (Fisher's randomisation test). A seed
    keeps its sign over all tasks. All 2^S signs are tried up to 14 seeds, else `draws` of them.
    """
    of_seeds = _checked(differences).mean(axis=1)
    seeds = len(of_seeds)
    if seeds <= _EXACT_UP_TO:
        signs = np.array(list(product((1.0, -1.0), repeat=seeds)))
    else:
        drawn = stream.integers(2, size=(draws - 1, seeds)) * 2.0 - 1.0
        signs = np.concatenate([np.ones((1, seeds)), drawn])  # what was seen is one of the possibilities
    sums = np.abs(signs @ of_seeds)
    seen = abs(of_seeds.sum())
    # Sums that are equal may differ by a rounding of their terms, which seen itself, being near 0, may be far below.
    return float((sums >= seen - 1e-9 * float(np.abs(of_seeds).sum())).mean())


def least_p(seeds: int, comparisons: int) -> float:
    """The smallest p-value after Holm's correction that this many shared seeds allow: every seed has the same sign.

    >>> least_p(10, 3)
    0.005859375
    """
    return min(1.0, 2.0 ** (1 - seeds) * max(1, comparisons))


def seeds_for_a_verdict(comparisons: int, level: float = 0.95) -> int:
    """How many shared seeds it takes for a verdict: with fewer, no difference is large enough.

    The first whole number above 1 + log2(comparisons / (1 - `level`)), and never fewer than `SEEDS_FOR_A_CLAIM`.

    >>> [seeds_for_a_verdict(comparisons) for comparisons in (1, 5, 20)]
    [6, 8, 10]
    """
    seeds = SEEDS_FOR_A_CLAIM
    while least_p(seeds, comparisons) >= 1.0 - level:
        seeds += 1
    return seeds


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for being many (Holm 1979): reject those below alpha, and all are right with 1 - alpha.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    least = 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = least
    return corrected


# ---------------------------------------------------------------- checks


def _checked(scores: object) -> Float:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not values.size:
        raise DataError(f"scores have a row per seed and a column per task, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise DataError("a score is not finite: give runs that failed the score of the floor")
    return values


def _pair(scores: Float, others: Float, *, same_seeds: bool = True) -> tuple[Float, Float]:
    a, b = _checked(scores), _checked(others)
    if a.shape[1] != b.shape[1] or (same_seeds and len(a) != len(b)):
        raise DataError(f"agents are compared on the same tasks and seeds, got scores of shapes {a.shape}, {b.shape}")
    return a, b
