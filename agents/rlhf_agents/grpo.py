"""Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300).

Several answers to one prompt are each other's baseline: an answer's advantage, the same for all of its tokens, is its
return less the group's mean, over the group's standard deviation. No value model.

Other than in the paper, the KL penalty is in the reward, where the environment has put it. `kl_in_loss` moves it to the
loss: the returns are then those without the `kl` part, whose weight is the loss term's beta. Of the estimates, "k2" has
the gradient of KL(policy || reference), and the paper's "k3" that of the other direction, KL(reference || policy)
(Shah et al. 2025, arXiv 2512.21852): with it, the objective is no longer the environment's. In either form a token
answers for its own KL alone, and not for that of the text it leads to.

Options lead to Dr. GRPO (Liu et al. 2025, arXiv 2503.20783: `scale_by_std` off, `aggregation` "dr-grpo"), to the wider
clip upwards of DAPO (Yu et al. 2025, arXiv 2503.14476: `clip_high`) and to GSPO (Zheng et al. 2025, arXiv 2507.18071:
`importance` "sequence", a `clip` near 3e-4).

Texts of another or an older policy are corrected, always: the ratio is that to whoever wrote the text, cut off at
`importance_cap`. On a rollout of its own it starts at 1.

Left out: process rewards, resampling of groups without spread.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rlhf_env.errors import ConfigError
from rlhf_env.learning.agent import Decision, Metrics, Setup, learned_state, load_learned_state
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import (
    Aggregation,
    KLEstimator,
    beside_reference,
    beyond_clip,
    clipped_policy_loss,
    group_advantages,
    groups_without_spread,
    kl_estimate,
    minibatches,
    require_beta,
    require_exact_sampling,
    require_stated,
    stated_log_ratio,
    token_weights,
    weighted_sum,
)
from rlhf_env.learning.ranges import Choice, Multiple, Ranges
from rlhf_env.learning.rollout import Rollout
from rlhf_env.types import Observation, ResetOptions, State


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
        `clip`: how far that ratio may move the loss (0: as far as `importance_cap`). It binds from the second gradient
            step on a rollout.
        `clip_high`: how far above 1, where that is not `clip` (DAPO: 0.28 beside 0.2).
        `importance_cap`: where the ratio is cut off, above the clip. It binds on texts that an older policy wrote.
        `kl_in_loss`: leave the KL part out of the returns and add its weight times this estimate to the loss: "k2" or
            "k3", of every token, weighted as `aggregation` weighs tokens.
        `epochs`, `minibatches`: passes over a rollout, and gradient steps per pass.
        `optimization`: learning rate, gradient clipping and so on.
        """

        ranges: ClassVar[Ranges] = {
            "lr": Multiple(0.25, 4.0),
            "epochs": Choice(1, 2),
            "scale_by_std": Choice(True, False),
        }

        group_size: int = 4
        scale_by_std: bool = True
        aggregation: Aggregation = "sequence-mean"
        importance: Literal["token", "sequence"] = "token"
        clip: float = 0.2
        clip_high: float | None = None
        importance_cap: float = 3.0
        kl_in_loss: KLEstimator | None = None
        epochs: int = 1
        minibatches: int = 1
        optimization: Optimization = Optimization()  # noqa: RUF009 - frozen

        def __post_init__(self) -> None:
            problems = [
                f"{name} must be at least 1, got {getattr(self, name)}"
                for name in ("epochs", "minibatches")
                if getattr(self, name) < 1
            ]
            problems += [
                f"{name} must not be negative, got {value}"
                for name, value in (("clip", self.clip), ("clip_high", self.clip_high))
                if value is not None and not value >= 0.0
            ]
            if not self.importance_cap > 1.0 + max(self.clip, self.clip_high or 0.0, 0.0):
                problems.append(f"importance_cap must be above 1 + the clip, got {self.importance_cap}")
            if self.kl_in_loss == "k1":
                problems.append(
                    "kl_in_loss 'k1' would teach nothing: as a loss, the expected gradient of log p is 0. "
                    "Leave it out (the KL part of the reward is k1, and there it works), or take k2"
                )
            elif self.kl_in_loss not in (None, "k2", "k3"):
                problems.append(f"kl_in_loss must be k2 or k3, got {self.kl_in_loss!r}")
            if self.importance not in ("token", "sequence"):
                problems.append(f"importance must be token or sequence, got {self.importance!r}")
            if problems:
                raise ConfigError(*problems)
            token_weights(torch.ones(1, 1, dtype=torch.bool), self.aggregation, longest=1)  # refuses an unknown name

    def __init__(self, setup: Setup, config: Config) -> None:
        setup.require_groups(config.group_size)
        require_exact_sampling(setup.policy.sampling, "grpo")
        if config.kl_in_loss is not None:
            require_beta(setup.beta, "grpo with kl_in_loss")
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.optimizer = setup.engine.optimizer(self.policy.parameters(), config.optimization)
        self._order = setup.stream("grpo minibatches")

    def begin(self) -> ResetOptions:
        return {"group_size": self.config.group_size}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        """`epochs` passes of gradient steps.

        Rows without a score teach nothing (but a KL term in the loss) and do not touch their group's mean.
        """
        require_stated(rollout, "grpo")
        self.policy.eval()  # with dropout, the first ratio would not be 1
        rollout = self.setup.engine.local(rollout)
        returns = rollout.returns(without=() if self.config.kl_in_loss is None else self.setup.reward.kl_names)
        advantages = group_advantages(
            returns, rollout.group, scale_by_std=self.config.scale_by_std, counted=rollout.scored
        )
        rollout = rollout.with_extras(advantages=advantages[:, None].expand(rollout.tokens.shape))
        if self.config.kl_in_loss is not None:
            rollout = beside_reference(self.setup.reference, rollout)
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
        for rows in self.optimizer.rows(batch.lengths):
            part = batch.select(rows)
            weight, share = part.extras["weight"], part.extras["share"]
            seen = self.policy.evaluate(part.tokens, part.mask, part.actions)
            token_log_ratio = log_ratio = stated_log_ratio(seen.logprobs, part.logprobs, part.actions)
            if chosen.importance == "sequence":
                log_ratio = sequence_log_ratio(log_ratio, part.actions)
            clip = (chosen.clip, chosen.clip_high)
            terms = clipped_policy_loss(log_ratio, part.extras["advantages"], *clip, cap=chosen.importance_cap)
            loss = weighted_sum(terms, weight)
            penalty = torch.zeros_like(loss)
            if chosen.kl_in_loss is not None:
                estimate = kl_estimate(seen.logprobs.double(), part.extras["reference"], chosen.kl_in_loss)
                penalty = self.setup.beta * weighted_sum(estimate, weight)
            self.optimizer.backward(loss + penalty)
            with torch.no_grad():
                # KL(old || new): the tokens were drawn from the old policy, where log p - log p is 0.
                strayed = kl_estimate(torch.zeros_like(token_log_ratio), token_log_ratio, "k3")
                for name, value in {
                    "policy_loss": loss,
                    "entropy": weighted_sum(seen.entropy.double(), share),
                    "approx_kl": weighted_sum(strayed, share),
                    "clip_fraction": weighted_sum(beyond_clip(log_ratio, *clip).double(), share),
                    **({} if chosen.kl_in_loss is None else {"kl_loss": penalty}),
                }.items():
                    found[name] += float(value.detach())
        return {**found, "grad_norm": self.optimizer.step()}

    def state_dict(self) -> State:
        return learned_state(self.policy, self.optimizer, self._order)

    def load_state_dict(self, state: State, /) -> None:
        load_learned_state(state, self.policy, self.optimizer, self._order)
