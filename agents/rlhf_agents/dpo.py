"""Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290), online from groups or offline from pairs.

Of the answers to a prompt, the best by reward (without the KL part) is chosen and the worst is rejected; the loss
raises the difference of their beta * log(pi / reference). The KL penalty is implicit in that: `beta` is the weight of
the environment's `kl` part, so the objective stays the environment's. A rollout of stored pairs (`preference_pairs`) is
treated alike: its one part, "preference", is 1 for the chosen answer and 0 for the rejected one, and the weight of that
part is the pair's.

    h    = log(pi / reference) of the chosen answer - the same of the rejected one
    loss = mean over pairs of -log sigmoid(beta h)        (eq. 7)

With `labels` "hard" the objective is agreement with *comparisons*. It ignores how much better an answer is, so at a
given beta the policy may go further from the reference than with an algorithm that sees the reward. With
"bradley-terry" the difference counts: an annotator of that model prefers answer i to j with probability
sigmoid(r_i - r_j), and the loss is the expectation over such labels. For each pair it has its minimum where
beta * (log-ratio_i - log-ratio_j) = r_i - r_j, and for all pairs together at the environment's optimum, the policy
~ reference * exp(reward / beta).

`loss` names another loss of pairs: IPO (Azar et al. 2023, arXiv 2310.12036), hinge, robust, APO, SPPO, and those
without a reference, SimPO, ORPO and CPO, which ask the reference nothing and have settings of their own in place of
`beta` (docs/losses.md).

Options: conservative labels (cDPO), log-probabilities per token (which moves that optimum), and margins: by how much
the better answer is better is by how much its beta * log-ratio should be above the other's (ODPO, Amini et al. 2024,
arXiv 2402.10571). With "ipo" the loss is least where it is exactly that (Fisch et al. 2024, arXiv 2405.19316, eq. 7);
with "sigmoid" it goes on falling.

When: pairs are what there is, or a run should need no value model and no tuning of a policy gradient. When not: how
much better an answer is matters (or use `labels` "bradley-terry"), or the policy is to go far from what wrote the
pairs: offline, it never sees its own texts.

Left out: pairs beyond best against worst, a reference that follows the policy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from rlhf_env.errors import ConfigError, DataError, Problem
from rlhf_env.learning.advantages import rows_of_groups
from rlhf_env.learning.agent import Decision, Metrics, Setup, learned_state, load_learned_state
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import (
    in_order_of_content,
    minibatches,
    over_steps,
    require_beta,
    with_reference_logprobs,
)
from rlhf_env.learning.losses.declaring import LossSpec, NamedPairLoss, Pairs, load_pair_loss
from rlhf_env.learning.ranges import Choice, Multiple, Ranges
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies.precision import refined
from rlhf_env.settings import AtLeastOne, Chooses, Positive, fault, settings
from rlhf_env.types import Observation, ResetOptions, State

_LOWEST_LOGARITHM = -1e4


def best_against_worst(
    returns: Tensor, group: Tensor, counted: Tensor, *, keep_ties: bool = False
) -> tuple[Tensor, int]:
    """int64[P, 2], the rows (best, worst) of each group, and the number of ties: groups whose answers are all as good.

    `returns` [B]; `group` int64[B]; rows not `counted` (bool[B]) stay out. Of equals, the first is taken. A tie gives
    no pair, or, with `keep_ties`, its first row and its last.
    """
    pairs: list[tuple[int, int]] = []
    ties = 0
    for rows in rows_of_groups(group, counted):
        if len(rows) < 2:
            continue
        values = returns[rows]
        best, worst = int(values.argmax()), int(values.argmin())
        if values[best] > values[worst]:
            pairs.append((int(rows[best]), int(rows[worst])))
            continue
        ties += 1
        if keep_ties:
            pairs.append((int(rows[0]), int(rows[-1])))
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2), ties


class DPO:
    """Prefers what is preferred, within reach of the reference."""

    trains = True
    off_policy = True  # the loss is of the text, whoever wrote it

    @settings
    class Config:
        """`beta` is not here: it is the weight of the environment's `kl` part."""

        ranges: ClassVar[Ranges] = {"lr": Multiple(0.25, 4.0), "epochs": Choice(1, 2)}

        group_size: Annotated[int, Ge(2)] = 4
        """Answers to a prompt, of which the best and the worst make a pair."""
        loss: Annotated[LossSpec, Chooses("pair loss")] = "sigmoid"
        """The loss of a pair, by name or as a table: `{ name = "simpo", gamma = 0.5 }` (docs/losses.md). "sigmoid" is
        DPO (eq. 7); "simpo", "orpo" and "cpo" need no reference, and [rewards] no `kl`."""
        labels: Literal["hard", "bradley-terry"] = "hard"
        """Of pairs made here: "hard" (the better answer is preferred, always) or "bradley-terry" (as often as sigmoid
        of the difference in reward says, in expectation; sigmoid loss only). Stored pairs have theirs."""
        label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
        """The chance that a hard label is wrong (cDPO; sigmoid loss only)."""
        margin: Literal["ignore", "offset", "log offset"] = "ignore"
        """By how much the better answer is better: nothing is made of it, or `margin_scale` times it (ODPO eq. 8), or
        times its logarithm (eq. 9), is by how much beta * log-ratio should be above the other answer's. Of stored pairs
        it is their own margin (those without have the offset 0), of pairs made here the difference in reward."""
        margin_scale: Positive = 1.0
        """alpha of ODPO: what a margin of 1 is worth in log-odds."""
        length_normalised: bool = False
        """Compare log-probabilities per token instead of per answer."""
        epochs: AtLeastOne = 1
        """Passes over the pairs of a rollout."""
        minibatches: AtLeastOne = 1
        """Gradient steps per pass."""
        optimization: Optimization = Optimization(lr=1e-4)
        """Learning rate, gradient clipping and so on; `micro_batch_size` counts rows, two to a pair."""

        def problems(self) -> Iterator[Problem]:
            try:
                loss = load_pair_loss(self.loss)
            except ConfigError as error:
                for problem in error.problems:
                    keys = problem.keys if isinstance(problem, Problem) else ()
                    yield Problem(f"loss: {problem}", ("loss", *keys))
            else:
                yield from self._problems_beside(loss)
            if self.labels == "bradley-terry" and self.label_smoothing:
                yield fault("labels", "'bradley-terry' say how sure they are: leave out label_smoothing")
            if self.margin != "ignore" and (self.label_smoothing or self.labels == "bradley-terry"):
                yield fault("margin", "is for hard labels: leave out label_smoothing, and labels = 'bradley-terry'")
            if self.margin == "ignore" and self.margin_scale != 1.0:
                yield fault("margin_scale", "scales margins, and they are ignored: set margin = 'offset'")
            if self.optimization.micro_batch_size % 2:
                size = self.optimization.micro_batch_size
                yield Problem(
                    f"micro_batch_size must be even, for pairs: got {size}", ("optimization", "micro_batch_size")
                )

        def _problems_beside(self, loss: NamedPairLoss) -> Iterator[Problem]:
            """Settings that this loss does not read."""
            name, declared = loss.name, loss.declared
            if self.label_smoothing and not declared.wrong_labels:
                yield fault("label_smoothing", f"belongs to the losses sigmoid and robust: leave it out with {name}")
            if self.labels == "bradley-terry" and not declared.wrong_labels:
                yield fault(
                    "labels", f"'bradley-terry' belong to the losses sigmoid and robust: leave them out with {name}"
                )
            if self.margin != "ignore" and not declared.offsets:
                yield fault("margin", f"belongs to the losses sigmoid and ipo: leave it out with {name}")
            if self.margin == "log offset" and name == "ipo":
                yield fault("margin", "'log offset' belongs to the sigmoid loss: a margin of 0 has no logarithm")
            if self.length_normalised and declared.per_token:
                yield fault("length_normalised", f"is what {name} does by itself: leave it out")

    def __init__(self, setup: Setup, config: Config) -> None:
        setup.require_groups(config.group_size)
        self.loss = load_pair_loss(config.loss)
        if self.loss.declared.reference:
            require_beta(setup.beta, "dpo")
        self.setup = setup
        self.config = config
        self.policy = setup.policy
        self.optimizer = setup.engine.optimizer(self.policy.parameters(), config.optimization)
        self._order = setup.stream("dpo minibatches")
        self.takes_margins = config.margin != "ignore"

    def begin(self) -> ResetOptions:
        return {"group_size": self.config.group_size}

    def act(self, observation: Observation, /) -> Decision:
        return Decision.of(self.policy.write(observation, self.setup.action_length))

    def update(self, rollout: Rollout, /) -> Metrics:
        """`epochs` passes of gradient steps over the rollout's pairs.

        Each compared group costs one preference label, even if it is a tie. Stored pairs cost none: they were counted
        when they were labelled. A rollout without a pair changes nothing. Raises DataError for stored judgements of
        single answers.
        """
        rollout.require_finite()
        self.policy.eval()
        rollout = in_order_of_content(rollout)
        returns = rollout.returns(without=self.setup.reward.kl_names)
        soft = self.config.labels == "bradley-terry" and not rollout.judged
        pairs, ties = best_against_worst(returns, rollout.group, rollout.scored, keep_ties=soft)
        if rollout.judged and not len(pairs):
            raise DataError("dpo needs two answers to a prompt to compare, and these were judged one by one: use kto")
        if not rollout.judged:
            self.setup.spending.add(preference_labels=len(pairs) + (0 if soft else ties))
        counts = {"pairs": float(len(pairs)), "ties": float(ties)}
        if not len(pairs):
            return {**counts, "steps_without_signal": 1.0}
        # From here on, rows 2i and 2i + 1 are pair i.
        rollout = rollout.select(pairs.flatten())
        better, worse = returns[pairs[:, 0]], returns[pairs[:, 1]]
        wrong = torch.sigmoid(worse - better) if soft else torch.full_like(better, self.config.label_smoothing)
        # The return of a stored pair's chosen answer is 1 times the weight of the pair.
        weight = better if rollout.judged else torch.ones_like(better)
        margin = rollout.part("margin")[0::2] if rollout.judged else better - worse
        if self.loss.declared.reference:
            rollout = with_reference_logprobs(self.setup.reference, rollout)
        local = self.setup.engine.local
        rollout, wrong, weight, margin = local(rollout), local(wrong), local(weight), local(margin)
        steps = []
        for minibatch in minibatches(len(pairs), self.config.minibatches, self.config.epochs, self._order):
            rows = torch.stack([2 * minibatch, 2 * minibatch + 1], dim=1).flatten()
            offset = None if self.config.margin == "ignore" else self._offset(margin[minibatch])
            steps.append(self._step(rollout.select(rows), wrong[minibatch], weight[minibatch], offset))
        beta = {"beta": self.setup.beta} if self.loss.declared.reference else {}
        return {**over_steps(steps), **counts, **beta, "lr": self.optimizer.lr}

    def _offset(self, margin: Tensor) -> Tensor:
        """[P]: alpha f(margin), f the identity or the logarithm (ODPO eqs. 8 and 9); 0 where no margin is known (NaN).

        A margin of 0 has no logarithm: its offset is so low that the pair has no gradient, and no infinity is made.
        """
        of_known = margin if self.config.margin == "offset" else margin.log().clamp(min=_LOWEST_LOGARITHM)
        return torch.where(margin.isnan(), 0.0, self.config.margin_scale * of_known)

    def _step(self, batch: Rollout, wrong: Tensor, weight: Tensor, offset: Tensor | None) -> Metrics:
        """One gradient step on a minibatch of pairs, rows 2i (chosen) and 2i + 1 (rejected).

        `wrong` [P] is the probability that a pair's label is wrong; `weight` [P] is the pair's weight in the mean;
        `offset` [P] is by how much beta * log-ratio should differ.
        """
        config, count = self.config, len(batch) // 2
        metrics: Metrics = defaultdict(float)
        for rows in self.optimizer.rows(batch.lengths, together=2, group=batch.group, prompts=batch.prompt_lengths):
            part = batch.select(rows)
            scores = self.policy.evaluate(part.tokens, part.mask, part.actions)
            logprobs = refined(scores.logprobs)
            if self.loss.declared.reference:
                logprobs = logprobs - part.extras["reference"]
            of_answer, tokens = logprobs.sum(dim=1), part.actions.sum(dim=1)
            if config.length_normalised:
                of_answer = of_answer / tokens.clamp(min=1)
            better, worse = of_answer[0::2], of_answer[1::2]
            pairs = rows[::2] // 2
            terms = self.loss(
                Pairs(
                    chosen=better,
                    rejected=worse,
                    chosen_tokens=tokens[0::2],
                    rejected_tokens=tokens[1::2],
                    beta=self.setup.beta,
                    wrong=wrong[pairs],
                    offset=None if offset is None else offset[pairs],
                )
            )
            loss = (weight[pairs] * terms).sum() / weight.sum()
            self.optimizer.backward(loss)
            with torch.no_grad():
                metrics["loss"] += float(loss.detach())
                for name, value in self._rewards(better, worse, tokens).items():
                    metrics[name] += float(value.detach()) / count
        return {**self.optimizer.summed(metrics), "grad_norm": self.optimizer.step()}

    def _rewards(self, better: Tensor, worse: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Sums over pairs of what the loss compares: beta * log-ratio or, without a reference, log-probabilities."""
        beta = self.setup.beta
        if not self.loss.declared.reference:
            beta = float(self.loss.settings.get("beta", 1.0))
            if self.loss.declared.per_token:
                better, worse = better / tokens[0::2].clamp(min=1), worse / tokens[1::2].clamp(min=1)
        return {
            "rewards/chosen": beta * better.sum(),
            "rewards/rejected": beta * worse.sum(),
            "rewards/accuracies": (better > worse).sum(),
            "rewards/margins": beta * (better - worse).sum(),
        }

    def state_dict(self) -> State:
        return learned_state(self.policy, self.optimizer, self._order)

    def load_state_dict(self, state: State, /) -> None:
        load_learned_state(state, self.policy, self.optimizer, self._order)
