"""Every loss of the two tables in an enumerable world: bias and noise of its gradient, and where it ends.

Token losses are measured as an agent uses them, over all batches of responses to one prompt: at a first gradient step
(the policy wrote the texts), and at one whose texts the reference wrote, an older policy. The KL penalty is in the
reward. Pair losses are measured on pairs that the policy writes, labelled as Bradley and Terry say of the true reward.

Where a loss ends is found by following its expected gradient, in a world of seven responses: token losses on what the
policy writes as it moves, pair losses on pairs that the reference wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_env import plugins
from rlhf_env.lab.studies.exact.estimators import (
    ESTIMATORS,
    Batches,
    MeasuredEstimate,
    Placement,
    example,
    expectation,
    measure,
    token_scores,
)
from rlhf_env.lab.studies.exact.world import Objective, response_logprobs, token_logprobs
from rlhf_env.learning.advantages import group_advantages, mean_scaled_advantages
from rlhf_env.learning.functional import weighted_sum, whiten
from rlhf_env.learning.losses.declaring import (
    NamedPairLoss,
    NamedTokenLoss,
    Pairs,
    TokenBatch,
    load_pair_loss,
    load_token_loss,
)

FLIPPED = 0.1  # the share of labels that are wrong in the row of `robust`, which is told so
_STEPS = 80  # of the followed gradient of a token loss: each is a sum over all batches
_PAIR_STEPS = 200  # of a quasi-Newton search, at most
_SHRINKING, _BOLD = 600, 0.1  # steps of plain descent, and the length of the first


def home_of(loss: NamedTokenLoss) -> str:
    """The agent that a token loss is measured as part of."""
    return "reinforce" if loss.declared.advantages == "batch std" else "grpo"


def token_losses() -> list[NamedTokenLoss]:
    """Those that come with the library, by name."""
    return [load_token_loss(name) for name in _built_in("token loss")]


def pair_losses() -> list[NamedPairLoss]:
    """Those that come with the library, by name."""
    return [load_pair_loss(name) for name in _built_in("pair loss")]


def _built_in(kind: plugins.PluginKind) -> list[str]:
    return [entry.name for entry in plugins.host() if entry.kind == kind and entry.origin == plugins.OWN]


# ---------------------------------------------------------------- token losses


def measure_token_loss(
    objective: Objective, logits: Tensor, loss: NamedTokenLoss, batches: Batches, writer: Tensor | None = None
) -> MeasuredEstimate:
    """The gradient that the loss makes at the policy `logits` [S, V] of texts that `writer` [S, V] wrote, over all
    `batches` (default: the policy itself)."""
    tree, members = objective.tree, batches.members
    logits = logits.detach()
    writer = logits if writer is None else writer.detach()
    rows, actions, group = members.flatten(), batches.actions, batches.group
    written = token_logprobs(tree, writer)
    logprobs = token_logprobs(tree, logits)[rows].requires_grad_()
    penalty = objective.beta * (written - token_logprobs(tree, objective.reference))
    paid = torch.zeros_like(written)
    paid[torch.arange(tree.responses), tree.mask.sum(1) - 1] = objective.reward
    advantages = loss_advantages(loss, (paid - penalty)[rows], objective.reward[rows], actions, group)
    tokens = TokenBatch(logprobs=logprobs, log_ratio=logprobs - written[rows], advantages=advantages, actions=actions)
    weights = batches.weights(loss.declared.aggregation or "sequence-mean")
    probability = batches.orders * written.sum(1)[members].sum(1).exp()

    def gradient(tokens: TokenBatch) -> Tensor:
        (found,) = torch.autograd.grad(weighted_sum(loss(tokens), weights), logprobs)
        return found

    outcomes = [(gradient(each), probability * chance) for each, chance in _outcomes(loss, tokens, len(members))]
    return expectation(outcomes, token_scores(objective.tree, logits), batches, objective.gradient(logits))


def loss_advantages(loss: NamedTokenLoss, rewards: Tensor, worth: Tensor, actions: Tensor, group: Tensor) -> Tensor:
    """[M n, T]: as `home_of` the loss makes them of token rewards [M n, T]; `worth` [M n] leaves out the penalty."""
    returns, kind = rewards.sum(1), loss.declared.advantages
    if kind == "batch std":
        batches = int(group[-1]) + 1, -1, actions.shape[1]
        pairs = zip(returns[:, None].expand(actions.shape).reshape(batches), actions.reshape(batches), strict=True)
        return torch.cat([whiten(values, mask) for values, mask in pairs])
    if kind == "group mean":  # of rewards from 0 on, as it needs
        of_row = mean_scaled_advantages(returns, worth - worth.min(), group)
    else:
        of_row = group_advantages(returns, group, scale_by_std=kind != "group")
    return of_row[:, None].expand(actions.shape)


def _outcomes(loss: NamedTokenLoss, tokens: TokenBatch, batches: int) -> Iterator[tuple[TokenBatch, Tensor]]:
    """What the loss may leave out, and how likely that is in each of the M batches: float64[M].

    A loss that leaves out one of c candidates has c outcomes of chance 1 / c; outcome j leaves out the j-th.
    """
    if not loss.draws:
        yield tokens, torch.ones(batches, dtype=tokens.logprobs.dtype)
        return
    by_batch = (batches, -1, tokens.actions.shape[1])
    parts = [getattr(tokens, name).reshape(by_batch) for name in ("logprobs", "log_ratio", "advantages", "actions")]
    candidates = []
    for logprobs, log_ratio, advantages, actions in zip(*parts, strict=True):
        found, count = loss.candidates(
            TokenBatch(logprobs=logprobs, log_ratio=log_ratio, advantages=advantages, actions=actions)
        )
        assert count == 1, "so few tokens that more than one is not left out"
        candidates.append(found.flatten())
    among = torch.stack(candidates)
    number = among.sum(1).to(tokens.logprobs.dtype)
    for outcome in range(max(int(number.max()), 1)):
        left_out = (among & (among.cumsum(1) == outcome + 1)).reshape(tokens.actions.shape)
        chance = torch.where(
            number > 0, (number > outcome) / number.clamp(min=1), number.new_tensor(float(outcome == 0))
        )
        yield (
            TokenBatch(
                logprobs=tokens.logprobs,
                log_ratio=tokens.log_ratio,
                advantages=tokens.advantages,
                actions=tokens.actions,
                left_out=left_out,
            ),
            chance,
        )


def follow(objective: Objective, gradient: Callable[[Tensor], Tensor], steps: int = _STEPS) -> Tensor:
    """[S, V]: where an expected gradient leads from the reference, in steps of equal length that shrink to nothing.

    The direction alone is followed: what scales advantages to one size has no gradient that fades out.
    """
    logits = objective.reference.detach().clone()
    for step in range(steps):
        found = gradient(logits)
        norm = float(found.norm())
        if norm < 1e-12:
            break
        logits = logits + 0.4 * (1.0 - step / steps) ** 2 * found / norm
    return logits


# ---------------------------------------------------------------- pair losses


def measure_pair_loss(objective: Objective, logits: Tensor, loss: NamedPairLoss) -> MeasuredEstimate:
    """The gradient of ascent on a pair loss at the policy `logits` [S, V], of a pair that it writes and that an
    annotator labels: sigmoid(r_i - r_j) is the chance that i is preferred to j. Equal answers make no pair."""
    logits = logits.detach()
    first, second, chance = _labelled(objective, response_logprobs(objective.tree, logits), loss)

    of_response = response_logprobs(objective.tree, logits)
    preferred, other = (of_response[rows].requires_grad_() for rows in (first, second))
    total = -_pair_terms(objective, preferred, other, loss, first, second).sum()
    by_preferred, by_other = torch.autograd.grad(total, (preferred, other))
    scores = token_scores(objective.tree, logits).sum(1)
    gradients = by_preferred[:, None, None] * scores[first] + by_other[:, None, None] * scores[second]
    mean = torch.einsum("p,psv->sv", chance, gradients)
    square = float(chance @ gradients.square().sum((1, 2)))
    return MeasuredEstimate(mean, max(square - float(mean.square().sum()), 0.0) ** 0.5, objective.gradient(logits))


def end_of_pair_loss(objective: Objective, loss: NamedPairLoss, steps: int = _PAIR_STEPS) -> Tensor:
    """[S, V]: the least expected loss of pairs that the reference wrote."""
    reference = response_logprobs(objective.tree, objective.reference)
    first, second, chance = _labelled(objective, reference, loss)
    logits = objective.reference.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=steps, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss_of_all() -> Tensor:
        optimizer.zero_grad()
        of_response = response_logprobs(objective.tree, logits)
        terms = _pair_terms(objective, of_response[first], of_response[second], loss, first, second)
        total: Tensor = chance @ terms
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss_of_all)  # type: ignore[no-untyped-call]
    if float(logits.grad.norm()) < 1e-6:  # type: ignore[union-attr]
        return logits.detach()
    # A loss with corners (hinge): its gradient does not fade out, and steps that shrink find the place.
    descent = torch.optim.Adam([logits], lr=_BOLD)
    for step in range(_SHRINKING):
        descent.param_groups[0]["lr"] = _BOLD * (1.0 - step / _SHRINKING)
        loss_of_all()
        descent.step()
    return logits.detach()


def _labelled(objective: Objective, logprobs: Tensor, loss: NamedPairLoss) -> tuple[Tensor, Tensor, Tensor]:
    """All (preferred, other) of two different responses, int64[P] each, and how likely each is, float64[P]."""
    first, second = (torch.arange(objective.tree.responses)[:, None] != torch.arange(objective.tree.responses)).nonzero(
        as_tuple=True
    )
    drawn = (logprobs[first] + logprobs[second]).exp() * 2.0
    right = torch.sigmoid(objective.reward[first] - objective.reward[second])
    flipped = _flipped(loss)
    chance = drawn * ((1.0 - flipped) * right + flipped * (1.0 - right))
    return first, second, chance / chance.sum()


def _flipped(loss: NamedPairLoss) -> float:
    return FLIPPED if loss.name == "robust" else 0.0


def _pair_terms(
    objective: Objective, preferred: Tensor, other: Tensor, loss: NamedPairLoss, first: Tensor, second: Tensor
) -> Tensor:
    """[P]: the loss of each pair, from the log-probabilities [P] of its responses `first` and `second`."""
    length = objective.tree.mask.sum(1)
    if loss.declared.reference:
        reference = response_logprobs(objective.tree, objective.reference)
        preferred, other = preferred - reference[first], other - reference[second]
    return loss(
        Pairs(
            chosen=preferred,
            rejected=other,
            chosen_tokens=length[first],
            rejected_tokens=length[second],
            beta=objective.beta,
            wrong=_flipped(loss),
        )
    )


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True)
class LossRow:
    """What a loss does in the enumerable world.

    `bias`, `cosine` and `noise` as in `MeasuredEstimate`, on texts that the policy wrote; `away` the cosine on those of
    the reference (token losses). `left` is what is left of the way from the reference to the optimum where it ends.
    """

    name: str
    agent: str
    bias: float
    cosine: float
    noise: float
    away: float | None
    left: float


def seven_responses(beta: float, seed: int) -> Objective:
    """The world in which ends are found: two symbols, two places."""
    return example(2, 2, beta, seed)[0]


def token_loss_rows(objective: Objective, logits: Tensor, batches: Batches, seed: int) -> Iterator[LossRow]:
    """One row a token loss, at the policy `logits` [S, V]; `seed` draws the world where it ends."""
    small = seven_responses(objective.beta, seed)
    pairs = Batches.of(small.tree, 2)
    for loss in token_losses():
        on = measure_token_loss(objective, logits, loss, batches)
        off = measure_token_loss(objective, logits, loss, batches, writer=objective.reference)
        end = follow(small, lambda given, loss=loss: measure_token_loss(small, given, loss, pairs).mean)  # type: ignore[misc]
        yield LossRow(loss.name, home_of(loss), on.bias, on.cosine, on.noise, off.cosine, small.shortfall(end))


def pair_loss_rows(objective: Objective, logits: Tensor, seed: int) -> Iterator[LossRow]:
    """One row a pair loss."""
    small = seven_responses(objective.beta, seed)
    for loss in pair_losses():
        found = measure_pair_loss(objective, logits, loss)
        left = small.shortfall(end_of_pair_loss(small, loss))
        yield LossRow(loss.name, "dpo", found.bias, found.cosine, found.noise, None, left)


def penalty_ends(beta: float, seed: int) -> dict[Placement, float]:
    """What is left of the way where RLOO ends with each placement of the KL penalty that teaches one."""
    small = seven_responses(beta, seed)
    (rloo,) = (each for each in ESTIMATORS if each.name == "RLOO")
    batches = Batches.of(small.tree, 2)
    placements: Sequence[Placement] = ("k1 in reward", "k2 in loss", "k3 in loss", "k3-corrected in loss")

    def end(placement: Placement) -> Tensor:
        return follow(small, lambda logits: measure(small, logits, rloo, batches)[placement].mean)

    return {placement: small.shortfall(end(placement)) for placement in placements}
