"""Supervised fine-tuning: maximise the likelihood of given texts.

The loss is the mean of -log pi(token) over the tokens that `rollout.actions` marks: the answers of demonstrations or,
in pretraining, every token except the first of a text. The mean is over all tokens (not over texts or micro-batches),
so it is the negative log-likelihood of the data.

    loss = -(1 / N) sum of log pi(token | text before it) over the N marked tokens

Packing (`pack_tokens`) fills a step with as many texts as its tokens allow. They are not put into one row, so none sees
another: the loss and the gradient are those of the texts by themselves, in every model family.

When: there are demonstrations, before any reinforcement. When not: the demonstrations are worse than what the model
already writes, or there are only judgements.

Left out: label smoothing, weights for texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from rlhf_env.errors import DataError, Problem
from rlhf_env.learning.agent import Decision, Demonstrated, Metrics, Setup
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import over_steps
from rlhf_env.learning.losses.steps import add_likelihood
from rlhf_env.learning.rollout import Rollout
from rlhf_env.settings import Whole, fault, settings
from rlhf_env.types import Observation, ResetOptions, State


class SFT:
    """Imitates demonstrations; one gradient step per update. `act` samples from the policy as it stands."""

    trains = True
    imitates = True

    @settings
    class Config:
        """How the given texts are learned."""

        turns: Literal["last", "every"] = "last"
        """Of a conversation, the last answer or every one: each as the model's chat template would ask for it, the
        turns before it as context."""
        loss_on: Literal["answers", "all"] = "answers"
        """What is learned: the answers, each with the token that ends it, or every token after a text's first."""
        pack_tokens: Whole = 0
        """Tokens of a gradient step, which takes as many texts as fit (0: `num_envs` texts, however long they are)."""
        optimization: Optimization = Optimization(lr=5e-4)
        """Learning rate and so on. A small model from scratch likes 1e-3, a large one 2e-5."""

        def problems(self) -> Iterator[Problem]:
            if self.turns == "every" and self.loss_on == "all":
                yield fault("turns", "'every' marks answers, and loss_on = 'all' marks every token: leave one out")

    def __init__(self, setup: Setup, config: Config) -> None:
        self.setup = setup
        self.demonstrated = Demonstrated(turns=config.turns, loss_on=config.loss_on, pack_tokens=config.pack_tokens)
        self.config = config
        self.policy = setup.policy
        self.optimizer = setup.engine.optimizer(self.policy.parameters(), config.optimization)
        self._dropout = setup.stream("sft dropout")

    def begin(self) -> ResetOptions:
        return {}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        """One gradient step on all of the rollout, with the policy's dropout.

        Raises DataError if no token is marked, and for judged answers, because some of them were rejected.
        """
        rollout.require_finite()
        if rollout.judged:
            raise DataError("sft imitates all texts, and of judged answers some were rejected: use dpo or kto")
        if not rollout.actions.any():
            raise DataError("sft: none of the texts has a token to learn (are the answers empty, or cut off?)")
        rollout = self.setup.engine.local(rollout)
        self.policy.train()
        try:
            with self.setup.engine.seeded(int(self._dropout.integers(2**63))):
                loss = add_likelihood(self.policy, self.optimizer, rollout)
        finally:
            self.policy.eval()
        return {
            **over_steps([{"loss": loss, "grad_norm": self.optimizer.step()}]),
            "perplexity": math.exp(loss),
            "tokens": float(rollout.actions.sum()),
            "texts": float(len(rollout)),
            "skipped_texts": float((~rollout.actions.any(dim=1)).sum()),
            "lr": self.optimizer.lr,
        }

    def state_dict(self) -> State:
        return {
            "policy": self.policy.state_dict(),
            "sampling": self.policy.sampling_state(),
            "optimizer": self.optimizer.state_dict(),
            "dropout": dict(self._dropout.bit_generator.state),
        }

    def load_state_dict(self, state: State, /) -> None:
        self.policy.load_state_dict(state["policy"])
        self.policy.load_sampling_state(state["sampling"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._dropout.bit_generator.state = dict(state["dropout"])
