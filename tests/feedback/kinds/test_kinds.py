"""Four kinds of judgement, and the weighted pairs each becomes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest

from rlhf_env.errors import DataError
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.kinds import (
    Comparison,
    CriteriaRating,
    Ranking,
    Rating,
    preferences_of,
    rating_preferences,
)
from rlhf_env.types import Prompt

PERSON = Author("human", "Zoë")
PROMPT = Prompt("p", "question")


def responses(*texts: str) -> tuple[Response, ...]:
    return tuple(Response(text, PERSON) for text in texts)


def ranking(ranks: Sequence[int], **settings: Any) -> Ranking:
    return Ranking(PROMPT, responses(*"abcde"[: len(ranks)]), tuple(ranks), "ann", **settings)


def won(pairs: Sequence[Preference]) -> set[tuple[str, str]]:
    return {(it.chosen.text, it.rejected.text) for it in pairs}


def test_a_ranking_is_all_its_pairs_in_one_group() -> None:
    pairs = ranking([3, 1, 4, 2], weight=3.0, created="now", seconds=9.0).preferences
    assert won(pairs) == {("b", "d"), ("b", "a"), ("b", "c"), ("d", "a"), ("d", "c"), ("a", "c")}
    assert {it.weight for it in pairs} == {3.0 / 6}
    (group,) = {it.group for it in pairs}
    assert group and group != ranking([3, 1, 4, 2]).preferences[0].group
    assert {(it.chosen.text, it.rejected.text): it.chosen_was_first for it in pairs}["b", "a"] is False
    assert {(it.chosen.text, it.rejected.text): it.chosen_was_first for it in pairs}["b", "c"] is True
    assert all((it.annotator, it.created, it.seconds) == ("ann", "now", 9.0) for it in pairs)
    assert all(Comparison.of(it).preference == it for it in pairs)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_pairs_of_a_full_ranking_weigh_one_judgement(count: int) -> None:
    pairs = ranking(range(1, count + 1)).preferences
    assert len(pairs) == count * (count - 1) // 2
    assert abs(sum(it.weight for it in pairs) - 1.0) < 1e-12


def test_equal_places_give_no_pair_and_leave_their_share_unused() -> None:
    pairs = ranking([1, 2, 2, 1]).preferences
    assert won(pairs) == {("a", "b"), ("a", "c"), ("d", "b"), ("d", "c")}
    assert {it.weight for it in pairs} == {1 / 6}
    assert ranking([1, 1, 1]).preferences == []


def rating(text: str, score: int, **settings: Any) -> Rating:
    return Rating(PROMPT, *responses(text), **{"score": score, "annotator": "ann", **settings})


def test_ratings_are_compared_within_one_person_prompt_and_criterion() -> None:
    ratings = [
        rating("a", 2),
        rating("b", 5),
        rating("c", 2),
        rating("d", 1, annotator="other"),
        rating("e", 1, criterion="kind"),
        Rating(Prompt("q", "another"), *responses("f"), score=1, annotator="ann"),
    ]
    pairs = list(rating_preferences(ratings))
    assert won(pairs) == {("b", "a"), ("b", "c")}
    assert {it.weight for it in pairs} == {1 / 3}
    assert len({it.group for it in pairs}) == 1
    again = [*ratings, rating("b", 1, created="later")]
    assert won(list(rating_preferences(again))) == {("a", "b"), ("c", "b")}, "the last rating of a response counts"


def test_criteria_are_rated_one_by_one() -> None:
    made = [
        CriteriaRating(PROMPT, *responses("a"), scores={"helpful": 5, "harmless": 1}, annotator="ann"),
        CriteriaRating(PROMPT, *responses("b"), scores={"helpful": 2, "harmless": 4}, annotator="ann"),
    ]
    pairs = list(preferences_of(made))
    assert {(it.criterion, it.chosen.text) for it in pairs} == {("helpful", "a"), ("harmless", "b")}
    assert [it.weight for it in pairs] == [1.0, 1.0]


def test_all_kinds_together() -> None:
    first, second = responses("x", "y")
    judgements = [
        rating("a", 1),
        Comparison(PROMPT, first, second, "second", "ann", weight=2.0),
        Comparison(PROMPT, first, second, "tie", "ann"),
        Comparison(PROMPT, first, second, "cannot say", "ann"),
        ranking([2, 1]),
        rating("b", 4),
    ]
    assert [(it.chosen.text, it.weight) for it in preferences_of(judgements)] == [("y", 2.0), ("b", 1.0), ("b", 1.0)]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ranking([1]), r"responses: a ranking needs at least 2"),
        (lambda: Ranking(PROMPT, responses("a", "b"), (1,), "ann"), r"ranks: 1 for 2 responses"),
        (lambda: ranking([1, 3]), r"ranks: \(1, 3\) are not dense places"),
        (lambda: ranking([0, 1]), r"dense places"),
        (lambda: Ranking(PROMPT, responses("a", "b"), (1, 2.0), "ann"), r"tuple of whole numbers"),  # type: ignore
        (lambda: Ranking(PROMPT, responses("a", "b", "a"), (1, 2, 3), "ann"), r"responses: 1 and 3 say the same"),
        (lambda: rating("a", 6), r"score: expected a whole number from 1 to 5, got 6"),
        (lambda: rating("a", True), r"score: expected a whole number"),
        (lambda: rating("a", 3, seconds=-1.0, annotator=""), r"annotator: empty; seconds: expected a finite number"),
        (lambda: CriteriaRating(PROMPT, *responses("a"), scores={}, annotator="a"), r"scores: expected a score"),
        (lambda: CriteriaRating(PROMPT, *responses("a"), scores={"": 9}, annotator="a"), r"criterion: empty"),
        (lambda: CriteriaRating(PROMPT, *responses("a"), scores={"kind": 9}, annotator="a"), r"scores\[kind\]"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        make()


def test_a_group_is_no_verdict() -> None:
    """Pairs of one ranking differ in nothing but who won: their comparisons keep the group."""
    for one, two in combinations([Comparison.of(it) for it in ranking([1, 2, 3]).preferences], 2):
        assert one.group == two.group
        assert one != two
