"""One stream of random numbers per row: what a row draws does not depend on what other rows draw, or how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from rlhf_env.errors import DataError
from rlhf_env.types import Bool, Float, Int, State

_STEP = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd


class RowStreams:
    """The n-th number of row i is a function of (seed, i, n) alone: SplitMix64 (Steele, Lea, Flood 2014), keyed by row.

    A row takes one number for each token. So it makes no difference whether a text is written in one call or token by
    token, or how long the texts of other rows are.
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        self._start = np.random.SeedSequence(self.seed).generate_state(1, np.uint64)
        self._taken = np.zeros(0, np.uint64)  # numbers taken so far, of the rows seen so far

    @classmethod
    def of(cls, state: Mapping[str, object]) -> Self:
        """The streams that gave `state`. DataError if it is the state of something else."""
        seed, taken = state.get("seed"), state.get("taken")
        if not isinstance(seed, int) or not isinstance(taken, list):
            raise DataError("the state of the sampling streams is not of this version of rlhf-env: start the run anew")
        streams = cls(seed)
        streams._taken = np.array(taken, np.uint64)
        return streams

    def state(self) -> State:
        """The seed and how many numbers each row has taken, ready for JSON."""
        return {"seed": self.seed, "taken": self._taken.tolist()}

    def next(self, rows: int, length: int) -> Float:
        """The next numbers of the first `rows` rows, float64[rows, length] in [0, 1). They count as taken by `take`."""
        taken = self._taken_by(rows)
        keys = _mixed(self._start + np.arange(1, rows + 1, dtype=np.uint64) * _STEP)
        indices = taken[:, None] + np.arange(1, length + 1, dtype=np.uint64)
        numbers: Float = (_mixed(keys[:, None] + indices * _STEP) >> np.uint64(11)) * 2.0**-53
        return numbers

    def take(self, counts: Int | Bool) -> None:
        """Row i has taken counts[i] numbers more."""
        self._taken_by(len(counts))
        self._taken[: len(counts)] += np.asarray(counts, np.uint64)

    def _taken_by(self, rows: int) -> Any:
        missing = rows - len(self._taken)
        if missing > 0:
            self._taken = np.pad(self._taken, (0, missing))
        return self._taken[:rows]


def _mixed(z: Any) -> Any:
    """SplitMix64's output function, element by element on uint64; the overflow is intended."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
