"""A penalty for responses that are shorter or longer than wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rlhf_env.settings import AtLeastOne, Whole, settings
from rlhf_env.types import Episode, Float


@settings(kw_only=False)
class Length:
    """-min(1, max(0, |tokens - target| - tolerance) / target), in [-1, 0].

    `tokens` is the number of tokens that the agent wrote, without the end token; those of a stop string count.
    Budgets count the same unit, and it does not depend on the language.
    """

    target: AtLeastOne
    """The length that costs nothing, in tokens."""
    tolerance: Whole = 0
    """Tokens more or fewer that cost nothing either."""

    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 0.0

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        tokens = np.array([_tokens(episode) for episode in episodes], dtype=np.float64)
        excess: Float = np.maximum(0.0, np.abs(tokens - self.target) - self.tolerance)
        return -np.minimum(1.0, excess / self.target) + 0.0  # + 0.0: no penalty is 0.0, not -0.0


def _tokens(episode: Episode) -> int:
    closed = episode.finish_reason in ("stop", "task")  # then the last token is the end token
    return int(episode.actions.sum()) - closed
