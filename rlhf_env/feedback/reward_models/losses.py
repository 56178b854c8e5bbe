"""The losses that reward models are fitted with, as pure functions of scores: one number for each judgement.

Everything works in the dtype it is given, float64 included, and stays finite for scores at +-1e4. Axis letters: **P**
preference pairs, **N** rankings of **K** responses, **B** rated responses, **C** classes of a rating. Leading axes (the
members of an ensemble) are carried along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.judgements import Preference
from rlhf_env.learning.functional import pair_loss
from rlhf_env.types import Float, TokenScorer

# ---------------------------------------------------------------- pairs and rankings


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0, label_smoothing: float = 0.0
) -> Tensor:
    """[P]: -log sigmoid(chosen - rejected - margin), from scores [P]; Stiennon et al. 2020 (2009.01325), equation 1.

    ln 2 at equal scores. A `margin` asks for that much more than being right (Llama 2, 2307.09288, equation 2). With
    s = `label_smoothing`, the share of labels taken to be wrong, it is -(1 - s) log sigmoid(d) - s log sigmoid(-d):
    lowest at d = log((1 - s) / s), not at infinity.
    """
    return pair_loss(chosen - margin, rejected, beta=1.0, label_smoothing=label_smoothing)


def ranking_pairs_loss(scores: Tensor, *, margin: Tensor | float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    """[N]: the mean of the Bradley-Terry loss over the C(K, 2) pairs of each ranking; scores [N, K], best first.

    Ouyang et al. 2022 (2203.02155), equation 1: the pairs of one ranking are not independent, so each weighs
    1 / C(K, 2), and they are in one batch.
    """
    better, worse = (list(side) for side in zip(*combinations(range(scores.shape[-1]), 2), strict=True))
    pairs = bradley_terry_loss(scores[..., better], scores[..., worse], margin=margin, label_smoothing=label_smoothing)
    return pairs.mean(dim=-1)


def plackett_luce_loss(scores: Tensor) -> Tensor:
    """[N]: -log P(ranking) = sum over k < K of log(sum over j >= k of exp(s_j)) - s_k; scores [N, K], best first.

    The best is picked from all, the next from what is left, and so on (Plackett 1975; Rafailov et al. 2023, 2305.18290,
    equation 18). log K! at equal scores; of two responses it is the Bradley-Terry loss.
    """
    left = scores.flip(-1).logcumsumexp(dim=-1).flip(-1)
    return (left - scores)[..., :-1].sum(dim=-1)


# ---------------------------------------------------------------- ratings


def likert_loss(scores: Tensor, ratings: Tensor, thresholds: Tensor) -> Tensor:
    """[B]: -log P(rating), the cross-entropy over the C classes of a Likert rating.

    `scores` [B], `ratings` int64[B] from 0, increasing `thresholds` [C - 1] of the proportional odds model (McCullagh
    1980, "Regression Models for Ordinal Data"): P(rating <= c) = sigmoid(thresholds[c] - score). One score is behind
    ratings and comparisons alike, in one unit, log-odds.
    """
    infinity = thresholds.new_full((1,), torch.inf)
    edges = torch.cat([-infinity, thresholds, infinity])
    low, high = edges[ratings], edges[ratings + 1]
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), which neither cancels nor underflows
    inside = torch.log(-torch.expm1(low - high))
    return -(F.logsigmoid(high - scores) + F.logsigmoid(scores - low) + inside)


# ---------------------------------------------------------------- penalties


def centring_penalty(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[P]: (chosen + rejected)^2. Eisenstein et al. 2023 (2312.09244), equation 2.

    Preferences say nothing about the mean of the scores; this draws it to 0 and leaves differences alone.
    """
    return (chosen + rejected).square()


def magnitude_penalty(scores: Tensor) -> Tensor:
    """Of the shape of `scores`: score^2. Unlike centring it also draws *differences* to 0, so it tempers confidence."""
    return scores.square()


def counterfactual_penalty(scores: Tensor, swapped: Tensor) -> Tensor:
    """[P]: (score - score of the same text with a group's words swapped)^2.

    The counterfactual logit pairing of Garg et al. 2019 (1809.10610), with the square for the absolute value.
    """
    return (scores - swapped).square()


# ---------------------------------------------------------------- pairs sampled off-policy


@dataclass(frozen=True)
class ImportanceWeights:
    """`values` float64[P], mean at most 1; `effective_sample_size` of the P pairs; how many were `capped`."""

    values: Float
    effective_sample_size: float
    capped: int


def importance_weights(log_ratio: Float, *, cap: float = 10.0) -> ImportanceWeights:
    """Weights that make an average over pairs drawn by one policy an estimate of that over pairs of another.

    `log_ratio` float64[P] = log p_wanted(pair) - log p_drawn(pair). Self-normalised, w = P exp(l) / sum exp(l), then
    truncated, min(w, `cap`) (Ionides 2008), which trades a bias for a bounded variance. The effective sample size is
    (sum w)^2 / sum w^2 (Kish 1965): P when nothing is reweighted, near 1 when one pair speaks for all.
    """
    log_ratio = np.asarray(log_ratio, dtype=np.float64)
    if not cap >= 1:
        raise ConfigError(f"cap: {cap!r} is below 1, the mean of the weights: every pair would be cut")
    if log_ratio.ndim != 1 or not log_ratio.size or not np.isfinite(log_ratio).all():
        raise DataError("importance weights need one finite log-ratio for each pair, and at least one pair")
    raw = np.exp(log_ratio - log_ratio.max())
    weights = raw * (len(raw) / raw.sum())
    values = np.minimum(weights, cap)
    return ImportanceWeights(values, float(values.sum() ** 2 / np.square(values).sum()), int((weights > cap).sum()))


def reweighted(
    preferences: Sequence[Preference], wanted: TokenScorer, drawn: TokenScorer, *, cap: float = 10.0
) -> tuple[list[Preference], ImportanceWeights]:
    """The pairs as if their responses came from the policy `wanted`, not from `drawn`; and the weights, for the record.

    A pair's log-ratio is that of both its responses. Weights multiply those the preferences have; a pair of which the
    wanted policy would never write either response is left out. Raises DataError for responses without token ids.
    """
    episodes = [
        side.episode(preference.prompt)
        for preference in preferences
        for side in (preference.chosen, preference.rejected)
    ]
    by_wanted, by_drawn = (
        np.array([values.sum() for values in policy.response_logprobs(episodes)]) for policy in (wanted, drawn)
    )
    weights = importance_weights((by_wanted - by_drawn).reshape(-1, 2).sum(axis=1), cap=cap)
    kept = [
        replace(preference, weight=preference.weight * float(value))
        for preference, value in zip(preferences, weights.values, strict=True)
        if preference.weight * value > 0
    ]
    return kept, weights
