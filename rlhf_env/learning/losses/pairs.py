"""Pair losses: the loss of a preferred answer and the other, from how likely the policy writes either.

In each, h = chosen - rejected is a difference of log-ratios to the reference or, in those without a reference, of
log-probabilities. All are to be minimised. docs/losses.md says what each is for, and where it ends.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.learning.functional import pair_loss
from rlhf_env.learning.losses.declaring import PairLoss, Pairs
from rlhf_env.settings import NonNegative, Positive


@PairLoss(
    wrong_labels=True,
    offsets=True,
    paper="Rafailov et al. 2023, arXiv 2305.18290",
    equation="7",
    purpose="the default: labels that err as Bradley and Terry say lead to the environment's optimum",
)
def sigmoid_loss(pairs: Pairs) -> Tensor:
    """-log sigmoid(beta h) (DPO, Rafailov et al. 2023, arXiv 2305.18290, eq. 7; with `label_smoothing` cDPO)."""
    return pair_loss(pairs.chosen, pairs.rejected, beta=pairs.beta, label_smoothing=pairs.wrong, offset=pairs.offset)


@PairLoss(
    offsets=True,
    paper="Azar et al. 2023, arXiv 2310.12036",
    equation="17",
    purpose="labels that never err: a bounded step for each, where sigmoid would go on for ever",
    differs="TRL divides the log-ratios by the lengths of the answers: here that is `length_normalised = true`",
)
def ipo_loss(pairs: Pairs) -> Tensor:
    """(h - 1 / (2 beta))^2 (IPO, Azar et al. 2023, arXiv 2310.12036, eq. 17)."""
    return pair_loss(pairs.chosen, pairs.rejected, beta=pairs.beta, kind="ipo", offset=pairs.offset)


@PairLoss(
    paper="Zhao et al. 2023, arXiv 2305.10425; Liu et al. 2024, arXiv 2309.06657",
    equation="sec. 3.2 of the second",
    purpose="a pair that is far enough apart teaches nothing more",
    differs="SLiC itself has no reference; TRL has this form, that of RSO",
)
def hinge_loss(pairs: Pairs) -> Tensor:
    """max(0, 1 - beta h) (SLiC-HF, Zhao et al. 2023, arXiv 2305.10425, relative to the reference as in RSO, Liu et al.
    2024, arXiv 2309.06657)."""
    return torch.relu(1.0 - pairs.beta * (pairs.chosen - pairs.rejected))


@PairLoss(
    wrong_labels=True,
    paper="Ray Chowdhury et al. 2024, arXiv 2403.00409",
    equation="sec. 3",
    purpose="labels that are wrong in a known share: their bias is taken out (`label_smoothing` is that share)",
)
def robust_loss(pairs: Pairs) -> Tensor:
    """(-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e), where e is the chance of a wrong label
    (rDPO, Ray Chowdhury et al. 2024, arXiv 2403.00409, sec. 3): its mean over such labels is the loss of right ones."""
    margin = pairs.beta * (pairs.chosen - pairs.rejected)
    right, wrong = F.logsigmoid(margin), F.logsigmoid(-margin)
    return (-(1.0 - pairs.wrong) * right + pairs.wrong * wrong) / (1.0 - 2.0 * pairs.wrong)


@PairLoss(
    paper="D'Oosterlinck et al. 2024, arXiv 2408.06266",
    equation="7",
    purpose="preferred answers that are better than the policy's own: likelier ones, and the others less likely",
)
def apo_zero_loss(pairs: Pairs) -> Tensor:
    """1 - sigmoid(beta chosen) + sigmoid(beta rejected) (APO-zero, D'Oosterlinck et al. 2024, arXiv 2408.06266, eq.
    7)."""
    return torch.sigmoid(-pairs.beta * pairs.chosen) + torch.sigmoid(pairs.beta * pairs.rejected)


@PairLoss(
    paper="D'Oosterlinck et al. 2024, arXiv 2408.06266",
    equation="8",
    purpose="preferred answers that are worse than the policy's own: both less likely, the rejected one more so",
)
def apo_down_loss(pairs: Pairs) -> Tensor:
    """sigmoid(beta chosen) + 1 - sigmoid(beta h) (APO-down, D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8)."""
    return torch.sigmoid(pairs.beta * pairs.chosen) + torch.sigmoid(-pairs.beta * (pairs.chosen - pairs.rejected))


@PairLoss(
    paper="Wu et al. 2024, arXiv 2405.00675",
    equation="4.7",
    purpose="self-play: each answer's own log-ratio goes to half a unit, which bounds both",
    differs="the paper estimates win rates; here, and in TRL's sppo_hard, a label is a win rate of 1",
)
def sppo_loss(pairs: Pairs) -> Tensor:
    """(chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2 (SPPO, Wu et al. 2024, arXiv 2405.00675, eq. 4.7, with
    win rates of 1 and 0)."""
    half = 0.5 / pairs.beta
    return (pairs.chosen - half).square() + (pairs.rejected + half).square()


@PairLoss(
    reference=False,
    per_token=True,
    paper="Meng et al. 2024, arXiv 2405.14734",
    equation="6",
    purpose="no reference in memory or time; the likelihood per token is what is compared",
    differs="TRL's defaults are beta = 0.1 and gamma = 0.5; these are within the paper's",
)
def simpo_loss(pairs: Pairs, *, beta: Positive = 2.0, gamma: NonNegative = 1.0) -> Tensor:
    """-log sigmoid(beta (log pi(chosen) / its length - log pi(rejected) / its length) - gamma) (SimPO, Meng et al.
    2024, arXiv 2405.14734, eq. 6).

    Args:
        beta: scales the difference of log-probabilities per token.
        gamma: by how much that should be above 0.
    """
    return -F.logsigmoid(beta * (_per_token(pairs.chosen, pairs.chosen_tokens) - _rejected_per_token(pairs)) - gamma)


@PairLoss(
    reference=False,
    per_token=True,
    paper="Hong et al. 2024, arXiv 2403.07691",
    equation="6 and 7",
    purpose="preferences in place of a stage of supervised fine-tuning: the preferred answer is learned by heart, too",
    differs="TRL computes it in float32, and its log-likelihood is over prompt and answer, the mean of the batch's "
    "tokens",
)
def orpo_loss(pairs: Pairs, *, weight: NonNegative = 0.1) -> Tensor:
    """-log p(chosen) - weight log sigmoid(log odds(chosen) - log odds(rejected)), p = exp(log pi(answer) / its length),
    odds = p / (1 - p) (ORPO, Hong et al. 2024, arXiv 2403.07691, eqs. 6 and 7).

    Args:
        weight: lambda, of the odds ratio beside the log-likelihood.
    """
    chosen, rejected = _per_token(pairs.chosen, pairs.chosen_tokens), _rejected_per_token(pairs)
    log_odds = (chosen - rejected) - (_log_of_rest(chosen) - _log_of_rest(rejected))
    return -chosen - weight * F.logsigmoid(log_odds)


@PairLoss(
    reference=False,
    paper="Xu et al. 2024, arXiv 2401.08417",
    equation="3",
    purpose="DPO with a uniform reference: no second model, and the preferred answer's likelihood holds it in place",
    differs="the paper's log-likelihood is of whole answers, as here; TRL's is the mean of the batch's tokens",
)
def cpo_loss(pairs: Pairs, *, beta: Positive = 0.1, likelihood: NonNegative = 1.0) -> Tensor:
    """-log sigmoid(beta (log pi(chosen) - log pi(rejected))) - likelihood log pi(chosen) (CPO, Xu et al. 2024, arXiv
    2401.08417, eq. 3).

    Args:
        beta: scales the difference of log-probabilities.
        likelihood: weight of the preferred answer's log-likelihood.
    """
    return -F.logsigmoid(beta * (pairs.chosen - pairs.rejected)) - likelihood * pairs.chosen


def _per_token(logprobs: Tensor, tokens: Tensor) -> Tensor:
    return logprobs / tokens.clamp(min=1)


def _rejected_per_token(pairs: Pairs) -> Tensor:
    return _per_token(pairs.rejected, pairs.rejected_tokens)


def _log_of_rest(logprobs: Tensor) -> Tensor:
    """log(1 - p) of log p, with its digits where p is near 0 or 1; bounded where an answer is certain."""
    bounded = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return torch.where(bounded < -0.6931, torch.log1p(-bounded.exp()), torch.log(-torch.expm1(bounded)))
