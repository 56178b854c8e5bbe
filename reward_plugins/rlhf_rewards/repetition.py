"""A penalty for repeated words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rlhf_env.settings import AtLeastOne, settings
from rlhf_env.text_measures import repeated_share, words
from rlhf_env.types import Episode, Float


@settings(kw_only=False)
class Repetition:
    """-(share of repeats among the n-grams of 1 to `n` words), in (-1, 0]; an empty text scores 0.

    "great great great" with n = 2 has three words and two pairs, of which one word and one pair are no repeats:
    -(1 - 2 / 5) = -0.6.
    """

    n: AtLeastOne = 2
    """Words of the longest run that is counted."""

    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 0.0

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        shares = [repeated_share(words(episode.response), self.n) for episode in episodes]
        return 0.0 - np.array(shares, dtype=np.float64)
