"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306): from answers that were judged one by one.

An answer is desirable or undesirable. Its implicit reward, beta * log(pi / reference), is a gain or a loss relative to
a reference point. The objective is a utility of it that saturates on both sides: answers far above or far below the
point have little gradient. `beta` is the weight of the environment's `kl` part.

    r    = log(pi / reference) of the answer        z0: the reference point
    loss = mean of  desirable_weight   sigmoid(beta (z0 - r))    over desirable answers,
                    undesirable_weight sigmoid(beta (r - z0))    over the others    (sec. 4.1)

The reference point z0 stands for KL(policy || reference). As in the paper it is estimated from mismatched pairs, the
prompt of one row with the answer of another, clamped at 0, and has no gradient. It is taken over the rows of a gradient
step.

Online, an answer is desirable if its reward (without the KL part) is above the mean of its group or, if no two rows
answer the same prompt, of the batch. Answers exactly at the mean are left out. Offline, the labels come with the
rollout: single answers (`labelled_answers`), or pairs (`preference_pairs`), of which each answer counts by itself.

The utility is not the environment's objective: it ignores how much better an answer is.

When: judgements are of single answers, thumbs up and down. When not: there are comparisons (dpo uses them better) or
scores (an agent of policy gradients knows how much better an answer is).

Left out: utilities of other shapes, the weights of stored pairs (each half counts once).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_env.learning.advantages import rows_of_groups
from rlhf_env.learning.agent import Decision, Metrics, Setup, learned_state, load_learned_state
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import (
    in_order_of_content,
    minibatches,
    over_steps,
    require_beta,
    unpaired_loss,
    with_reference_logprobs,
)
from rlhf_env.learning.ranges import Choice, Multiple, Ranges
from rlhf_env.learning.rollout import Rollout, demonstrations
from rlhf_env.policies.precision import refined
from rlhf_env.settings import AtLeastOne, Positive, settings
from rlhf_env.types import Observation, ResetOptions, State


def above_the_mean(returns: Tensor, group: Tensor, counted: Tensor) -> Tensor:
    """int64[B]: 1 for a return above its group's mean, -1 below it, 0 on it and for rows not `counted` (bool[B]).

    `returns` [B]; `group` int64[B]. Where no group has two rows, they are compared with the mean of all.
    """
    groups = list(rows_of_groups(group, counted))
    if all(len(rows) < 2 for rows in groups):
        groups = [torch.cat(groups)]
    verdicts = torch.zeros_like(group)
    for rows in groups:
        values = returns[rows]
        if len(rows) > 1 and bool(values.min() != values.max()):  # the mean of equals may be off by a rounding
            verdicts[rows] = (values - values.mean()).sign().long()
    return verdicts


def mismatched(rollout: Rollout, *, pad_id: int) -> Rollout:
    """Each row's prompt with an answer to another one: the same place's in the next group (j = i + 1 mod m, sec. 4.1).

    With a single group, the next row's answer. Rows are those of `rollout`, without rewards.
    """
    groups = list(rows_of_groups(rollout.group))
    answers = [rollout.episodes[0]] * len(rollout)
    for rows, following in zip(groups, [*groups[1:], groups[0]], strict=True):
        others = following.roll(-1) if len(groups) == 1 else following
        for place, row in enumerate(rows.tolist()):
            answers[row] = rollout.episodes[int(others[place % len(others)])]
    episodes = [
        replace(asked, response=said.response, response_ids=said.response_ids, actions=said.actions, logprobs=None)
        for asked, said in zip(rollout.episodes, answers, strict=True)
    ]
    return demonstrations(episodes, pad_id=pad_id)


class KTO:
    """Makes desirable answers likelier than the reference point, and others less likely."""

    trains = True
    off_policy = True  # the loss is of the text, whoever wrote it
    takes_labels = True  # stored answers that were judged one by one

    @settings
    class Config:
        """`beta` is not here: it is the weight of the environment's `kl` part."""

        ranges: ClassVar[Ranges] = {"lr": Multiple(0.25, 4.0), "epochs": Choice(1, 2)}

        group_size: AtLeastOne = 4
        """Answers to a prompt, whose mean reward divides them; 1: the batch's mean does."""
        desirable_weight: Positive = 1.0
        """lambda_D. Where one kind is rarer, the paper raises its weight until (lambda_D * desirable rows) / (lambda_U
        * undesirable rows) is in [1, 1.5]."""
        undesirable_weight: Positive = 1.0
        """lambda_U."""
        epochs: AtLeastOne = 1
        """Passes over the judged rows of a rollout."""
        minibatches: AtLeastOne = 1
        """Gradient steps per pass."""
        optimization: Optimization = Optimization(lr=1e-4)
        """Learning rate, gradient clipping and so on."""

    def __init__(self, setup: Setup, config: Config) -> None:
        setup.require_groups(config.group_size, least=1)
        require_beta(setup.beta, "kto")
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.optimizer = setup.engine.optimizer(self.policy.parameters(), config.optimization)
        self._order = setup.stream("kto minibatches")

    def begin(self) -> ResetOptions:
        return {"group_size": self.config.group_size}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        """`epochs` passes of gradient steps over the rows that were judged.

        Each row judged here costs one preference label, also a row exactly at the mean. Stored judgements cost none:
        they were counted when they were made. A rollout without a judgement changes nothing.
        """
        rollout.require_finite()
        self.policy.eval()
        rollout = in_order_of_content(rollout)
        if rollout.judged:
            verdicts = torch.where(rollout.part("preference") > 0.5, 1, -1)
        else:
            verdicts = above_the_mean(
                rollout.returns(without=self.setup.reward.kl_names), rollout.group, rollout.scored
            )
            self.setup.spending.add(preference_labels=int(rollout.scored.sum()))
        judged = verdicts.nonzero().squeeze(1)
        counts = {
            "desirable": float((verdicts > 0).sum()),
            "undesirable": float((verdicts < 0).sum()),
            "not_judged": float((verdicts == 0).sum()),
        }
        if not len(judged):
            return {**counts, "steps_without_signal": 1.0}
        desirable = self.setup.engine.local(verdicts[judged] > 0)
        rollout = self._with_reference(rollout.select(judged))
        mismatches = self._with_reference(mismatched(rollout, pad_id=self.policy.pad_id))
        steps = [
            self._step(rollout.select(rows), mismatches.select(rows), desirable[rows])
            for rows in minibatches(len(rollout), self.config.minibatches, self.config.epochs, self._order)
        ]
        return {**over_steps(steps), **counts, "beta": self.setup.beta, "lr": self.optimizer.lr}

    def _with_reference(self, rollout: Rollout) -> Rollout:
        return self.setup.engine.local(with_reference_logprobs(self.setup.reference, rollout))

    def _log_ratio(self, part: Rollout) -> Tensor:
        """float64[B]: log pi(answer) - log reference(answer)."""
        logprobs = self.policy.evaluate(part.tokens, part.mask, part.actions).logprobs
        return (refined(logprobs) - part.extras["reference"]).sum(dim=1)

    @torch.no_grad()
    def _reference_point(self, mismatches: Rollout) -> Tensor:
        """Scalar z0: the mean log-ratio of mismatched pairs, at least 0."""
        ratios = [self._log_ratio(mismatches.select(rows)) for rows in self.optimizer.rows(mismatches.lengths)]
        return torch.cat(ratios).mean().clamp(min=0.0)

    def _step(self, batch: Rollout, mismatches: Rollout, desirable: Tensor) -> Metrics:
        """One gradient step on a minibatch, `desirable` bool[B]; `mismatches` are its mismatched pairs."""
        config = self.config
        point = self._reference_point(mismatches)
        metrics: Metrics = defaultdict(float)
        for rows in self.optimizer.rows(batch.lengths):
            log_ratio, good = self._log_ratio(batch.select(rows)), desirable[rows]
            loss = unpaired_loss(
                log_ratio,
                good,
                point,
                beta=self.setup.beta,
                desirable_weight=config.desirable_weight,
                undesirable_weight=config.undesirable_weight,
            ).sum()
            self.optimizer.backward(loss / len(batch))
            metrics["loss"] += float(loss.detach()) / len(batch)
            metrics["right_side"] += float(((log_ratio > point) == good).sum()) / len(batch)
        sums = self.optimizer.summed(metrics)
        return {"reference_point": float(point), **sums, "grad_norm": self.optimizer.step()}

    def state_dict(self) -> State:
        return learned_state(self.policy, self.optimizer, self._order)

    def load_state_dict(self, state: State, /) -> None:
        load_learned_state(state, self.policy, self.optimizer, self._order)
