"""Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300).

The answers to one prompt are a group. The advantage of an answer, the same for all its tokens, is its return minus the
group's mean, divided by the group's standard deviation. There is no value model.

    A_i   = (R_i - mean of the group's R) / (standard deviation of the group's R)
    ratio = pi(y_t | text) / mu(y_t | text)        mu: the policy that wrote the text
    loss  = mean over answers, of the mean over tokens, of                     (eq. 3)
              - min(ratio A_i, clip(ratio, 1 - clip, 1 + clip) A_i)

Unlike in the paper, the KL penalty is in the reward, where the environment puts it. `kl_in_loss` moves it to the loss:
the returns then leave out the `kl` part, and its weight is the beta of the loss term. Of the estimates, "k2" has the
gradient of KL(policy || reference), and the paper's "k3" that of the other direction, KL(reference || policy) (Shah et
al. 2025, arXiv 2512.21852): with k3, the objective is no longer the environment's. "k3-corrected" weighs it by the
probability ratio (DeepSeek-AI 2025, arXiv 2512.02556), so that it has k2's expected gradient, on texts of an older
policy too. With all of them, a token's gradient has the KL of its own distribution only, not that of the text after it.

`loss` names another objective for the same groups: DAPO (Yu et al. 2025, arXiv 2503.14476), Dr. GRPO (Liu et al. 2025,
arXiv 2503.20783), GSPO (Zheng et al. 2025, arXiv 2507.18071), CISPO, SAPO, Clip-Cov, REINFORCE++ with a baseline,
MaxRL; docs/losses.md has them all. Single options lead there, too: `scale_by_std` off and `aggregation` "dr-grpo", a
larger `clip_high`, `importance` "sequence".

Texts of another or an older policy are always corrected: the probability ratio is relative to the policy that wrote the
text, capped at `importance_cap`. On texts that the agent has just written it starts at 1.

When: several answers to a prompt are cheap, and each has one score, above all a score that can be checked. When not:
prompts differ in how noisy their rewards are (division by the standard deviation makes easy and hopeless prompts loud:
rloo, or `scale_by_std` off), rewards are for single steps (ppo), or nearly all groups have no spread
(`dynamic_sampling`, an easier task, a curriculum).

Left out: process rewards, resampling of groups without spread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from rlhf_env.errors import Problem
from rlhf_env.learning.advantages import group_advantages, groups_without_spread, mean_scaled_advantages
from rlhf_env.learning.agent import Decision, Metrics, Setup, learned_state, load_learned_state
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.entropy import EntropyBonus, EntropyCourse, with_bonus
from rlhf_env.learning.functional import (
    Aggregation,
    KLEstimator,
    clipped_policy_loss,
    kl_estimate,
    minibatches,
    outside_clip,
    over_steps,
    require_beta,
    require_exact_sampling,
    require_stated,
    stated_log_ratio,
    token_weights,
    weighted_sum,
    whiten,
    with_reference_logprobs,
    without_overlong,
)
from rlhf_env.learning.losses.declaring import AdvantageKind, LossSpec, load_token_loss, problems_of_token_loss
from rlhf_env.learning.losses.steps import load_state_of_draws, state_of_draws, token_terms, with_left_out
from rlhf_env.learning.ranges import Choice, Multiple, Ranges
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies.precision import refined
from rlhf_env.settings import AtLeastOne, Chooses, NonNegative, Positive, fault, settings
from rlhf_env.types import Observation, ResetOptions, State


def sequence_log_ratio(log_ratio: Tensor, actions: Tensor) -> Tensor:
    """[B, L]: each token's log-ratio replaced by its row's mean over `actions` bool[B, L] (GSPO, eq. 7); 0 off them."""
    mean = log_ratio.masked_fill(~actions, 0.0).sum(dim=1, keepdim=True) / actions.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.expand_as(log_ratio).masked_fill(~actions, 0.0)


ADVANTAGES: tuple[AdvantageKind, ...] = ("agent", "group", "group std", "group mean", "batch std")


class GRPO:
    """Clipped policy gradient, the group's mean for a baseline."""

    trains = True
    off_policy = True  # ratios are relative to who wrote a text
    weighs_rows = True

    @settings
    class Config:
        """What the paper has, unless other values are given."""

        ranges: ClassVar[Ranges] = {
            "lr": Multiple(0.25, 4.0),
            "epochs": Choice(1, 2),
            "scale_by_std": Choice(True, False),
        }

        group_size: Annotated[int, Ge(2)] = 4
        """Answers to a prompt; it must divide the environment's rows."""
        loss: Annotated[LossSpec | None, Chooses("token loss")] = None
        """The token loss, by name or as a table: `{ name = "sapo", negative_temperature = 2.0 }` (docs/losses.md). It
        brings its own clip, and most bring advantages and aggregation. Left out: PPO's clipped term with the settings
        below."""
        scale_by_std: bool = True
        """Divide by the group's standard deviation. It weighs prompts with little spread up."""
        aggregation: Aggregation = "sequence-mean"
        """How tokens add up to a loss (see `rlhf_env.learning.functional.token_weights`)."""
        importance: Literal["token", "sequence"] = "token"
        """The probability ratio of each token, or of the whole answer (per-token geometric mean)."""
        clip: NonNegative = 0.2
        """How far that ratio may move the loss (0: as far as `importance_cap`). It binds from the second gradient step
        on a rollout."""
        clip_high: NonNegative | None = None
        """How far above 1, where that is not `clip` (DAPO: 0.28 beside 0.2)."""
        importance_cap: Positive = 3.0
        """Where the ratio is cut off, above the clip. It binds on texts that an older policy wrote."""
        kl_in_loss: KLEstimator | None = None
        """Leave the KL part out of the returns and add its weight times this estimate to the loss: "k2", "k3" or
        "k3-corrected", of every token, weighted as the other terms of the loss."""
        mask_overlong: bool = False
        """Learn nothing from answers that the length limit cut (overlong filtering, DAPO). Others
        of the group are still compared with them."""
        epochs: AtLeastOne = 1
        """Passes over a rollout."""
        minibatches: AtLeastOne = 1
        """Gradient steps per pass."""
        entropy_coefficient: NonNegative = 0.0
        """Weight of an entropy bonus, per nat of a token's entropy."""
        entropy: EntropyCourse = EntropyCourse()
        """The course of that weight over the run, and a floor that the entropy is held above."""
        optimization: Optimization = Optimization()
        """Learning rate, gradient clipping and so on."""

        def problems(self) -> Iterator[Problem]:
            yield from self.entropy.problems_with(self.entropy_coefficient)
            clip = max(self.clip, self.clip_high or 0.0)
            if not self.importance_cap > 1.0 + clip:
                yield fault("importance_cap", f"must be above 1 + the clip = {1.0 + clip}, got {self.importance_cap}")
            if self.kl_in_loss == "k1":
                yield fault(
                    "kl_in_loss",
                    "'k1' would teach nothing: as a loss, the expected gradient of log p is 0. "
                    "Leave it out (the KL part of the reward is k1, and there it works), or take k2",
                )
            if self.loss is not None:
                yield from problems_of_token_loss(self.loss, "grpo", ADVANTAGES, self._of_own_loss())

        def _of_own_loss(self) -> dict[str, tuple[Any, Any]]:
            """(value, default) of the settings that a loss of the table has for itself."""
            names = ("scale_by_std", "aggregation", "importance", "clip", "clip_high", "importance_cap")
            return {name: (getattr(self, name), getattr(type(self), name)) for name in names}

    def __init__(self, setup: Setup, config: Config) -> None:
        setup.require_groups(config.group_size)
        require_exact_sampling(setup.policy.sampling, "grpo")
        if config.kl_in_loss is not None:
            require_beta(setup.beta, "grpo with kl_in_loss")
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.entropy = EntropyBonus(setup, config.entropy_coefficient, config.entropy)
        self.optimizer = setup.engine.optimizer(self.policy.parameters(), config.optimization)
        self._order = setup.stream("grpo minibatches")
        self.loss = None if config.loss is None else load_token_loss(config.loss)
        self._draws = setup.stream("grpo left out")

    def begin(self) -> ResetOptions:
        return {"group_size": self.config.group_size}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        """`epochs` passes of gradient steps.

        Rows without a score have advantage 0 (a KL term in the loss still applies) and are left out of the group's
        mean.
        """
        require_stated(rollout, "grpo")
        self.policy.eval()  # with dropout, the first ratio would not be 1
        rollout = self.setup.engine.local(rollout)
        returns = rollout.returns(without=() if self.config.kl_in_loss is None else self.setup.reward.kl_names)
        if self.config.mask_overlong:
            rollout = without_overlong(rollout)
        rollout = rollout.with_extras(advantages=self._advantages(rollout, returns))
        self.setup.engine.credit(rollout, rollout.extras["advantages"])
        if self.config.kl_in_loss is not None:
            rollout = with_reference_logprobs(self.setup.reference, rollout)
        steps = [
            self._step(rollout.select(rows))
            for rows in minibatches(len(rollout), self.config.minibatches, self.config.epochs, self._order)
        ]
        metrics = over_steps(steps)
        return {
            **metrics,
            **self.entropy.observe(metrics["entropy"], len(rollout)),
            "groups_without_spread": groups_without_spread(returns, rollout.group, counted=rollout.scored),
            "lr": self.optimizer.lr,
        }

    def _advantages(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """float64[B, L]: of each token, from `returns` [B], as the loss wants it."""
        kind = "agent" if self.loss is None else self.loss.declared.advantages
        if kind == "group mean":
            rewards = rollout.returns(without=self.setup.reward.kl_names)
            advantages = mean_scaled_advantages(returns, rewards, rollout.group, counted=rollout.scored)
        else:
            scaled = self.config.scale_by_std if kind == "agent" else kind == "group std"
            advantages = group_advantages(returns, rollout.group, scale_by_std=scaled, counted=rollout.scored)
        of_tokens = advantages[:, None].expand(rollout.tokens.shape)
        if kind != "batch std":
            return of_tokens
        return whiten(of_tokens, rollout.actions & rollout.scored[:, None])

    def _step(self, batch: Rollout) -> Metrics:
        """One gradient step on a minibatch."""
        config = self.config
        aggregation = (self.loss.declared.aggregation if self.loss else None) or config.aggregation
        batch = batch.with_extras(
            weight=batch.weighted(token_weights(batch.actions, aggregation, longest=self.setup.max_new_tokens)),
            share=token_weights(batch.actions, "token-mean"),
        )
        batch = with_left_out(self.loss, self.policy, self.optimizer, batch, self._draws)
        metrics: Metrics = defaultdict(float)
        for rows in self.optimizer.rows(batch.lengths, group=batch.group, prompts=batch.prompt_lengths):
            part = batch.select(rows)
            weight, share = part.extras["weight"], part.extras["share"]
            scores = self.policy.evaluate(part.tokens, part.mask, part.actions)
            token_log_ratio = log_ratio = stated_log_ratio(scores.logprobs, part.logprobs, part.actions)
            if self.loss is not None:
                terms = token_terms(self.loss, scores.logprobs, part)
            else:
                if config.importance == "sequence":
                    log_ratio = sequence_log_ratio(log_ratio, part.actions)
                clip = (config.clip, config.clip_high)
                terms = clipped_policy_loss(log_ratio, part.extras["advantages"], *clip, cap=config.importance_cap)
            loss = weighted_sum(terms, weight)
            penalty = torch.zeros_like(loss)
            if config.kl_in_loss is not None:
                estimate = kl_estimate(
                    refined(scores.logprobs), part.extras["reference"], config.kl_in_loss, token_log_ratio
                )
                penalty = self.setup.beta * weighted_sum(estimate, weight)
            entropy = weighted_sum(refined(scores.entropy), share)
            self.optimizer.backward(with_bonus(loss + penalty, entropy, self.entropy.coefficient))
            with torch.no_grad():
                # KL(old || new): the tokens were drawn from the old policy, where log p - log p is 0.
                token_kl = kl_estimate(torch.zeros_like(token_log_ratio), token_log_ratio, "k3")
                for name, value in {
                    "policy_loss": loss,
                    "entropy": entropy,
                    "approx_kl": weighted_sum(token_kl, share),
                    **({} if self.loss else {"clip_fraction": self._outside(log_ratio, share)}),
                    **({} if config.kl_in_loss is None else {"kl_loss": penalty}),
                }.items():
                    metrics[name] += float(value.detach())
        return {**self.optimizer.summed(metrics), "grad_norm": self.optimizer.step()}

    def _outside(self, log_ratio: Tensor, share: Tensor) -> Tensor:
        """The share of tokens whose ratio is outside the agent's own clip."""
        return weighted_sum(refined(outside_clip(log_ratio, self.config.clip, self.config.clip_high)), share)

    def state_dict(self) -> State:
        state = learned_state(self.policy, self.optimizer, self._order)
        return {**state, **state_of_draws(self.loss, self._draws), **self.entropy.state_dict()}

    def load_state_dict(self, state: State, /) -> None:
        load_learned_state(state, self.policy, self.optimizer, self._order)
        load_state_of_draws(state, self._draws)
        self.entropy.load_state_dict(state)
