"""Gradient estimators against the exact gradient: what each expects, and how far a single batch is from that.

A batch is a group of n responses to one prompt, drawn independently. In an enumerable world there are finitely many,
so the expectation and the variance of an estimate are sums over all of them, weighted by their probabilities. What is
summed is what agents compute at the first gradient step on a rollout: the advantages, weights and losses of
`rlhf_env.learning.functional`, differentiated by autograd down to the tokens' log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from string import ascii_lowercase
from typing import Literal, get_args

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_env.envs.toy_tasks import Enumerable
from rlhf_env.errors import ConfigError
from rlhf_env.lab.studies.exact.world import Objective, token_logprobs
from rlhf_env.learning.advantages import gae, group_advantages, leave_one_out_advantages, returns_to_go
from rlhf_env.learning.functional import (
    Aggregation,
    KLEstimator,
    clipped_policy_loss,
    kl_estimate,
    token_weights,
    weighted_sum,
    whiten,
)
from rlhf_env.policies.tabular import ResponseTree, TabularPolicy

Level = Literal["token", "response"]
Placement = Literal["k1 in reward", "k1 in loss", "k2 in loss", "k3 in loss", "k3-corrected in loss"]

_MOST_TOKENS = 400_000  # of all batches together: some seconds
_AT_ONCE = 4096  # batches whose gradients are held at one time
_ROUNDING = 1e-10  # of what has magnitude 1: below it, a number is 0
_CLIP = 0.2  # of no consequence: at the first step every ratio is 1


@dataclass(frozen=True)
class Batches:
    """All batches of n responses of one world, without regard to order: M of them.

    `members` int64[M, n] are response numbers, ascending; `orders` float64[M] is in how many orders each can be drawn.
    """

    tree: ResponseTree
    members: Tensor
    orders: Tensor

    @classmethod
    def of(cls, tree: ResponseTree, size: int) -> Batches:
        """ConfigError when there are too many of them to be summed over."""
        if size < 2:
            raise ConfigError(f"a batch of {size}: at least 2 responses are compared")
        count = math.comb(tree.responses + size - 1, size)
        if count * size * tree.longest > _MOST_TOKENS:
            raise ConfigError(
                f"{tree.responses} responses make {count:,} batches of {size}, more than can be summed over in "
                "reasonable time: take fewer symbols, shorter responses or smaller batches"
            )
        members = torch.combinations(torch.arange(tree.responses), size, with_replacement=True)
        # n! / (product of the multiplicities' factorials): the k-th of equals divides by k.
        earlier = (members[:, :, None] == members[:, None, :]).tril().sum(-1)
        return cls(tree, members, math.factorial(size) / earlier.double().prod(1))

    @property
    def actions(self) -> Tensor:
        """bool[M n, T]: the tokens of all rows, batch after batch."""
        return self.tree.mask[self.members.flatten()]

    @property
    def group(self) -> Tensor:
        """int64[M n]: the batch that each row belongs to."""
        return torch.arange(len(self.members)).repeat_interleave(self.members.shape[1])

    def weights(self, aggregation: Aggregation) -> Tensor:
        """float64[M n, T]: `token_weights` of each batch by itself."""
        lengths = self.tree.mask.sum(1)[self.members]
        patterns, which = torch.unique(lengths, dim=0, return_inverse=True)
        place = torch.arange(self.tree.longest)
        weights = [
            token_weights(place < pattern[:, None], aggregation, longest=self.tree.longest) for pattern in patterns
        ]
        return torch.stack(weights)[which].flatten(0, 1)


Advantages = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From token rewards [M n, T], actions bool[M n, T] and group int64[M n] to advantages [M n, T]."""


def _whole_return(rewards: Tensor, actions: Tensor, group: Tensor) -> Tensor:
    return rewards.sum(1, keepdim=True).expand(actions.shape)


def _to_go(rewards: Tensor, actions: Tensor, group: Tensor) -> Tensor:
    return returns_to_go(rewards, actions)


def _left_out(rewards: Tensor, actions: Tensor, group: Tensor) -> Tensor:
    return leave_one_out_advantages(rewards.sum(1), group)[:, None].expand(actions.shape)


def _of_group(rewards: Tensor, actions: Tensor, group: Tensor, *, scale_by_std: bool) -> Tensor:
    return group_advantages(rewards.sum(1), group, scale_by_std=scale_by_std)[:, None].expand(actions.shape)


def _generalised(rewards: Tensor, actions: Tensor, group: Tensor, *, lam: float, whitened: bool) -> Tensor:
    advantages = gae(rewards, torch.zeros_like(rewards), actions, gamma=1.0, lam=lam)
    if not whitened:
        return advantages
    batches = int(group[-1]) + 1, -1, actions.shape[1]
    pairs = zip(advantages.reshape(batches), actions.reshape(batches), strict=True)
    return torch.cat([whiten(values, mask) for values, mask in pairs])


@dataclass(frozen=True)
class Estimator:
    """A policy gradient as an agent makes it: whose `advantages`, and how tokens add up to a loss."""

    name: str
    advantages: Advantages
    aggregation: Aggregation


ESTIMATORS = (
    Estimator("REINFORCE", _whole_return, "sequence-sum"),
    Estimator("REINFORCE, reward to go", _to_go, "sequence-sum"),
    Estimator("REINFORCE less batch mean", partial(_of_group, scale_by_std=False), "sequence-sum"),
    Estimator("RLOO", _left_out, "sequence-sum"),
    Estimator("GRPO", partial(_of_group, scale_by_std=True), "sequence-mean"),
    Estimator("GRPO without std", partial(_of_group, scale_by_std=False), "sequence-mean"),
    Estimator("Dr. GRPO", partial(_of_group, scale_by_std=False), "dr-grpo"),
    Estimator("PPO", partial(_generalised, lam=0.95, whitened=True), "token-mean"),
    Estimator("PPO, unwhitened", partial(_generalised, lam=0.95, whitened=False), "token-mean"),
    Estimator("PPO, unwhitened, lambda 1", partial(_generalised, lam=1.0, whitened=False), "token-mean"),
)
"""Those of the agents, PPO's with its value at 0, as before the first update."""


@dataclass(frozen=True, eq=False)
class MeasuredEstimate:
    """An estimate of the gradient [S, V] of the objective, over all batches.

    `mean` [S, V] is its expectation; `spread` the root of its variance, summed over coordinates; `exact` [S, V] is what
    it should be.
    """

    mean: Tensor
    spread: float
    exact: Tensor

    @property
    def bias(self) -> float:
        """|mean - exact| / |exact|."""
        return float((self.mean - self.exact).norm() / self.exact.norm())

    @property
    def cosine(self) -> float:
        """Of the angle between mean and exact: 1 is the right direction, at whatever length. 0 for a mean of 0."""
        if self.mean.norm() < _ROUNDING * self.exact.norm():
            return 0.0
        return float((self.mean * self.exact).sum() / (self.mean.norm() * self.exact.norm()))

    @property
    def noise(self) -> float:
        """spread / |exact|, for one batch."""
        return self.spread / float(self.exact.norm())


def measure(
    objective: Objective, logits: Tensor, estimator: Estimator, batches: Batches
) -> dict[Placement, MeasuredEstimate]:
    """The gradient that `estimator` makes of a batch written by the policy `logits` [S, V], over all `batches`.

    One for each place that the KL penalty can have: in the reward, or as a loss term with the weights of the rest.
    """
    tree, members = objective.tree, batches.members
    logits = logits.detach()
    rows, actions, group = members.flatten(), batches.actions, batches.group
    of_tokens = token_logprobs(tree, logits)
    logprobs = of_tokens[rows].requires_grad_()
    reference = token_logprobs(tree, objective.reference)[rows]
    weights = batches.weights(estimator.aggregation)
    scores = token_scores(tree, logits)
    probability = batches.orders * of_tokens.sum(1)[members].sum(1).exp()
    exact = objective.gradient(logits)

    paid = torch.zeros_like(of_tokens)
    paid[torch.arange(tree.responses), tree.mask.sum(1) - 1] = objective.reward
    paid = paid[rows]

    def policy_term(rewards: Tensor) -> Tensor:
        advantages = estimator.advantages(rewards, actions, group)
        loss = weighted_sum(clipped_policy_loss(logprobs - logprobs.detach(), advantages, _CLIP), weights)
        return _gradient(loss, logprobs)

    def kl_term(kind: KLEstimator) -> Tensor:
        return objective.beta * _gradient(weighted_sum(kl_estimate(logprobs, reference, kind), weights), logprobs)

    def over_batches(of_loss: Tensor) -> MeasuredEstimate:
        return expectation([(of_loss, probability)], scores, batches, exact)

    without = policy_term(paid)
    return {
        "k1 in reward": over_batches(
            policy_term(paid - objective.beta * kl_estimate(logprobs.detach(), reference, "k1"))
        ),
        "k1 in loss": over_batches(without + kl_term("k1")),
        "k2 in loss": over_batches(without + kl_term("k2")),
        "k3 in loss": over_batches(without + kl_term("k3")),
        "k3-corrected in loss": over_batches(without + kl_term("k3-corrected")),
    }


def token_scores(tree: ResponseTree, logits: Tensor) -> Tensor:
    """[N, T, S, V]: the gradient of each token's log-probability by the logits, one-hot less softmax in its state."""
    state, token = tree.choices
    of_choice = one_hot(token.clamp(min=0), logits.shape[1]) - logits.softmax(-1)[state]
    in_state = one_hot(state, logits.shape[0])[..., None] * of_choice[..., None, :]
    return in_state * tree.mask[..., None, None]


def expectation(
    of_losses: Sequence[tuple[Tensor, Tensor]], scores: Tensor, batches: Batches, exact: Tensor
) -> MeasuredEstimate:
    """The estimate of ascent on a loss, over all batches and whatever it draws for itself.

    `of_losses` are the outcomes of that draw: the loss's gradients by the tokens' log-probabilities [M n, T], and how
    likely batch and outcome are together, float64[M]. `scores` [N, T, S, V] are the gradients of those by the logits.
    """
    mean, square = torch.zeros_like(exact), 0.0
    for of_loss, probability in of_losses:
        of_loss = of_loss.reshape(*batches.members.shape, -1)
        for some in (slice(start, start + _AT_ONCE) for start in range(0, len(batches.members), _AT_ONCE)):
            gradients = -torch.einsum("mnt,mntp->mp", of_loss[some], scores.flatten(2)[batches.members[some]])
            mean += (probability[some] @ gradients).reshape(mean.shape)
            square += float(probability[some] @ gradients.square().sum(1))
    return MeasuredEstimate(mean, max(square - float(mean.square().sum()), 0.0) ** 0.5, exact)


def _gradient(value: Tensor, by: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, by)
    return gradient


@dataclass(frozen=True, eq=False)
class LossTerm:
    """The expected `gradient` [S, V] of the KL estimate `kind` as a term of a loss.

    `level` "token": summed over tokens. "response": of the response's log-probability as a whole.
    """

    kind: KLEstimator
    level: Level
    gradient: Tensor


def loss_terms(objective: Objective, logits: Tensor) -> list[LossTerm]:
    """The expected gradient of every KL estimate as a loss term, of responses drawn from the policy `logits` [S, V].

    Of whole responses, k1 has none, k2 has that of KL(policy || reference) and k3 that of KL(reference || policy). Of
    tokens the same holds in each state by itself: the gradient is the sum over states, weighted by how often *the
    policy* comes there, of those of the two next-token distributions' divergence. How a token changes where the text
    goes, and with it the divergence of what follows, is left out (Shah et al. 2025, arXiv 2512.21852).
    """
    terms = []
    levels: tuple[Level, ...] = get_args(Level)
    for level in levels:
        for kind in get_args(KLEstimator):
            given = logits.detach().requires_grad_()
            own, other = token_logprobs(objective.tree, given), token_logprobs(objective.tree, objective.reference)
            drawn = own.detach().sum(1).exp()
            if level == "response":
                own, other = own.sum(1, keepdim=True), other.sum(1, keepdim=True)
            terms.append(LossTerm(kind, level, _gradient(drawn @ kl_estimate(own, other, kind).sum(1), given)))
    return terms


# ---------------------------------------------------------------- the tables of `rlhf-env lab exact`


def example(symbols: int, longest: int, beta: float, seed: int) -> tuple[Objective, Tensor]:
    """An objective with rewards and a reference drawn from `seed`, and the logits [S, V] of a policy on its way."""
    if not 1 <= symbols <= len(ascii_lowercase):
        raise ConfigError(f"symbols: 1 to {len(ascii_lowercase)}, got {symbols}")
    task = Enumerable(ascii_lowercase[:symbols], longest, seed)
    reference, moved = (TabularPolicy(symbols, longest, seed=number) for number in (seed, seed + 1))
    return Objective.of_task(task, reference, beta), reference.logits.detach() + moved.logits.detach()


def estimator_tables(objective: Objective, logits: Tensor, batches: Batches) -> RenderableType:
    """The optimum, every estimator at the policy `logits` [S, V], and the KL loss terms."""
    return Group(
        _optimum_table(objective, logits),
        "",
        _estimator_table(objective, logits, batches),
        "",
        _loss_term_table(objective, logits),
    )


def _optimum_table(objective: Objective, logits: Tensor) -> Table:
    table = Table(
        title=f"The objective, expected reward - {objective.beta:g} KL(policy || ref), exactly", title_justify="left"
    )
    for heading in ("Policy", "Objective", "Reward", "KL(policy || ref)", "KL(ref || policy)", "|gradient|"):
        table.add_column(heading, justify="left" if heading == "Policy" else "right", no_wrap=heading == "Policy")
    optimum = objective.optimum
    for name, given in (("reference", objective.reference), ("the one below", logits), ("optimal", optimum)):
        numbers = (objective.value, objective.expected_reward, objective.kl, objective.forward_kl)
        cells = [f"{float(number(given)):.4f}" for number in numbers]
        table.add_row(name, *cells, f"{float(objective.gradient(given).norm()):.4f}")
    return table


def _estimator_table(objective: Objective, logits: Tensor, batches: Batches) -> Table:
    count, size = batches.members.shape
    table = Table(
        title=f"What gradient estimators expect, over all {count:,} batches of {size} responses",
        caption="bias: |expected - exact| / |exact|.  cos: of their angle.  noise: standard deviation / |exact|.\n"
        "A factor alone (bias, but cos 1) is a matter of the learning rate. PPO whitens over the batch: so few "
        "responses have little to say about their own mean and spread, and its cos rises with --batch. k1 in the "
        "loss is refused by every agent.",
        title_justify="left",
        caption_justify="left",
    )
    for heading in ("Estimator", "KL"):
        table.add_column(heading, no_wrap=True)
    for heading in ("bias", "cos", "noise"):
        table.add_column(heading, justify="right", no_wrap=True)
    for estimator in ESTIMATORS:
        name = estimator.name
        for placement, one in measure(objective, logits, estimator, batches).items():
            table.add_row(name, placement, _small(one.bias), f"{one.cosine:.3f}", f"{one.noise:.1f}")
            name = ""
        table.add_section()
    return table


def _loss_term_table(objective: Objective, logits: Tensor) -> Table:
    table = Table(
        title="What a KL estimate teaches as a loss term: its expected gradient, compared with exact ones",
        caption="(cos of the angle, and |difference| / |exact|.) In the reward, k1 has the exact gradient of "
        "KL(policy || ref).",
        title_justify="left",
        caption_justify="left",
    )
    directions = {"KL(policy || ref)": objective.kl, "KL(ref || policy)": objective.forward_kl}
    for heading in ("Loss term", "|gradient|", *directions):
        table.add_column(heading, justify="left" if heading == "Loss term" else "right", no_wrap=heading == "Loss term")
    for term in loss_terms(objective, logits):
        cells = []
        for divergence in directions.values():
            given = logits.detach().requires_grad_()
            against = MeasuredEstimate(term.gradient, 0.0, _gradient(divergence(given), given))
            cells.append(f"{against.cosine:6.3f}  {_small(against.bias)}")
        name = f"{term.kind}, {'token by token' if term.level == 'token' else 'whole response'}"
        table.add_row(name, f"{float(term.gradient.norm()):.4f}", *cells)
    return table


def _small(number: float) -> str:
    """Five characters; what is 0 but for rounding is written as 0."""
    return "    0" if number < _ROUNDING else f"{number:5.2f}"


__all__: Sequence[str] = (
    "ESTIMATORS",
    "Batches",
    "Estimator",
    "MeasuredEstimate",
    "loss_terms",
    "measure",
    "estimator_tables",
)
