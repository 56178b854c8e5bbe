"""The same objectives derived once more, from their papers' equations and out of the functions that our agents use.

What a library computes is compared with these, batch by batch. Each takes the constants in which libraries differ as
arguments, so that a difference can be named: with the library's constant in its place, the two are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.lab.studies.referee.measuring import Measurable
from rlhf_env.lab.studies.referee.texts import Texts
from rlhf_env.learning.advantages import (
    gae,
    group_advantages,
    leave_one_out_advantages,
    mean_scaled_advantages,
    returns_to_go,
)
from rlhf_env.learning.functional import Aggregation, KLEstimator, clipped_policy_loss, kl_estimate, token_weights

Terms = Callable[[Texts, Tensor], Tensor]
"""From texts and advantages [B, T] to the loss of each token [B, T]."""
Adding = Aggregation | Literal["token-sum"]

# ---------------------------------------------------------------- advantages, [B, T]


def _wide(values: Tensor, texts: Texts) -> Tensor:
    return values[:, None].expand(texts.mask.shape)


def of_group(texts: Texts, *, scaled: bool = True, epsilon: float = 1e-6, penalty: bool = True) -> Tensor:
    """R - mean R of the group, over its standard deviation + `epsilon` if `scaled`."""
    returns = texts.penalised.sum(1) if penalty else texts.reward
    if epsilon == 1e-6 or not scaled:
        return _wide(group_advantages(returns, texts.group, scale_by_std=scaled), texts)
    return _wide(group_advantages(returns, texts.group, scale_by_std=True, epsilon=epsilon), texts)


def left_out(texts: Texts, *, penalty: bool = True) -> Tensor:
    """R less the mean of the others."""
    returns = texts.penalised.sum(1) if penalty else texts.reward
    return _wide(leave_one_out_advantages(returns, texts.group), texts)


def whole_return(texts: Texts) -> Tensor:
    return _wide(texts.penalised.sum(1), texts)


def to_go(texts: Texts, *, baseline: Literal["none", "others", "group", "greedy"] = "none") -> Tensor:
    """What is paid from each token on, less a baseline of the reward alone."""
    less = {
        "none": lambda: torch.zeros_like(texts.reward),
        "others": lambda: texts.reward - leave_one_out_advantages(texts.reward, texts.group),
        "group": lambda: texts.reward - group_advantages(texts.reward, texts.group, scale_by_std=False),
        "greedy": lambda: torch.full_like(texts.reward, texts.greedy),
    }[baseline]()
    return (returns_to_go(texts.penalised, texts.mask) - less[:, None]).masked_fill(~texts.mask, 0.0)


def scaled_to_go(texts: Texts, *, epsilon: float = 1e-6) -> Tensor:
    """The reward, centred and scaled in its group, at the last token; the penalty at each; from each token on."""
    scaled = group_advantages(texts.reward, texts.group, scale_by_std=True, epsilon=epsilon)
    rewards = texts.penalised - texts.paid
    rewards[torch.arange(len(rewards)), texts.mask.sum(1) - 1] += scaled
    return returns_to_go(rewards, texts.mask)


def of_others_and_penalty(texts: Texts) -> Tensor:
    """As RLOO, and the part of the penalty that falls on each token and later ones without a baseline."""
    return to_go(texts, baseline="others")


def generalised(texts: Texts, *, lam: float = 0.95) -> Tensor:
    """GAE of a value that is 0 everywhere."""
    return gae(texts.penalised, torch.zeros_like(texts.penalised), texts.mask, gamma=1.0, lam=lam)


def weighed_by_length(texts: Texts) -> Tensor:
    """R less the mean of the group's returns, each weighed by its length (OPO, arXiv 2505.23585, eq. 9)."""
    returns, length = texts.penalised.sum(1), texts.counted.sum(1)
    total = torch.zeros(texts.batches, dtype=returns.dtype).index_add(0, texts.group, returns * length)
    weight = torch.zeros(texts.batches, dtype=returns.dtype).index_add(0, texts.group, length)
    return _wide(returns - (total / weight)[texts.group], texts)


def best_of_group(texts: Texts, *, epsilon: float = 1e-6) -> Tensor:
    """The best return less the second best, over the deviation, for the best text and 0 for the others (arXiv
    2503.19595)."""
    returns, rows = texts.penalised.sum(1), torch.zeros_like(texts.reward)
    for number in range(texts.batches):
        of_batch = (texts.group == number).nonzero()[:, 0]
        best, second = returns[of_batch].topk(2).values
        # The first of equals.
        first = of_batch[int(returns[of_batch].argmax())]
        rows[first] = (best - second) / (returns[of_batch].std() + epsilon)
    return _wide(rows, texts)


def over_mean(texts: Texts) -> Tensor:
    """(R - mean R) / mean R (MaxRL, arXiv 2602.02710)."""
    returns = texts.penalised.sum(1)
    return _wide(mean_scaled_advantages(returns, returns, texts.group), texts)


def whitened(
    advantages: Callable[[Texts], Tensor],
    texts: Texts,
    *,
    sample: bool = True,
    epsilon: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """To mean 0 and variance 1 over all tokens; `sample`: n - 1 in place of n, the quotient of both in `dtype`."""
    values, count = advantages(texts), texts.counted.sum()
    mean = (values * texts.counted).sum() / count
    spread = ((values - mean).square() * texts.counted).sum() / count
    if sample:
        spread = spread * (count.to(dtype) / (count - 1.0).to(dtype)).double()
    # Where all are equal, they are 0 / 0 of which nothing is learned.
    return (values - mean) / (spread + epsilon).sqrt() if spread + epsilon > 0.0 else values - mean


# ---------------------------------------------------------------- the loss of each token


def clipped(
    texts: Texts, advantages: Tensor, *, clip: float = 0.2, high: float | None = None, dual: float | None = None
) -> Tensor:
    """PPO's, eq. 7; `dual` bounds the ratio where the advantage is negative (arXiv 1912.09729)."""
    log_ratio = texts.logprobs - texts.written
    return clipped_policy_loss(log_ratio, advantages, clip, high, **({} if dual is None else {"cap": dual}))


def uncapped(texts: Texts, advantages: Tensor, *, clip: float = 0.2, high: float | None = None) -> Tensor:
    return clipped(texts, advantages, clip=clip, high=high, dual=1e9)


def of_text(texts: Texts, advantages: Tensor, *, clip: float, high: float | None = None) -> Tensor:
    """GSPO's, eq. 5: one ratio for the text, exp(mean over its tokens of log r)."""
    count = texts.counted.sum(1, keepdim=True)
    log_ratio = ((texts.logprobs - texts.written) * texts.counted).sum(1, keepdim=True) / count
    return clipped_policy_loss(log_ratio.expand(texts.mask.shape), advantages, clip, high, cap=1e9)


def weighed_likelihood(texts: Texts, advantages: Tensor, *, low: float, high: float, drop: bool = False) -> Tensor:
    """CISPO's: -sg(clip(r, low, high)) A log pi; `drop`: 0 for a ratio outside, in place of the bound."""
    ratio = (texts.logprobs.detach() - texts.written).exp()
    inside = (ratio > low) & (ratio < high)
    weight = torch.where(inside, ratio, 0.0) if drop else ratio.clamp(low, high)
    return -weight * advantages * texts.logprobs


def soft_gate(texts: Texts, advantages: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """SAPO's, with temperatures that have the digits of `dtype`."""
    positive, negative = torch.tensor([1.0, 1.05], dtype=dtype).double()
    tau = torch.where(advantages > 0, positive, negative)
    ratio = (texts.logprobs - texts.written).exp()
    return -(4.0 / tau) * torch.sigmoid(tau * (ratio - 1.0)) * advantages


def geometric(texts: Texts, advantages: Tensor, *, clip: float) -> Tensor:
    """GMPO's (arXiv 2507.20673): the geometric mean of the text's ratios, each clipped on the side that pays."""
    log_ratio = texts.logprobs - texts.written
    bounded = log_ratio.clamp(-clip, clip)
    held = torch.where(advantages > 0, torch.minimum(log_ratio, bounded), torch.maximum(log_ratio, bounded))
    mean = (held * texts.counted).sum(1, keepdim=True) / texts.counted.sum(1, keepdim=True)
    return (-advantages * mean.exp()).expand(texts.mask.shape)


def gamma_weighed(texts: Texts, advantages: Tensor) -> Tensor:
    """VESPO's (arXiv 2602.10693): -sg(phi(w)) A log pi, phi(w) = w^k exp(lambda (1 - w)), w the text's ratio."""
    log_ratio = ((texts.logprobs.detach() - texts.written) * texts.counted).sum(1, keepdim=True)
    k, lam = (torch.where(advantages >= 0, up, down) for up, down in ((2.0, 3.0), (3.0, 2.0)))
    weight = (lam + k * log_ratio - lam * log_ratio.exp()).exp()
    return -weight * advantages * texts.logprobs


def likelihood(texts: Texts, advantages: Tensor) -> Tensor:
    """REINFORCE's: -A log pi."""
    return -advantages * texts.logprobs


def quadratic(texts: Texts, advantages: Tensor, *, beta: float) -> Tensor:
    """DRO's (arXiv 2405.19107): -A log pi + beta / 2 (log r)^2."""
    return -advantages * texts.logprobs + 0.5 * beta * (texts.logprobs - texts.written).square()


def within_divergence(
    texts: Texts, advantages: Tensor, *, form: Literal["tv", "kl"], low: float, high: float, cap: float | None
) -> Tensor:
    """DPPO's (arXiv 2602.04879, eqs. 13 and 14): r A, and nothing for a token whose probability has moved too far
    where the advantage would move it further. `cap`: -sg(min(r, cap)) A log pi in place of -r A."""
    p, q = texts.logprobs.detach().exp(), texts.written.exp()
    if form == "tv":
        far_up, far_down = p - q > high, q - p > low
    else:
        divergence = q * (q / p).log() + (1.0 - q) * ((1.0 - q) / (1.0 - p)).log()
        far_up, far_down = (p > q) & (divergence > high), (p < q) & (divergence > low)
    kept = ~torch.where(advantages > 0, far_up, far_down)
    if cap is None:
        return -(texts.logprobs - texts.written).exp() * advantages * kept
    return -(p / q).clamp(max=cap) * advantages * texts.logprobs * kept


def few_with_penalty(texts: Texts, advantages: Tensor, *, share: float, coefficient: float = 1.0) -> Tensor:
    """KL-Cov's (arXiv 2505.22617, sec. 4.2): -r A, plus |log r| for the tokens of highest covariance."""
    log_ratio = texts.logprobs - texts.written
    inside = texts.mask.nonzero()
    a, p = (values.expand(texts.mask.shape)[texts.mask].detach() for values in (advantages, texts.logprobs))
    highest = ((a - a.mean()) * (p - p.mean())).topk(max(1, int(len(a) * share))).indices
    marked = torch.zeros_like(texts.counted)
    marked[inside[highest, 0], inside[highest, 1]] = 1.0
    return -log_ratio.exp() * advantages + coefficient * marked * log_ratio.abs()


# ---------------------------------------------------------------- the penalty, as a loss


def penalty(texts: Texts, kind: KLEstimator | Literal["none", "abs"], *, whole_ratio: bool = False) -> Tensor:
    """[B, T]: the KL estimate of each token; `whole_ratio`: k3 times GSPO's ratio of the text."""
    if kind == "none":
        return torch.zeros_like(texts.logprobs)
    if kind == "abs":
        return (texts.logprobs - texts.reference).abs()
    log_ratio = texts.logprobs - texts.written
    if whole_ratio:
        count = texts.counted.sum(1, keepdim=True)
        log_ratio = ((log_ratio * texts.counted).sum(1, keepdim=True) / count).expand(texts.mask.shape)
    return kl_estimate(texts.logprobs, texts.reference, kind, log_ratio)


def added_up(values: Tensor, texts: Texts, how: Adding) -> Tensor:
    """Scalar: by the weights of `token_weights`."""
    if how == "token-sum":
        return (values * texts.counted).sum()
    return (values * token_weights(texts.mask, how, longest=texts.longest)).sum()


def derived(
    advantages: Callable[[Texts], Tensor],
    terms: Terms,
    how: Adding,
    *,
    kl: KLEstimator | Literal["none", "abs"] = "none",
    whole_ratio: bool = False,
) -> Measurable:
    """The objective of these parts; `kl` is a part of the loss, weighed by beta."""

    def loss(texts: Texts, given: Tensor) -> Tensor:
        by_token = terms(texts, given)
        if kl != "none":
            by_token = by_token + texts.beta * penalty(texts, kl, whole_ratio=whole_ratio)
        return added_up(by_token, texts, how)

    return Measurable(loss, advantages)


# ---------------------------------------------------------------- pairs

Pairwise = Callable[[Texts, Tensor, Tensor], Tensor]
"""From texts (preferred ones at even rows) and the log-ratios to the reference [P] of preferred and other to [P]."""


def of_pairs(form: Pairwise) -> Measurable:
    """The mean of a loss of pairs."""

    def loss(texts: Texts, _: Tensor) -> Tensor:
        ratio = (texts.logprobs - texts.reference).sum(1)
        return form(texts, ratio[0::2], ratio[1::2]).mean()

    return Measurable(loss, None, "pairs")


def lengths(texts: Texts) -> tuple[Tensor, Tensor]:
    count = texts.counted.sum(1)
    return count[0::2], count[1::2]


def _h(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    return texts.beta * (a - b)


def sigmoid(texts: Texts, a: Tensor, b: Tensor, *, wrong: float = 0.0) -> Tensor:
    h = _h(texts, a, b)
    return -(1.0 - wrong) * F.logsigmoid(h) - wrong * F.logsigmoid(-h)


def per_token_sigmoid(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    m, n = lengths(texts)
    return -F.logsigmoid(texts.beta * (a / m - b / n))


def hinge(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    return torch.relu(1.0 - _h(texts, a, b))


def ipo(texts: Texts, a: Tensor, b: Tensor, *, per_token: int = 0) -> Tensor:
    """IPO, eq. 17; `per_token`: 1 divides by lengths, 2 by lengths and one more."""
    m, n = (length + per_token - 1 for length in lengths(texts)) if per_token else (1.0, 1.0)
    return (a / m - b / n - 0.5 / texts.beta).square()


def exo(texts: Texts, a: Tensor, b: Tensor, *, wrong: float) -> Tensor:
    """EXO (arXiv 2402.00856, eq. 16): KL of the policy's choice between the two from the labels'."""
    h = _h(texts, a, b)
    win = torch.sigmoid(h)
    return win * (win.log() - math.log1p(-wrong)) + (1.0 - win) * ((1.0 - win).log() - math.log(wrong))


def nca(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    """NCA (arXiv 2402.05369, eq. 13, for two)."""
    a, b = texts.beta * a, texts.beta * b
    return -F.logsigmoid(a) - 0.5 * (F.logsigmoid(-a) + F.logsigmoid(-b))


def robust(texts: Texts, a: Tensor, b: Tensor, *, wrong: float) -> Tensor:
    h = _h(texts, a, b)
    return (-(1.0 - wrong) * F.logsigmoid(h) + wrong * F.logsigmoid(-h)) / (1.0 - 2.0 * wrong)


def bco(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    """BCO (arXiv 2404.04656) without its shift of the reward."""
    return -F.logsigmoid(texts.beta * a) - F.logsigmoid(-texts.beta * b)


def sppo(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    return (a - 0.5 / texts.beta).square() + (b + 0.5 / texts.beta).square()


def apo_zero(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    return torch.sigmoid(-texts.beta * a) + torch.sigmoid(texts.beta * b)


def apo_down(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    return torch.sigmoid(texts.beta * a) + torch.sigmoid(-_h(texts, a, b))


def discovered(texts: Texts, a: Tensor, b: Tensor, *, tau: float = 0.05) -> Tensor:
    """DiscoPOP (arXiv 2406.08414, eq. 5): logistic and exponential, mixed by sigmoid(h / tau)."""
    h = _h(texts, a, b)
    share = torch.sigmoid(h / tau)
    return (1.0 - share) * F.softplus(-h) + share * (-h).exp()


def preferred_only(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    """The negative log-likelihood of the preferred answer, per token."""
    return -texts.logprobs[0::2].sum(1) / lengths(texts)[0]


def forward_kl(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    """f-DPO (arXiv 2309.16240) with f'(t) = -1 / t."""
    return -F.logsigmoid(texts.beta * ((-b).exp() - (-a).exp()))


def jensen_shannon(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    """f-DPO with f'(t) = log(2 t / (1 + t))."""
    return -F.logsigmoid(texts.beta * (F.logsigmoid(a) - F.logsigmoid(b)))


def weighed(texts: Texts, a: Tensor, b: Tensor) -> Tensor:
    """WPO (arXiv 2406.11827, eq. 2 with its aligned weights): DPO's, times exp of the mean over tokens of log pi - log
    sum pi^2 of both answers, without gradient."""
    logprobs = texts.logits.detach().log_softmax(-1)
    aligned = (texts.logprobs.detach() - (2.0 * logprobs).logsumexp(-1)) * texts.counted
    weight = (aligned.sum(1) / texts.counted.sum(1)).exp()
    return sigmoid(texts, a, b) * weight[0::2] * weight[1::2]


def free(texts: Texts) -> tuple[Tensor, Tensor]:
    """log pi of preferred and other, [P] each: of losses without a reference."""
    logprobs = texts.logprobs.sum(1)
    return logprobs[0::2], logprobs[1::2]


def cpo(texts: Texts, _a: Tensor, _b: Tensor, *, beta: float = 0.1) -> Tensor:
    a, b = free(texts)
    return -F.logsigmoid(beta * (a - b)) - a


def simpo(texts: Texts, _a: Tensor, _b: Tensor, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    (a, b), (m, n) = free(texts), lengths(texts)
    return -F.logsigmoid(beta * (a / m - b / n) - gamma)


def orpo(texts: Texts, _a: Tensor, _b: Tensor, *, weight: float = 0.1, single: bool = False) -> Tensor:
    """ORPO's; `single`: the odds in float32."""
    (a, b), (m, n) = free(texts), lengths(texts)
    a, b = a / m, b / n
    of_preferred = a
    if single:
        a, b = a.float(), b.float()
    odds = (a - torch.log(-torch.expm1(a))) - (b - torch.log(-torch.expm1(b)))
    return -of_preferred - weight * F.logsigmoid(odds)
