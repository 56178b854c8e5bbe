"""The losses of reward models against closed forms, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.reward_models.losses import (
    bradley_terry_loss,
    centring_penalty,
    counterfactual_penalty,
    importance_weights,
    likert_loss,
    magnitude_penalty,
    plackett_luce_loss,
    ranking_pairs_loss,
    reweighted,
)
from rlhf_env.types import Episode, Float

Build = Callable[..., Any]
EXACT: dict[str, float] = {"rtol": 0, "atol": 1e-12}


def weighted_mean(terms: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (weight * terms).sum() / weight.sum()


def doubles(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def gradient(loss: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss.sum(), inputs)


class TestPairs:
    def test_equal_scores_cost_ln_2(self) -> None:  # N39
        scores = doubles(-3.0, 0.0, 800.0)
        for smoothing in (0.0, 0.2):
            losses = bradley_terry_loss(scores, scores, label_smoothing=smoothing)
            torch.testing.assert_close(losses, torch.full_like(losses, math.log(2)), **EXACT)
            torch.testing.assert_close(weighted_mean(losses, doubles(1.0, 5.0, 0.1)).item(), math.log(2), **EXACT)

    def test_value_and_gradient_in_closed_form(self) -> None:
        """d loss / d chosen = -w sigmoid(-(chosen - rejected - margin)) / sum w, and the opposite for rejected."""
        chosen, rejected, weight, margin = (
            doubles(0.3, -1.0, 2.0),
            doubles(0.1, 0.5, -2.0),
            doubles(1.0, 2.0, 0.5),
            0.25,
        )
        loss = weighted_mean(bradley_terry_loss(chosen, rejected, margin=margin), weight.detach())
        delta = (chosen - rejected).detach() - margin
        slope = weight.detach() * torch.sigmoid(-delta) / 3.5
        torch.testing.assert_close(loss, (weight * torch.log1p(torch.exp(-delta))).sum() / 3.5, **EXACT)
        to_chosen, to_rejected = gradient(loss, chosen, rejected)
        torch.testing.assert_close(to_chosen, -slope, **EXACT)
        torch.testing.assert_close(to_rejected, slope, **EXACT)

    def test_swapping_turns_the_gradient_and_reflects_the_loss(self) -> None:
        a, b = doubles(0.7, -2.0), doubles(0.2, 1.0)
        # log sigmoid(x) - log sigmoid(-x) = x
        torch.testing.assert_close(bradley_terry_loss(b, a) - bradley_terry_loss(a, b), a - b, **EXACT)
        same = doubles(1.0, 2.0), doubles(1.0, 2.0)
        to_chosen, to_rejected = gradient(bradley_terry_loss(*same), *same)
        assert to_chosen.tolist() == [-0.5, -0.5]
        assert to_rejected.tolist() == [0.5, 0.5]

    def test_label_smoothing_is_the_expected_loss_of_a_noisy_label(self) -> None:
        a, b, s = doubles(0.7, -2.0), doubles(0.2, 1.0), 0.3
        expected = (1 - s) * bradley_terry_loss(a, b) + s * bradley_terry_loss(b, a)
        torch.testing.assert_close(bradley_terry_loss(a, b, label_smoothing=s), expected, **EXACT)
        best = doubles(math.log((1 - s) / s))
        (slope,) = gradient(bradley_terry_loss(best, torch.zeros_like(best), label_smoothing=s), best)
        torch.testing.assert_close(slope, torch.zeros_like(slope), **EXACT)

    def test_far_apart_scores_stay_finite(self) -> None:
        low, high = doubles(-1e4), doubles(1e4)
        assert bradley_terry_loss(high, low) == 0.0
        assert bradley_terry_loss(low, high) == 2e4
        assert bradley_terry_loss(low, high, label_smoothing=0.25) == 1.5e4


class TestRankings:
    @pytest.mark.parametrize("responses", [2, 3, 4])
    def test_plackett_luce_is_a_distribution_over_orders(self, responses: int) -> None:
        scores = doubles(0.4, -1.3, 2.0, 0.1)[:responses]
        orders = torch.stack([scores[list(order)] for order in permutations(range(responses))])
        torch.testing.assert_close(torch.exp(-plackett_luce_loss(orders)).sum().item(), 1.0, **EXACT)

    def test_plackett_luce_by_hand(self) -> None:
        """Scores log 5, log 3, log 2: P = 5/10 * 3/5."""
        scores = doubles([math.log(5), math.log(3), math.log(2)])
        torch.testing.assert_close(plackett_luce_loss(scores).item(), -math.log(5 / 10 * 3 / 5), **EXACT)
        equal = plackett_luce_loss(torch.full((1, 5), 7.0, dtype=torch.float64))
        torch.testing.assert_close(equal.item(), math.log(math.factorial(5)), **EXACT)

    def test_pairs_by_hand(self) -> None:
        scores = doubles([0.4, -1.3, 2.0, 0.1], [1.0, 1.0, 1.0, 1.0])
        for settings in ({}, {"margin": 0.5}, {"label_smoothing": 0.1}):
            each = [bradley_terry_loss(scores[:, i], scores[:, j], **settings) for i, j in combinations(range(4), 2)]
            torch.testing.assert_close(ranking_pairs_loss(scores, **settings), sum(each) / 6, **EXACT)  # type: ignore[arg-type]
        torch.testing.assert_close(ranking_pairs_loss(scores)[1].item(), math.log(2), **EXACT)

    def test_of_two_both_are_bradley_terry(self) -> None:
        a, b = doubles(0.7, -2.0), doubles(0.2, 1.0)
        for loss in (plackett_luce_loss, ranking_pairs_loss):
            torch.testing.assert_close(loss(torch.stack([a, b], dim=1)), bradley_terry_loss(a, b), **EXACT)

    def test_far_apart_scores_stay_finite(self) -> None:
        upright, reversed_ = doubles([1e4, 0.0, -1e4]), doubles([-1e4, 0.0, 1e4])
        assert plackett_luce_loss(upright) == 0.0
        assert plackett_luce_loss(reversed_) == 3e4
        torch.testing.assert_close(ranking_pairs_loss(reversed_).item(), 4e4 / 3, rtol=0, atol=1e-9)
        for loss in (plackett_luce_loss, ranking_pairs_loss):
            assert gradient(loss(reversed_), reversed_)[0].isfinite().all()


class TestRatings:
    THRESHOLDS = (-1.5, -0.2, 0.3, 2.0)

    def test_the_classes_are_a_distribution(self) -> None:
        for score in (-3.0, 0.0, 0.25, 4.0):
            losses = likert_loss(doubles(*[score] * 5), torch.arange(5), doubles(*self.THRESHOLDS))
            cumulative = torch.exp(-losses).cumsum(0)
            expected = torch.sigmoid(doubles(*self.THRESHOLDS) - score)
            torch.testing.assert_close(cumulative[:4], expected, **EXACT)
            torch.testing.assert_close(cumulative[4].item(), 1.0, **EXACT)

    def test_gradients_are_finite_and_right_at_the_edges(self) -> None:
        scores, thresholds = doubles(-0.5, 0.4, 1.0), doubles(*self.THRESHOLDS)
        assert torch.autograd.gradcheck(
            lambda s, t: likert_loss(s, torch.tensor([0, 2, 4]), t), (scores, thresholds), atol=1e-7
        )

    def test_two_classes_are_a_logistic_regression(self) -> None:
        scores, zero = doubles(0.7, -1.2), doubles(0.0)
        expected = torch.stack([torch.log1p(torch.exp(scores[0])), torch.log1p(torch.exp(-scores[1]))])
        torch.testing.assert_close(likert_loss(scores, torch.tensor([0, 1]), zero), expected, **EXACT)

    def test_far_off_scores_stay_finite(self) -> None:
        for score in (-1e4, 1e4):
            scores, thresholds = doubles(*[score] * 5), doubles(*self.THRESHOLDS)
            losses = likert_loss(scores, torch.arange(5), thresholds)
            assert losses.isfinite().all()
            assert losses.min() == 0.0
            assert all(it.isfinite().all() for it in gradient(losses, scores, thresholds))


def test_penalties_by_hand() -> None:
    a, b = doubles(1.0, -2.0), doubles(0.5, 2.0)
    assert centring_penalty(a, b).tolist() == [2.25, 0.0]
    assert magnitude_penalty(a).tolist() == [1.0, 4.0]
    assert counterfactual_penalty(a, b).tolist() == [0.25, 16.0]
    # Centring has no say in the difference of a pair
    to_a, to_b = gradient(centring_penalty(a, b), a, b)
    assert (to_a == to_b).all()


class TestImportanceWeights:
    def test_nothing_to_reweight(self) -> None:
        weights = importance_weights(np.full(7, 123.4))
        np.testing.assert_allclose(weights.values, 1.0, **EXACT)
        assert abs(weights.effective_sample_size - 7) < 1e-12
        assert weights.capped == 0

    def test_by_hand(self) -> None:
        """Ratios 1, 1, 4: weights 1/2, 1/2, 2; effective 9 / 4.5 = 2; at a cap of 1.5 that is 6.25 / 2.75."""
        log_ratio = np.log([1.0, 1.0, 4.0])
        free, cut = importance_weights(log_ratio), importance_weights(log_ratio, cap=1.5)
        np.testing.assert_allclose(free.values, [0.5, 0.5, 2.0], **EXACT)
        assert abs(free.effective_sample_size - 2.0) < 1e-12
        np.testing.assert_allclose(cut.values, [0.5, 0.5, 1.5], **EXACT)
        assert abs(cut.effective_sample_size - 6.25 / 2.75) < 1e-12
        assert (free.capped, cut.capped) == (0, 1)

    def test_the_weighted_mean_is_that_of_the_wanted_distribution(self) -> None:
        rng = np.random.default_rng(0)
        drawn, wanted, value = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5]), np.array([1.0, -2.0, 4.0])
        rows = rng.choice(3, size=20_000, p=drawn)
        weights = importance_weights(np.log(wanted / drawn)[rows])
        found = np.average(value[rows], weights=weights.values)
        assert abs(found - wanted @ value) < 0.1  # the plain mean is off by 1.0
        assert weights.effective_sample_size == pytest.approx(20_000 / (wanted**2 / drawn).sum(), rel=0.02)

    def test_far_off_policy_stays_finite(self) -> None:
        weights = importance_weights(np.array([-1e4, 0.0, 1e4]))
        assert weights.values.tolist() == [0.0, 0.0, 3.0]
        assert weights.effective_sample_size == 1.0

    def test_what_makes_no_sense_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="cap"):
            importance_weights(np.zeros(3), cap=0.5)
        for bad in (np.zeros(0), np.array([np.nan]), np.zeros((2, 2))):
            with pytest.raises(DataError, match="finite log-ratio"):
                importance_weights(bad)

    def test_preferences_are_reweighted_by_both_responses(self, episode: Build, preference: Build) -> None:
        class Says:
            """A policy under which a token's log-probability is -(its id) * `rate`."""

            def __init__(self, rate: float) -> None:
                self.rate = rate

            def response_logprobs(self, episodes: list[Episode]) -> list[Float]:
                return [-self.rate * it.response_ids.astype(float) for it in episodes]

        pairs = [preference(episode([1, 2]), episode([3]), weight=2.0), preference(episode([1]), episode([2]))]
        kept, weights = reweighted(pairs, Says(1.0), Says(0.5))
        ratio = np.exp([-0.5 * 6, -0.5 * 3])
        np.testing.assert_allclose(weights.values, 2 * ratio / ratio.sum(), **EXACT)
        np.testing.assert_allclose([it.weight for it in kept], weights.values * [2.0, 1.0], **EXACT)
        assert [it.chosen for it in kept] == [it.chosen for it in pairs]
        (only,), _ = reweighted(pairs, Says(1e6), Says(0.0))
        assert only.chosen == pairs[1].chosen
