"""Votes of several people: what they are together, and who is reliable."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import pytest

from rlhf_env.errors import MissingExtra
from rlhf_env.feedback.asking.weighing import Learnable, Reliability, VoteWeighing, weigh_votes
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.kinds import Ranking, Rating
from rlhf_env.types import Prompt

NOBODY = Author("dataset", "file")


def vote(who: str, winner: str = "A", loser: str = "B", *, prompt: str = "q", **more: object) -> Preference:
    sides = Response(winner, NOBODY), Response(loser, NOBODY)
    return Preference(Prompt(prompt, prompt), *sides, annotator=who, **more)  # type: ignore[arg-type]


def rating(who: str, score: int, text: str = "A") -> Rating:
    return Rating(Prompt("q", "q"), Response(text, NOBODY), score, who)


def pairs(found: Sequence[Learnable]) -> list[tuple[str, str, float]]:
    return [(one.chosen.text, one.rejected.text, round(one.weight, 4)) for one in found if isinstance(one, Preference)]


def test_a_majority_is_one_pair_of_the_weight_of_one() -> None:
    """/four-votes.csv: three to one."""
    votes = [vote("ann"), vote("ben"), vote("cy"), vote("dee", "B", "A")]
    found = weigh_votes(votes, "majority")
    assert pairs(found.learnable) == [("A", "B", 1.0)]
    assert (found.votes, found.shared, found.undecided) == (4, 1, 0)
    assert pairs(weigh_votes(votes, "each").learnable) == pairs(votes)


def test_where_nobody_judged_the_same_a_majority_is_each_vote() -> None:
    votes = [vote("ann", prompt="p"), vote("ben", "B", "A", prompt="q", margin=2.0, group="g")]
    assert list(weigh_votes(votes, "majority").learnable) == votes


@pytest.mark.parametrize("how", ["majority", "dawid-skene"])
def test_as_many_votes_on_one_side_as_on_the_other_decide_nothing_and_are_counted(how: VoteWeighing) -> None:
    found = weigh_votes([vote("ann"), vote("ben", "B", "A"), vote("ann", prompt="p"), vote("ben", prompt="p")], how)
    assert found.undecided == 1
    assert {one.prompt.text for one in found.learnable} == {"p"}


def test_one_person_has_one_vote_however_often_they_say_it() -> None:
    votes = [vote("ann")] * 3 + [vote("ben", "B", "A"), vote("cy", "B", "A")]
    assert pairs(weigh_votes(votes, "majority").learnable) == [("B", "A", 1.0)]
    changed_mind = [vote("ann", created="2026-01-02"), vote("ann", "B", "A", created="2026-01-01")]
    assert pairs(weigh_votes(changed_mind, "majority").learnable) == [("A", "B", 1.0)]
    unsigned = [vote("file.csv"), vote("file.csv"), vote("file.csv", "B", "A")]  # rows of a file without names
    assert pairs(weigh_votes(unsigned, "majority").learnable) == [("A", "B", 1.0)]


def test_a_margin_is_the_mean_of_those_stated_for_the_side_that_wins() -> None:
    votes = [vote("ann", margin=3.0), vote("ben", margin=2.0), vote("cy", "B", "A", margin=2.0)]
    (pair,) = weigh_votes(votes, "majority").learnable
    assert isinstance(pair, Preference)
    assert pair.margin == pytest.approx((3 + 2 - 2) / 3)


def test_rankings_are_votes_on_their_pairs_where_somebody_else_judged_one_of_them() -> None:
    texts = tuple(Response(text, NOBODY) for text in "ABC")
    one, other = (Ranking(Prompt("q", "q"), texts, ranks, who) for ranks, who in (((1, 2, 3), "ann"), ((2, 1, 3), "b")))
    assert list(weigh_votes([one], "majority").learnable) == [one]
    found = weigh_votes([one, other], "majority")
    assert pairs(found.learnable) == [("A", "C", 0.3333), ("B", "C", 0.3333)]
    assert found.undecided == 1
    assert list(weigh_votes([one, other], "majority", whole_orders=True).learnable) == [one, other]


def test_ratings_have_their_median_and_of_two_in_the_middle_both() -> None:
    odd = weigh_votes([rating("a", 1), rating("b", 4), rating("c", 5)], "majority").learnable
    assert [(one.score, one.weight) for one in odd if isinstance(one, Rating)] == [(4, 1.0)]
    even = weigh_votes([rating("a", 2), rating("b", 4)], "majority").learnable
    assert [(one.score, one.weight) for one in even if isinstance(one, Rating)] == [(2, 0.5), (4, 0.5)]


def test_dawid_skene_by_hand() -> None:
    """With three voters who are right with probability s, p = 1 / (1 + ((1 - s) / s)) for two votes against one.

    One more round must leave s as it is: s is the mean of p over the votes of each, seven imagined ones among them, of
    which five are right. On 30 pairs with three unanimous votes and 10 for each who is alone, s solves
    s = (30 p3 + 20 p + 10 (1 - p) + 5) / 67.
    """
    ballots = [("A", "A", "A")] * 30 + [("B", "A", "A"), ("A", "B", "A"), ("A", "A", "B")] * 10
    votes = [
        vote(who, side, "AB".replace(side, ""), prompt=str(i))
        for i, ballot in enumerate(ballots)
        for who, side in zip("xyz", ballot, strict=True)
    ]
    s = 0.8
    for _ in range(500):
        odds = (1 - s) / s
        unanimous, split = 1 / (1 + odds**3), 1 / (1 + odds)
        s = (30 * unanimous + 20 * split + 10 * (1 - split) + 5) / 67
    found = weigh_votes(votes, "dawid-skene")
    assert [one.accuracy for one in found.reliabilities] == pytest.approx([s] * 3, abs=3e-3)
    by_prompt = {one.prompt.text: one for one in found.learnable if isinstance(one, Preference) and one.weight > 0.5}
    assert by_prompt["0"].weight == pytest.approx(1 / (1 + ((1 - s) / s) ** 3), abs=1e-3)
    assert by_prompt["30"].weight == pytest.approx(s, abs=3e-3)  # crowd-kit stops at 1e-5 of likelihood
    both = [one for one in found.learnable if one.prompt.text == "30" and isinstance(one, Preference)]
    assert sum(one.weight for one in both) == pytest.approx(1.0)
    assert len({one.group for one in both}) == 1 and both[0].group


def made_up(seed: int, *, people: int = 40, against: int = 3, items: int = 240) -> tuple[list[Preference], list[str]]:
    """Five votes on each pair, of which "good" is the better: most are right in 75 %, those against in 10 %."""
    rng = np.random.default_rng(seed)
    votes = []
    for i in range(items):
        for who in rng.choice(people, 5, replace=False):
            right = rng.random() < (0.1 if who < against else 0.75)
            votes.append(vote(f"w{who}", *(("good", "bad") if right else ("bad", "good")), prompt=str(i)))
    return votes, [f"w{who}" for who in range(against)]


def rightly_labelled(found: Sequence[Learnable], items: int = 240) -> float:
    """The share of all pairs of which "good" is likelier the better; what is left out is a coin."""
    says = {one.prompt.text: one.chosen.text for one in found if isinstance(one, Preference) and one.weight >= 0.5}
    return (sum(winner == "good" for winner in says.values()) + 0.5 * (items - len(says))) / items


@pytest.mark.parametrize("seed", [0, 1])
def test_three_of_forty_who_answer_against_the_truth_cost_dawid_skene_nothing(seed: int) -> None:
    votes, against = made_up(seed)
    found = weigh_votes(votes, "dawid-skene")
    without = weigh_votes([one for one in votes if one.annotator not in against], "dawid-skene")
    assert rightly_labelled(found.learnable) >= rightly_labelled(without.learnable)
    assert rightly_labelled(found.learnable) > rightly_labelled(weigh_votes(votes, "majority").learnable)
    named = [one.annotator for one in found.reliabilities if one.against]
    assert set(named) <= set(against) and len(named) >= 2
    assert all(one.accuracy is not None and one.accuracy < 0.5 for one in found.reliabilities if one.against)


def test_a_single_vote_counts_by_who_cast_it() -> None:
    votes, against = made_up(0)
    single = [vote(against[0], "bad", "good", prompt="alone"), vote("stranger", "good", "bad", prompt="new")]
    found = weigh_votes([*votes, *single], "dawid-skene")
    alone = pairs([one for one in found.learnable if one.prompt.text == "alone"])
    assert alone[0][0] == "good", "somebody who says the opposite is read the other way round"
    assert 0.5 < alone[0][2] < 1.0
    assert pairs([one for one in found.learnable if one.prompt.text == "new"]) == [("good", "bad", 1.0)]


def test_ratings_by_dawid_skene_keep_their_weight() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 6, 60)
    ratings = [
        rating(who, int(score if rng.random() < 0.8 else rng.integers(1, 6)), f"text {i}")
        for i, score in enumerate(truth)
        for who in ("a", "b", "c")
    ]
    found = [one for one in weigh_votes(ratings, "dawid-skene").learnable if isinstance(one, Rating)]
    total = {
        text: sum(one.weight for one in found if one.response.text == text) for text in {r.response.text for r in found}
    }
    assert list(total.values()) == pytest.approx([1.0] * 60, abs=1e-4)
    likeliest = {one.response.text: one.score for one in sorted(found, key=lambda one: one.weight)}
    assert np.mean([likeliest[f"text {i}"] == score for i, score in enumerate(truth)]) > 0.85


def test_weighing_draws_from_no_global_generator() -> None:
    np.random.seed(1)  # noqa: NPY002 - global on purpose
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    weigh_votes([vote("ann"), vote("ben", "B", "A"), vote("ann", prompt="p"), vote("ben", prompt="p")], "dawid-skene")
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert before["state"]["pos"] == after["state"]["pos"]  # type: ignore[index, call-overload]
    assert (before["state"]["key"] == after["state"]["key"]).all()  # type: ignore[index, call-overload]


def test_without_crowd_kit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "rlhf-env\[crowd\]"'):
        weigh_votes([vote("ann"), vote("ben")], "dawid-skene")
    assert len(weigh_votes([vote("ann"), vote("ben")], "majority").learnable) == 1


def test_who_agrees_with_the_others_by_hand() -> None:
    votes = [vote(who, prompt=str(i)) for i in range(8) for who in "abc"]
    votes += [vote("x", "B", "A", prompt=str(i)) for i in range(8)]
    votes += [vote("a", prompt="hers alone")]
    least, *others = weigh_votes(votes, "majority").reliabilities
    assert {one.annotator: one.votes for one in others} == {"a": 9, "b": 8, "c": 8}
    assert (least.annotator, least.compared, least.agreed, least.against) == ("x", 8, 0.0, True)
    assert {(one.compared, one.agreed, one.against) for one in others} == {(8, 1.0, False)}
    few = Reliability(annotator="y", votes=1, compared=1, agreed=0.0, low=0.0, high=0.79)
    assert not few.against, "one vote accuses nobody"
