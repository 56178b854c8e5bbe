"""The gradient that an objective expects, over all batches of a world; where it leads; and whether two are the same.

A library's function is called on many batches at once where that is the same as calling it on each: most losses are
means over texts or over tokens, so the loss of K batches with the same lengths is the mean of theirs. Whether it is so
is found out by calling it both ways; if not, each batch is a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from rlhf_env.lab.studies.exact.estimators import MeasuredEstimate
from rlhf_env.lab.studies.exact.losses import follow
from rlhf_env.lab.studies.referee.texts import Draws, Loss, ObjectiveKind, Texts

Together = Literal["mean", "sum", "alone"]
"""What the loss of several batches is: the mean of theirs, their sum, or something else. Of advantages: the same as
those of each ("sum"), these over the number of batches ("mean"), or something else."""

_SAME = 1e-5  # relative: code in float32 does not add up more exactly; what is not a sum differs by far more
_STEPS, _BOLD = 200, 0.1  # of a descent on a pair loss, and the length of the first


@dataclass(frozen=True, eq=False)
class Measurable:
    """An objective as it is measured: what it makes `advantages` of (none: of pairs), and its `loss`."""

    loss: Loss
    advantages: Callable[[Texts], Tensor] | None = None
    kind: ObjectiveKind = "tokens"
    _together: dict[tuple[object, ...], tuple[Together, Together]] = field(default_factory=dict)

    def gradients(self, draws: Draws, policy: Tensor, writer: Tensor, *, alone: bool = False) -> Tensor:
        """[M, S, V]: of ascent, by the table `policy` [S, V], for each batch by itself; `writer` wrote them.

        `alone`: a call for every batch, whatever the loss of several is.
        """
        states, choices = policy.shape
        found = torch.zeros(len(draws.members), states, choices, dtype=torch.float64)
        for some in draws.by_length:
            texts = draws.texts(some, policy, writer)
            by_row = self._by_row(texts, ("alone", "alone") if alone else self._ways(texts, draws))
            # Texts of one batch share states: the first token of all is drawn in the same one.
            state = draws.objective.tree.choices[0][draws.members[some]]
            place = (torch.arange(len(some))[:, None, None] * states + state).flatten()
            flat = torch.zeros(len(some) * states, choices, dtype=torch.float64)
            flat.index_add_(0, place, -by_row.flatten(0, 1))
            found[some] = flat.reshape(len(some), states, choices)
        return found

    def _ways(self, texts: Texts, draws: Draws) -> tuple[Together, Together]:
        """What advantages of several batches are, and what their loss is; found out once a world."""
        lengths = texts.mask[: draws.members.shape[1]].sum(1).tolist()
        key = (*draws.members.shape, *lengths)
        if key not in self._together:
            self._together[key] = self._found_out(texts)
        return self._together[key]

    def _found_out(self, texts: Texts) -> tuple[Together, Together]:
        """On the first batch, the last, and one between."""
        if texts.batches == 1:
            return "sum", "sum"
        some = sorted({0, texts.batches // 2, texts.batches - 1})
        of_these = torch.isin(texts.group, torch.tensor(some))
        alone = [_of_batch(texts, number) for number in some]
        ways: tuple[Together, ...] = ("sum", "mean")
        wanted = torch.cat([self._advantages_of(each) for each in alone])
        at_once = self._advantages_of(texts)[of_these]
        same = (way for way in ways if _near(at_once * _factor(way, texts), wanted))
        advantages: Together = next(same, "alone")
        wanted = torch.cat([self._by_row(each, ("sum", "sum")) for each in alone])
        fitting = (way for way in ways if _near(self._by_row(texts, (advantages, way))[of_these], wanted))
        return advantages, next(fitting, "alone")

    def _by_row(self, texts: Texts, ways: tuple[Together, Together]) -> Tensor:
        """[B, T, V]: the gradients of every batch's own loss by its rows."""
        of_advantages, of_loss = ways
        if of_loss == "alone":
            alone = [_of_batch(texts, number) for number in range(texts.batches)]
            return torch.cat([self._gradient(each, self._advantages_of(each)) for each in alone])
        if of_advantages == "alone":
            each_alone = [self._advantages_of(_of_batch(texts, number)) for number in range(texts.batches)]
            advantages = torch.cat(each_alone)
        else:
            advantages = self._advantages_of(texts) * _factor(of_advantages, texts)
        return self._gradient(texts, advantages) * _factor(of_loss, texts)

    def _advantages_of(self, texts: Texts) -> Tensor:
        if self.advantages is None:
            return texts.reward
        with torch.no_grad():
            return self.advantages(texts).detach().clone()

    def _gradient(self, texts: Texts, advantages: Tensor) -> Tensor:
        texts = texts.again()
        loss = self.loss(texts, advantages)
        # A term that no token has a part in (a clip that holds all of them back) has no graph.
        if not loss.requires_grad:
            return torch.zeros_like(texts.logits)
        (gradient,) = torch.autograd.grad(loss, texts.logits, allow_unused=True)
        return torch.zeros_like(texts.logits) if gradient is None else gradient.double()


def _factor(way: Together, texts: Texts) -> float:
    return float(texts.batches) if way == "mean" else 1.0


def _near(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).norm()) <= _SAME * float(wanted.norm())


def _of_batch(texts: Texts, number: int) -> Texts:
    """The texts of one batch; they stand together, and all batches have as many."""
    size = len(texts.group) // texts.batches
    rows = slice(number * size, (number + 1) * size)
    return Texts(
        logits=texts.logits.detach()[rows],
        tokens=texts.tokens[rows],
        mask=texts.mask[rows],
        written=texts.written[rows],
        reference=texts.reference[rows],
        reward=texts.reward[rows],
        group=torch.zeros(size, dtype=torch.int64),
        beta=texts.beta,
        greedy=texts.greedy,
    )


def measure_expected(
    objective: Measurable, draws: Draws, policy: Tensor, writer: Tensor | None = None
) -> MeasuredEstimate:
    """Bias, direction and noise of one batch's gradient at `policy` [S, V]; `writer` wrote it (default: the policy)."""
    writer = policy if writer is None else writer
    gradients, chance = objective.gradients(draws, policy, writer), draws.chance(writer)
    mean = torch.einsum("m,msv->sv", chance, gradients)
    square = float(chance @ gradients.square().sum((1, 2)))
    spread = max(square - float(mean.square().sum()), 0.0) ** 0.5
    return MeasuredEstimate(mean, spread, draws.objective.gradient(policy))


def share_gained(objective: Measurable, draws: Draws) -> float:
    """How much of what the optimum has over the reference is gained where the expected gradient leads from there.

    1 at the optimum, 0 at the reference, below 0 for what is worse. Groups are written by the policy as it moves, pairs
    by the reference.
    """

    def expected(policy: Tensor) -> Tensor:
        writer = policy if objective.kind == "tokens" else draws.objective.reference
        gradients = objective.gradients(draws, policy, writer)
        return torch.einsum("m,msv->sv", draws.chance(writer), gradients)

    world = draws.objective
    end = follow(world, expected) if objective.kind == "tokens" else _settle(world.reference, expected)
    return 1.0 - world.shortfall(end)


def _settle(start: Tensor, gradient: Callable[[Tensor], Tensor]) -> Tensor:
    """[S, V]: the end of an ascent with steps that shrink to nothing, from `start` [S, V]."""
    logits = start.detach().clone().requires_grad_()
    ascent = torch.optim.Adam([logits], lr=_BOLD, maximize=True)
    for step in range(_STEPS):
        ascent.param_groups[0]["lr"] = _BOLD * (1.0 - step / _STEPS)
        logits.grad = gradient(logits.detach())
        ascent.step()
    return logits.detach()


def how_far_apart(one: Measurable, other: Measurable, draws: Draws, policy: Tensor) -> float:
    """max |difference| / max |other| of the gradients of every batch, each by itself: infinite where one is no number.

    Of groups, of texts that the policy [S, V] wrote and of texts that the reference wrote.
    """
    furthest = 0.0
    writers = (policy, draws.objective.reference) if one.kind == "tokens" else (draws.objective.reference,)
    for writer in writers:
        ours = other.gradients(draws, policy, writer, alone=True)
        theirs = one.gradients(draws, policy, writer, alone=True)
        far = float((theirs - ours).abs().max() / ours.abs().max())
        furthest = max(furthest, far if math.isfinite(far) else math.inf)
    return furthest
