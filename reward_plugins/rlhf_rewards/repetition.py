"""A penalty for repeated words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlhf_env.errors import ConfigError
from rlhf_env.types import Episode, Float
from rlhf_rewards.ngrams import ngrams, words


@dataclass(frozen=True)
class Repetition:
    """-(share of repeats among the n-grams of 1 to `n` words), in (-1, 0]; an empty text scores 0.

    "great great great" with n = 2 has three words and two pairs, of which one word and one pair are no repeats:
    -(1 - 2 / 5) = -0.6.
    """

    n: int = 2

    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 1:
            raise ConfigError(f"n: a number of words of at least 1, got {self.n!r}")

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        return np.array([self._score(episode.response) for episode in episodes], dtype=np.float64)

    def _score(self, response: str) -> float:
        longest = min(self.n, len(words(response)))
        runs = [run for n in range(1, longest + 1) for run in ngrams(response, n)]
        return len(set(runs)) / len(runs) - 1.0 if runs else 0.0
