"""What a run has spent, when it has spent enough, and what ends it before that."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields

from rlhf_env.errors import Problem
from rlhf_env.settings import AtLeastOne, Positive, settings
from rlhf_env.types import JsonObject, JsonView, State


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

    def load(self, state: JsonObject) -> None:
        for name, value in state.items():
            setattr(self, name, value)


@settings
class Budget:
    """Limits in any currency of `Spending`; the first one reached ends the run. None is no limit."""

    updates: AtLeastOne | None = None
    """Updates of the agent."""
    episodes: AtLeastOne | None = None
    """Finished texts."""
    generated_tokens: AtLeastOne | None = None
    """Tokens that were written."""
    reward_calls: AtLeastOne | None = None
    """Texts that were scored."""
    preference_labels: AtLeastOne | None = None
    """Pairs that somebody judged."""
    gradient_steps: AtLeastOne | None = None
    """Steps of the optimizer."""
    seconds: Positive | None = None
    """Wall time."""

    def problems(self) -> Iterator[Problem]:
        if not self.limits():
            yield Problem(f"a budget needs at least one limit: {', '.join(f.name for f in fields(self))}")

    def limits(self) -> dict[str, float]:
        return {name: limit for name, limit in asdict(self).items() if limit is not None}

    def spent_fraction(self, spending: Spending) -> float:
        """The share used of the limit that is nearest, in [0, 1]."""
        return min(1.0, max(float(getattr(spending, name)) / limit for name, limit in self.limits().items()))


@dataclass(kw_only=True)
class Stopping:
    """Ends a run before its budget does: asked with every row of metrics, it gives a reason or None.

    `max_kl`: the most that `rollout/kl` may be (in nats a response). `patience`: so many evaluations in a row whose
    `eval/objective` is not above the best so far by more than `min_delta` are enough (0: never).

    A row that was read before changes nothing: a resumed run asks once more with its last.
    """

    max_kl: float | None = None
    patience: int = 0
    min_delta: float = 0.0
    _best: float | None = field(default=None, init=False)
    _stale: int = field(default=0, init=False)
    _update: int = field(default=-1, init=False)

    def __call__(self, row: JsonView, /) -> str | None:
        kl = row.get("rollout/kl")
        if self.max_kl is not None and kl is not None and kl > self.max_kl:
            return f"kl {kl:.2f} above max_kl {self.max_kl:g}"
        if self.patience and "eval/objective" in row:
            self._take_in(int(row["update"]), row["eval/objective"])
            if self._stale >= self.patience:
                best = "none was finite" if self._best is None else f"the best was {self._best:.4g}"
                return f"no better held-out objective in {self._stale} evaluations ({best})"
        return None

    def _take_in(self, update: int, objective: float | None) -> None:
        if update <= self._update:
            return
        self._update = update
        if objective is None or not math.isfinite(objective):  # a log has null for what is not finite
            self._stale += 1
        elif self._best is None or objective > self._best + self.min_delta:
            self._best, self._stale = objective, 0
        else:
            self._stale += 1

    def state_dict(self) -> State:
        return {"best": self._best, "stale": self._stale, "update": self._update}

    def load_state_dict(self, state: State, /) -> None:
        self._best = state.get("best")
        self._stale, self._update = int(state.get("stale", 0)), int(state.get("update", -1))
