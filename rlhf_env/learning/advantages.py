"""Returns and advantages: how much better than expected a token, or a whole text, was.

Pure functions, in the dtype they are given. Shapes and masks are as in `functional`: entries that do not count are
never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.policies.precision import finest, refined


def paid_to_actions(rewards: Tensor, mask: Tensor, actions: Tensor) -> Tensor:
    """[B, L]: each reward moved back to the agent's latest action at that token or before it.

    `rewards` [B, L]; `mask` bool[B, L], True on text; `actions` bool[B, L], True on tokens that the agent wrote. A
    row's sum stays the same, except that rewards before its first action are dropped: no action has earned them.
    """
    paid = torch.zeros_like(rewards)
    pending = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        pending = pending + rewards[:, t].masked_fill(~mask[:, t], 0.0)
        paid[:, t] = pending.masked_fill(~actions[:, t], 0.0)
        pending = pending.masked_fill(actions[:, t], 0.0)
    return paid


def returns_to_go(rewards: Tensor, actions: Tensor, *, gamma: float = 1.0) -> Tensor:
    """[B, L]: for each action the discounted sum of its reward and of all later ones; 0 elsewhere. Inputs [B, L].

    >>> returns_to_go(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[True, True, True]]), gamma=0.5).tolist()
    [[0.25, 0.5, 1.0]]
    """
    nothing = torch.zeros_like(rewards)
    return gae(rewards, nothing, actions, gamma=gamma, lam=1.0)


def gae(
    rewards: Tensor,
    values: Tensor,
    actions: Tensor,
    *,
    gamma: float,
    lam: float,
    truncated: Tensor | None = None,
    final_values: Tensor | None = None,
) -> Tensor:
    """[B, L]: advantages by generalised advantage estimation (Schulman et al. 2016, eqs. 11-16); 0 off `actions`.

    A_t = delta_t + gamma * lam * A_t', delta_t = r_t + gamma * V_t' - V_t, where t' is the row's next *action*: tokens
    that the environment writes in between are no steps. After the last action V is 0, because the text has ended. In
    rows that were `truncated` (bool[B]) it is `final_values` (float[B]), the value of the state where the row was cut.

    `rewards`, `values` [B, L] are read where `actions` is True; `values[b, t]` is the value of the state from which
    tokens[b, t] is drawn.
    """
    next_value = torch.zeros_like(values[:, 0])
    if truncated is not None and bool(truncated.any()):
        if final_values is None:
            raise ConfigError("gae: rows were truncated, so the values of their last states are needed")
        next_value = final_values.masked_fill(~truncated, 0.0).to(values.dtype)
    next_advantage = torch.zeros_like(next_value)
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        acted = actions[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(acted, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(acted, values[:, t], next_value)
        advantages[:, t] = next_advantage.masked_fill(~acted, 0.0)
    return advantages


def group_advantages(
    returns: Tensor, group: Tensor, *, scale_by_std: bool, counted: Tensor | None = None, epsilon: float = 1e-6
) -> Tensor:
    """float64[B]: r - mean of its group, divided by the group's standard deviation + `epsilon` if `scale_by_std`.

    Shao et al. 2024 (arXiv 2402.03300, sec. 4.1.2), with the standard deviation of a sample (n - 1). If all returns of
    a group are equal, its advantages are exactly 0, without rounding errors. `returns` [B]; `group` int64[B]. Rows that
    are not `counted` (bool[B]; they have no score) get 0 and are left out of the others' mean.

    >>> group_advantages(torch.tensor([1.0, 0.0, 5.0, 5.0]), torch.tensor([0, 0, 1, 1]), scale_by_std=False).tolist()
    [0.5, -0.5, 0.0, 0.0]
    """

    def of_group(values: Tensor) -> Tensor:
        centred = values - values.mean()
        return centred / (values.std() + epsilon) if scale_by_std else centred

    return _by_group(returns, group, counted, of_group)


def leave_one_out_advantages(returns: Tensor, group: Tensor, *, counted: Tensor | None = None) -> Tensor:
    """float64[B]: r_i - mean of the others in its group (Ahmadian et al. 2024, arXiv 2402.14740, eq. 8).

    Shapes and special cases as in `group_advantages`.

    >>> leave_one_out_advantages(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0, 0, 0])).tolist()
    [0.75, -0.75, 0.0]
    """

    def of_group(values: Tensor) -> Tensor:
        # r_i - (sum - r_i) / (n - 1) = (r_i - mean) n / (n - 1), in two passes.
        return (values - values.mean()) * (len(values) / (len(values) - 1))

    return _by_group(returns, group, counted, of_group)


def mean_scaled_advantages(returns: Tensor, rewards: Tensor, group: Tensor, *, counted: Tensor | None = None) -> Tensor:
    """float64[B]: (R_i - mean R) / mean r over its group (MaxRL, Tajwar et al. 2026, arXiv 2602.02710).

    `returns` R [B] hold the KL penalty and `rewards` r [B] do not, so that the divisor is a rate of success, as in the
    paper, which has no penalty. A group without any reward teaches nothing. Raises DataError for a reward below 0:
    dividing by its mean would turn a gradient around. `group` and `counted` as in `group_advantages`.
    """
    advantages = torch.zeros_like(returns, dtype=finest(returns.device))
    for rows in rows_of_groups(group, counted):
        values, worth = refined(returns[rows]), refined(rewards[rows])
        if len(values) and float(worth.min()) < 0.0:
            raise DataError(
                f"maxrl divides by the mean reward of a group, and an answer has the reward {float(worth.min()):.4g}: "
                "take rewards of at least 0 (1 for a right answer, 0 for a wrong one), or another loss"
            )
        if len(values) > 1 and float(worth.mean()) > 0.0 and bool(values.min() != values.max()):
            advantages[rows] = (values - values.mean()) / worth.mean()
    return advantages


def groups_without_spread(returns: Tensor, group: Tensor, *, counted: Tensor | None = None) -> float:
    """The share of groups whose counted members all have the same return: no agent learns anything from them."""
    members = [returns[rows] for rows in rows_of_groups(group, counted)]
    without_spread = sum(len(values) < 2 or bool(values.min() == values.max()) for values in members)
    return without_spread / max(len(members), 1)


def rows_of_groups(group: Tensor, counted: Tensor | None = None) -> Iterator[Tensor]:
    """The row numbers of each group of `group` int64[B]: those where `counted` bool[B] is True, all by default."""
    for number in sorted(set(group.tolist())):
        inside = group == number
        yield (inside if counted is None else inside & counted).nonzero().squeeze(1)


def _by_group(returns: Tensor, group: Tensor, counted: Tensor | None, of_group: Callable[[Tensor], Tensor]) -> Tensor:
    advantages = torch.zeros_like(returns, dtype=finest(returns.device))
    for rows in rows_of_groups(group, counted):
        values = refined(returns[rows])
        if len(values) > 1 and bool(values.min() != values.max()):
            advantages[rows] = of_group(values)
    return advantages


def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> float:
    """1 - Var(targets - values) / Var(targets) over `mask`: 1 is perfect, 0 no better than a constant."""
    if not mask.any():
        return 0.0
    spread = targets[mask].var(correction=0)
    return float(1.0 - (targets - values)[mask].var(correction=0) / spread) if spread > 0 else 0.0
