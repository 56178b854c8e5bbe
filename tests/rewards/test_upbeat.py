"""The gold reward of the demo: each term by a value computed by hand, with a judge that says what the test tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("vaderSentiment", reason="the demo extra is not installed")

from rlhf_rewards.upbeat import Upbeat

from rlhf_env.errors import DataError
from rlhf_env.types import Episode, FinishReason, Float, Prompt

TYPICAL = -4.0


@dataclass(frozen=True)
class Says:
    """A judge of fluency: the mean log-probability it is told, `TYPICAL` for any other reply."""

    told: Mapping[str, float]

    def __call__(self, prompts: Sequence[str], replies: Sequence[str], /) -> Float:
        return np.array([self.told.get(reply, TYPICAL) for reply in replies])


def episode(reply: str, prompt: str = "The bus was late.<|turn|>", finish_reason: FinishReason = "stop") -> Episode:
    ids = np.arange(3, dtype=np.int64)
    return Episode(Prompt("p", prompt), ids, reply, ids, finish_reason, np.ones(3, dtype=np.bool_))


def gold(*episodes: Episode, told: Mapping[str, float] | None = None) -> list[float]:
    return [float(score) for score in Upbeat(judge=Says(told or {}), typical=TYPICAL)(episodes)]


def part(name: str, reply: str, told: Mapping[str, float] | None = None, **of_episode: str) -> float:
    parts = Upbeat(judge=Says(told or {}), typical=TYPICAL).parts([episode(reply, **of_episode)])  # type: ignore[arg-type]
    return float(parts[name][0])


def test_a_neutral_reply_by_a_person_scores_zero() -> None:
    assert gold(episode("My street is near the station.")) == [0.0]


def test_sentiment_is_cut_on_both_sides() -> None:
    # VADER: compound = s / sqrt(s * s + 15), and `okay` has valence s = 0.9.
    assert part("sentiment", "It is okay by now.") == pytest.approx(2 * 0.9 / np.sqrt(0.9**2 + 15), abs=1e-3)
    assert part("sentiment", "I love it so much, it is wonderful!") == pytest.approx(1.2)
    assert part("sentiment", "I hate it, it is terrible and awful.") == pytest.approx(-1.2)


@pytest.mark.parametrize(
    ("prompt", "reply", "expected"),
    [
        ("Was the bus late?<|turn|>", "It came on time today.", 0.5),
        ("The bus was late.<|turn|>", "Did you walk home then?", 0.5),
        ("Was the bus late?<|turn|>", "Did you walk home then?", 0.0),
        ("The bus was late.<|turn|>", "It came on time today.", 0.0),
    ],
)
def test_turn_is_paid_when_exactly_one_side_asks(prompt: str, reply: str, expected: float) -> None:
    assert part("turn", reply, prompt=prompt) == expected


@pytest.mark.parametrize(("mu", "expected"), [(-4.0, 0.0), (-3.5, 0.0), (-4.5, 0.0), (-2.5, -1.5), (-6.5, -3.0)])
def test_fluency_is_penalised_on_both_sides_outside_a_band(mu: float, expected: float) -> None:
    assert part("fluency", "some reply", told={"some reply": mu}) == pytest.approx(expected)


def test_repetition_counts_words_and_pairs_beyond_a_tenth() -> None:
    # five words of one kind and four pairs of one kind: 2 distinct of 9, so 7/9 repeated.
    assert part("repetition", "great great great great great") == pytest.approx(-4 * (7 / 9 - 0.1))
    assert part("repetition", "each word here stands alone") == 0.0


def test_copying_is_the_share_of_triples_found_in_the_prompt() -> None:
    assert part("copying", "the bus was late") == -2.0
    # "the bus was", "bus was late" of five triples.
    assert part("copying", "The bus was late for you too") == pytest.approx(-2 * 2 / 5)
    assert part("copying", "late") == -2.0, "a reply shorter than three words is compared whole"
    assert part("copying", "early") == 0.0


def test_fewer_than_four_words_cost_half_a_point_each() -> None:
    assert [part("short", reply) for reply in ("", "one", "one two three", "one two three four")] == [-2, -1.5, -0.5, 0]


@pytest.mark.parametrize(("finish_reason", "expected"), [("stop", 0), ("task", 0), ("length", -1), ("truncated", -1)])
def test_a_reply_that_never_ended_costs_a_point(finish_reason: FinishReason, expected: float) -> None:
    assert part("unfinished", "My street is near the station.", finish_reason=finish_reason) == expected


def test_shouting_silence_and_copying_lose_to_a_plain_answer() -> None:
    shouting, silence = "great great great great great", ""
    told = {shouting: -4.0, silence: 0.0}  # kind to shouting: its fluency alone is not what brings it down
    plain, shout, silent, copied = gold(
        episode("My street is near the station."),
        episode(shouting),
        episode(silence),
        episode("The bus was late."),
        told=told,
    )
    assert max(shout, silent, copied) < plain


def test_batch_mates_change_nothing() -> None:
    episodes = [episode("I like it here."), episode(""), episode("Do you walk?", finish_reason="length")]
    assert gold(*episodes) == [gold(one)[0] for one in episodes]
    assert gold() == []


def test_special_tokens_are_not_words() -> None:
    assert part("copying", "<|turn|> the bus was late", prompt="The bus was late.<|turn|>") == -2.0
    assert part("short", "<|turn|>") == -2.0


def test_a_judge_folder_that_is_none_is_named() -> None:
    with pytest.raises(DataError, match="no-such-folder"):
        Upbeat(judge="no-such-folder")([episode("Hello to you all.")])
