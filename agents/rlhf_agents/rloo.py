"""RLOO: REINFORCE with the other answers to the same prompt as the baseline (Ahmadian et al. 2024, arXiv 2402.14740).

An action is a whole answer. Its advantage is its return (with the KL penalty) minus the mean return of the *other*
answers in its group. That baseline is independent of the answer, so it leaves the policy gradient unbiased. There is no
value model.

    A_i  = R_i - mean of R_j over the other answers j to the same prompt
    loss = mean over answers of -min(ratio_i A_i, clip(ratio_i, 1 - clip, 1 + clip) A_i)
    ratio_i = pi(answer i) / mu(answer i)      mu: the policy that wrote it

The paper makes one gradient step per rollout. If `epochs` or `minibatches` ask for more, the loss is PPO's with the
probability ratio of an answer in place of a token's. Texts of another or an older policy are always corrected: the
ratio is relative to the policy that wrote the answer, capped at `importance_cap`. On texts that the agent has just
written it starts at 1.

`loss` names a loss of tokens for the same advantages (docs/losses.md).

When: several answers to a prompt are cheap, and the gradient is to be that of the objective, unbiased. When not:
rewards have wildly different scales between prompts (grpo), or are for single steps (ppo).

Left out: advantages scaled by their standard deviation (that is grpo).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from rlhf_env.errors import Problem
from rlhf_env.learning.advantages import groups_without_spread, leave_one_out_advantages
from rlhf_env.learning.agent import Decision, Metrics, Setup, learned_state, load_learned_state
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.entropy import EntropyBonus, EntropyCourse, with_bonus
from rlhf_env.learning.functional import (
    clipped_policy_loss,
    kl_estimate,
    minibatches,
    outside_clip,
    over_steps,
    require_exact_sampling,
    require_stated,
    stated_log_ratio,
    token_weights,
    weighted_sum,
    whiten,
    without_overlong,
)
from rlhf_env.learning.losses.declaring import LossSpec, load_token_loss, problems_of_token_loss
from rlhf_env.learning.losses.steps import load_state_of_draws, state_of_draws, token_terms, with_left_out
from rlhf_env.learning.ranges import Choice, Multiple, Ranges
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies.precision import refined
from rlhf_env.settings import AtLeastOne, Chooses, NonNegative, Positive, fault, settings
from rlhf_env.types import Observation, ResetOptions, State


class RLOO:
    """Policy gradient over whole answers, each compared with the group's others."""

    trains = True
    off_policy = True  # ratios are relative to who wrote a text
    weighs_rows = True

    @settings
    class Config:
        """What the paper has, unless other values are given."""

        ranges: ClassVar[Ranges] = {"lr": Multiple(0.25, 4.0), "epochs": Choice(1, 2)}

        group_size: Annotated[int, Ge(2)] = 4
        """Answers to a prompt; it must divide the environment's rows."""
        loss: Annotated[LossSpec | None, Chooses("token loss")] = None
        """The token loss, by name or as a table (docs/losses.md): one that takes the agent's advantages. It brings its
        own clip, and its tokens add up to the mean over answers of their sums if it does not say otherwise. Left out:
        the clipped term of whole answers."""
        clip: NonNegative = 0.2
        """How far an answer's probability ratio may move the loss (0: as far as `importance_cap`). It binds from the
        second gradient step on a rollout. A ratio of whole answers moves with their length: longer answers want a wider
        clip."""
        importance_cap: Positive = 3.0
        """Where that ratio is cut off, above 1 + `clip`. It binds on texts that an older policy wrote."""
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
            if not self.importance_cap > 1.0 + self.clip:
                yield fault("importance_cap", f"must be above 1 + clip = {1.0 + self.clip}, got {self.importance_cap}")
            if self.loss is not None:
                names = ("clip", "importance_cap")
                own = {name: (getattr(self, name), getattr(type(self), name)) for name in names}
                yield from problems_of_token_loss(self.loss, "rloo", ("agent", "batch std"), own)

    def __init__(self, setup: Setup, config: Config) -> None:
        setup.require_groups(config.group_size)
        require_exact_sampling(setup.policy.sampling, "rloo")
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.entropy = EntropyBonus(setup, config.entropy_coefficient, config.entropy)
        self.optimizer = setup.engine.optimizer(self.policy.parameters(), config.optimization)
        self._order = setup.stream("rloo minibatches")
        self.loss = None if config.loss is None else load_token_loss(config.loss)
        self._draws = setup.stream("rloo left out")

    def begin(self) -> ResetOptions:
        return {"group_size": self.config.group_size}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        """`epochs` passes of gradient steps.

        Rows without a score (cut from outside) are left out; without any row, nothing changes.
        """
        require_stated(rollout, "rloo")
        self.policy.eval()  # with dropout, the first ratio would not be 1
        unscored = {"rows_without_score": float((~rollout.scored).sum())}
        rollout = self.setup.engine.local(rollout.select(rollout.scored))
        if not len(rollout):
            return {**unscored, "steps_without_signal": 1.0}
        returns = rollout.returns()
        advantages = leave_one_out_advantages(returns, rollout.group)
        if self.config.mask_overlong:
            rollout = without_overlong(rollout)
        if self.loss is not None:
            of_tokens = advantages[:, None].expand(rollout.tokens.shape)
            if self.loss.declared.advantages == "batch std":
                of_tokens = whiten(of_tokens, rollout.actions)
            rollout = rollout.with_extras(advantages=of_tokens)
        self.setup.engine.credit(rollout, rollout.extras.get("advantages", advantages))
        steps = [
            self._step(rollout.select(rows), advantages[rows])
            for rows in minibatches(len(rollout), self.config.minibatches, self.config.epochs, self._order)
        ]
        metrics = over_steps(steps)
        return {
            **metrics,
            **self.entropy.observe(metrics["entropy"], len(rollout)),
            **unscored,
            "groups_without_spread": groups_without_spread(returns, rollout.group),
            "lr": self.optimizer.lr,
        }

    def _step(self, batch: Rollout, advantages: Tensor) -> Metrics:
        """One gradient step on a minibatch: the mean over its answers, `advantages` [B]."""
        config = self.config
        batch = batch.with_extras(share=token_weights(batch.actions, "token-mean"))
        if self.loss is not None:
            aggregation = self.loss.declared.aggregation or "sequence-sum"
            batch = batch.with_extras(
                weight=batch.weighted(token_weights(batch.actions, aggregation, longest=self.setup.max_new_tokens))
            )
        batch = with_left_out(self.loss, self.policy, self.optimizer, batch, self._draws)
        metrics: Metrics = defaultdict(float)
        for rows in self.optimizer.rows(batch.lengths, group=batch.group, prompts=batch.prompt_lengths):
            part = batch.select(rows)
            scores = self.policy.evaluate(part.tokens, part.mask, part.actions)
            token_log_ratio = stated_log_ratio(scores.logprobs, part.logprobs, part.actions)
            log_ratio = token_log_ratio.sum(dim=1)
            if self.loss is not None:
                loss = weighted_sum(token_terms(self.loss, scores.logprobs, part), part.extras["weight"])
            else:
                terms = clipped_policy_loss(log_ratio, advantages[rows], config.clip, cap=config.importance_cap)
                loss = part.weighted(terms)[part.actions.any(dim=1)].sum() / len(batch)
            entropy = weighted_sum(refined(scores.entropy), part.extras["share"])
            self.optimizer.backward(with_bonus(loss, entropy, self.entropy.coefficient))
            with torch.no_grad():
                # KL(old || new): the tokens were drawn from the old policy, where log p - log p is 0.
                token_kl = kl_estimate(torch.zeros_like(token_log_ratio), token_log_ratio, "k3")
                for name, value in {
                    "policy_loss": loss,
                    "entropy": entropy,
                    "approx_kl": weighted_sum(token_kl, part.extras["share"]),
                    **({} if self.loss else {"clip_fraction": outside_clip(log_ratio, config.clip).sum() / len(batch)}),
                }.items():
                    metrics[name] += float(value.detach())
        return {**self.optimizer.summed(metrics), "grad_norm": self.optimizer.step()}

    def state_dict(self) -> State:
        state = learned_state(self.policy, self.optimizer, self._order)
        return {**state, **state_of_draws(self.loss, self._draws), **self.entropy.state_dict()}

    def load_state_dict(self, state: State, /) -> None:
        load_learned_state(state, self.policy, self.optimizer, self._order)
        load_state_of_draws(state, self._draws)
        self.entropy.load_state_dict(state)
