"""The formulas that agents share, as pure functions. Everything works in the dtype it is given, float64 included.

Shapes are in the docstrings: **B** rows, **L** positions of a whole text, **P** preference pairs. Masks are True
where a cell counts, and cells that do not count are never read: NaN in them changes no bit of an answer.

A loss is a sum of per-token (or per-pair) terms times weights that were made for the *whole* batch (`token_weights`),
so splitting the batch into micro-batches changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies.policy import Sampling
from rlhf_env.types import TokenScorer

Aggregation = Literal["token-mean", "sequence-mean", "sequence-sum", "dr-grpo"]
KLEstimator = Literal["k1", "k2", "k3"]
PairLoss = Literal["sigmoid", "ipo"]

# ---------------------------------------------------------------- sums over what counts


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar: the sum of `values` where `mask`, shapes equal."""
    return values.masked_fill(~mask, 0.0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar: the mean of `values` where `mask`; 0 where nothing counts."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def token_weights(mask: Tensor, aggregation: Aggregation, *, longest: int = 0) -> Tensor:
    """float64[B, L]: what each counted token of `mask` bool[B, L] weighs in a batch's loss; 0 elsewhere.

    - "token-mean": 1 / (tokens of the batch). Every token weighs the same, so long answers weigh more.
    - "sequence-mean": 1 / (B * tokens of its row). Every answer weighs the same (GRPO, Shao et al. 2024, eq. 3).
    - "sequence-sum": 1 / B. The policy gradient of an expectation over answers (REINFORCE).
    - "dr-grpo": 1 / (B * `longest`). The same up to a constant that no batch changes (Liu et al. 2025,
      arXiv 2503.20783): without the length bias of "sequence-mean".

    B counts rows with a token; a row without any weighs nothing.
    """
    counted = mask.double()
    rows = mask.any(dim=1).sum().clamp(min=1)
    if aggregation == "token-mean":
        return counted / counted.sum().clamp(min=1)
    if aggregation == "sequence-mean":
        return counted / (rows * counted.sum(dim=1, keepdim=True).clamp(min=1))
    if aggregation == "sequence-sum":
        return counted / rows
    if aggregation == "dr-grpo":
        if longest < 1:
            raise ConfigError(f"dr-grpo divides by the longest answer possible, got {longest}")
        return counted / (rows * longest)
    raise ConfigError(f"aggregation must be token-mean, sequence-mean, sequence-sum or dr-grpo, got {aggregation!r}")


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Scalar: sum(values * weights) over cells whose weight is not 0."""
    return (values.masked_fill(weights == 0, 0.0) * weights).sum()


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """`values` shifted and scaled to mean 0 and variance 1 over `mask`; exactly 0 elsewhere, and when all are equal."""
    counted = values[mask]
    if counted.numel() == 0 or counted.min() == counted.max():
        return torch.zeros_like(values)
    centred = counted - counted.mean()
    scaled = centred / centred.square().mean().sqrt()
    return torch.zeros_like(values).masked_scatter(mask, scaled)


# ---------------------------------------------------------------- credit


def paid_to_actions(rewards: Tensor, mask: Tensor, actions: Tensor) -> Tensor:
    """[B, L]: each reward moved to the agent's last action at or before its place; a row's sum over `mask` stays.

    `rewards` [B, L]; `mask` bool[B, L] is text; `actions` bool[B, L] is what the agent chose of it. What comes before
    the first action is nobody's merit and is dropped.
    """
    paid = torch.zeros_like(rewards)
    pending = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        pending = pending + rewards[:, t].masked_fill(~mask[:, t], 0.0)
        paid[:, t] = pending.masked_fill(~actions[:, t], 0.0)
        pending = pending.masked_fill(actions[:, t], 0.0)
    return paid


def returns_to_go(rewards: Tensor, actions: Tensor, *, gamma: float = 1.0) -> Tensor:
    """[B, L]: sum over k >= 0 of gamma^k * reward of the k-th action from there on; 0 off `actions`. Inputs [B, L]."""
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
    """[B, L]: advantages by generalised advantage estimation (Schulman et al. 2016, eqs. 11-16), 0 where no action is.

    A_t = delta_t + gamma * lam * A_t', delta_t = r_t + gamma * V_t' - V_t, where t' is the row's next *action*: text
    that the environment writes in between is no step. After the last action V is 0, for the text has ended, or in
    rows that were `truncated` (bool[B]) `final_values` (float[B]): the value of the state they were cut in.

    `rewards`, `values` [B, L] (`values[b, t]`: of the state in which tokens[b, t] is chosen) are read where `actions`.
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
    """float64[B]: (r - mean of its group), divided by the group's standard deviation + `epsilon` if asked.

    Shao et al. 2024 (arXiv 2402.03300, sec. 4.1.2); the standard deviation is that of a sample (n - 1). Members of a
    group of equals get exactly 0, whatever rounding would say. `returns` [B]; `group` int64[B]; rows that are not
    `counted` (bool[B]; no score) get 0 and do not touch the others.
    """

    def of_group(values: Tensor) -> Tensor:
        centred = values - values.mean()
        return centred / (values.std() + epsilon) if scale_by_std else centred

    return _by_group(returns, group, counted, of_group)


def leave_one_out_advantages(returns: Tensor, group: Tensor, *, counted: Tensor | None = None) -> Tensor:
    """float64[B]: r_i - mean over the others of its group (Ahmadian et al. 2024, arXiv 2402.14740, eq. 8).

    Shapes and special cases as in `group_advantages`.
    """

    def of_group(values: Tensor) -> Tensor:
        # r_i - (sum - r_i) / (n - 1) = (r_i - mean) n / (n - 1), in two passes.
        return (values - values.mean()) * (len(values) / (len(values) - 1))

    return _by_group(returns, group, counted, of_group)


def groups_without_spread(returns: Tensor, group: Tensor, *, counted: Tensor | None = None) -> float:
    """The share of groups whose counted members all have the same return, so that nothing is learned from them."""
    members = [returns[rows] for rows in rows_of_groups(group, counted)]
    flat = sum(len(values) < 2 or bool(values.min() == values.max()) for values in members)
    return flat / max(len(members), 1)


def rows_of_groups(group: Tensor, counted: Tensor | None = None) -> Iterator[Tensor]:
    """The row numbers of each group of `group` int64[B], without rows that are not `counted` bool[B]; maybe none."""
    for number in sorted(set(group.tolist())):
        inside = group == number
        yield (inside if counted is None else inside & counted).nonzero().squeeze(1)


def _by_group(returns: Tensor, group: Tensor, counted: Tensor | None, of_group: Callable[[Tensor], Tensor]) -> Tensor:
    advantages = torch.zeros_like(returns, dtype=torch.float64)
    for rows in rows_of_groups(group, counted):
        values = returns[rows].double()
        if len(values) > 1 and bool(values.min() != values.max()):
            advantages[rows] = of_group(values)
    return advantages


# ---------------------------------------------------------------- losses and estimates, one number per token or pair


def clipped_policy_loss(
    log_ratio: Tensor, advantages: Tensor, clip: float, clip_high: float | None = None, *, cap: float = math.inf
) -> Tensor:
    """Per token, to be minimised: -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) (PPO, Schulman et al. 2017, eq. 7).

    `log_ratio` = log pi(token) - log of what its writer gave it, gradient through the former only; shapes equal.
    `clip_high` is the upper bound, where it is another (DAPO, Yu et al. 2025, arXiv 2503.14476); a bound of 0 is none.

    The ratio is the importance weight of a token that another or an older policy wrote. It is cut off at `cap` whatever
    the advantage: a negative one, which the clip leaves alone, thus has the second clip of Ye et al. 2020 (1912.09729).
    """
    low, high = _bounds(clip, clip_high)
    ratio = log_ratio.clamp(max=math.log(cap)).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)


def beyond_clip(log_ratio: Tensor, clip: float, clip_high: float | None = None) -> Tensor:
    """bool, shape of `log_ratio`: the ratio is outside the bounds of `clipped_policy_loss`."""
    low, high = _bounds(clip, clip_high)
    return (log_ratio.exp() < low) | (log_ratio.exp() > high)


def _bounds(clip: float, clip_high: float | None) -> tuple[float, float]:
    return 1.0 - (clip or math.inf), 1.0 + ((clip if clip_high is None else clip_high) or math.inf)


def clipped_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip: float) -> Tensor:
    """Per token: max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2, or without the clip at `clip` 0.

    The pessimistic value loss of the PPO code of Schulman et al.; all shapes equal.
    """
    error = (values - targets).square()
    if clip:
        bounded = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (bounded - targets).square())
    return 0.5 * error


def kl_estimate(logprobs: Tensor, other: Tensor, kind: KLEstimator) -> Tensor:
    """Per token: an estimate of KL(p || q) from a token drawn from p; `logprobs` is log p, `other` log q, same shape.

    With r = log q - log p (Schulman 2020, "Approximating KL divergence"): k1 = -r (unbiased), k2 = r^2 / 2,
    k3 = exp(r) - 1 - r (unbiased, never negative). As *values* all are fine. As a *loss*, differentiated through log p,
    the expected gradient of k1 is 0, of k2 that of KL(p || q), of k3 that of KL(q || p) (Shah et al. 2025, arXiv
    2512.21852), each of one token's distribution given the text before it. To pay for the KL of whole texts, put k1
    into the reward, which is what the `kl` part does.
    """
    log_ratio = other - logprobs
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return 0.5 * log_ratio.square()
    if kind == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ConfigError(f"a KL estimate is k1, k2 or k3, got {kind!r}")


def pair_loss(
    chosen: Tensor, rejected: Tensor, *, beta: float, kind: PairLoss = "sigmoid", label_smoothing: float | Tensor = 0.0
) -> Tensor:
    """[P]: the loss of each preference pair, from log pi(answer) - log reference(answer) of both, [P] each.

    With h = chosen - rejected and s = `label_smoothing`, the chance that a label is wrong ([P], if pairs differ in it):
    - "sigmoid": -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h) (DPO, Rafailov et al. 2023, eq. 7; s > 0 is its
      conservative form, Mitchell 2023);
    - "ipo": (h - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17), which knows no label smoothing.
    """
    margin = chosen - rejected
    if kind == "ipo":
        return (margin - 1.0 / (2.0 * beta)).square()
    if kind == "sigmoid":
        right, wrong = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
        return -(1.0 - label_smoothing) * right - label_smoothing * wrong
    raise ConfigError(f"a pair loss is sigmoid or ipo, got {kind!r}")


def unpaired_loss(
    log_ratio: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """[B]: lambda_y - v(x, y) of each labelled answer (KTO, Ethayarajh et al. 2024, arXiv 2402.01306, sec. 4.1).

    v = lambda_D sigmoid(beta (r - z0)) for a desirable answer and lambda_U sigmoid(beta (z0 - r)) for another, with
    r = `log_ratio` = log pi(answer) - log reference(answer) [B], z0 = `reference_point` (scalar, without gradient) and
    the lambdas the two weights. `desirable` bool[B].
    """
    distance = beta * (log_ratio - reference_point.detach())
    # Tensors, because torch would make float32 of two plain numbers.
    weight = torch.where(desirable, log_ratio.new_tensor(desirable_weight), log_ratio.new_tensor(undesirable_weight))
    # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits where the answer is far beyond the reference point.
    return weight * torch.sigmoid(torch.where(desirable, -distance, distance))


def explained_variance(values: Tensor, targets: Tensor, mask: Tensor) -> float:
    """1 - Var(targets - values) / Var(targets) over `mask`: 1 is perfect, 0 no better than a constant."""
    if not mask.any():
        return 0.0
    spread = targets[mask].var(correction=0)
    return float(1.0 - (targets - values)[mask].var(correction=0) / spread) if spread > 0 else 0.0


# ---------------------------------------------------------------- batches


def minibatches(rows: int, count: int, epochs: int, stream: np.random.Generator) -> Iterator[Tensor]:
    """In each of `epochs` passes, `count` shares of the row numbers 0..rows-1 in random order, as equal as can be.

    Where rows are fewer than `count`, there are as many shares as rows: none is empty.
    """
    for _ in range(epochs):
        yield from torch.from_numpy(stream.permutation(rows)).tensor_split(min(count, rows))


def stated_log_ratio(logprobs: Tensor, stated: Tensor, actions: Tensor) -> Tensor:
    """float64[B, L]: log pi(token) - what its writer `stated`, no gradient into the latter; 0 off `actions`."""
    return (logprobs.double() - stated.detach()).masked_fill(~actions, 0.0)


def truncated_importance_weights(log_ratio: Tensor, cap: float) -> Tensor:
    """float64[B]: min(pi(answer) / mu(answer), `cap`) of each row, without gradient; 1 where pi = mu wrote it.

    `log_ratio` [B, L] is that of each token to its writer mu, 0 off the agent's tokens (`stated_log_ratio`). Cutting
    the weights off bounds the variance, at the price of a bias towards mu (Ionides 2008, "Truncated Importance
    Sampling").
    """
    return log_ratio.detach().double().sum(dim=1).exp().clamp(max=cap)


def logprobs_under(scorer: TokenScorer, rollout: Rollout) -> Tensor:
    """float64[B, L]: log p of the agent's tokens under another policy (the reference), 0 elsewhere."""
    laid_out = torch.zeros(rollout.tokens.shape, dtype=torch.float64)
    for row, logprobs in enumerate(scorer.response_logprobs(rollout.episodes)):
        start = len(rollout.episodes[row].prompt_ids)
        laid_out[row, start : start + len(logprobs)] = torch.from_numpy(logprobs)
    return laid_out.to(rollout.tokens.device).masked_fill(~rollout.actions, 0.0)


def beside_reference(reference: TokenScorer, rollout: Rollout) -> Rollout:
    """The rollout with `logprobs_under` the reference as extra "reference"; one that has it is given back as it is."""
    if "reference" in rollout.extras:
        return rollout
    return rollout.with_extras(reference=logprobs_under(reference, rollout))


def require_beta(beta: float, who: str) -> None:
    """Refuse an objective without a KL penalty to an agent (`who`) that carries it in its own loss."""
    if not beta > 0.0:
        raise ConfigError(
            f"{who}'s beta is the weight of the reward's KL penalty, which is {beta:g} here: "
            "give the reward a 'kl' part with a positive weight (0.1, say)"
        )


def require_stated(rollout: Rollout, agent: str) -> None:
    """Refuse texts that nobody stated log-probabilities for: importance weights would be invented."""
    if not rollout.stated:
        raise DataError(
            f"{agent} learns from texts whose writer stated log-probabilities, and these have none: "
            "use texts that the agent wrote itself, or learn from them with sft or dpo"
        )


def require_exact_sampling(sampling: Sampling, agent: str) -> None:
    """Refuse a policy that cuts its distribution off: importance ratios would compare two different ones."""
    if not sampling.exact:
        raise ConfigError(
            f"{agent} learns by probability ratios, which top_k {sampling.top_k} and top_p {sampling.top_p} make "
            "wrong: train with top_k 0 and top_p 1 (cut off when generating from the trained policy instead)"
        )
