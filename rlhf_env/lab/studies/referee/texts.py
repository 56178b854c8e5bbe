"""What an objective is given: texts of an enumerable world, and where in them it is differentiated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from rlhf_env.lab.studies.exact.estimators import Batches
from rlhf_env.lab.studies.exact.world import Objective, response_logprobs, token_logprobs


@dataclass(frozen=True, eq=False)
class Texts:
    """B texts with at most T tokens, over V choices; `logits` is the leaf that a loss is differentiated by.

    Every row has logits of its own, so that a gradient falls apart into those of the rows. Numbers off
    `mask` are 0.
    """

    logits: Tensor
    """float64[B, T, V]: of the policy that learns, in the state in which each token was drawn."""
    tokens: Tensor
    """int64[B, T]: the choices."""
    mask: Tensor
    """bool[B, T]."""
    written: Tensor
    """float64[B, T]: log mu of each token; mu is the policy that wrote the text."""
    reference: Tensor
    """float64[B, T]: log of the reference's probability."""
    reward: Tensor
    """float64[B]: what each text is worth, without a penalty."""
    group: Tensor
    """int64[B]: texts of one number are answers to one prompt, and a batch by themselves."""
    beta: float
    """The weight of the KL penalty."""
    greedy: float
    """The reward of the text that the writer's likeliest tokens make."""

    @cached_property
    def logprobs(self) -> Tensor:
        """float64[B, T]: log pi of each token, differentiable."""
        drawn = self.logits.log_softmax(-1).gather(-1, self.tokens[..., None])[..., 0]
        return drawn.masked_fill(~self.mask, 0.0)

    @cached_property
    def entropy(self) -> Tensor:
        """float64[B, T]: of the distribution that each token was drawn from, differentiable."""
        logprobs = self.logits.log_softmax(-1)
        return -(logprobs.exp() * logprobs).sum(-1).masked_fill(~self.mask, 0.0)

    @cached_property
    def counted(self) -> Tensor:
        """float64[B, T]: the mask as numbers."""
        return self.mask.to(self.logits.dtype)

    @cached_property
    def marked(self) -> Tensor:
        """int64[B, T]: the mask as libraries that take an attention mask for it have it."""
        return self.mask.long()

    @cached_property
    def paid(self) -> Tensor:
        """float64[B, T]: the reward at the last token."""
        paid = torch.zeros_like(self.written)
        paid[torch.arange(len(paid)), self.mask.sum(1) - 1] = self.reward
        return paid

    @cached_property
    def penalised(self) -> Tensor:
        """float64[B, T]: the reward at the last token, less beta (log mu - log reference) at every one."""
        return self.paid - self.beta * (self.written - self.reference)

    @property
    def longest(self) -> int:
        return self.mask.shape[1]

    @property
    def batches(self) -> int:
        """How many groups there are."""
        return int(self.group[-1]) + 1

    def again(self) -> Texts:
        """The same texts with a leaf that no graph holds on to."""
        return replace(self, logits=self.logits.detach().clone().requires_grad_())


Loss = Callable[[Texts, Tensor], Tensor]
"""From texts and advantages ([B] or [B, T]) to the scalar that is minimised: one batch's, or the mean over several."""
ObjectiveKind = Literal["tokens", "pairs"]


@dataclass(frozen=True, eq=False)
class Draws:
    """Batches of texts of one world: `members` int64[M, n] are response numbers.

    Groups are drawn by the policy that writes, without regard to order (`orders` as in `Batches`). Of pairs the first
    is preferred; the chance that i is preferred to j is sigmoid(r_i - r_j), and equal texts make no pair.
    """

    objective: Objective
    members: Tensor
    orders: Tensor | None = None
    wrong: float = 0.0
    """The share of pairs whose labels are the other way round, beyond how Bradley and Terry say that they err."""

    @classmethod
    def groups(cls, objective: Objective, size: int) -> Draws:
        batches = Batches.of(objective.tree, size)
        return cls(objective, batches.members, batches.orders)

    @classmethod
    def pairs(cls, objective: Objective, wrong: float = 0.0) -> Draws:
        number = torch.arange(objective.tree.responses)
        return cls(objective, (number[:, None] != number).nonzero(), wrong=wrong)

    def chance(self, writer: Tensor) -> Tensor:
        """float64[M]: how likely each batch is, of what the policy `writer` [S, V] writes."""
        drawn = response_logprobs(self.objective.tree, writer)[self.members].sum(1).exp()
        if self.orders is not None:
            return drawn * self.orders
        reward = self.objective.reward[self.members]
        right = torch.sigmoid(reward[:, 0] - reward[:, 1])
        chance = drawn * ((1.0 - self.wrong) * right + self.wrong * (1.0 - right))
        return chance / chance.sum()

    @cached_property
    def by_length(self) -> list[Tensor]:
        """The numbers of batches whose members have the same lengths, int64[K] each."""
        lengths = self.objective.tree.mask.sum(1)[self.members]
        _, which = torch.unique(lengths, dim=0, return_inverse=True)
        return [(which == number).nonzero()[:, 0] for number in range(int(which.max()) + 1)]

    def texts(self, some: Tensor, policy: Tensor, writer: Tensor) -> Texts:
        """The texts of the batches `some` int64[K], one batch after the other; policies are tables [S, V]."""
        tree = self.objective.tree
        rows = self.members[some].flatten()
        state, token = tree.choices
        greedy = int(writer.argmax(-1)[0])
        text = 0
        for _ in range(tree.longest):
            if greedy == tree.symbols:
                break
            text = text * tree.symbols + 1 + greedy
            if text >= tree.states:
                break
            greedy = int(writer.argmax(-1)[text])
        return Texts(
            logits=policy.detach()[state[rows]].clone().requires_grad_(),
            tokens=token[rows],
            mask=tree.mask[rows],
            written=token_logprobs(tree, writer.detach())[rows],
            reference=token_logprobs(tree, self.objective.reference)[rows],
            reward=self.objective.reward[rows],
            group=torch.arange(len(some)).repeat_interleave(self.members.shape[1]),
            beta=self.objective.beta,
            greedy=float(self.objective.reward[text]),
        )
