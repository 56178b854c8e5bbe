"""Prompts by the spread of their past rewards, around any agent: there is most to learn where answers differ (Foster
et al. 2025, arXiv 2502.12272; levels of a game by what is left to learn: Jiang et al. 2021, arXiv 2010.03934).

The agent inside writes and learns as ever; which prompts of the task a rollout has is drawn here, one per group:

    P(i) = (1 - explore) s_i^alpha / sum_k s_k^alpha + explore / N

where s_i is the standard deviation of the rewards (without KL) that answers to prompt i have earned, earlier ones
counting less. A prompt of fewer than two answers counts as the one with the largest spread. Without this wrapper,
prompts come in shuffled epochs.

    [agent]
    name = "prompt_sampling"
    agent = { name = "grpo", group_size = 8, lr = 1e-3 }

The objective changes with it: a mean over prompts where some count more. `correction` 1 undoes that, by the weight
1 / (N P(i)) for the rows of a prompt, and leaves the other effect, less noise or more.

When: many prompts are solved or hopeless. When not: nearly every prompt has a spread; then it only adds noise.

Left out: prompts that are never drawn again, likeness between prompts, a forecast of their spread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.learning.agent import Agent, Around, Metrics, Setup
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.unequal_draws import draw_probabilities, drawing_weights, stratified_draws
from rlhf_env.settings import AtLeastOne, Share, ShareBelowOne, fault, settings
from rlhf_env.types import Float, ResetOptions, State


class PromptSampling(Around):
    """Draws prompts for `agent`. What else it is asked (`trains`, `policy`), that one answers."""

    reads_every_text = True

    @settings
    class Config:
        """How much the spread counts. The agent to wrap is built first, and handed in."""

        alpha: Share = 1.0
        """How much the spread counts: 0 is uniform, 1 in proportion to it."""
        explore: Share = 0.1
        """The share of prompts that are drawn uniformly."""
        memory: ShareBelowOne = 0.5
        """How much of what is known of a prompt one more rollout with it leaves."""
        correction: Share = 0.0
        """The exponent of the weights that correct for it: 0 for none, 1 for the objective of prompts drawn
        uniformly."""
        prompts: AtLeastOne | None = None
        """How many prompts of a task without end are drawn from: its first ones."""

        def problems(self) -> Iterator[Problem]:
            if self.correction and not self.explore:
                yield fault("explore", "must be above 0 with a correction: what is never drawn has no weight")

    def __init__(self, setup: Setup, config: Config, agent: Agent) -> None:
        size = None if setup.task is None else setup.task.size
        if setup.task is None or (size is None and config.prompts is None):
            what = "a run without a task has no prompts" if setup.task is None else "this task has prompts without end"
            raise ConfigError(fault("prompts", f"must say how many to draw from: {what}"))
        if config.correction and getattr(agent, "weighs_rows", False) is not True:
            raise ConfigError(fault("correction", f"is by weights of rows, and {type(agent).__name__} takes none"))
        self.setup = setup
        self.config = config
        self.agent = agent
        self.size = min(size or config.prompts or 1, config.prompts or size or 1)
        self._draws = setup.stream("prompts by spread")
        self._mean, self._square = np.zeros(self.size), np.zeros(self.size)  # moving averages, of rewards and squares
        self._answers = np.zeros(self.size, dtype=np.int64)
        self._asked: list[int] = []  # the prompt of each group of the present rollout

    @property
    def spreads(self) -> Float:
        """float64[N]: of each prompt, as far as it is known."""
        found = np.sqrt(np.maximum(self._square - self._mean**2, 0.0))
        # Of equal rewards, the difference may be rounding.
        found[found < 1e-7 * np.abs(self._mean)] = 0.0
        known = self._answers >= 2
        return np.where(known, found, found[known].max() if known.any() else 1.0)

    @property
    def probabilities(self) -> Float:
        """float64[N]: of each prompt, to be drawn for a group."""
        explore = self.config.explore
        return (1.0 - explore) * draw_probabilities(self.spreads, self.config.alpha) + explore / self.size

    def begin(self) -> ResetOptions:
        wishes = super().begin()
        groups = self.setup.batch_size // int(wishes.get("group_size", 1))
        self._asked = stratified_draws(self.probabilities, groups, self._draws)
        return {**wishes, "indices": list(self._asked)}

    def update(self, rollout: Rollout, /) -> Metrics:
        """The agent's update, on rows that are weighted if `correction` says so; then the spreads are known better."""
        metrics = self.agent.update(self.weighted(rollout))
        returns, scored = rollout.returns(without=self.setup.reward.kl_names), rollout.scored
        for number in dict.fromkeys(rollout.group.tolist()):
            values = returns[(rollout.group == number) & scored].numpy()
            if number < len(self._asked) and len(values):
                self._learn(self._asked[number], values)
        return {
            **metrics,
            "prompts/spread": float(self.spreads[self._asked].mean()) if self._asked else 0.0,
            "prompts/asked": float((self._answers > 0).mean()),
        }

    def weighted(self, rollout: Rollout) -> Rollout:
        """The rollout, with weights that correct for how its prompts were drawn."""
        if not self.config.correction or not self._asked:
            return rollout
        weights = drawing_weights(self.probabilities, self.config.correction, scale_by_max=False)
        of_groups = torch.from_numpy(weights[self._asked])
        return replace(rollout, weights=rollout.row_weights * of_groups[rollout.group])

    def _learn(self, prompt: int, values: Float) -> None:
        kept = self.config.memory if self._answers[prompt] else 0.0
        self._mean[prompt] = kept * self._mean[prompt] + (1.0 - kept) * values.mean()
        self._square[prompt] = kept * self._square[prompt] + (1.0 - kept) * (values**2).mean()
        self._answers[prompt] += len(values)

    def state_dict(self) -> State:
        return {
            "agent": self.agent.state_dict(),
            "draws": dict(self._draws.bit_generator.state),
            "mean": self._mean.copy(),
            "square": self._square.copy(),
            "answers": self._answers.copy(),
            "asked": list(self._asked),
        }

    def load_state_dict(self, state: State, /) -> None:
        self.agent.load_state_dict(state["agent"])
        self._draws.bit_generator.state = dict(state["draws"])
        self._mean, self._square = np.array(state["mean"]), np.array(state["square"])
        self._answers = np.array(state["answers"])
        self._asked = [int(index) for index in state["asked"]]
