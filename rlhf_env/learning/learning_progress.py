"""Learning progress: of several things to learn, those whose scores change come often.

Things are the levels of a task, or the tasks of a mixture. The score of each is followed by two moving averages, and
its progress is how far they are apart, in either direction: what is forgotten is learned again. (Absolute learning
progress: Portelas et al. 2019, arXiv 1910.07224; the choice in proportion to it, by two averages: Matiisen et al. 2017,
arXiv 1707.00183; as a bandit's reward: Graves et al. 2017, arXiv 1704.03003.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rlhf_env.errors import Problem
from rlhf_env.learning.unequal_draws import draw_probabilities
from rlhf_env.settings import Positive, Share, ShareBelowOne, fault, settings
from rlhf_env.types import Bool, Float, State


@settings
class ProgressSettings:
    """How scores become shares."""

    temperature: Positive = 1.0
    """Above 1 shares are more equal, below 1 less."""
    explore: Share = 0.2
    """The share that is dealt out equally, whatever the progress."""
    fast: ShareBelowOne = 0.5
    """How much of the quick moving average one rollout leaves."""
    slow: ShareBelowOne = 0.9
    """How much of the slow one."""

    def problems(self) -> Iterator[Problem]:
        if not self.fast < self.slow:
            yield fault("fast", f"must be below slow = {self.slow:g}, got {self.fast:g}")


class LearningProgress:
    """What is known of the scores of `count` things, and how often each should come."""

    def __init__(self, count: int, settings: ProgressSettings) -> None:
        self.settings = settings
        self._fast, self._slow = np.zeros(count), np.zeros(count)
        self._rollouts = np.zeros(count, dtype=np.int64)  # in which it came

    def learn(self, place: int, score: float) -> None:
        """`score` is the mean of a rollout in which thing number `place` came."""
        if not self._rollouts[place]:
            self._fast[place] = self._slow[place] = score
        self._fast[place] += (1.0 - self.settings.fast) * (score - self._fast[place])
        self._slow[place] += (1.0 - self.settings.slow) * (score - self._slow[place])
        self._rollouts[place] += 1

    def shares(self, open_to: Bool) -> Float:
        """float64[count], sum 1: in proportion to |fast - slow|^(1 / temperature), and a share `explore` equally.

        Only of those that are `open_to` choice. What has not come yet counts as the one with the most progress.
        """
        progress, known = np.abs(self._fast - self._slow), self._rollouts > 0
        progress = np.where(known, progress, progress[known].max() if known.any() else 1.0)
        if not progress[open_to].any():
            progress = np.ones(len(progress))
        by_progress = draw_probabilities(np.where(open_to, progress, 0.0), 1.0 / self.settings.temperature)
        explore = self.settings.explore
        return np.asarray((1.0 - explore) * by_progress + explore * open_to / open_to.sum(), dtype=np.float64)

    def state_dict(self) -> State:
        return {"fast": self._fast.copy(), "slow": self._slow.copy(), "rollouts": self._rollouts.copy()}

    def load_state_dict(self, state: State, /) -> None:
        self._fast, self._slow = np.array(state["fast"]), np.array(state["slow"])
        self._rollouts = np.array(state["rollouts"])
