"""What a run has spent, and when it has spent enough."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from rlhf_env.errors import ConfigError


@dataclass
class Spending:
    """Counters of what algorithms really consume.

    The loop counts episodes, tokens and reward calls of a rollout; an agent adds what it spends beside it (samples it
    throws away, preference labels).
    """

    updates: int = 0
    episodes: int = 0
    generated_tokens: int = 0
    reward_calls: int = 0
    preference_labels: int = 0
    gradient_steps: int = 0
    seconds: float = 0.0

    def add(self, **amounts: float) -> None:
        """`spending.add(generated_tokens=24, episodes=1)`."""
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def load(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits in any currency of `Spending`; the first one reached ends the run. None is no limit."""

    updates: int | None = None
    episodes: int | None = None
    generated_tokens: int | None = None
    reward_calls: int | None = None
    preference_labels: int | None = None
    gradient_steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        limits = self.limits()
        if not limits:
            raise ConfigError(f"a budget needs at least one limit: {', '.join(f.name for f in fields(self))}")
        problems = [
            f"budget {name} must be a positive number, got {limit!r}"
            for name, limit in limits.items()
            if not isinstance(limit, (int, float)) or isinstance(limit, bool) or not 0 < limit < math.inf
        ]
        if problems:
            raise ConfigError(*problems)

    def limits(self) -> dict[str, float]:
        return {name: limit for name, limit in asdict(self).items() if limit is not None}

    def spent_fraction(self, spending: Spending) -> float:
        """The share used of the limit that is nearest, in [0, 1]."""
        return min(1.0, max(float(getattr(spending, name)) / limit for name, limit in self.limits().items()))
