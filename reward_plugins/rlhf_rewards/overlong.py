"""A penalty that sets in before the length limit does: soft overlong punishment (DAPO)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from rlhf_env.errors import Problem
from rlhf_env.settings import AtLeastOne, fault, settings
from rlhf_env.types import Episode, Float


@settings(kw_only=False)
class Overlong:
    """0 up to `longest` - `cache` tokens, from there evenly down to -1 at `longest`, and -1 beyond (DAPO, Yu et al.
    2025, 2503.14476, eq. 13).

    Counted are the tokens that the agent wrote, the end token with them. Where the length limit is `longest`, a text
    that it cuts has -1. `mask_overlong` of an agent is the other rule of that paper: it learns nothing from such texts.
    """

    longest: AtLeastOne
    """The length that costs 1, in tokens: `max_new_tokens`, or less."""
    cache: AtLeastOne
    """How many tokens before that the penalty sets in."""

    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 0.0

    def problems(self) -> Iterator[Problem]:
        if self.cache > self.longest:
            yield fault("cache", f"must be at most longest = {self.longest}, got {self.cache}")

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        tokens = np.array([episode.actions.sum() for episode in episodes], dtype=np.float64)
        beyond: Float = (self.longest - self.cache - tokens) / self.cache
        return np.clip(beyond, -1.0, 0.0) + 0.0  # + 0.0: no penalty is 0.0, not -0.0
