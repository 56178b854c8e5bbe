"""A penalty for responses that are shorter or longer than wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlhf_env.errors import ConfigError
from rlhf_env.types import Episode, Float


@dataclass(frozen=True)
class Length:
    """-min(1, max(0, |tokens - target| - tolerance) / target), in [-1, 0].

    `tokens` is the number of tokens that the agent wrote, without the end token. Budgets count the same unit, and it
    does not depend on the language.
    """

    target: int
    tolerance: int = 0

    low: ClassVar[float] = -1.0
    high: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        for name, least in (("target", 1), ("tolerance", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"{name}: a number of tokens of at least {least}, got {value!r}")

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        tokens = np.array([_tokens(episode) for episode in episodes], dtype=np.float64)
        excess: Float = np.maximum(0.0, np.abs(tokens - self.target) - self.tolerance)
        return -np.minimum(1.0, excess / self.target) + 0.0  # + 0.0: no penalty is 0.0, not -0.0


def _tokens(episode: Episode) -> int:
    closed = episode.finish_reason in ("stop", "task")  # then the last token is the end token
    return int(episode.actions.sum()) - closed
