"""Uniformly random tokens, as a control: the reward that a task gives without any skill.

When: beside others, to see what a reward pays for nothing. When not: as the level to beat; that is `reference`.
"""

from __future__ import annotations

import math

import numpy as np

from rlhf_env.envs.tokenizers import end_ids
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies import Written
from rlhf_env.settings import settings
from rlhf_env.types import Observation, ResetOptions, State


class Random:
    """Draws each token uniformly from the vocabulary, the end token included, padding not."""

    trains = False

    @settings
    class Config:
        """There is nothing to set."""

    def __init__(self, setup: Setup, config: Config) -> None:
        self.setup = setup
        self.config = config
        self._draws = setup.stream("random tokens")
        ids = np.arange(setup.tokenizer.vocab_size)
        self._ends = end_ids(setup.tokenizer)
        # Padding is never drawn, unless it is also an end token: without one, no text would end.
        fillers = {setup.tokenizer.pad_id} - set(self._ends)
        self._choices = ids[~np.isin(ids, list(fillers))]

    def begin(self) -> ResetOptions:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        shape = (len(observation["input_ids"]), self.setup.action_length)
        tokens = self._choices[self._draws.integers(len(self._choices), size=shape)]
        ends = np.isin(tokens, self._ends)
        after_end = ends.cumsum(axis=1) - ends > 0
        tokens[after_end] = self.setup.tokenizer.vocab_size
        logprobs = np.where(after_end, 0.0, -math.log(len(self._choices)))
        return Decision.of(Written(tokens, logprobs))

    def update(self, rollout: Rollout, /) -> Metrics:
        rollout.require_finite()
        return {}

    def state_dict(self) -> State:
        return {"draws": dict(self._draws.bit_generator.state)}

    def load_state_dict(self, state: State, /) -> None:
        self._draws.bit_generator.state = dict(state["draws"])
