"""Statistics of comparison: hand-computed values, and coverage and false claims by simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from rlhf_env.errors import DataError
from rlhf_env.lab.statistics import (
    compare,
    estimate,
    holm,
    interquartile_mean,
    mean,
    mean_of_seeds,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    sign_flip_p,
    student_t,
    widened_percentiles,
)


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- by hand


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert interquartile_mean(np.array([[100.0, 2.0], [3.0, -50.0], [4.0, 5.0], [6.0, 1.0]])) == (2 + 3 + 4 + 5) / 4
    assert interquartile_mean(np.arange(10.0)) == 4.5  # floor(2.5) at each end: 2..7


def test_optimality_gap_knows_no_credit() -> None:
    assert optimality_gap(np.array([0.5, 0.9, 7.0])) == pytest.approx((0.5 + 0.1 + 0.0) / 3, abs=1e-15)
    assert optimality_gap(np.array([1.0, 3.0]), target=2.0) == 0.5


def test_performance_profile_is_the_share_above() -> None:
    scores = np.array([[0.0, 1.0], [0.5, 1.0]])
    np.testing.assert_array_equal(performance_profile(scores, np.array([-1.0, 0.0, 0.5, 1.0])), [1.0, 0.75, 0.5, 0.0])


def test_probability_of_improvement_compares_all_pairs_within_a_task() -> None:
    a, b = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 0.0]])
    assert probability_of_improvement(a, b) == (3 / 4 + 1 / 2) / 2  # task 1: 1>0, 3>2, 3>0; task 2: all ties
    assert probability_of_improvement(b, a) == 1 - probability_of_improvement(a, b)


@pytest.mark.parametrize(
    ("probability", "degrees", "quantile"),  # Student's table
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 4, 2.77645), (0.975, 9, 2.26216), (0.95, 29, 1.69913)],
)
def test_quantiles_of_students_t(probability: float, degrees: int, quantile: float) -> None:
    assert student_t(probability, degrees) == pytest.approx(quantile, rel=3e-6)
    assert student_t(1 - probability, degrees) == -student_t(probability, degrees)


def test_sign_flips_of_a_few_seeds_are_counted_exactly() -> None:
    assert sign_flip_p(np.array([1.0, 2.0, 3.0]), stream=stream()) == 2 / 8  # +++ and ---
    assert sign_flip_p(np.array([1.0, 2.0, -3.0]), stream=stream()) == 1.0  # a sum of 0 is beaten by all
    assert sign_flip_p(np.array([0.1, 0.1, 0.1, 0.1, 0.1]), stream=stream()) == 2 / 32  # whatever rounding says
    assert sign_flip_p(np.zeros(6), stream=stream()) == 1.0


def test_rounding_decides_nothing_about_sign_flips() -> None:
    """Tenths, whose sums are often equal and seldom to the last digit; the share is counted in whole tenths."""
    draws = stream(5)
    for seeds in (3, 5, 6):
        for tenths in draws.integers(-9, 10, size=(60, seeds)):
            sums = [abs(sum(signs * tenths)) for signs in product((1, -1), repeat=seeds)]
            exact = sum(it >= abs(tenths.sum()) for it in sums) / len(sums)
            assert sign_flip_p(tenths / 10, stream=stream()) == exact, tenths


def test_a_seed_keeps_its_sign_over_tasks() -> None:
    assert sign_flip_p(np.array([[1.0, -1.0], [2.0, 0.0], [1.0, 3.0]]), stream=stream()) == 2 / 4


def test_many_seeds_are_drawn() -> None:
    differences = stream(1).normal(0.4, 1.0, 30)
    normal = abs(differences.mean()) / np.sqrt((differences**2).mean() / 30)
    assert sign_flip_p(differences, stream=stream()) == pytest.approx(math.erfc(normal / math.sqrt(2)), abs=0.01)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # the last may not overtake the one before
    assert holm([0.6, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


# ---------------------------------------------------------------- intervals


def test_percentiles_are_widened_as_the_t_distribution_and_the_sample_variance_ask() -> None:
    """At 5 seeds the bootstrap's 2.5 % become Phi(-sqrt(5/4) * 2.77645) = 0.000955 (a table of t, one of Phi)."""
    low, high = widened_percentiles(list(np.linspace(0.0, 1.0, 100_001)), 5)
    assert low == pytest.approx(0.000955, abs=2e-6) and high == pytest.approx(1 - 0.000955, abs=2e-6)


def test_an_interval_of_equals_is_a_point_and_one_seed_has_none() -> None:
    found = estimate(mean, np.full((5, 2), 0.3), stream=stream())
    assert (found.low, found.high) == pytest.approx((0.3, 0.3))
    assert estimate(mean, np.array([[1.0, 2.0]]), stream=stream()).low is None


def test_seeds_are_redrawn_within_their_task() -> None:
    """Two tasks far apart: mixing them would widen the interval a hundredfold."""
    scores = np.stack([stream(1).normal(0.0, 0.1, 10), stream(2).normal(100.0, 0.1, 10)], axis=1)
    found = estimate(mean, scores, stream=stream())
    assert found.low is not None and found.high is not None and found.high - found.low < 0.3


def test_the_same_stream_gives_the_same_interval() -> None:
    scores = stream(3).normal(size=(10, 2))
    one, other = (estimate(interquartile_mean, scores, stream=stream(7)) for _ in range(2))
    assert one == other


def test_the_interval_of_a_few_seeds_by_hand() -> None:
    """1, 2, 6: mean 3, s^2 = 7, unbiased third moment 18 * 3 / (2 * 1) = 27, so a = 27 / (7^1.5 * sqrt(3)) = 0.8417."""
    found = mean_of_seeds(np.array([1.0, 2.0, 6.0]))
    error, t, a = math.sqrt(7 / 3), 4.302652729911275, 27 / (7**1.5 * math.sqrt(3))
    student = 3.0 - t * error
    assert found.value == 3.0
    assert found.low == pytest.approx(student, abs=1e-9), "Hall's lower end is nearer"
    assert found.high is not None
    g = (found.high - 3.0) / -error  # Hall's g at the t of the upper end is Student's lower quantile
    assert g + a * g**2 / 3 + a**2 * g**3 / 27 + a / 6 == pytest.approx(-t, abs=1e-6)
    mirrored = mean_of_seeds(-np.array([1.0, 2.0, 6.0]))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -student))
    symmetric = mean_of_seeds(np.array([1.0, 3.0, 5.0]))  # Student's alone: 3 -+ 4.30265 * 2 / sqrt(3)
    assert (symmetric.low, symmetric.high) == pytest.approx((3 - t * 2 / 3**0.5, 3 + t * 2 / 3**0.5))
    assert mean_of_seeds(np.array([[1.0, 9.0], [2.0, 8.0], [6.0, 4.0]])).low is None, "a seed's tasks are one number"
    rounded = 0.1 + np.arange(5.0) - np.arange(5.0) - 0.1 * np.array([1, 1 + 1e-16, 1, 1, 1]) + 7.3
    assert mean_of_seeds(rounded).low is None, "alike but for a rounding"


def test_seeds_of_two_values_are_counted_and_seeds_all_alike_say_nothing() -> None:
    one_in_ten = mean_of_seeds(np.array([0.0] * 9 + [1.0]))
    assert (one_in_ten.low, one_in_ten.high) == pytest.approx((0.0178761, 0.4041500), abs=1e-6)  # Wilson's for 1 in 10
    scaled = mean_of_seeds(np.array([-2.0] * 9 + [2.0]))
    assert scaled.low == pytest.approx(-2 + 4 * 0.0178761, abs=1e-5)
    differences = mean_of_seeds(np.array([0.0] * 9 + [1.0]), paired=True)  # of 0 and 1, one agent ahead once in ten
    assert differences.low is not None and differences.low < 0.0, "-1 may just not have been seen"
    alike = mean_of_seeds(np.full((5, 2), 0.3))
    assert alike.value == pytest.approx(0.3) and alike.low is None and alike.high is None
    scores = {"a": np.full(10, 1.0), "b": np.zeros(10)}
    assert compare(scores, "b", stream=stream())["a"].verdict == "better", "ten seeds, each 1 above"


SHAPES = {"normal": 0.93, "lognormal": 0.89, "exponential": 0.92, "pairs": 0.93}


@pytest.mark.parametrize(("shape", "seeds"), list(product(SHAPES, (3, 5, 10, 20))))
def test_intervals_of_a_few_skewed_seeds_cover_the_mean(shape: str, seeds: int) -> None:
    """2,000 samples each, standard error 0.6 points; Student's alone covers 0.84 of lognormal means at 10 seeds."""
    draws, repeats = stream(seeds), 2000
    if shape == "normal":
        samples, truth = draws.normal(0.0, 1.0, (repeats, seeds)), 0.0
    elif shape == "exponential":
        samples, truth = draws.exponential(1.0, (repeats, seeds)), 1.0
    else:
        samples, truth = draws.lognormal(0.0, 1.0, (repeats, seeds)), math.exp(0.5)
    if shape == "pairs":
        samples, truth = samples - draws.lognormal(0.0, 1.0, (repeats, seeds)), 0.0
    found = [mean_of_seeds(sample) for sample in samples]
    covered = np.mean([it.low is not None and it.high is not None and it.low <= truth <= it.high for it in found])
    assert covered >= SHAPES[shape] - (0.02 if seeds == 3 else 0.0)


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_intervals_cover_the_truth(shape: str) -> None:
    """Nominal 95 % covers at least 92 % at ten seeds; 300 simulations, standard error 1.3 points."""
    draws, covered, repeats = stream(11), 0, 300
    for _ in range(repeats):
        if shape == "normal":
            scores, truth = draws.normal(1.0, 2.0, (10, 3)), 1.0
        else:
            scores, truth = draws.gamma(4.0, 1.0, (10, 3)), 4.0
        found = estimate(mean, scores, stream=draws, resamples=250)
        assert found.low is not None and found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / repeats <= 0.985


def test_intervals_of_the_interquartile_mean_cover_it() -> None:
    draws, covered, repeats = stream(12), 0, 200
    for _ in range(repeats):
        found = estimate(interquartile_mean, draws.normal(0.0, 1.0, (10, 4)), stream=draws, resamples=200)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.0 <= found.high
    assert covered / repeats >= 0.92


# ---------------------------------------------------------------- words


def test_one_agent_under_two_names_is_inconclusive() -> None:
    """At most 7 % false claims in 200 repeats (the nominal 5 %, and one standard error)."""
    draws, claims = stream(13), 0
    for _ in range(200):
        scores = {name: draws.normal(size=(10, 2)) for name in ("ppo", "the same ppo")}
        claims += compare(scores, "ppo", stream=draws)["the same ppo"].verdict != "inconclusive"
    assert claims / 200 <= 0.07


def test_many_comparisons_do_not_add_up_to_a_false_claim() -> None:
    draws, claims = stream(14), 0
    for _ in range(100):
        scores = {str(name): draws.normal(size=(10, 1)) for name in range(6)}
        made = compare(scores, "0", stream=draws)
        claims += any(comparison.verdict != "inconclusive" for comparison in made.values())
    assert claims / 100 <= 0.10  # 5 % and two standard errors


def test_a_clear_difference_is_found_in_both_directions() -> None:
    draws = stream(15)
    common = draws.normal(size=(10, 2))  # shared seeds: what they have in common is no noise of the difference
    scores = {"dpo": common, "ppo": common + draws.normal(0.5, 0.2, (10, 2)), "random": common - 1.0}
    made = compare(scores, "dpo", stream=draws)
    assert (made["ppo"].verdict, made["random"].verdict) == ("better", "worse")
    assert made["ppo"].difference.low is not None and made["ppo"].difference.low > 0.2
    assert made["ppo"].p == 2 / 2**10 and made["ppo"].adjusted == 4 / 2**10


def test_few_seeds_carry_no_claim() -> None:
    scores = {"reference": np.zeros((4, 1)), "ppo": np.array([[1.0], [1.01], [1.02], [1.0]])}
    assert compare(scores, "reference", stream=stream())["ppo"].verdict == "inconclusive"


def test_bad_scores_are_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        mean(np.array([1.0, math.nan]))
    with pytest.raises(DataError, match="same tasks and seeds"):
        compare({"a": np.zeros((5, 1)), "b": np.zeros((6, 1))}, "a", stream=stream())
    with pytest.raises(DataError, match="no scores of 'c'"):
        compare({"a": np.zeros((5, 1))}, "c", stream=stream())
    with pytest.raises(DataError, match="row per seed"):
        mean(np.zeros((0, 2)))
