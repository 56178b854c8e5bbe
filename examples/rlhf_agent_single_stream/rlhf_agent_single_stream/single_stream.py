"""Single-stream policy optimisation (Xu & Ding 2025, arXiv 2509.13232): one answer to a prompt, and a baseline that is
remembered for each prompt from one rollout to the next.

    advantage = (return - what this prompt's answers have earned so far) / spread of these over the batch
    loss      = -mean over texts of (advantage * log-probability of the text)

Where grpo and rloo write several answers to a prompt to know what to expect of it, this one remembers, and all rows of
a batch can ask something else. A group whose answers are all right or all wrong teaches those nothing; here it does.

When: prompts come again (a data set of several epochs), and one answer each is what can be paid. When not: every prompt
is new, and nothing is ever known of it.

Left out: forgetting faster the further the policy has moved (`memory` is constant), prompts drawn by how uncertain they
are (`prompt_sampling` around this agent does that), a first estimate from answers written beforehand, and PPO's clip:
there is one gradient step for a rollout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_agent_single_stream.baselines import Floats, PromptBaselines
from rlhf_env import Decision, Observation, Optimization, Rollout, Setup
from rlhf_env.settings import ShareBelowOne, settings


def policy_gradient_loss(logprobs: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
    """The sum over texts, to be minimised. `logprobs` and `actions` [B, L], `advantages` [B]."""
    return -(advantages[:, None] * logprobs * actions).sum()


def normalised(differences: Floats) -> Floats:
    """Over the batch: mean 0, standard deviation 1. Of equal ones all 0, which rounding must not blow up."""
    centred = differences - differences.mean()
    spread = float(centred.std())
    return centred / spread if spread > 1e-8 * (1.0 + float(np.abs(differences).max())) else np.zeros_like(centred)


class SingleStream:
    """The policy gradient against a baseline for each prompt, without groups."""

    trains = True

    @settings
    class Config:
        """How long a prompt's answers are remembered, and how the policy is optimised."""

        memory: ShareBelowOne = 0.9
        """How much an answer still counts when the same prompt is answered once more; about 1 / (1 - memory) answers
        make up a baseline."""
        optimization: Optimization = Optimization()
        """Learning rate, gradient clipping and so on."""

    def __init__(self, setup: Setup, config: Config) -> None:
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.optimizer = setup.engine.optimizer(self.policy.parameters(), config.optimization)
        self.baselines = PromptBaselines(config.memory)

    def begin(self) -> dict[str, Any]:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> dict[str, float]:
        self.policy.eval()  # no dropout: log-probabilities are to be those of the policy that wrote
        rollout = self.setup.engine.local(rollout.select(rollout.scored))
        if not len(rollout):
            return {"steps_without_signal": 1.0}
        prompts = [episode.prompt.id for episode in rollout.episodes]
        returns = rollout.returns().cpu().double().numpy()  # the KL penalty included
        expected = self.baselines.expected(prompts, float(returns.mean()))
        advantages = torch.from_numpy(normalised(returns - expected)).to(rollout.tokens.device)
        total = 0.0
        for rows in self.optimizer.rows(rollout.lengths):
            part = rollout.select(rows)
            scores = self.policy.evaluate(part.tokens, part.mask, part.actions)
            loss = policy_gradient_loss(scores.logprobs, part.actions, advantages[rows]) / len(rollout)
            self.optimizer.backward(loss)
            total += float(loss.detach())
        self.baselines.observe(prompts, returns)  # afterwards: a baseline knows nothing of the answer that it judges
        return {
            **self.optimizer.summed({"policy_loss": total}),
            "grad_norm": self.optimizer.step(),
            "lr": self.optimizer.lr,
            "baseline_error": float(np.sqrt(np.mean((returns - expected) ** 2))),
            "prompts_known": float(len(self.baselines)),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "sampling": self.policy.sampling_state(),
            "optimizer": self.optimizer.state_dict(),
            "baselines": self.baselines.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.policy.load_state_dict(state["policy"])
        self.policy.load_sampling_state(state["sampling"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.baselines.load_state_dict(state["baselines"])
