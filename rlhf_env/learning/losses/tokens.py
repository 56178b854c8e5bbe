"""Token losses: the loss of each token, from its probability ratio and its advantage.

In each, r = pi(token) / mu(token) is the ratio to the policy that wrote the token, A its advantage, and sg(x) is x
without a gradient. All are to be minimised. docs/losses.md says what each is for, and how biased it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_env.errors import Problem
from rlhf_env.learning.functional import clipped_policy_loss, masked_mean
from rlhf_env.learning.losses.declaring import TokenBatch, TokenLoss
from rlhf_env.settings import NonNegative, Positive, Share, fault


def _cap_above_clip(settings: Mapping[str, Any]) -> Iterator[Problem]:
    clip = max(settings["clip"], settings["clip_high"] or 0.0)
    if not settings["importance_cap"] > 1.0 + clip:
        yield fault("importance_cap", f"must be above 1 + the clip = {1.0 + clip}, got {settings['importance_cap']}")


def _covariances_in_order(settings: Mapping[str, Any]) -> Iterator[Problem]:
    yield from _cap_above_clip(settings)
    if not settings["lowest"] < settings["highest"]:
        yield fault("lowest", f"must be below highest = {settings['highest']}, got {settings['lowest']}")


@TokenLoss(
    check=_cap_above_clip,
    paper="Schulman et al. 2017, arXiv 1707.06347",
    equation="7",
    purpose="several gradient steps on one rollout; what ppo and grpo do of their own",
)
def clip_loss(
    tokens: TokenBatch, *, clip: NonNegative = 0.2, clip_high: NonNegative | None = None, importance_cap: Positive = 3.0
) -> Tensor:
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A) (PPO, Schulman et al. 2017, arXiv 1707.06347, eq. 7).

    Args:
        clip: how far the ratio may move the loss (0: as far as importance_cap).
        clip_high: how far above 1, where that is not clip.
        importance_cap: where the ratio is cut off, above the clip. It binds on texts that an older policy wrote.
    """
    return clipped_policy_loss(tokens.log_ratio, tokens.advantages, clip, clip_high, cap=importance_cap)


@TokenLoss(
    aggregation="token-mean",
    check=_cap_above_clip,
    paper="Yu et al. 2025, arXiv 2503.14476",
    equation="8",
    purpose="long answers: rare tokens may rise further, and every token counts alike",
    differs="its dynamic sampling and overlong rules are not part of the loss: `mask_overlong`, reward `overlong`",
)
def dapo_loss(
    tokens: TokenBatch,
    *,
    clip: NonNegative = 0.2,
    clip_high: NonNegative | None = 0.28,
    importance_cap: Positive = 3.0,
) -> Tensor:
    """-min(r A, clip(r, 1 - clip, 1 + clip_high) A), every token of the batch alike (DAPO, Yu et al. 2025, arXiv
    2503.14476, eq. 8; the wider clip upwards is eq. 10, the mean over tokens eq. 12).

    Args:
        clip: how far below 1 the ratio may move the loss.
        clip_high: how far above 1.
        importance_cap: where the ratio is cut off, above the clip.
    """
    return clipped_policy_loss(tokens.log_ratio, tokens.advantages, clip, clip_high, cap=importance_cap)


@TokenLoss(
    advantages="group",
    aggregation="dr-grpo",
    check=_cap_above_clip,
    paper="Liu et al. 2025, arXiv 2503.20783",
    equation="sec. 3.2",
    purpose="no bias of length or of difficulty: on-policy, the policy gradient up to a constant factor",
    differs="TRL divides by max_completion_length as this does; verl by the width of the padded batch by default",
)
def dr_grpo_loss(
    tokens: TokenBatch, *, clip: NonNegative = 0.2, clip_high: NonNegative | None = None, importance_cap: Positive = 3.0
) -> Tensor:
    """PPO's clipped term with A = R - mean R of the group, divided by the longest possible answer instead of the
    answer's own length (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783, sec. 3.2).

    Args:
        clip: how far the ratio may move the loss.
        clip_high: how far above 1, where that is not clip.
        importance_cap: where the ratio is cut off, above the clip.
    """
    return clipped_policy_loss(tokens.log_ratio, tokens.advantages, clip, clip_high, cap=importance_cap)


@TokenLoss(
    aggregation="sequence-mean",
    paper="Zheng et al. 2025, arXiv 2507.18071",
    equation="5 and 7; 13 and 14 where the tokens of an answer have different advantages",
    purpose="ratios of whole answers, which hardly move with length: mixtures of experts, long answers",
    differs="TRL has eq. 5 (one ratio for the answer), verl eq. 13: equal values, and equal gradients where an answer "
    "has one advantage",
)
def gspo_loss(tokens: TokenBatch, *, clip: Positive = 3e-4, clip_high: Positive = 4e-4) -> Tensor:
    """-min(s A, clip(s, 1 - clip, 1 + clip_high) A), s = sg(s_i) pi / sg(pi), s_i = exp(mean over the answer of log r)
    (GSPO, Zheng et al. 2025, arXiv 2507.18071, eqs. 5 and 7 in the form of eqs. 13 and 14).

    Args:
        clip: how far below 1 the ratio of an answer may move the loss.
        clip_high: how far above 1.
    """
    log_ratio = tokens.log_ratio.masked_fill(~tokens.actions, 0.0)
    count = tokens.actions.sum(dim=1, keepdim=True).clamp(min=1)
    of_answer = (log_ratio.detach().sum(dim=1, keepdim=True) / count).expand_as(log_ratio)
    return clipped_policy_loss(of_answer + (log_ratio - log_ratio.detach()), tokens.advantages, clip, clip_high)


def _floor_below_cap(settings: Mapping[str, Any]) -> Iterator[Problem]:
    if not settings["floor"] < settings["cap"]:
        yield fault("floor", f"must be below cap = {settings['cap']}, got {settings['floor']}")


@TokenLoss(
    aggregation="token-mean",
    check=_floor_below_cap,
    paper="MiniMax et al. 2025, arXiv 2506.13585",
    equation="4 and 5",
    purpose="no token loses its gradient: rare but decisive tokens after the first step",
    differs="the paper's bounds are 1 - eps and 1 + eps, as in verl; TRL has no lower bound and takes the upper one as "
    "it is (ScaleRL's eps_max, 5), as this does",
)
def cispo_loss(tokens: TokenBatch, *, floor: NonNegative = 0.0, cap: Positive = 5.0) -> Tensor:
    """-sg(clip(r, floor, cap)) A log pi (CISPO, MiniMax et al. 2025, arXiv 2506.13585, eqs. 4 and 5).

    Args:
        floor: the smallest importance weight (the paper had none).
        cap: the largest importance weight.
    """
    weight = tokens.log_ratio.detach().exp().clamp(floor, cap)
    return -weight * tokens.advantages * tokens.logprobs


@TokenLoss(
    aggregation="sequence-mean",
    paper="Gao et al. 2025, arXiv 2511.20347",
    equation="sec. 3",
    purpose="a soft trust region: tokens far from the writer fade out, and do so sooner where they are to be lowered",
)
def sapo_loss(
    tokens: TokenBatch, *, positive_temperature: Positive = 1.0, negative_temperature: Positive = 1.05
) -> Tensor:
    """-(4 / tau) sigmoid(tau (r - 1)) A, tau by the sign of A (SAPO, Gao et al. 2025, arXiv 2511.20347, sec. 3).

    At r = 1 its gradient is that of r A; it falls off on both sides.

    Args:
        positive_temperature: tau where the advantage is above 0.
        negative_temperature: tau elsewhere: larger, so that pushing down fades out sooner.
    """
    # sigmoid is 1 long before exp overflows, and its gradient there is 0 where 0 times infinity would be no number.
    ratio = tokens.log_ratio.clamp(max=math.log(1e6)).exp()
    positive, negative = (ratio.new_tensor(tau) for tau in (positive_temperature, negative_temperature))
    temperature = torch.where(tokens.advantages > 0, positive, negative)
    return -(4.0 / temperature) * torch.sigmoid(temperature * (ratio - 1.0)) * tokens.advantages


_ROUNDING = 1e-9


def tokens_of_high_covariance(
    tokens: TokenBatch,
    *,
    share: float,
    lowest: float,
    highest: float,
    clip: float,
    clip_high: float | None,
    importance_cap: float,
) -> tuple[Tensor, int]:
    """The tokens whose (log pi - its mean) (A - its mean), means over the batch's tokens, is between `lowest` and
    `highest`, and how many of them are left out: `share` of all tokens, one at least.

    Tokens that PPO's clip holds back already are no candidates.
    """
    advantages = tokens.advantages.expand(tokens.actions.shape)
    logprobs, count = tokens.logprobs.detach(), int(tokens.actions.sum())
    apart = (advantages - masked_mean(advantages, tokens.actions)) * (logprobs - masked_mean(logprobs, tokens.actions))
    ratio, high = tokens.log_ratio.detach().exp(), clip if clip_high is None else clip_high
    # The mean of a group's rewards rounds: an advantage of 0 may come out as 1e-17 or -1e-17, by the order of the sum.
    held = ((ratio > 1.0 + (high or math.inf)) & (advantages > _ROUNDING)) | (
        (ratio < 1.0 - (clip or math.inf)) & (advantages < -_ROUNDING)
    )
    return tokens.actions & (apart > lowest) & (apart < highest) & ~held, max(int(share * count), 1)


@TokenLoss(
    aggregation="token-mean",
    leaves_out=tokens_of_high_covariance,
    check=_covariances_in_order,
    paper="Cui et al. 2025, arXiv 2505.22617",
    equation="sec. 4.2",
    purpose="entropy that does not collapse: some of the tokens that would lower it most learn nothing",
    differs="verl takes the means over a micro-batch; here they are of the whole gradient step, which costs one more "
    "forward pass",
)
def clip_cov_loss(
    tokens: TokenBatch,
    *,
    share: Share = 2e-4,
    lowest: float = 1.0,
    highest: float = 5.0,
    clip: NonNegative = 0.2,
    clip_high: NonNegative | None = None,
    importance_cap: Positive = 3.0,
) -> Tensor:
    """PPO's clipped term, 0 for a few tokens drawn from those of high covariance between log pi and A (Clip-Cov, Cui et
    al. 2025, arXiv 2505.22617, sec. 4.2; defaults as in their code).

    Args:
        share: how many of all tokens are left out, one at least.
        lowest: the covariance above which a token may be left out.
        highest: the covariance below which it may.
        clip: how far the ratio may move the loss.
        clip_high: how far above 1, where that is not clip.
        importance_cap: where the ratio is cut off, above the clip.
    """
    terms = clipped_policy_loss(tokens.log_ratio, tokens.advantages, clip, clip_high, cap=importance_cap)
    return terms if tokens.left_out is None else terms.masked_fill(tokens.left_out, 0.0)


@TokenLoss(
    advantages="batch std",
    aggregation="token-mean",
    check=_cap_above_clip,
    paper="Hu et al. 2025, arXiv 2501.03262",
    equation="sec. 3",
    purpose="one answer to a prompt is enough: advantages are scaled over the batch; in grpo it is the variant with "
    "the group's mean for a baseline",
    differs="verl and OpenRLHF divide by the deviation of a sample (n - 1) and add 1e-8; here it is that of the batch",
)
def batch_scaled_loss(
    tokens: TokenBatch, *, clip: NonNegative = 0.2, clip_high: NonNegative | None = None, importance_cap: Positive = 3.0
) -> Tensor:
    """PPO's clipped term, A shifted and scaled to mean 0 and variance 1 over all tokens of the batch (REINFORCE++, Hu
    et al. 2025, arXiv 2501.03262, sec. 3).

    Args:
        clip: how far the ratio may move the loss.
        clip_high: how far above 1, where that is not clip.
        importance_cap: where the ratio is cut off, above the clip.
    """
    return clipped_policy_loss(tokens.log_ratio, tokens.advantages, clip, clip_high, cap=importance_cap)


@TokenLoss(
    advantages="group mean",
    aggregation="sequence-sum",
    paper="Tajwar et al. 2026, arXiv 2602.02710",
    equation="sec. 3",
    purpose="rewards of 0 and 1: hard prompts weigh more, as when the likelihood of success is maximised",
    differs="the paper has no KL penalty: here it is part of what is compared, and not of the mean that divides",
)
def maxrl_loss(tokens: TokenBatch, *, importance_cap: Positive = 3.0) -> Tensor:
    """-min(r, cap) A, A = (R - mean R) / mean R of the group (MaxRL, Tajwar et al. 2026, arXiv 2602.02710).

    For rewards of 0 and 1 and a chance p of success, log p = -sum over k of (1 - p)^k / k. Of a group of G texts, the
    expected gradient is that of the first G - 1 terms: the G-th is what groups without a success would say.

    Args:
        importance_cap: where the ratio is cut off. It binds on texts that an older policy wrote.
    """
    return clipped_policy_loss(tokens.log_ratio, tokens.advantages, 0.0, cap=importance_cap)
