"""A temperature of writing that changes over the run, around any agent that learns from its own texts.

The agent inside writes at a temperature that goes from `start` to `end` of [policy.sampling]'s, times; hot texts try
more, and cold ones more of the same. What a text states of itself are the log-probabilities of who wrote it, at that
temperature. There are two ways to learn from it:

- `learns_as = "policy"`: what learns is the policy at its own temperature, as evaluations have it. The texts are then
  those of another policy, and the agent's probability ratio corrects for that, as far as its `importance_cap` and
  `clip` let it; the KL penalty is charged for the policy that learns. It costs one forward pass of the texts.
- `learns_as = "writer"`: what learns is the policy at the temperature of writing: every ratio begins at 1, nothing is
  biased, and the objective is that of the writer, whose distribution is another one until the schedule is at 1.

    [agent]
    name = "temperature"
    start = 1.5
    agent = { name = "rloo", clip = 0.0, lr = 1e-3 }

A PPO clip around 1 shuts out texts whose ratio is far from 1 from the first step on: with "policy", prefer an agent
without one (`clip = 0`, or reinforce). A controller of the KL penalty's weight sees the writer's KL.

When: a policy settles on one answer before it has tried enough others. When not: its texts vary as it is; hot texts are
then mostly noise, and an entropy bonus (`entropy_coefficient`) costs no second forward pass. It is no paper's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.learning.agent import OTHERS_WROTE, Agent, Around, Decision, Metrics, Setup, traits
from rlhf_env.learning.functional import with_kl_of, with_reference_logprobs
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.schedules import ScheduleName, multiplier
from rlhf_env.settings import Positive, settings
from rlhf_env.types import Observation, ResetOptions, State


class Temperature(Around):
    """Has `agent` write at a scheduled temperature. What else it is asked (`trains`, `policy`), that one answers."""

    @settings
    class Config:
        """The course of the temperature. The agent to wrap is built first, and handed in."""

        start: Positive = 1.5
        """What the temperature of [policy.sampling] is multiplied by at the beginning."""
        end: Positive = 1.0
        """What it is multiplied by at the end of the budget."""
        schedule: ScheduleName = "linear"
        """The course from the one to the other; "constant" stays at `start`."""
        learns_as: Literal["policy", "writer"] = "policy"
        """Which distribution learns: the policy's at its own temperature, or the one that wrote."""

    def __init__(self, setup: Setup, config: Config, agent: Agent) -> None:
        name = type(agent).__name__
        if not traits(agent).policy_writes:
            raise ConfigError(
                Problem(f"{name} has writers of its own: take an agent whose policy writes its texts", ("agent",))
            )
        if config.learns_as == "policy" and getattr(agent, "off_policy", False) is not True:
            raise ConfigError(
                Problem(
                    f'{name} has no importance ratio that corrects for another temperature: set learns_as = "writer", '
                    "or take an agent that has one (grpo, rloo, ppo, reinforce), or to which it does not matter who "
                    "wrote a text (dpo, kto, rejection)",
                    ("agent",),
                )
            )
        self.setup = setup
        self.config = config
        self.agent = agent
        self._training = False  # between `begin` and `update`; evaluations are written at the policy's own temperature

    @property
    def factor(self) -> float:
        """What the temperature is multiplied by now."""
        config = self.config
        left = multiplier(config.schedule, self.setup.engine.progress)
        return config.end + (config.start - config.end) * left

    @contextmanager
    def _at(self, factor: float) -> Iterator[None]:
        """A context in which the policy draws, and scores, at another temperature."""
        policy = self.setup.policy
        usual = policy.sampling
        policy.sampling = replace(usual, temperature=usual.temperature * factor)
        try:
            yield
        finally:
            policy.sampling = usual

    def begin(self) -> ResetOptions:
        self._training = True
        return super().begin()

    def act(self, observation: Observation, /) -> Decision:
        if not self._training:
            return super().act(observation)
        with self._at(factor := self.factor):
            decision = super().act(observation)
        if factor == 1.0 or OTHERS_WROTE in decision.extras:
            return decision
        return replace(decision, extras={**decision.extras, OTHERS_WROTE: np.ones(decision.tokens.shape)})

    def update(self, rollout: Rollout, /) -> Metrics:
        """The agent's update, as the policy or as the writer."""
        self._training = False
        rollout.require_finite()
        factor = self.factor
        said: Metrics = {"temperature/factor": factor}
        if self.config.learns_as == "writer":
            with self._at(factor):
                return {**self.agent.update(rollout), **said}
        kl = self.setup.reward.kl
        if factor != 1.0 and kl is not None and kl.penalty.reference is self.setup.reference:
            rollout = with_reference_logprobs(self.setup.reference, rollout)
            rollout, said["temperature/ess"] = with_kl_of(self.setup.policy, rollout, kl.name, kl.penalty.coefficient)
        return {**self.agent.update(rollout), **said}

    def state_dict(self) -> State:
        return {"agent": self.agent.state_dict()}

    def load_state_dict(self, state: State, /) -> None:
        self.agent.load_state_dict(state["agent"])
