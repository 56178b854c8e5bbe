"""REINFORCE (Williams 1992): raise the log-probability of an answer in proportion to return minus baseline.

The gradient of E[return] is E[(return - b) * grad log pi(answer)] for any baseline b that does not depend on the
answer. All tokens of a text have its return, which includes the KL penalty. There is one gradient step per rollout.

    gradient = mean over answers of w (return - b) grad log pi(answer)
    w        = min(pi / mu, importance_cap)        mu: the policy that wrote the answer

Off-policy texts are always corrected: each answer has the weight min(pi / mu, `importance_cap`), where mu is the policy
that wrote it. On texts that the agent has just written the weight is 1. (The KL penalty in the return of an old text
stays that of its writer.)

`loss` names another loss of tokens (docs/losses.md), "reinforce++" (Hu et al. 2025, arXiv 2501.03262) among them.

When: as a plain baseline, or with one answer to a prompt and a small model. When not: several answers to a prompt can
be had (rloo has less noise), or a batch is to be used for more than one step.

Left out: a learned baseline (that is ppo).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.learning.advantages import paid_to_actions, returns_to_go
from rlhf_env.learning.agent import Decision, Metrics, Setup
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.entropy import EntropyBonus, EntropyCourse, with_bonus
from rlhf_env.learning.functional import (
    over_steps,
    require_exact_sampling,
    require_stated,
    stated_log_ratio,
    token_weights,
    truncated_importance_weights,
    weighted_sum,
    whiten,
    without_overlong,
)
from rlhf_env.learning.losses.declaring import LossSpec, load_token_loss, problems_of_token_loss
from rlhf_env.learning.losses.steps import load_state_of_draws, state_of_draws, token_terms, with_left_out
from rlhf_env.learning.ranges import Choice, Multiple, Ranges
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies.precision import refined
from rlhf_env.settings import AtLeastOne, Chooses, NonNegative, ShareBelowOne, fault, settings
from rlhf_env.types import Observation, ResetOptions, State


def policy_gradient_loss(logprobs: Tensor, advantages: Tensor, importance: Tensor) -> Tensor:
    """[B, L], to be minimised: -w_b A_bt log pi(token), whose gradient is the policy gradient's (Williams 1992).

    `logprobs` and `advantages` [B, L]; `importance` w [B] are weights without gradient, 1 on-policy.
    """
    return -importance[:, None] * advantages * logprobs


class Reinforce:
    """The policy gradient as it stands, one step per rollout."""

    trains = True
    off_policy = True  # ratios are relative to who wrote a text
    weighs_rows = True

    @settings
    class Config:
        """The baseline, and what a token is credited with."""

        ranges: ClassVar[Ranges] = {"lr": Multiple(0.25, 4.0), "baseline": Choice("running", "batch")}

        group_size: AtLeastOne = 1
        """Neighbouring rows that answer one prompt. They are not compared (that is rloo); rewards that do compare them
        (diversity) need more than one."""
        baseline: Literal["none", "running", "batch"] = "running"
        """What a return is compared with. "running" is the exponential moving average of the mean returns of earlier
        rollouts (0 before the first): it changes no expectation. "batch" is the mean of this rollout's returns: each
        row's own share in it makes the expected gradient (B - 1) / B of the true one."""
        baseline_decay: ShareBelowOne = 0.9
        """How much of that average one rollout leaves."""
        reward_to_go: bool = False
        """Credit a token with the rewards from there on, instead of all of the text's. It changes no expectation; it
        matters where rewards are paid before the end, as KL is."""
        loss: Annotated[LossSpec | None, Chooses("token loss")] = None
        """The token loss, by name or as a table (docs/losses.md): one that takes the agent's advantages. Its tokens add
        up to the mean over answers of their sums if it does not say otherwise. Left out: the policy gradient, weighted
        by `importance_cap`."""
        importance_cap: Annotated[float, Ge(1)] = 3.0
        """The largest importance weight of an answer."""
        mask_overlong: bool = False
        """Learn nothing from answers that the length limit cut (overlong filtering, DAPO). The
        baseline still knows them."""
        entropy_coefficient: NonNegative = 0.0
        """Weight of an entropy bonus, per nat of a token's entropy."""
        entropy: EntropyCourse = EntropyCourse()
        """The course of that weight over the run, and a floor that the entropy is held above."""
        optimization: Optimization = Optimization()
        """Learning rate, gradient clipping and so on."""

        def problems(self) -> Iterator[Problem]:
            yield from self.entropy.problems_with(self.entropy_coefficient)
            if self.loss is not None:
                own = {"importance_cap": (self.importance_cap, type(self).importance_cap)}
                yield from problems_of_token_loss(self.loss, "reinforce", ("agent", "batch std"), own)

    def __init__(self, setup: Setup, config: Config) -> None:
        setup.require_groups(config.group_size, least=1)
        require_exact_sampling(setup.policy.sampling, "reinforce")
        if config.baseline == "batch" and setup.batch_size < 2:
            raise ConfigError(
                fault("baseline", "'batch' compares a text with others, and num_envs is 1: use 'running'")
            )
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.entropy = EntropyBonus(setup, config.entropy_coefficient, config.entropy)
        self.optimizer = setup.engine.optimizer(self.policy.parameters(), config.optimization)
        self.loss = None if config.loss is None else load_token_loss(config.loss)
        self._draws = setup.stream("reinforce left out")
        self._mean, self._mean_weight = 0.0, 0.0  # of earlier rollouts' returns; how much of the average they fill

    def begin(self) -> ResetOptions:
        return {"group_size": self.config.group_size}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        """One gradient step. Rows without a score (cut from outside) are left out; without any row, nothing changes."""
        require_stated(rollout, "reinforce")
        self.policy.eval()  # with dropout, the importance weights would not be 1
        unscored = {"rows_without_score": float((~rollout.scored).sum())}
        rollout = self.setup.engine.local(rollout.select(rollout.scored))
        if not len(rollout):
            return {**unscored, "steps_without_signal": 1.0}
        returns = rollout.returns()
        baseline = self._baseline(returns)
        if self.config.mask_overlong:
            rollout = without_overlong(rollout)
        advantages = self._credit(rollout, returns) - baseline
        if self.loss is not None and self.loss.declared.advantages == "batch std":
            advantages = whiten(advantages, rollout.actions)
        self.setup.engine.credit(rollout, advantages)
        aggregation = (self.loss.declared.aggregation if self.loss else None) or "sequence-sum"
        rollout = rollout.with_extras(
            advantages=advantages,
            weight=rollout.weighted(token_weights(rollout.actions, aggregation, longest=self.setup.max_new_tokens)),
            share=token_weights(rollout.actions, "token-mean"),
        )
        rollout = with_left_out(self.loss, self.policy, self.optimizer, rollout, self._draws)
        metrics: Metrics = defaultdict(float)
        for rows in self.optimizer.rows(rollout.lengths, group=rollout.group, prompts=rollout.prompt_lengths):
            part = rollout.select(rows)
            scores = self.policy.evaluate(part.tokens, part.mask, part.actions)
            importance = truncated_importance_weights(
                stated_log_ratio(scores.logprobs, part.logprobs, part.actions), self.config.importance_cap
            )
            if self.loss is None:
                terms = policy_gradient_loss(refined(scores.logprobs), part.extras["advantages"], importance)
            else:
                terms = token_terms(self.loss, scores.logprobs, part)
            loss = weighted_sum(terms, part.extras["weight"])
            entropy = weighted_sum(refined(scores.entropy), part.extras["share"])
            self.optimizer.backward(with_bonus(loss, entropy, self.entropy.coefficient))
            for name, value in {
                "policy_loss": loss,
                "entropy": entropy,
                **({} if self.loss else {"importance_weight": importance.sum() / len(rollout)}),
            }.items():
                metrics[name] += float(value.detach())
        summary = over_steps([{**self.optimizer.summed(metrics), "grad_norm": self.optimizer.step()}])
        return {
            **summary,
            **self.entropy.observe(summary["entropy"], len(rollout)),
            **unscored,
            "baseline": baseline,
            "lr": self.optimizer.lr,
        }

    def _credit(self, rollout: Rollout, returns: Tensor) -> Tensor:
        """float64[B, L]: the return of each of the agent's tokens, before the baseline is subtracted."""
        if not self.config.reward_to_go:
            return returns[:, None].expand(rollout.tokens.shape)
        return returns_to_go(paid_to_actions(rollout.rewards(), rollout.mask, rollout.actions), rollout.actions)

    def _baseline(self, returns: Tensor) -> float:
        """The baseline for this rollout's returns float64[B]; afterwards the running mean includes them."""
        # Clamped, because the mean of equal returns may round: it must be exactly their value, for advantages of 0.
        mean = float(returns.mean().clamp(returns.min(), returns.max()))
        if self.config.baseline == "batch":
            return mean
        earlier, new = self._mean, 1.0 - self.config.baseline_decay
        self._mean_weight = self.config.baseline_decay * self._mean_weight + new
        self._mean += (mean - self._mean) * new / self._mean_weight
        return earlier if self.config.baseline == "running" else 0.0

    def state_dict(self) -> State:
        return {
            "policy": self.policy.state_dict(),
            "sampling": self.policy.sampling_state(),
            "optimizer": self.optimizer.state_dict(),
            "baseline": {"mean": self._mean, "weight": self._mean_weight},
            **state_of_draws(self.loss, self._draws),
            **self.entropy.state_dict(),
        }

    def load_state_dict(self, state: State, /) -> None:
        self.policy.load_state_dict(state["policy"])
        self.policy.load_sampling_state(state["sampling"])
        self.optimizer.load_state_dict(state["optimizer"])
        load_state_of_draws(state, self._draws)
        self.entropy.load_state_dict(state)
        self._mean, self._mean_weight = float(state["baseline"]["mean"]), float(state["baseline"]["weight"])
