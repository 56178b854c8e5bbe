"""Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300).

Several answers to one prompt are each other's baseline: an answer's advantage, the same for all of its tokens, is its
return less the group's mean, over the group's standard deviation. No value model.

Other than in the paper, the KL penalty is in the reward, where the environment has put it, and not a second time in the
loss (there the paper's k3 estimate has the gradient of the other direction's KL). Options lead to Dr. GRPO (Liu et al.
2025, arXiv 2503.20783: `scale_by_std` off, `aggregation` "dr-grpo") and to GSPO (Zheng et al. 2025, arXiv 2507.18071:
`importance` "sequence", a `clip` near 3e-4).

Left out: process rewards, different clips for up and down, resampling of groups without spread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_env.errors import ConfigError
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import (
    Aggregation,
    clipped_policy_loss,
    group_advantages,
    groups_without_spread,
    kl_estimate,
    minibatches,
    require_exact_sampling,
    require_stated,
    stated_log_ratio,
    token_weights,
    weighted_sum,
)
from rlhf_env.learning.rollout import Rollout
from rlhf_env.types import Observation


def sequence_log_ratio(log_ratio: Tensor, actions: Tensor) -> Tensor:
    """[B, L]: each token's log-ratio replaced by its row's mean over `actions` bool[B, L] (GSPO, eq. 7); 0 off them."""
    mean = log_ratio.masked_fill(~actions, 0.0).sum(dim=1, keepdim=True) / actions.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.expand_as(log_ratio).masked_fill(~actions, 0.0)


class GRPO:
    """Clipped policy gradient, the group's mean for a baseline."""

    trains = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """What the paper has, unless told otherwise.

        `group_size`: answers to a prompt, at least 2; it must divide the environment's rows.
        `scale_by_std`: divide by the group's standard deviation. It weighs prompts with little spread up.
        `aggregation`: how tokens add up to a loss: "sequence-mean", "token-mean", "sequence-sum" or "dr-grpo" (see
            `rlhf_env.learning.functional.token_weights`).
        `importance`: the probability ratio of each token, or of the whole answer ("sequence", per-token geometric
            mean).
        `clip`: how far that ratio may move the loss. It binds from the second gradient step on a rollout.
        `epochs`, `minibatches`: passes over a rollout, and gradient steps per pass.
        `optimization`: learning rate, gradient clipping and so on.
        """

        group_size: int = 4
        scale_by_std: bool = True
        aggregation: Aggregation = "sequence-mean"
        importance: Literal["token", "sequence"] = "token"
        clip: float = 0.2
        epochs: int = 1
        minibatches: int = 1
        optimization: Optimization = Optimization()  # noqa: RUF009 - frozen

        def __post_init__(self) -> None:
            problems = [
                f"{name} must be at least 1, got {getattr(self, name)}"
                for name in ("epochs", "minibatches")
                if getattr(self, name) < 1
            ]
            if not self.clip > 0.0:
                problems.append(f"clip must be positive, got {self.clip}")
            if self.importance not in ("token", "sequence"):
                problems.append(f"importance must be token or sequence, got {self.importance!r}")
            if problems:
                raise ConfigError(*problems)
            token_weights(torch.ones(1, 1, dtype=torch.bool), self.aggregation, longest=1)  # refuses an unknown name

    def __init__(self, setup: Setup, config: Config) -> None:
        setup.require_groups(config.group_size)
        require_exact_sampling(setup.policy.sampling, "grpo")
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.optimizer = setup.engine.optimizer(self.policy.parameters(), config.optimization)
        self._order = setup.stream("grpo minibatches")

    def begin(self) -> dict[str, Any]:
        return {"group_size": self.config.group_size}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        """`epochs` passes of gradient steps. Rows without a score teach nothing and do not touch their group's mean."""
        require_stated(rollout, "grpo")
        self.policy.eval()  # with dropout, the first ratio would not be 1
        rollout = self.setup.engine.local(rollout)
        returns = rollout.returns()
        advantages = group_advantages(
            returns, rollout.group, scale_by_std=self.config.scale_by_std, counted=rollout.scored
        )
        rollout = rollout.with_extras(advantages=advantages[:, None].expand(rollout.tokens.shape))
        steps = [
            self._step(rollout.select(rows))
            for rows in minibatches(len(rollout), self.config.minibatches, self.config.epochs, self._order)
        ]
        return {
            **{name: sum(step[name] for step in steps) / len(steps) for name in steps[0]},
            "groups_without_spread": groups_without_spread(returns, rollout.group, counted=rollout.scored),
            "lr": self.optimizer.lr,
        }

    def _step(self, batch: Rollout) -> Metrics:
        """One gradient step on a minibatch."""
        chosen = self.config
        batch = batch.with_extras(
            weight=token_weights(batch.actions, chosen.aggregation, longest=self.setup.max_new_tokens),
            share=token_weights(batch.actions, "token-mean"),
        )
        found: Metrics = defaultdict(float)
        for rows in self.optimizer.rows(len(batch)):
            part = batch.select(rows)
            weight, share = part.extras["weight"], part.extras["share"]
            seen = self.policy.evaluate(part.tokens, part.mask, part.actions)
            token_log_ratio = log_ratio = stated_log_ratio(seen.logprobs, part.logprobs, part.actions)
            if chosen.importance == "sequence":
                log_ratio = sequence_log_ratio(log_ratio, part.actions)
            loss = weighted_sum(clipped_policy_loss(log_ratio, part.extras["advantages"], chosen.clip), weight)
            self.optimizer.backward(loss)
            with torch.no_grad():
                moved = (log_ratio.exp() - 1.0).abs() > chosen.clip
                # KL(old || new): the tokens were drawn from the old policy, where log p - log p is 0.
                strayed = kl_estimate(torch.zeros_like(token_log_ratio), token_log_ratio, "k3")
                for name, value in {
                    "policy_loss": loss,
                    "entropy": weighted_sum(seen.entropy.double(), share),
                    "approx_kl": weighted_sum(strayed, share),
                    "clip_fraction": weighted_sum(moved.double(), share),
                }.items():
                    found[name] += float(value.detach())
        return {**found, "grad_norm": self.optimizer.step()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "sampling": self.policy.sampling_state(),
            "optimizer": self.optimizer.state_dict(),
            "order": dict(self._order.bit_generator.state),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.policy.load_state_dict(state["policy"])
        self.policy.load_sampling_state(state["sampling"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._order.bit_generator.state = dict(state["order"])
