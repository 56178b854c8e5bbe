"""What a run has spent, and when it has spent enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Protocol, runtime_checkable

from rlhf_env.errors import Problem
from rlhf_env.settings import AtLeastOne, Positive, settings
from rlhf_env.types import JsonObject


@dataclass
class Spending:
    """Counters of what algorithms really consume.

    The loop counts episodes, tokens and reward calls of a rollout; an agent adds what it spends beside it (samples it
    throws away, preference labels). `gradient_tokens` are counted where an agent takes its micro-batches from
    `Optimizer.rows`.
    """

    updates: int = 0
    episodes: int = 0
    generated_tokens: int = 0
    reward_calls: int = 0
    preference_labels: int = 0
    gradient_steps: int = 0
    gradient_tokens: int = 0
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


@runtime_checkable
class HasEpochs(Protocol):
    """A source of stored data."""

    def updates_of(self, epochs: float) -> int:
        """How many rollouts hold everything so many times."""


@settings
class Budget:
    """Limits of a run, at least one; the first one that is reached ends it. None is no limit."""

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
    gradient_tokens: AtLeastOne | None = None
    """Tokens, of prompts too, that gradients were computed of; each pass over a text counts."""
    seconds: Positive | None = None
    """Wall time."""
    epochs: Positive | None = None
    """Passes over the given answers or the stored preferences that an agent learns from."""

    def problems(self) -> Iterator[Problem]:
        if not self.limits() and self.epochs is None:
            yield Problem(f"a budget needs at least one limit: {', '.join(f.name for f in fields(self))}")

    def limits(self) -> dict[str, float]:
        """Limits in the currencies of `Spending`: not `epochs`, whose length only the data know."""
        given = asdict(self)
        return {name: limit for name, limit in given.items() if limit is not None and name != "epochs"}

    @property
    def is_of_stored_data(self) -> bool:
        """Whether a limit is in a currency that is spent where no texts are written."""
        spent = {"updates", "gradient_steps", "gradient_tokens", "seconds"}
        return self.epochs is not None or bool(self.limits().keys() & spent)

    def for_epochs_of(self, source: object) -> Budget:
        """With `epochs` as the number of updates that they take of a source of stored data."""
        if self.epochs is None or not isinstance(source, HasEpochs):
            return self
        updates = source.updates_of(self.epochs)
        return replace(self, epochs=None, updates=min(updates, self.updates or updates))

    def spent_fraction(self, spending: Spending) -> float:
        """The share used of the limit that is nearest, in [0, 1]."""
        return min(1.0, max(float(getattr(spending, name)) / limit for name, limit in self.limits().items()))
