"""From scores to odds: closed forms, and models whose calibration is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_env.errors import DataError
from rlhf_env.feedback.reward_models.calibration import (
    accuracy_with_interval,
    brier_score,
    calibration_error_by_chance,
    expected_calibration_error,
    log_odds,
    reliability,
    win_probability,
)
from rlhf_env.types import Float


def verdicts(log_odds_of_truth: Float, stated: Float, rng: np.random.Generator) -> Float:
    """score(chosen) - score(rejected) of a model that states `stated` for the first of two when the truth is other."""
    first_wins = rng.random(len(stated)) < win_probability(log_odds_of_truth)
    return np.where(first_wins, stated, -stated)


class TestOdds:
    def test_four_to_one(self) -> None:
        assert abs(win_probability(math.log(4)) - 0.8) < 1e-15
        assert abs(log_odds(0.8) - math.log(4)) < 1e-15
        assert win_probability(0.0) == 0.5

    def test_each_undoes_the_other(self) -> None:
        p = np.array([1e-300, 1e-10, 0.3, 0.5, 0.999])
        np.testing.assert_allclose(win_probability(log_odds(p)), p, rtol=1e-12)
        delta = np.array([-700.0, -3.0, 0.0, 5.0])
        np.testing.assert_allclose(log_odds(win_probability(delta)), delta, rtol=1e-12)

    def test_the_ends(self) -> None:
        assert log_odds([0.0, 1.0]).tolist() == [-math.inf, math.inf]
        assert win_probability([-1e4, 1e4]).tolist() == [0.0, 1.0]
        for bad in (-0.1, 1.1, math.nan):
            with pytest.raises(DataError, match="between 0 and 1"):
                log_odds(bad)


class TestReliability:
    def test_by_hand(self) -> None:
        """Two bins: four pairs stated 0.6, right in 2; four stated 0.8, right in 3; they come mixed."""
        delta = log_odds(np.array([0.6, 0.8] * 4)) * np.array([1, 1, 1, 1, -1, 1, -1, -1])
        low, high = reliability(delta, bins=2)
        assert (low.pairs, high.pairs) == (4, 4)
        np.testing.assert_allclose([low.stated, low.observed, high.stated, high.observed], [0.6, 0.5, 0.8, 0.75])
        assert abs(expected_calibration_error(delta, bins=2) - (0.1 + 0.05) / 2) < 1e-12
        expected = (2 * 0.4**2 + 2 * 0.6**2 + 3 * 0.2**2 + 0.8**2) / 8
        assert abs(brier_score(delta) - expected) < 1e-12

    def test_a_calibrated_models_point_eight_means_four_to_one(self) -> None:
        rng = np.random.default_rng(0)
        stated = np.full(20_000, log_odds(0.8))
        (point,) = reliability(verdicts(stated, stated, rng), bins=1)
        wins = point.observed * point.pairs
        assert 3.8 < wins / (point.pairs - wins) < 4.2
        assert point.low < 0.8 < point.high

    def test_an_overconfident_model_is_told_from_a_calibrated_one(self) -> None:
        rng = np.random.default_rng(1)
        truth = rng.normal(0, 1.5, size=4000)
        honest, loud = verdicts(truth, truth, rng), verdicts(truth, 3 * truth, rng)
        by_chance = calibration_error_by_chance(honest, rng)
        assert expected_calibration_error(honest) < 1.5 * by_chance < 0.03
        assert expected_calibration_error(loud) > 0.08
        assert brier_score(loud) > brier_score(honest) + 0.01
        for points, overstates in ((reliability(honest), 2), (reliability(loud), 8)):
            assert (sum(it.stated > it.high for it in points) >= overstates) == (overstates == 8)

    def test_few_pairs(self) -> None:
        assert [it.pairs for it in reliability([1.0, -1.0, 0.0])] == [1, 1, 1]
        assert reliability([0.0])[0].observed == 0.5
        with pytest.raises(DataError, match="one or more pairs"):
            reliability([])


class TestAccuracy:
    def test_wilson_by_hand(self) -> None:
        """8 of 10: the textbook interval is (0.490, 0.943)."""
        scores = np.array([1.0] * 8 + [-1.0] * 2)
        accuracy = accuracy_with_interval(scores, np.zeros(10))
        assert accuracy.value == 0.8
        np.testing.assert_allclose([accuracy.low, accuracy.high], [0.4901625, 0.9433178], atol=1e-6)

    def test_edges(self) -> None:
        assert accuracy_with_interval(np.zeros(4), np.zeros(4)).value == 0.5
        sure = accuracy_with_interval(np.ones(5), np.zeros(5))
        assert sure.high == 1.0
        assert 0.5 < sure.low < 0.6
        with pytest.raises(DataError, match="got 0 and 0"):
            accuracy_with_interval(np.zeros(0), np.zeros(0))

    def test_the_interval_covers_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)
        inside = 0
        for _ in range(1000):
            accuracy = accuracy_with_interval((rng.random(200) < 0.75).astype(float), np.full(200, 0.5))
            inside += accuracy.low <= 0.75 <= accuracy.high
        assert abs(inside / 1000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 1000)
