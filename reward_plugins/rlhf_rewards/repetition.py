"""A penalty for repeated words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlhf_env.errors import ConfigError
from rlhf_env.text_measures import repeated_share, words
from rlhf_env.types import Episode, Float


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
        shares = [repeated_share(words(episode.response), self.n) for episode in episodes]
        return 0.0 - np.array(shares, dtype=np.float64)
