"""Supervised fine-tuning: maximise the likelihood of given texts.

The loss is the mean of -log pi(token) over the tokens that `rollout.actions` marks: the answers of demonstrations or,
in pretraining, every token except the first of a text. The mean is over all tokens (not over texts or micro-batches),
so it is the negative log-likelihood of the data.

Left out: packing of several texts into a row, label smoothing, weights for texts.
"""

from __future__ import annotations

import math

from rlhf_env.errors import DataError
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import over_steps, token_weights, weighted_sum
from rlhf_env.learning.rollout import Rollout
from rlhf_env.settings import settings
from rlhf_env.types import Observation, ResetOptions, State


class SFT:
    """Imitates demonstrations; one gradient step per update. `act` samples from the policy as it stands."""

    trains = True
    imitates = True

    @settings
    class Config:
        """How the given texts are learned."""

        optimization: Optimization = Optimization(lr=5e-4)
        """Learning rate and so on. A small model from scratch likes 1e-3, a large one 2e-5."""

    def __init__(self, setup: Setup, config: Config) -> None:
        self.setup = setup
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
        rollout = rollout.with_extras(weight=token_weights(rollout.actions, "token-mean"))
        loss = 0.0
        self.policy.train()
        try:
            with self.setup.engine.seeded(int(self._dropout.integers(2**63))):
                for rows in self.optimizer.rows(rollout.lengths):
                    batch = rollout.select(rows)
                    logprobs = self.policy.evaluate(batch.tokens, batch.mask, batch.actions).logprobs
                    term = weighted_sum(-logprobs.double(), batch.extras["weight"])
                    self.optimizer.backward(term)
                    loss += float(term.detach())
        finally:
            self.policy.eval()
        return {
            **over_steps([{"loss": loss, "grad_norm": self.optimizer.step()}]),
            "perplexity": math.exp(loss),
            "tokens": float(rollout.actions.sum()),
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
