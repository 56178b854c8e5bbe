"""Simulated annotators are as right as their settings say."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rlhf_env.errors import ConfigError, RunFailed, UnknownName
from rlhf_env.feedback.asking.annotators import SimulatedAnnotator, annotator_panel, expected_agreement, load_annotator
from rlhf_env.feedback.asking.pairs import collect_pairs
from rlhf_env.feedback.judgements import Author
from rlhf_env.types import Episode, Float

Build = Callable[..., Episode]


def first_id(episodes: Sequence[Episode], /) -> Float:
    """A gold reward: a hundredth of the first token id."""
    return np.array([episode.response_ids[0] / 100 for episode in episodes])


def many_pairs(episode: Build, count: int) -> list[tuple[Episode, Episode]]:
    rng = np.random.default_rng(5)
    one = [episode([i]) for i in range(250)]  # equal ones are the same: most of the time goes into making them
    return [(one[a], one[b]) for a, b in rng.integers(0, 250, size=(count, 2)).tolist()]


@pytest.mark.parametrize(("temperature", "flip_rate"), [(0.5, 0.0), (0.2, 0.25), (1.0, 0.1), (0.0, 0.1), (0.3, 0.5)])
def test_agreement_with_gold_is_what_the_settings_say(episode: Build, temperature: float, flip_rate: float) -> None:
    annotator = SimulatedAnnotator(gold=first_id, temperature=temperature, flip_rate=flip_rate)
    pairs = [(a, b) for a, b in many_pairs(episode, 8000) if a.response_ids[0] != b.response_ids[0]]
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
    with pytest.raises(ConfigError, match=r"temperature must be at least 0, got -1; flip_rate must be in \[0, 0"):
        SimulatedAnnotator(gold=first_id, temperature=-1, flip_rate=0.7)


# ---------------------------------------------------------------- biases, rankings, ratings, several people

ERRORS = 4.0
"""Standard errors that a share may be off: by chance alone once in 16,000 shares (normal, two-sided)."""


def assert_share(found: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    """Each of `found` (bool[P]) is True with its own probability: the mean is where it should be."""
    p = np.broadcast_to(np.asarray(expected, dtype=np.float64), np.shape(found))
    error = math.sqrt(float(np.sum(p * (1 - p)))) / p.size
    assert abs(float(np.mean(found)) - float(p.mean())) < ERRORS * error


def wordy(episode: Build, first: int, words: int) -> Episode:
    return episode([first, *[1] * (words - 1)])


def wordy_pairs(episode: Build, count: int) -> tuple[list[tuple[Episode, Episode]], Float, Float]:
    """(pairs, gold differences, differences in words)."""
    rng = np.random.default_rng(6)
    gold, words = rng.integers(0, 250, size=(count, 2)), rng.integers(1, 6, size=(count, 2))
    made = functools.cache(functools.partial(wordy, episode))
    pairs = [(made(a, n), made(b, m)) for (a, b), (n, m) in zip(gold.tolist(), words.tolist(), strict=True)]
    return pairs, (gold[:, 0] - gold[:, 1]) / 100, (words[:, 0] - words[:, 1]).astype(np.float64)


def test_biases_are_as_large_as_set(episode: Build) -> None:
    pairs, gold, words = wordy_pairs(episode, 10_000)
    annotator = SimulatedAnnotator(gold=first_id, temperature=0.4, flip_rate=0.1, length_bias=0.3, position_bias=0.5)
    first = np.array([verdict == "first" for verdict in annotator.compare(pairs, np.random.default_rng(0))])
    p = 0.1 + 0.8 / (1 + np.exp(-(gold + 0.3 * words + 0.5) / 0.4))
    assert_share(first, p)
    for part in (words > 2, words < -2, np.abs(gold) < 0.2):
        assert_share(first[part], p[part])
    shuffled = [pair if coin else pair[::-1] for pair, coin in zip(pairs, np.arange(len(pairs)) % 2, strict=True)]
    swapped = np.arange(len(pairs)) % 2 == 0
    verdicts = np.array([verdict == "first" for verdict in annotator.compare(shuffled, np.random.default_rng(1))])
    right = np.where(swapped, ~verdicts, verdicts) == (gold > 0)
    clear = gold != 0
    accuracy = annotator.expected_accuracy(gold[clear], words[clear])
    assert abs(right[clear].mean() - accuracy) < ERRORS * 0.5 / math.sqrt(clear.sum())
    assert accuracy < SimulatedAnnotator(gold=first_id, temperature=0.4, flip_rate=0.1).expected_accuracy(gold[clear])


def test_rankings_place_one_above_another_as_often_as_comparisons_prefer_it(episode: Build) -> None:
    annotator = SimulatedAnnotator(gold=first_id, temperature=0.5, flip_rate=0.1, position_bias=0.4)
    group = [episode([i]) for i in (100, 20, 130)]
    ranks = np.array(annotator.rank([group] * 6000, np.random.default_rng(0)))
    assert set(map(tuple, np.sort(ranks, axis=1).tolist())) == {(1, 2, 3)}
    # Shown first, 1.0 is worth 1.4; 0.2 and 1.3 were not.
    for (i, j), difference in {(0, 1): 1.2, (0, 2): 0.1, (1, 2): -1.1}.items():
        p = 0.1 + 0.8 / (1 + math.exp(-difference / 0.5))
        assert_share(ranks[:, i] < ranks[:, j], p)
    sure = SimulatedAnnotator(gold=first_id, temperature=0.0)
    assert set(sure.rank([group] * 20, np.random.default_rng(0))) == {(2, 3, 1)}
    assert set(sure.rank([[group[0], episode([100])]] * 50, np.random.default_rng(0))) == {(1, 2), (2, 1)}


def test_ratings_follow_the_ordered_logit(episode: Build) -> None:
    annotator = SimulatedAnnotator(gold=first_id, temperature=0.4, thresholds=(0.5, 1.0, 1.5, 2.0))
    scores = np.array(annotator.rate([episode([120])] * 6000, np.random.default_rng(0)))
    for score, threshold in enumerate((0.5, 1.0, 1.5, 2.0), start=1):
        assert_share(scores > score, 1 / (1 + math.exp(-(1.2 - threshold) / 0.4)))
    turned = SimulatedAnnotator(gold=first_id, temperature=0.0, flip_rate=0.3, thresholds=(0.1, 0.2, 0.3, 0.4))
    flipped = np.array(turned.rate([episode([120])] * 6000, np.random.default_rng(0)))
    assert set(flipped.tolist()) == {1, 5}
    assert_share(flipped == 1, 0.3)


def test_people_agree_with_each_other_as_their_settings_say(episode: Build) -> None:
    pairs, gold, words = wordy_pairs(episode, 4000)
    typical = SimulatedAnnotator(gold=first_id, temperature=0.4, flip_rate=0.05, name="person")
    people = annotator_panel(
        typical, 4, np.random.default_rng(0), temperature_spread=0.5, length_spread=0.4, position_spread=0.3
    )
    assert [it.name for it in people] == ["person 1", "person 2", "person 3", "person 4"]
    assert len({(it.temperature, it.length_bias, it.position_bias) for it in people}) == 4

    def asked(person: SimulatedAnnotator, seed: int) -> npt.NDArray[np.bool_]:
        """Who prefers the pair's first response; a coin decides which is shown first."""
        rng = np.random.default_rng(seed)
        turned = rng.random(len(pairs)) < 0.5
        shown = [pair[::-1] if turn else pair for pair, turn in zip(pairs, turned, strict=True)]
        return np.array([verdict == "first" for verdict in person.compare(shown, rng)]) != turned

    votes = [asked(person, seed) for seed, person in enumerate(people)]
    again = [asked(person, seed + 10) for seed, person in enumerate(people)]
    for i, one in enumerate(people):
        assert_agreement(votes[i], again[i], expected_agreement(one, one, gold, words))
        for j in range(i):
            assert_agreement(votes[i], votes[j], expected_agreement(one, people[j], gold, words))
    alike = annotator_panel(typical, 2, np.random.default_rng(0))
    assert expected_agreement(*alike, gold) > expected_agreement(*people[:2], gold, words)


def test_a_panel_is_as_varied_as_asked() -> None:
    """Standard deviations of 2000 people: within 4 standard errors of the spread, or wrong once in 16,000."""
    typical = SimulatedAnnotator(gold=first_id, temperature=0.4, length_bias=0.2, position_bias=-0.1)
    people = annotator_panel(
        typical, 2000, np.random.default_rng(0), temperature_spread=0.5, length_spread=0.3, position_spread=0.1
    )
    for found, middle, spread in (
        ([math.log(it.temperature) for it in people], math.log(0.4), 0.5),
        ([it.length_bias for it in people], 0.2, 0.3),
        ([it.position_bias for it in people], -0.1, 0.1),
    ):
        assert abs(np.std(found) - spread) < ERRORS * spread / math.sqrt(2 * 2000)
        assert abs(np.mean(found) - middle) < ERRORS * spread / math.sqrt(2000)
    with pytest.raises(ConfigError, match="size of at least 1"):
        annotator_panel(typical, 0, np.random.default_rng(0))


def assert_agreement(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_], expected: float) -> None:
    """10 shares are tested here: by chance alone this fails once in 1,600 seeds."""
    assert abs(float(np.mean(one == other)) - expected) < ERRORS * math.sqrt(expected * (1 - expected) / len(one))


def test_annotators_are_plugins() -> None:
    annotator = load_annotator({"name": "simulated", "temperature": 0.3}, first_id)
    assert annotator == SimulatedAnnotator(gold=first_id, temperature=0.3)
    with pytest.raises(UnknownName, match="unknown annotator 'simulate': did you mean 'simulated'"):
        load_annotator({"name": "simulate"})
    with pytest.raises(ConfigError, match="annotator 'simulated': the setting 'gold' is required"):
        load_annotator({"name": "simulated"})
    with pytest.raises(ConfigError, match="annotator 'simulated': no setting 'temprature': did you mean 'temperature'"):
        load_annotator({"name": "simulated", "temprature": 1}, first_id)
    with pytest.raises(ConfigError, match="thresholds"):
        SimulatedAnnotator(gold=first_id, thresholds=(1.0, 0.0, 2.0, 3.0))


RAISES = """\
class Moody:
    name = "moody"

    def __init__(self, answers: int = -1):
        self.answers = answers

    def compare(self, pairs, rng):
        if self.answers < 0:
            raise KeyError("mood")
        return ["first"] * self.answers or None
"""


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (-1, r"compare\(\) raised KeyError: 'mood' \(.*moody\.py, line 9\): RLHF_ENV_TRACEBACK=1 shows"),
        (0, r"compare\(\) gave None: a list with one answer for each question is needed"),
        (2, r"compare\(\) gave 2 answers to 1 questions: one for each is needed"),
    ],
)
def test_one_that_raises_or_answers_wrongly_is_named(episode: Build, tmp_path: Path, answers: int, says: str) -> None:
    (tmp_path / "moody.py").write_text(RAISES)
    by = Author("policy", "me")
    annotator = load_annotator({"function": f"{tmp_path}/moody.py:Moody", "answers": answers})
    with pytest.raises(RunFailed, match=f"^the annotator 'moody': {says}"):
        collect_pairs([(episode([1]), by), (episode([2]), by)], annotator, np.random.default_rng(0))
