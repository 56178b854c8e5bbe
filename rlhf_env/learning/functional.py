"""The formulas that agents share, as pure functions; those of advantages are in `advantages`.

Everything works in the dtype it is given, float64 included.

Shapes are in the docstrings: **B** rows, **L** positions of a whole text, **P** preference pairs. Masks are True at
the entries that count. Entries that do not count are never read: NaN there changes no bit of a result.

A loss is a sum of per-token (or per-pair) terms times weights computed for the *whole* batch (`token_weights`), so
splitting the batch into micro-batches changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.rollout import Rollout
from rlhf_env.policies.policy import Sampling
from rlhf_env.policies.precision import moved, refined
from rlhf_env.types import Float, TokenScorer

Aggregation = Literal["token-mean", "sequence-mean", "sequence-sum", "dr-grpo"]
KLEstimator = Literal["k1", "k2", "k3", "k3-corrected"]


# ---------------------------------------------------------------- masked sums


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar: the sum of `values` where `mask` is True; equal shapes."""
    return values.masked_fill(~mask, 0.0).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Scalar: the mean of `values` where `mask` is True; 0 if that is nowhere."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def token_weights(mask: Tensor, aggregation: Aggregation, *, longest: int = 0) -> Tensor:
    """float64[B, L]: the weight of each token of `mask` bool[B, L] in the loss of a batch; 0 elsewhere.

    - "token-mean": 1 / (tokens of the batch). Every token has the same weight, so long answers have more.
    - "sequence-mean": 1 / (B * tokens of its row). Every answer has the same weight (GRPO, Shao et al. 2024, eq. 3).
    - "sequence-sum": 1 / B. The policy gradient of an expectation over answers (REINFORCE).
    - "dr-grpo": 1 / (B * `longest`). The same as "sequence-sum" up to a constant factor (Liu et al. 2025, arXiv
      2503.20783), without the length bias of "sequence-mean".

    B is the number of rows that have a token.

    >>> token_weights(torch.tensor([[True, True, True], [True, False, False]]), "token-mean")[0].tolist()
    [0.25, 0.25, 0.25]
    """
    counted = refined(mask)
    rows = mask.any(dim=1).sum().clamp(min=1)
    if aggregation == "token-mean":
        return counted / counted.sum().clamp(min=1)
    if aggregation == "sequence-mean":
        return counted / (rows * counted.sum(dim=1, keepdim=True).clamp(min=1))
    if aggregation == "sequence-sum":
        return counted / rows
    if aggregation == "dr-grpo":
        if longest < 1:
            raise ConfigError(f"dr-grpo divides by the length of the longest possible answer, got {longest}")
        return counted / (rows * longest)
    raise ConfigError(f"aggregation must be token-mean, sequence-mean, sequence-sum or dr-grpo, got {aggregation!r}")


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """Scalar: sum(values * weights) over the entries whose weight is not 0."""
    return (values.masked_fill(weights == 0, 0.0) * weights).sum()


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """`values` shifted and scaled to mean 0 and variance 1 over `mask`; exactly 0 elsewhere, and if all are equal."""
    counted = values[mask]
    if counted.numel() == 0 or counted.min() == counted.max():
        return torch.zeros_like(values)
    centred = counted - counted.mean()
    scaled = centred / centred.square().mean().sqrt()
    return torch.zeros_like(values).masked_scatter(mask, scaled)


# ---------------------------------------------------------------- losses and estimates, one number per token or pair


def clipped_policy_loss(
    log_ratio: Tensor, advantages: Tensor, clip: float, clip_high: float | None = None, *, cap: float = math.inf
) -> Tensor:
    """The loss per token: -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) (PPO, Schulman et al. 2017, eq. 7).

    `log_ratio` = log pi(token) - log mu(token), where mu is the policy that wrote it and gets no gradient.
    `clip_high` replaces `clip` in the upper bound (DAPO, Yu et al. 2025, arXiv 2503.14476); 0 means no bound.

    The ratio is the importance weight of a token that another or an older policy wrote. It is capped at `cap`, whatever
    the advantage. For negative advantages, where min() lets the ratio grow without limit, this is the dual clip of Ye
    et al. 2020 (1912.09729).
    """
    low, high = _bounds(clip, clip_high)
    ratio = log_ratio.clamp(max=math.log(cap)).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)


def outside_clip(log_ratio: Tensor, clip: float, clip_high: float | None = None) -> Tensor:
    """bool, shape of `log_ratio`: whether the ratio is outside the bounds of `clipped_policy_loss`.

    Its mean over the tokens is the clip fraction.
    """
    low, high = _bounds(clip, clip_high)
    return (log_ratio.exp() < low) | (log_ratio.exp() > high)


def _bounds(clip: float, clip_high: float | None) -> tuple[float, float]:
    """The lower and the upper bound of the ratio; 0 in `clip` or `clip_high` means no bound."""
    return 1.0 - (clip or math.inf), 1.0 + ((clip if clip_high is None else clip_high) or math.inf)


def clipped_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip: float) -> Tensor:
    """Per token: max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2; at `clip` 0 just (V - R)^2 / 2.

    The pessimistic value loss of the PPO code of Schulman et al.; equal shapes.
    """
    error = (values - targets).square()
    if clip:
        bounded = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (bounded - targets).square())
    return 0.5 * error


def kl_estimate(logprobs: Tensor, other: Tensor, kind: KLEstimator, log_ratio: Tensor | None = None) -> Tensor:
    """Per token: an estimate of KL(p || q) from a token drawn from p; `logprobs` is log p, `other` log q; equal shapes.

    With r = log q - log p (Schulman 2020, "Approximating KL divergence"): k1 = -r (unbiased), k2 = r^2 / 2,
    k3 = exp(r) - 1 - r (unbiased, never negative). As *values* all three will do. As a *loss*, differentiated through
    log p, the expected gradient of k1 is 0, that of k2 is the gradient of KL(p || q), and that of k3 the gradient of
    KL(q || p) (Shah et al. 2025, arXiv 2512.21852), each for the distribution of one token given the text before it. To
    penalise the KL of whole texts, put k1 into the reward, as the `kl` part does.

    "k3-corrected" is k3 times the probability ratio p / mu to the policy that wrote the token (DeepSeek-AI 2025, arXiv
    2512.02556, eq. 7), `log_ratio` = log p - log mu (default: p wrote it, so that the ratio is 1 and has a gradient).
    Its expectation over what mu writes is KL(p || q) of that token, and so is that of its gradient.
    """
    gap = other - logprobs
    if kind == "k1":
        return -gap
    if kind == "k2":
        return 0.5 * gap.square()
    if kind == "k3":
        return torch.expm1(gap) - gap
    if kind == "k3-corrected":
        return (logprobs - logprobs.detach() if log_ratio is None else log_ratio).exp() * (torch.expm1(gap) - gap)
    raise ConfigError(f"a KL estimate is k1, k2, k3 or k3-corrected, got {kind!r}")


def pair_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float,
    kind: Literal["sigmoid", "ipo"] = "sigmoid",
    label_smoothing: float | Tensor = 0.0,
    offset: float | Tensor | None = None,
) -> Tensor:
    """[P]: the loss of each preference pair; `chosen`, `rejected` [P] are log pi(answer) - log reference(answer).

    With h = chosen - rejected and s = `label_smoothing`, the probability that a label is wrong ([P] if pairs differ):
    - "sigmoid": -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h) (DPO, Rafailov et al. 2023, eq. 7; s > 0 is its
      conservative form, Mitchell 2023);
    - "ipo": (h - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17), which has no label smoothing.

    `offset` ([P] if pairs differ) is by how much beta h should be above 0:
    - "sigmoid": -log sigmoid(beta h - offset) (ODPO, Amini et al. 2024, arXiv 2402.10571, eq. 8; in a reward model's
      loss Llama 2, 2307.09288, eq. 2);
    - "ipo": (h - offset / beta)^2, least where beta h is the offset: up to the factor beta^2 the distillation of a
      reward's differences (Fisch et al. 2024, arXiv 2405.19316, eq. 7). IPO itself has the offset 1/2 for every pair.
    """
    margin = chosen - rejected
    if kind == "ipo":
        wanted = 1.0 / (2.0 * beta) if offset is None else offset / beta
        return (margin - wanted).square()
    if kind == "sigmoid":
        # Written out twice: gradients have the same last digits as before there were offsets.
        above, below = beta * margin, -beta * margin
        if offset is not None:
            above, below = above - offset, below + offset
        right, wrong = F.logsigmoid(above), F.logsigmoid(below)
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
    """[B]: the loss lambda_y - v(x, y) of each labelled answer (KTO, Ethayarajh et al. 2024, 2402.01306, sec. 4.1).

    v = lambda_D sigmoid(beta (r - z0)) for a desirable answer and lambda_U sigmoid(beta (z0 - r)) for an undesirable
    one, with r = `log_ratio` = log pi(answer) - log reference(answer) [B], z0 = `reference_point` (a scalar that gets
    no gradient) and the two weights as lambdas. `desirable` bool[B].
    """
    distance = beta * (log_ratio - reference_point.detach())
    # Tensors, because torch.where makes float32 of two plain numbers.
    weight = torch.where(desirable, log_ratio.new_tensor(desirable_weight), log_ratio.new_tensor(undesirable_weight))
    # 1 - sigmoid(x) = sigmoid(-x), and the latter keeps its digits where x is large.
    return weight * torch.sigmoid(torch.where(desirable, -distance, distance))


# ---------------------------------------------------------------- batches


def over_steps(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What an update logs of its gradient steps, one table each with a "grad_norm": the mean of every number.

    "steps_without_signal" is the share of steps whose gradient was exactly 0, which the optimizer did not take.
    """
    means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    return {**means, "steps_without_signal": sum(step["grad_norm"] == 0.0 for step in steps) / len(steps)}


def minibatches(rows: int, count: int, epochs: int, stream: np.random.Generator) -> Iterator[Tensor]:
    """In each of `epochs` passes, the row numbers 0..rows-1 in random order, split into `count` equal minibatches.

    Sizes differ by 1 if they must. No minibatch is empty: if there are fewer rows than `count`, each has one row.
    """
    for _ in range(epochs):
        yield from torch.from_numpy(stream.permutation(rows)).tensor_split(min(count, rows))


def without_overlong(rollout: Rollout) -> Rollout:
    """The rollout without the agent's tokens in texts that the length limit cut: nothing is learned from those.

    Overlong filtering (DAPO, Yu et al. 2025, arXiv 2503.14476, sec. 3.4). Their rewards are still there for others to
    be compared with.
    """
    whole = torch.tensor([episode.finish_reason != "length" for episode in rollout.episodes], dtype=torch.bool)
    return replace(rollout, actions=rollout.actions & whole.to(rollout.actions.device)[:, None])


def in_order_of_content(rollout: Rollout) -> Rollout:
    """The rollout with its rows sorted by group and, within one, by their tokens.

    For algorithms that take the first of several equals, or a row's neighbour: the layout of a batch decides nothing.
    """
    groups = rollout.group.tolist()
    rows = [(groups[row], episode.ids.tolist()) for row, episode in enumerate(rollout.episodes)]
    return rollout.select(sorted(range(len(rows)), key=lambda row: rows[row]))


def stated_log_ratio(logprobs: Tensor, stated: Tensor, actions: Tensor) -> Tensor:
    """float64[B, L]: log pi(token) - log mu(token), 0 off `actions`; mu is the policy that wrote the token.

    `stated` is log mu, as recorded when the token was written. It gets no gradient.
    """
    return (refined(logprobs) - stated.detach()).masked_fill(~actions, 0.0)


def truncated_importance_weights(log_ratio: Tensor, cap: float) -> Tensor:
    """float64[B]: min(pi(answer) / mu(answer), `cap`) of each row, without gradient; mu is the policy that wrote it.

    `log_ratio` [B, L] comes from `stated_log_ratio`. The cap bounds the variance, at the price of a bias towards mu
    (Ionides 2008, "Truncated Importance Sampling").
    """
    return refined(log_ratio.detach()).sum(dim=1).exp().clamp(max=cap)


def effective_sample_size(log_weights: Float) -> float:
    """(sum w)^2 / (n sum w^2) of n importance weights w = exp(`log_weights`), float64[n]: 1 / n to 1 (Kong 1992).

    >>> effective_sample_size(np.log([1.0, 1.0, 2.0, 4.0]))
    0.7272727272727273
    """
    weights = np.exp(log_weights - log_weights.max())
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def logprobs_under(scorer: TokenScorer, rollout: Rollout) -> Tensor:
    """float64[B, L]: log p of the agent's tokens under another policy (the reference); 0 elsewhere."""
    laid_out = torch.zeros(rollout.tokens.shape, dtype=torch.float64)
    for row, logprobs in enumerate(scorer.response_logprobs(rollout.episodes)):
        start = len(rollout.episodes[row].prompt_ids)
        laid_out[row, start : start + len(logprobs)] = torch.from_numpy(logprobs)
    return moved(laid_out, rollout.tokens.device).masked_fill(~rollout.actions, 0.0)


def with_reference_logprobs(reference: TokenScorer, rollout: Rollout) -> Rollout:
    """The rollout with `logprobs_under` the reference in its extra "reference", computed only if it is missing."""
    if "reference" in rollout.extras:
        return rollout
    return rollout.with_extras(reference=logprobs_under(reference, rollout))


def with_kl_of(policy: TokenScorer, rollout: Rollout, part: str, coefficient: float) -> tuple[Rollout, float]:
    """The rollout with the KL penalty (the reward part `part`) of `policy` instead of its writer; and the effective
    sample size of the ratios of the one to the other, as a share of the rows.

    The extra "reference" of the rollout holds the reference's log-probabilities (`with_reference_logprobs`).
    """
    now = policy.response_logprobs(rollout.episodes)
    scores, log_ratios = [], []
    for row, (episode, score) in enumerate(zip(rollout.episodes, rollout.scores, strict=True)):
        span = slice(len(episode.prompt_ids), len(episode.ids))
        actions = np.asarray(episode.actions, dtype=bool)
        log_ratios.append(float((now[row] - rollout.logprobs[row, span].numpy())[actions].sum()))
        if part not in score.tokens:
            scores.append(score)
            continue
        apart = np.where(actions, now[row] - rollout.extras["reference"][row, span].numpy(), 0.0)
        paid = 0.0 - coefficient * apart
        raw = {**score.raw, part: float(paid.sum())}
        scores.append(replace(score, raw=raw, tokens={**score.tokens, part: paid}))
    return replace(rollout, scores=tuple(scores)), effective_sample_size(np.array(log_ratios))


def require_beta(beta: float, who: str) -> None:
    """Refuse an objective without a KL penalty to an agent (`who`) that carries it in its own loss."""
    if not beta > 0.0:
        raise ConfigError(
            f"{who}'s beta is the weight of the reward's KL penalty, which is {beta:g} here: "
            "give the reward a 'kl' part with a positive weight (0.1, say)"
        )


def require_stated(rollout: Rollout, agent: str) -> None:
    """Refuse a rollout without the log-probabilities of the policy that wrote it, or where one of them is no number.

    Without them there are no importance weights.
    """
    rollout.require_finite()
    if not rollout.stated:
        raise DataError(
            f"{agent} needs the log-probabilities of the policy that wrote the texts, and these texts have none: "
            "use texts that the agent wrote itself, or learn from them with sft or dpo"
        )


def require_exact_sampling(sampling: Sampling, agent: str) -> None:
    """Refuse a policy that truncates its distribution: importance ratios would compare two different distributions."""
    if not sampling.exact:
        raise ConfigError(
            f"{agent} learns by probability ratios, which top_k {sampling.top_k} and top_p {sampling.top_p} make "
            "wrong: train with top_k 0 and top_p 1 (truncate when you generate from the trained policy instead)"
        )
