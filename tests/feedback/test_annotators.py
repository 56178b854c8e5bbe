"""Simulated annotators are as right as their settings say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.annotators import SimulatedAnnotator
from rlhf_env.types import Episode, Float

Build = Callable[..., Episode]


def first_id(episodes: Sequence[Episode], /) -> Float:
    """A gold reward: a hundredth of the first token id."""
    return np.array([episode.response_ids[0] / 100 for episode in episodes])


def many_pairs(episode: Build, count: int) -> list[tuple[Episode, Episode]]:
    rng = np.random.default_rng(5)
    return [(episode([a]), episode([b])) for a, b in rng.integers(0, 250, size=(count, 2)).tolist()]


@pytest.mark.parametrize(("temperature", "flip_rate"), [(0.5, 0.0), (0.2, 0.25), (1.0, 0.1), (0.0, 0.1), (0.3, 0.5)])
def test_agreement_with_gold_is_what_the_settings_say(episode: Build, temperature: float, flip_rate: float) -> None:
    annotator = SimulatedAnnotator(gold=first_id, temperature=temperature, flip_rate=flip_rate)
    pairs = [pair for pair in many_pairs(episode, 20_000) if first_id(pair[:1])[0] != first_id(pair[1:])[0]]
    difference = first_id([a for a, _ in pairs]) - first_id([b for _, b in pairs])
    verdicts = annotator.compare(pairs, np.random.default_rng(0))
    agrees = np.array(
        [(verdict == "first") == (delta > 0) for verdict, delta in zip(verdicts, difference, strict=True)]
    )
    expected = annotator.expected_accuracy(difference)
    p = annotator.preference_probability(np.abs(difference))
    standard_error = math.sqrt(np.sum(p * (1 - p))) / len(p)
    assert abs(agrees.mean() - expected) < 4 * standard_error
    # And not only on average: among close pairs and among clear ones.
    for part in (np.abs(difference) < 0.3, np.abs(difference) > 1.0):
        error = math.sqrt(np.sum(p[part] * (1 - p[part]))) / part.sum()
        assert abs(agrees[part].mean() - p[part].mean()) < 4 * error


def test_the_formula_by_hand() -> None:
    annotator = SimulatedAnnotator(gold=first_id, temperature=0.5, flip_rate=0.1)
    clean = 1 / (1 + math.exp(-1.0 / 0.5))
    np.testing.assert_allclose(annotator.preference_probability(1.0), 0.9 * clean + 0.1 * (1 - clean), rtol=1e-12)
    np.testing.assert_allclose(annotator.preference_probability([1.0, -1.0]).sum(), 1.0, rtol=1e-12)
    assert annotator.preference_probability(0.0) == 0.5
    np.testing.assert_allclose(annotator.preference_probability([-1e300, 1e300]), [0.1, 0.9])
    assert annotator.expected_accuracy([3e3, -3e3]) == 0.9
    assert annotator.expected_accuracy([1.0, -1.0]) == annotator.expected_accuracy([1.0])
    assert math.isnan(annotator.expected_accuracy([]))


def test_it_shows_no_preference_for_a_side(episode: Build) -> None:
    annotator = SimulatedAnnotator(gold=first_id)
    equal = [(episode([7]), episode([7]))] * 4000
    share = np.mean([verdict == "first" for verdict in annotator.compare(equal, np.random.default_rng(1))])
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_the_same_generator_gives_the_same_verdicts(episode: Build) -> None:
    annotator, pairs = SimulatedAnnotator(gold=first_id), many_pairs(episode, 50)
    one, two, other = (annotator.compare(pairs, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one == two != other
    assert annotator.compare([], np.random.default_rng(0)) == []


def test_gold_is_asked_once_about_each_response(episode: Build) -> None:
    asked: list[int] = []

    def gold(episodes: Sequence[Episode], /) -> Float:
        asked.append(len(episodes))
        return first_id(episodes)

    a, b, c = (episode([i]) for i in (10, 200, 120))
    verdicts = SimulatedAnnotator(gold=gold, temperature=0.0).compare(
        [(a, b), (b, a), (b, c), (a, b)], np.random.default_rng(0)
    )
    assert verdicts == ["second", "first", "first", "second"]
    assert asked == [3]


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match=r"temperature: -1.*flip_rate: 0\.7"):
        SimulatedAnnotator(gold=first_id, temperature=-1, flip_rate=0.7)
