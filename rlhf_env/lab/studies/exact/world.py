"""Mathematics on worlds so small that everything is a sum: the optimum, exact divergences, exact gradients.

A world is a `ResponseTree` (all responses to one prompt), what each response is worth, and a reference policy. Policies
are tables of logits [S, V], one row for each of S states, over V = symbols + 1 choices (the end is the last); a
distribution over the N responses is float64[N] log-probabilities. Everything is differentiable in the logits.

At the end, two small worlds in which DPO does what no preference asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_env.envs.toy_tasks import Enumerable
from rlhf_env.errors import ConfigError
from rlhf_env.learning.functional import pair_loss
from rlhf_env.policies.tabular import ResponseTree, TabularPolicy


def token_logprobs(tree: ResponseTree, logits: Tensor) -> Tensor:
    """[N, T]: log p of each token of each response, 0 off `tree.mask`, under the table `logits` [S, V]."""
    state, token = tree.choices
    return logits.log_softmax(-1)[state, token].masked_fill(~tree.mask, 0.0)


def response_logprobs(tree: ResponseTree, logits: Tensor) -> Tensor:
    """[N]: log p of each response under the table `logits` [S, V]."""
    return token_logprobs(tree, logits).sum(1)


def table_of(tree: ResponseTree, logprobs: Tensor) -> Tensor:
    """[S, V]: the logits of the one table under which the responses have the log-probabilities `logprobs` [N].

    Row s is the logarithm of (probability of all that begins with s and then the token, or of s itself for the end).
    """
    begun = list(logprobs)  # at a text: of all responses that begin with it
    rows: list[Tensor] = []
    for state in reversed(range(tree.states)):
        first = state * tree.symbols + 1
        rows.append(torch.stack([*begun[first : first + tree.symbols], logprobs[state]]))
        begun[state] = rows[-1].logsumexp(0)
    return torch.stack(rows[::-1])


def kl(logprobs: Tensor, other: Tensor) -> Tensor:
    """Scalar, nats: KL(p || q) of two distributions, [N] log-probabilities each."""
    return (logprobs.exp() * (logprobs - other).masked_fill(logprobs == -torch.inf, 0.0)).sum()


def best_of_n(logprobs: Tensor, reward: Tensor, n: int) -> Tensor:
    """[N] log-probabilities of the best by `reward` [N] of n responses drawn from `logprobs` [N], the first of equals.

    The best is worth at most r with probability F(r)^n, where F(r) is that of one response; what is worth the same
    shares it as it does in p. Its divergence from p is at most log n - (n - 1) / n (Beirami et al. 2024, arXiv
    2401.01879).
    """
    if n < 1:
        raise ConfigError(f"best of n: n must be at least 1, got {n}")
    worths, level = torch.unique(reward, return_inverse=True)
    below = torch.full((len(worths) + 1,), -torch.inf, dtype=logprobs.dtype)
    mass = torch.stack([logprobs[level == number].logsumexp(0) for number in range(len(worths))])
    below[1:] = mass.logcumsumexp(0)
    # log(F_l^n - F_l-1^n) = n log F_l + log(1 - (F_l-1 / F_l)^n), which keeps its digits where F is near 1.
    of_level = n * below[1:] + torch.log(-torch.expm1(n * (below[:-1] - below[1:])))
    return logprobs + (of_level - mass)[level]


@dataclass(frozen=True, eq=False)
class Objective:
    """E[reward] - beta * KL(policy || reference), as a sum over all responses.

    `reward` float64[N]; `reference` float64[S, V] logits; `beta` above 0. Policies are tables of logits [S, V].
    """

    tree: ResponseTree
    reward: Tensor
    reference: Tensor
    beta: float

    def __post_init__(self) -> None:
        problems = []
        if self.reward.shape != (self.tree.responses,):
            problems.append(f"reward: one number for each of {self.tree.responses} responses, got {self.reward.shape}")
        if self.reference.shape != (self.tree.states, self.tree.symbols + 1):
            problems.append(
                f"reference: {self.tree.symbols + 1} logits for each of {self.tree.states} states, "
                f"got {tuple(self.reference.shape)}"
            )
        if not 0.0 < self.beta < math.inf:
            problems.append(f"beta must be positive, got {self.beta}: without a penalty the optimum is no softmax")
        if problems:
            raise ConfigError(*problems)

    @classmethod
    def of_task(cls, task: Enumerable, reference: TabularPolicy, beta: float) -> Objective:
        """That of training on the task `enumerable` with a `kl` part of weight `beta`."""
        if (len(task.symbols), task.longest) != (reference.tree.symbols, reference.tree.longest):
            raise ConfigError(
                f"the task has {len(task.symbols)} symbols and texts of up to {task.longest}, the table "
                f"{reference.tree.symbols} and {reference.tree.longest}: they do not belong together"
            )
        logits = reference.logits.detach().double() / reference.sampling.temperature
        return cls(reference.tree, torch.from_numpy(task.rewards), logits, beta)

    def expected_reward(self, logits: Tensor) -> Tensor:
        """Scalar: sum of p(y) r(y)."""
        return response_logprobs(self.tree, logits).exp() @ self.reward

    def kl(self, logits: Tensor) -> Tensor:
        """Scalar, nats: KL(policy || reference), the penalty's."""
        return kl(response_logprobs(self.tree, logits), response_logprobs(self.tree, self.reference))

    def forward_kl(self, logits: Tensor) -> Tensor:
        """Scalar, nats: KL(reference || policy), the other direction."""
        return kl(response_logprobs(self.tree, self.reference), response_logprobs(self.tree, logits))

    def value(self, logits: Tensor) -> Tensor:
        """Scalar: the objective J."""
        return self.expected_reward(logits) - self.beta * self.kl(logits)

    def gradient(self, logits: Tensor) -> Tensor:
        """[S, V]: the exact gradient of J, by differentiating through the enumeration."""
        logits = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.value(logits), logits)
        return gradient

    @property
    def optimal_logprobs(self) -> Tensor:
        """[N]: pi* ~ reference * exp(reward / beta)."""
        return (response_logprobs(self.tree, self.reference) + self.reward / self.beta).log_softmax(0)

    @property
    def optimum(self) -> Tensor:
        """[S, V]: the logits of pi*."""
        return table_of(self.tree, self.optimal_logprobs)

    @property
    def optimal_value(self) -> float:
        """J(pi*) = beta * log sum of reference(y) exp(reward(y) / beta)."""
        scores = response_logprobs(self.tree, self.reference) + self.reward / self.beta
        return self.beta * float(scores.logsumexp(0))

    def shortfall(self, logits: Tensor) -> float:
        """(J* - J(policy)) / (J* - J(reference)): 0 at the optimum, 1 where training started."""
        best, start = self.optimal_value, float(self.value(self.reference))
        return (best - float(self.value(logits.detach()))) / (best - start)


# ---------------------------------------------------------------- preferences that say too little


@dataclass(frozen=True, eq=False)
class SharedWorld:
    """Responses that have something in common, and one preference between two of them.

    The policy is log-linear, pi(y) ~ reference(y) * exp(features(y) @ theta), and starts as the reference: what is
    learned about a response holds for all that share its features, as it does in a network. `reference` float64[N]
    log-probabilities; `features` float64[N, F]; `chosen`, `rejected` are response numbers.
    """

    reference: Tensor
    features: Tensor
    chosen: int
    rejected: int

    def logprobs(self, theta: Tensor) -> Tensor:
        """[N]: log pi, at `theta` [F]."""
        return (self.reference + self.features @ theta).log_softmax(0)

    def loss(self, logprobs: Tensor, beta: float) -> Tensor:
        """Scalar: the DPO loss of the preference, for any policy [N]: it reads no response but the two compared."""
        ratio = logprobs - self.reference
        pair = torch.tensor([self.chosen]), torch.tensor([self.rejected])
        return pair_loss(ratio[pair[0]], ratio[pair[1]], beta=beta).mean()

    def train(self, *, beta: float, steps: int, lr: float = 1.0) -> Tensor:
        """[N]: log pi after `steps` of gradient descent on `loss`."""
        theta = torch.zeros(self.features.shape[1], dtype=self.features.dtype, requires_grad=True)
        for _ in range(steps):
            (gradient,) = torch.autograd.grad(self.loss(self.logprobs(theta), beta), theta)
            theta = (theta - lr * gradient).detach().requires_grad_()
        return self.logprobs(theta).detach()


def three_responses(unseen: float = 0.01) -> SharedWorld:
    """The counter-example of Xu et al. 2024 (arXiv 2404.10719, sec. 4): y0 is preferred to y1, nothing is said of y2.

    The reference writes y2 with probability `unseen`. The loss knows the ratio of y0 and y1 alone, so a policy that
    writes y2 nearly always is as good to it as one that never does. Here y2 has twice of what tells y0 from y1 (the
    paper leaves open what makes a policy go there), so gradient descent does go there.
    """
    seen = (1.0 - unseen) / 2.0
    reference = torch.tensor([seen, seen, unseen], dtype=torch.float64).log()
    return SharedWorld(reference, torch.tensor([[1.0], [0.0], [2.0]], dtype=torch.float64), chosen=0, rejected=1)


def tree_of_actions(depth: int = 2) -> SharedWorld:
    """The tree of Rafailov et al. 2024 (arXiv 2406.02900, fig. 6): in every state three actions lead further down.

    There is one preference, between two paths that differ in their last action: a0 ... a0 a1 before a0 ... a0 a2. The
    policy sees an action and not where it is taken (the paper's is a recurrent network), pi(path) is the product of
    pi(action), and the features are how often each action is taken. Paths are numbered in the order of their actions.
    """
    if depth < 1:
        raise ConfigError(f"a tree has a depth of at least 1, got {depth}")
    paths = torch.cartesian_prod(*[torch.arange(3)] * depth).reshape(-1, depth)
    counts = (paths[:, :, None] == torch.arange(3)).sum(1).double()
    uniform = torch.zeros(len(paths), dtype=torch.float64).log_softmax(0)
    return SharedWorld(uniform, counts, chosen=1, rejected=2)
