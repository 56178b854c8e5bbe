"""A bonus for n-grams that were seldom written before: counts (Bellemare et al. 2016, arXiv 1606.01868), kept in
hashed bins (Tang et al. 2017, arXiv 1611.04717).

    score = mean over the n-grams g of a text of 1 / sqrt(1 + N(g))

N(g) is the number of earlier texts of the run that hold g. So it decays by counts: a run of tokens that nobody has
written is worth 1, one that was in 99 texts 0.1. It says nothing about meaning, and a policy that draws evenly from all
tokens is as novel as can be: let it be a small part beside the reward that counts.

All that is learned is learned between rollouts: the answers of one rollout are compared with the same counts, whoever
ends first. Evaluations are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rlhf_env.settings import AtLeastOne, settings
from rlhf_env.text_measures import NgramUnit, hashed_ngrams
from rlhf_env.types import Episode, Float, Int, State


@settings(kw_only=False, frozen=False, eq=False)
class NoveltyNgrams:
    """The score above, in (0, 1]; an empty text is one n-gram."""

    n: AtLeastOne = 3
    """Length of a run; a shorter text is one run."""
    unit: NgramUnit = "tokens"
    """Runs of what: tokens that the agent wrote, or lower-cased words of the response."""
    bins: AtLeastOne = 65_536
    """Counts that are kept. Runs that share a bin are counted together, so that some look older than they are."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.bins, dtype=np.int64)

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        scores = [(1.0 / np.sqrt(1.0 + self.counts[self._bins(episode)])).mean() for episode in episodes]
        return np.array(scores, dtype=np.float64)

    def observe(self, episodes: Sequence[Episode], /) -> None:
        for episode in episodes:
            self.counts[np.unique(self._bins(episode))] += 1

    def _bins(self, episode: Episode) -> Int:
        return hashed_ngrams(episode, self.n, self.n, self.bins, self.unit)

    def state_dict(self) -> State:
        seen = np.flatnonzero(self.counts)
        return {"bins": seen, "counts": self.counts[seen]}

    def load_state_dict(self, state: State, /) -> None:
        self.counts = np.zeros(self.bins, dtype=np.int64)
        self.counts[np.asarray(state["bins"], dtype=np.int64)] = np.asarray(state["counts"], dtype=np.int64)
