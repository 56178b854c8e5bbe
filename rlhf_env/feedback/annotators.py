"""Who judges: people later, and simulated annotators whose taste and noise are known.

A simulated annotator makes claims about preference learning checkable: how often it agrees with the gold reward is not
estimated but computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.preferences import Verdict
from rlhf_env.types import Episode, Float, Reward


class Annotator(Protocol):
    """Compares pairs of responses to one prompt. `name` is what the store calls it."""

    @property
    def name(self) -> str: ...

    def compare(self, pairs: Sequence[tuple[Episode, Episode]], rng: np.random.Generator, /) -> list[Verdict]:
        """One verdict per pair, `first` and `second` in the order of the pair."""


@dataclass(frozen=True, kw_only=True)
class SimulatedAnnotator:
    """Prefers what a gold reward scores higher, with the noise of Bradley & Terry (1952) and of a slipping finger.

        P(first preferred) = (1 - flip_rate) * p + flip_rate * (1 - p),    p = sigmoid((gold_1 - gold_2) / temperature)

    `temperature` is in units of the gold reward: a difference of one temperature is judged rightly 73 times in 100, and
    0 is an annotator that never hesitates. `flip_rate` (0 to 0.5) turns verdicts around whatever the difference, so
    that even obvious ones are sometimes wrong. It never answers "tie"; between equals it tosses a coin.
    """

    gold: Reward
    temperature: float = 0.5
    flip_rate: float = 0.0
    name: str = "simulated"

    def __post_init__(self) -> None:
        problems = []
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            problems.append(f"temperature: {self.temperature!r} is not a finite number of at least 0")
        if not 0.0 <= self.flip_rate <= 0.5:
            problems.append(
                f"flip_rate: {self.flip_rate!r} is not between 0 and 0.5 (above, verdicts mean the opposite)"
            )
        if problems:
            raise ConfigError(*problems)

    def compare(self, pairs: Sequence[tuple[Episode, Episode]], rng: np.random.Generator, /) -> list[Verdict]:
        """One draw of `rng` per pair. Gold scores each different episode object once, in one batch."""
        distinct = {id(episode): episode for pair in pairs for episode in pair}
        gold = np.asarray(self.gold(list(distinct.values())), dtype=np.float64) if distinct else np.zeros(0)
        place = {key: i for i, key in enumerate(distinct)}
        first, second = (gold[[place[id(pair[side])] for pair in pairs]] for side in (0, 1))
        prefers_first = rng.random(len(pairs)) < self.preference_probability(first - second)
        return ["first" if is_first else "second" for is_first in prefers_first]

    def preference_probability(self, difference: npt.ArrayLike) -> Float:
        """P(first preferred), of the shape of `difference` = gold(first) - gold(second)."""
        delta = np.asarray(difference, dtype=np.float64)
        if self.temperature == 0:
            clean = 0.5 + 0.5 * np.sign(delta)
        else:
            clean = 0.5 + 0.5 * np.tanh(delta / (2 * self.temperature))  # sigmoid without overflow
        return np.asarray(self.flip_rate + (1 - 2 * self.flip_rate) * clean)

    def expected_accuracy(self, difference: npt.ArrayLike) -> float:
        """How often its verdicts agree with gold on pairs of these gold differences, in expectation.

        This is also the ceiling for a reward model measured on this annotator's own labels: one that knows gold exactly
        reaches it, and none can be expected to pass it. On labels without noise the ceiling is 1. Pairs of equal gold
        count 1/2. NaN when there are no pairs.
        """
        delta = np.abs(np.asarray(difference, dtype=np.float64))
        return float(np.mean(self.preference_probability(delta))) if delta.size else float("nan")
