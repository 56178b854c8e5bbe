"""How many seeds it takes to see an effect: the power of Student's test of a mean."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from rlhf_env.errors import ConfigError
from rlhf_env.lab.statistics import student_t

LEVEL, POWER = 0.95, 0.9
_GRID = 2001  # points of the integral over the sample's spread


def power_of(effect: float, spread: float, seeds: int, level: float = LEVEL) -> float:
    """The chance that the `level` interval of a mean over `seeds` lies above 0, if the mean is `effect` > 0.

    `spread` is the standard deviation from seed to seed, both in one unit. Seeds are taken to be normal: the interval
    is Student's, and its end is above 0 where sqrt(n) mean / s > t. Given s, the mean is normal; s^2 (n - 1) / spread^2
    is chi-squared, over which the integral runs.
    """
    if seeds < 2:
        raise ConfigError(f"power of {seeds} seeds: it takes two to have a spread")
    if spread <= 0.0:
        return 1.0 if effect > 0.0 else 0.0
    degrees, bound = seeds - 1, student_t((1.0 + level) / 2.0, seeds - 1)
    middle, width = math.sqrt(degrees), 8.0  # the chi distribution: mean near sqrt(degrees), deviation below 1
    chi = np.linspace(max(middle - width, 0.0), middle + width, _GRID)[1:]
    log_density = (degrees - 1) * np.log(chi) - chi**2 / 2.0 - (degrees / 2.0 - 1.0) * math.log(2.0)
    density = np.exp(log_density - math.lgamma(degrees / 2.0))
    shift = math.sqrt(seeds) * effect / spread
    above = np.array([NormalDist().cdf(shift - bound * x / math.sqrt(degrees)) for x in chi])
    return float((density * above).sum() / density.sum())


def seeds_needed(effect: float, spread: float, power: float = POWER, *, most: int = 100_000) -> int | None:
    """The fewest seeds (two or more) with which `power_of` reaches `power`; None where `most` do not."""
    if effect <= 0.0:
        return None
    low, high = 1, 2
    while power_of(effect, spread, high) < power:
        low, high = high, 2 * high
        if low > most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(effect, spread, middle) >= power else (middle, high)
    return high if high <= most else None
