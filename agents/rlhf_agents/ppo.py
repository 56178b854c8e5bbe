"""Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347), as language models are trained with it
(Ouyang et al. 2022, arXiv 2203.02155).

An action is a token (the end token, too), and its state is the text before it. The KL penalty is a reward for every
token, the score is a reward at the last token, and generalised advantage estimation (Schulman et al. 2016, arXiv
1506.02438) with a learned value function assigns credit to the tokens. The value after the end of a text is 0; only
after a text that was cut from outside it is the value of the last state. A penalty for texts that never end ("EOS
trick", Huang et al. 2024, arXiv 2403.17031) is a part of the objective and not of the algorithm, hence a reward:
`missing_end`.

    A_t   = delta_t + gamma lam A_{t+1}        delta_t = r_t + gamma V_{t+1} - V_t
    ratio = pi(y_t | text) / mu(y_t | text)    mu: the policy that wrote the text
    loss  = mean over tokens of
              - min(ratio A_t, clip(ratio, 1 - clip, 1 + clip) A_t)        (2017, eq. 7)
              + value_coefficient (V_t - target_t)^2 / 2       target_t = A_t + V_t, as before
              - entropy_coefficient H_t

Texts of another or an older policy are always corrected: the probability ratio is relative to the policy that wrote the
text, capped at `importance_cap`. On texts that the agent has just written it starts at 1.

PPO-ptx (Ouyang et al., eq. 2) is this agent with the `ptx_coefficient` that every agent has.

When: rewards for single tokens or steps, conversations, long texts, or one answer to a prompt, where a learned value
says which part was good. When not: a text has one score and several answers to a prompt are cheap; then grpo and rloo
need no value model, and less memory and time.

Left out: an adaptive KL weight (the `kl` reward part has one), normalised rewards.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.errors import Problem
from rlhf_env.learning.advantages import explained_variance, gae, paid_to_actions
from rlhf_env.learning.agent import Decision, Metrics, Setup, learned_state, load_learned_state
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.entropy import EntropyBonus, EntropyCourse
from rlhf_env.learning.functional import (
    clipped_policy_loss,
    clipped_value_loss,
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
from rlhf_env.learning.ranges import Choice, Multiple, Ranges, Uniform
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies import Policy, ValueHead
from rlhf_env.policies.precision import finest, refined
from rlhf_env.settings import AtLeastOne, Chooses, NonNegative, Positive, Share, fault, settings
from rlhf_env.types import Observation, ResetOptions, State


class PPO:
    """Clipped policy gradient with a learned value."""

    trains = True
    off_policy = True  # ratios are relative to who wrote a text
    weighs_rows = True

    @settings
    class Config:
        """Each part has its switch."""

        ranges: ClassVar[Ranges] = {"lr": Multiple(0.25, 4.0), "epochs": Choice(1, 2, 4), "lam": Uniform(0.9, 1.0)}

        group_size: AtLeastOne = 1
        """Neighbouring rows that answer one prompt. They are not compared; rewards that do compare them (diversity)
        need more than one."""
        gamma: Share = 1.0
        """Discount per token."""
        lam: Share = 0.95
        """GAE's lambda (1: no bootstrapping from the value, 0: all of it)."""
        epochs: AtLeastOne = 2
        """Passes over a rollout."""
        minibatches: AtLeastOne = 1
        """Gradient steps per pass."""
        loss: Annotated[LossSpec | None, Chooses("token loss")] = None
        """The token loss, by name or as a table (docs/losses.md): one that takes the agent's advantages. It brings its
        own clip. Left out: the clipped term (eq. 7) with `clip` and `importance_cap`."""
        clip: NonNegative = 0.2
        """How far a token's probability ratio may move the loss (eq. 7; 0: as far as `importance_cap`)."""
        importance_cap: Positive = 3.0
        """Where that ratio is cut off, above 1 + `clip`. It binds on texts that an older policy wrote."""
        mask_overlong: bool = False
        """Learn nothing from answers that the length limit cut (overlong filtering, DAPO). Nor does
        the value."""
        target_kl: NonNegative = 0.0
        """The update stops after the gradient step whose policy was this far from the rollout's (0: never)."""
        whiten_advantages: bool = True
        """Mean 0 and variance 1 over the rollout's tokens."""
        entropy_coefficient: NonNegative = 0.0
        """Weight of an entropy bonus, per nat of a token's entropy."""
        entropy: EntropyCourse = EntropyCourse()
        """The course of that weight over the run, and a floor that the entropy is held above."""
        value_model: Literal["shared", "separate"] = "shared"
        """A linear head on the policy's own trunk, or on a copy of it that learns apart."""
        value_coefficient: NonNegative = 0.1
        """Weight of the value loss. With a separate model it only scales that model's gradient."""
        value_clip: NonNegative = 0.0
        """Bound on a value's change per update, in units of reward (0: none; it tends to hurt, Andrychowicz et al.
        2021, arXiv 2006.05990)."""
        optimization: Optimization = Optimization()
        """Learning rate, gradient clipping and so on."""

        def problems(self) -> Iterator[Problem]:
            yield from self.entropy.problems_with(self.entropy_coefficient)
            if not self.importance_cap > 1.0 + self.clip:
                yield fault("importance_cap", f"must be above 1 + clip = {1.0 + self.clip}, got {self.importance_cap}")
            if self.loss is not None:
                names = ("clip", "importance_cap")
                own = {name: (getattr(self, name), getattr(type(self), name)) for name in names}
                yield from problems_of_token_loss(self.loss, "ppo", ("agent",), own)

    def __init__(self, setup: Setup, config: Config) -> None:
        setup.require_groups(config.group_size, least=1)
        require_exact_sampling(setup.policy.sampling, "ppo")
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.critic: Policy | None = copy.deepcopy(setup.policy).eval() if config.value_model == "separate" else None
        self.value_head = ValueHead(self.policy.hidden_size, dtype=self.policy.dtype, device=self.policy.device)
        trained = [*self.policy.parameters(), *self.value_head.parameters()]
        if self.critic is not None:
            trained += self.critic.parameters()
        self.entropy = EntropyBonus(setup, config.entropy_coefficient, config.entropy)
        self.optimizer = setup.engine.optimizer(trained, config.optimization)
        self._order = setup.stream("ppo minibatches")
        self.loss = None if config.loss is None else load_token_loss(config.loss)
        self._draws = setup.stream("ppo left out")

    def begin(self) -> ResetOptions:
        return {"group_size": self.config.group_size}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        """`epochs` passes of gradient steps over the rollout."""
        require_stated(rollout, "ppo")
        self.policy.eval()  # with dropout, the first ratio would not be 1
        rollout = self.setup.engine.local(rollout)
        rollout = self._assess(without_overlong(rollout) if self.config.mask_overlong else rollout)
        steps: list[Metrics] = []
        for rows in minibatches(len(rollout), self.config.minibatches, self.config.epochs, self._order):
            steps.append(self._step(rollout.select(rows)))
            if self.config.target_kl > 0.0 and steps[-1]["approx_kl"] > self.config.target_kl:
                break
        values, targets = rollout.extras["values"], rollout.extras["targets"]
        metrics = over_steps(steps)
        return {
            **metrics,
            **self.entropy.observe(metrics["entropy"], len(rollout)),
            "explained_variance": explained_variance(values, targets, rollout.actions),
            "gradient_steps": float(len(steps)),
            "lr": self.optimizer.lr,
        }

    @torch.no_grad()
    def _assess(self, rollout: Rollout) -> Rollout:
        """The rollout with float64[B, L] each of `values` (before the update), `advantages` and `targets`."""
        values, final_values = self._old_values(rollout)
        advantages = gae(
            paid_to_actions(rollout.rewards(), rollout.mask, rollout.actions),
            values,
            rollout.actions,
            gamma=self.config.gamma,
            lam=self.config.lam,
            truncated=rollout.truncated,
            final_values=final_values,
        )
        targets = advantages + values.masked_fill(~rollout.actions, 0.0)
        if self.config.whiten_advantages:
            advantages = whiten(advantages, rollout.actions)
        self.setup.engine.credit(rollout, advantages)
        return rollout.with_extras(values=values, advantages=advantages, targets=targets)

    def _old_values(self, rollout: Rollout) -> tuple[Tensor, Tensor | None]:
        """V [B, L] of the state from which each token was drawn; if texts were cut, also V [B] of the last states."""
        tokens, mask = rollout.tokens, rollout.mask
        cut = bool(rollout.truncated.any())
        if cut:  # one column more, for the state after the longest text
            tokens, mask = F.pad(tokens, (0, 1), value=self.policy.pad_id), F.pad(mask, (0, 1), value=False)
        trunk = self.policy if self.critic is None else self.critic
        nowhere = torch.zeros_like(mask)
        values = torch.zeros(tokens.shape, dtype=finest(tokens.device), device=tokens.device)
        for rows in self.optimizer.rows(rollout.lengths, group=rollout.group, prompts=rollout.prompt_lengths):
            scores = trunk.evaluate(tokens[rows], mask[rows], nowhere[rows])
            values[rows] = refined(self.value_head(scores.hidden))
        if not cut:
            return values, None
        return values[:, :-1], values.gather(1, rollout.lengths[:, None]).squeeze(1)

    def _step(self, batch: Rollout) -> Metrics:
        """One gradient step on a minibatch."""
        config = self.config
        batch = batch.with_extras(weight=batch.weighted(token_weights(batch.actions, "token-mean")))
        if self.loss is not None and self.loss.declared.aggregation is not None:
            longest = self.setup.max_new_tokens
            batch = batch.with_extras(
                policy_weight=batch.weighted(
                    token_weights(batch.actions, self.loss.declared.aggregation, longest=longest)
                )
            )
        batch = with_left_out(self.loss, self.policy, self.optimizer, batch, self._draws)
        metrics: Metrics = defaultdict(float)
        for rows in self.optimizer.rows(batch.lengths, group=batch.group, prompts=batch.prompt_lengths):
            part = batch.select(rows)
            extras, weight = part.extras, part.extras["weight"]
            scores = self.policy.evaluate(part.tokens, part.mask, part.actions)
            states = scores.hidden
            if self.critic is not None:
                states = self.critic.evaluate(part.tokens, part.mask, torch.zeros_like(part.mask)).hidden
            values = refined(self.value_head(states))
            log_ratio = stated_log_ratio(scores.logprobs, part.logprobs, part.actions)

            if self.loss is None:
                terms = clipped_policy_loss(log_ratio, extras["advantages"], config.clip, cap=config.importance_cap)
            else:
                terms = token_terms(self.loss, scores.logprobs, part)
            policy_loss = weighted_sum(terms, extras.get("policy_weight", weight))
            value_loss = weighted_sum(
                clipped_value_loss(values, extras["values"], extras["targets"], config.value_clip), weight
            )
            entropy = weighted_sum(refined(scores.entropy), weight)
            self.optimizer.backward(
                policy_loss + config.value_coefficient * value_loss - self.entropy.coefficient * entropy
            )
            with torch.no_grad():
                # KL(old || new): the tokens were drawn from the old policy, where log p - log p is 0.
                token_kl = kl_estimate(torch.zeros_like(log_ratio), log_ratio, "k3")
                for name, value in {
                    "policy_loss": policy_loss,
                    "value_loss": value_loss,
                    "entropy": entropy,
                    "approx_kl": weighted_sum(token_kl, weight),
                    **({} if self.loss else {"clip_fraction": self._outside(log_ratio, weight)}),
                }.items():
                    metrics[name] += float(value.detach())
        return {**self.optimizer.summed(metrics), "grad_norm": self.optimizer.step()}

    def _outside(self, log_ratio: Tensor, weight: Tensor) -> Tensor:
        """The share of tokens whose ratio is outside the agent's own clip."""
        return weighted_sum(refined(outside_clip(log_ratio, self.config.clip)), weight)

    def state_dict(self) -> State:
        state = {
            **learned_state(self.policy, self.optimizer, self._order),
            "value_head": self.value_head.state_dict(),
            **state_of_draws(self.loss, self._draws),
            **self.entropy.state_dict(),
        }
        if self.critic is not None:
            state["critic"] = self.critic.state_dict()
        return state

    def load_state_dict(self, state: State, /) -> None:
        if "texts_read" in state:  # of a run from before every agent had the mix
            state = {**state, "optimizer": {**state["optimizer"], "texts_read": state["texts_read"]}}
        load_learned_state(state, self.policy, self.optimizer, self._order)
        load_state_of_draws(state, self._draws)
        self.entropy.load_state_dict(state)
        self.value_head.load_state_dict(state["value_head"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
