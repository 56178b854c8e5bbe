"""The frozen reference policy, as a control without training: a trained agent must beat its reward.

When: in every comparison. When not: by itself; it learns nothing.
"""

from __future__ import annotations

from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.rollout import Rollout
from rlhf_env.settings import settings
from rlhf_env.types import Observation, ResetOptions, State


class Reference:
    """Writes as the reference does, and learns nothing."""

    trains = False

    @settings
    class Config:
        """There is nothing to set."""

    def __init__(self, setup: Setup, config: Config) -> None:
        self.setup = setup
        self.config = config

    def begin(self) -> ResetOptions:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.setup.reference.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        rollout.require_finite()
        return {}

    def state_dict(self) -> State:
        return {"sampling": self.setup.reference.sampling_state()}

    def load_state_dict(self, state: State, /) -> None:
        self.setup.reference.load_sampling_state(state["sampling"])
