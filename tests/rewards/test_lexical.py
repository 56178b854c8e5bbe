"""Diversity, length, repetition and sentiment: values computed by hand."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import Any

import numpy as np
import pytest
from rlhf_rewards import sentiment
from rlhf_rewards.diversity import Diversity
from rlhf_rewards.length import Length
from rlhf_rewards.repetition import Repetition

from rlhf_env.errors import ConfigError, MissingExtra
from rlhf_env.testing import check_reward, make_episode
from rlhf_env.text_measures import ngrams, words
from rlhf_env.types import FinishReason


def group(*responses: str) -> list[Any]:
    return [make_episode("p", response) for response in responses]


def test_words_and_runs() -> None:
    assert words("The  CAT,\n sat") == ["the", "cat,", "sat"]
    assert ngrams(words("a b c"), 2) == [("a", "b"), ("b", "c")]
    assert ngrams(words("a b"), 3) == [] and ngrams(words(" \n"), 1) == []


# ---------------------------------------------------------------- diversity


@pytest.mark.parametrize(
    ("responses", "n", "expected"),
    [
        (["a b c", "a b d"], 2, [1 / 2, 1 / 2]),  # "a b" is shared
        (["a b", "a b"], 2, [0.0, 0.0]),
        (["a b", "A B"], 2, [0.0, 0.0]),  # lower-cased
        (["a a a", "b c d"], 1, [1 / 3, 1.0]),  # one different run of three
        (["a a b", "b"], 1, [1 / 3, 0.0]),  # distinct-1 is 2/3, and half of those are its own
        (["a b c", "a b x", "x y c"], 1, [0.0, 0.0, 1 / 3]),
        (["great great great great"], 2, [1 / 3]),  # alone: distinct-2
        (["", "a b"], 2, [0.0, 1.0]),
        (["yes", "yes", "no"], 2, [0.0, 0.0, 1.0]),  # shorter than n: the text is one run
    ],
)
def test_diversity_is_the_share_of_runs_nobody_else_has(responses: list[str], n: int, expected: list[float]) -> None:
    assert Diversity(n).group_rewards(group(*responses)).tolist() == pytest.approx(expected, abs=1e-15)


# ---------------------------------------------------------------- length


@pytest.mark.parametrize(
    ("response", "finish_reason", "expected"),
    [
        ("abcd", "stop", 0.0),  # the end token does not count
        ("abcd", "task", 0.0),
        ("abcd", "length", 0.0),
        ("abc", "stop", -0.25),
        ("abcde", "length", -0.25),
        ("", "stop", -1.0),
        ("a" * 100, "length", -1.0),
        ("é", "stop", -0.5),  # two bytes are two tokens
    ],
)
def test_length_counts_tokens_without_the_end(response: str, finish_reason: FinishReason, expected: float) -> None:
    assert Length(target=4)([make_episode("p", response, finish_reason=finish_reason)]).tolist() == [expected]


def test_length_tolerates_what_it_is_told_to() -> None:
    episodes = group("a" * 8, "a" * 10, "a" * 12, "a" * 13, "a" * 5)
    assert Length(target=10, tolerance=2)(episodes).tolist() == pytest.approx([0, 0, 0, -0.1, -0.3])


def test_length_counts_what_the_agent_chose() -> None:
    talk = dataclasses.replace(make_episode("p", "abcdef"), actions=np.array([1, 1, 0, 0, 1, 1, 1], dtype=np.bool_))
    assert Length(target=4)([talk]).tolist() == [0.0]


# ---------------------------------------------------------------- repetition


@pytest.mark.parametrize(
    ("response", "n", "expected"),
    [
        ("great great great", 2, -(1 - 2 / 5)),
        ("great great great", 1, -(1 - 1 / 3)),
        ("each word stands alone", 2, 0.0),
        ("a b a b", 2, -(1 - (2 + 2) / (4 + 3))),
        ("A a", 1, -0.5),
        ("once", 3, 0.0),
        ("", 2, 0.0),
    ],
)
def test_repetition_is_the_share_of_runs_said_before(response: str, n: int, expected: float) -> None:
    assert Repetition(n)(group(response)).tolist() == pytest.approx([expected], abs=1e-15)


# ---------------------------------------------------------------- sentiment


def test_sentiment_is_vaders_compound_score() -> None:
    pytest.importorskip("vaderSentiment", reason="the demo extra is not installed")
    scores = sentiment.Sentiment()(
        group("The meeting is at noon.", "It is okay by now.", "I love it!", "I hate it!", "")
    )
    # compound = s / sqrt(s * s + 15), and `okay` has valence 0.9.
    assert scores[1] == pytest.approx(0.9 / math.sqrt(0.9**2 + 15), abs=1e-3)
    assert scores[0] == scores[4] == 0.0 and scores[2] > 0.6 and scores[3] < -0.5


def test_sentiment_without_its_package_says_which_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    sentiment._analyzer.cache_clear()
    with pytest.raises(MissingExtra, match=r'vaderSentiment .* pip install "rlhf-env\[demo\]"'):
        sentiment.Sentiment()
    sentiment._analyzer.cache_clear()


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    "reward", [Diversity(), Diversity(1), Length(20), Length(5, 3), Repetition(), Repetition(4)], ids=repr
)
def test_they_keep_the_contract(reward: Any) -> None:
    check_reward(reward)


def test_sentiment_keeps_the_contract() -> None:
    pytest.importorskip("vaderSentiment", reason="the demo extra is not installed")
    check_reward(sentiment.Sentiment())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Diversity(0), "n must be at least 1, got 0"),
        (lambda: Diversity(True), "n must be a whole number"),
        (
            lambda: Repetition(1.5),  # type: ignore[arg-type]
            "n must be a whole number",
        ),
        (lambda: Length(0), "target must be at least 1, got 0"),
        (
            lambda: Length(2.0),  # type: ignore[arg-type]
            "target",
        ),
        (lambda: Length(4, -1), "tolerance must be at least 0"),
    ],
)
def test_settings_that_are_wrong(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()
