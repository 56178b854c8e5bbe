"""An entropy bonus in the loss: its weight over the run, and a floor that the entropy is held above.

    loss - coefficient * mean over the agent's tokens of H(pi(. | text before it))

The coefficient follows a schedule over the budget. With a floor, a controller multiplies it, as that of a target KL
does with the penalty's weight (Ziegler et al. 2019, arXiv 1909.08593, section 2.2), here with the sign turned around:

    e = clip(1 - H / floor, -0.2, 0.2)        factor <- max(1, factor * (1 + e * episodes / horizon))

It moves after each update, by the mean entropy that the update measured. It is the mean entropy of single tokens given
the texts of the rollout: a bonus for it does not count that other texts will be reached (as a reward of -log pi would).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.learning.agent import Metrics, Setup
from rlhf_env.learning.schedules import ScheduleName, multiplier
from rlhf_env.settings import AtLeastOne, NonNegative, Positive, fault, settings
from rlhf_env.types import State

_LARGEST_ERROR = 0.2  # as in the controller of a target KL


@settings
class EntropyCourse:
    """What becomes of the weight of an entropy bonus over a run."""

    entropy_schedule: ScheduleName = "constant"
    """The course of `entropy_coefficient` over the budget."""
    entropy_end: NonNegative = 0.0
    """What it ends at, where its course is not constant: below or above its first value."""
    entropy_floor: NonNegative = 0.0
    """Nats a token: while the mean entropy is below, a controller raises the weight, and lowers it again above (0:
    there is none)."""
    entropy_horizon: AtLeastOne = 1_000
    """Episodes in which an entropy that is 20 % or more below the floor raises the weight by about 20 %."""
    entropy_max: Positive = 1.0
    """The controller raises the weight to no more than this."""

    def problems(self) -> Iterator[Problem]:
        if self.entropy_schedule == "constant" and self.entropy_end:
            yield fault("entropy_end", "belongs to a schedule: entropy_schedule = 'linear' or 'cosine'")
        if self.entropy_floor and self.entropy_schedule != "constant" and not self.entropy_end:
            yield fault("entropy_floor", "raises a weight that is there: entropy_end must be above 0")

    def problems_with(self, coefficient: float) -> Iterator[Problem]:
        """What is wrong between these settings and the weight at the beginning."""
        if self.entropy_floor and not coefficient:
            yield fault("entropy_floor", "raises a weight that is there: entropy_coefficient must be above 0")
        if self.entropy_floor and max(coefficient, self.entropy_end) > self.entropy_max:
            yield fault("entropy_max", f"must be at least the weight itself, got {self.entropy_max}")


class EntropyBonus:
    """The present weight of the bonus. An agent asks for `coefficient`, and calls `observe` after each update."""

    def __init__(self, setup: Setup, coefficient: float, course: EntropyCourse) -> None:
        self._setup, self._start, self._config = setup, coefficient, course
        self.factor = 1.0  # what the controller multiplies the schedule's weight by
        most = math.log(setup.policy.vocab_size)
        if course.entropy_floor >= most:
            raise ConfigError(
                fault(
                    "entropy_floor",
                    f"must be below {most:.4g} nats, the entropy of a token drawn evenly from all "
                    f"{setup.policy.vocab_size}, got {course.entropy_floor}",
                )
            )

    @property
    def scheduled(self) -> float:
        """The weight that the schedule has now."""
        config = self._config
        if config.entropy_schedule == "constant":
            return self._start
        left = multiplier(config.entropy_schedule, self._setup.engine.progress)
        return config.entropy_end + (self._start - config.entropy_end) * left

    @property
    def coefficient(self) -> float:
        if not self._config.entropy_floor:
            return self.scheduled
        return min(self.scheduled * self.factor, self._config.entropy_max)

    def observe(self, entropy: float, episodes: int) -> Metrics:
        """One move of the controller by an update's mean entropy, in nats per token; what to log.

        Of an agent without a bonus there is nothing to say.
        """
        config = self._config
        if not self._start and not config.entropy_end:
            return {}
        said: Metrics = {"entropy_coefficient": self.coefficient}
        if config.entropy_floor:
            error = float(np.clip(1.0 - entropy / config.entropy_floor, -_LARGEST_ERROR, _LARGEST_ERROR))
            moved = self.factor * (1.0 + error * min(episodes / config.entropy_horizon, 1.0))
            # What the limit does not let through is not wound up, or it would take as long to come down again.
            self.factor = min(max(1.0, moved), max(config.entropy_max / self.scheduled, 1.0))
        return said

    def state_dict(self) -> State:
        """What the state of an agent holds of it: nothing without a floor, as agents' states of old."""
        return {"entropy": {"factor": self.factor}} if self._config.entropy_floor else {}

    def load_state_dict(self, state: State) -> None:
        """Give `state_dict` back, from the whole state of an agent."""
        self.factor = float(state["entropy"]["factor"]) if self._config.entropy_floor else 1.0


def with_bonus(loss: Tensor, entropy: Tensor, coefficient: float) -> Tensor:
    """The loss with its bonus; without one the loss as it is, and nobody computes gradients of the entropy."""
    return loss - coefficient * entropy if coefficient else loss
