"""A bonus for n-grams that no other response to the same prompt has.

    score_i = |D_i - union of D_j, j != i| / N_i      N_i: number of n-grams of response i; D_i: the set of them

It is the product of two shares: that of distinct n-grams within the text (distinct-n: Li et al. 2016, "A
Diversity-Promoting Objective Function for Neural Conversation Models", 1510.03055), and among those that of n-grams
which no other response has. It does not measure meaning: two paraphrases are as different as two topics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rlhf_env.settings import AtLeastOne, settings
from rlhf_env.text_measures import ngrams, words
from rlhf_env.types import Episode, Float


@settings(kw_only=False)
class Diversity:
    """The score above for n-grams of `n` lower-cased words, in [0, 1].

    In a group of one only the distinctness within the text counts. A text of fewer than `n` words is one n-gram; an
    empty text scores 0.
    """

    n: AtLeastOne = 2
    """Words of a run."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def group_rewards(self, group: Sequence[Episode], /) -> Float:
        """float64[G]."""
        runs = [self._runs(episode.response) for episode in group]
        members_with = Counter(run for text in runs for run in set(text))
        return np.array(
            [sum(members_with[run] == 1 for run in set(text)) / len(text) if text else 0.0 for text in runs],
            dtype=np.float64,
        )

    def _runs(self, response: str) -> list[tuple[str, ...]]:
        tokens = words(response)
        return ngrams(tokens, min(self.n, len(tokens))) if tokens else []
