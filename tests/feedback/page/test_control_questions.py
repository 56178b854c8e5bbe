"""Control questions, items for named people, abstentions, comments, and votes that take another's place."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env.cli import main as cli
from rlhf_env.errors import DataError
from rlhf_env.feedback.asking.agreement import agreement_of
from rlhf_env.feedback.asking.controls import control_scores
from rlhf_env.feedback.interchange import read_judgements, write_judgements
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import Abstention, Comparison, CriteriaRating, Ranking, Rating
from rlhf_env.feedback.store.items import Item
from rlhf_env.feedback.store.store import CONTROL_EVERY, PreferenceStore
from rlhf_env.types import Prompt

PERSON = Author("human", "Zoë")
A, B, C = (Response(text, PERSON) for text in ("a", "b", "c"))


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with PreferenceStore(tmp_path / "s.sqlite") as opened:
        yield opened


def pair(i: int, **settings: Any) -> Item:
    return Item(kind="comparison", prompt=Prompt(f"p{i}", f"q{i}"), responses=(A, B), **settings)


def known(i: int) -> Comparison:
    return Comparison(Prompt(f"c{i}", f"control {i}"), A, B, "first", "file")


def judge(store: PreferenceStore, who: str, say: Any) -> list[str]:
    """Everything that is open to them: the purposes, in order. `say(assignment)` gives what is submitted."""
    purposes = []
    while (asked := store.next_item(who)) is not None:
        purposes.append(asked.item.purpose)
        said = say(asked)
        said = said if isinstance(said, dict) else {"answer": said}
        store.submit(asked.id, who, said.pop("answer", None), key=f"{who} {asked.id}", ticket=asked.ticket, **said)
    return purposes


def prefers(text: str) -> Any:
    return lambda asked: "first" if asked.item.responses[0].text == text else "second"


def test_a_control_comes_once_among_every_ten_and_to_everybody(store: PreferenceStore) -> None:
    store.add_items([pair(i, overlap=2) for i in range(30)])
    store.add_controls([known(i) for i in range(3)])
    places = []
    for who in ("Ann", "Ben"):
        purposes = judge(store, who, prefers("a"))
        assert Counter(purposes) == {"collection": 30, "control": 3}
        at = [place for place, purpose in enumerate(purposes) if purpose == "control"]
        assert [place // CONTROL_EVERY for place in at] == [0, 1, 2]
        places.append(at)
    assert places[0] != places[1], "nobody can tell another where they come"


def test_votes_on_controls_count_for_their_annotator_alone(store: PreferenceStore) -> None:
    store.add_items([pair(0)])
    store.add_controls([known(i) for i in range(4)])
    answers = iter(["first", "second", "cannot say", "first"])
    sides = {"first": "a", "second": "b"}

    def says(asked: Any) -> str:
        if asked.item.purpose != "control":
            return "tie"
        answer = next(answers)
        return prefers(sides[answer])(asked) if answer in sides else answer

    before = store.progress("Ann")
    assert (before.wanted, before.items, before.open) == (5, 5, 5), "nothing tells them apart"
    judge(store, "Ann", says)
    after = store.progress("Ann")
    assert (after.votes, after.own, after.open, after.left) == (5, 5, 0, 0)
    (score,) = control_scores(store)
    assert (score.annotator, score.answered, score.right, score.undecided) == ("Ann", 4, 2, 1)
    assert str(score) == "2 of 4 right, 0.50 [0.15, 0.85]; 1 without an opinion"
    overall = store.progress()
    assert (overall.votes, overall.wanted, overall.items, overall.complete) == (1, 1, 1, 1)
    assert [it.prompt.id for it in store.judgements()] == ["p0"]
    assert (store.counts().judgements["comparisons"], len(list(store.preferences()))) == (1, 0)
    assert {prompt.id for prompt, _ in store.responses()} == {"p0"}, "no item and no score is made of them"
    assert store.next_item("simulated", origin="simulated") is None


def test_a_score_is_right_within_one_step_and_an_order_in_every_pair(store: PreferenceStore) -> None:
    store.add_controls(
        [
            Rating(Prompt("r", "r"), A, 4, "file"),
            Ranking(Prompt("o", "o"), (A, B, C), (1, 2, 3), "file"),
            CriteriaRating(Prompt("k", "k"), A, {"true": 1, "kind": 5}, "file"),
        ]
    )
    right: dict[str, tuple[int, dict[str, int], list[str]]] = {
        "all": (3, {"true": 2, "kind": 4}, ["a", "b", "c"]),
        "none": (2, {"true": 1, "kind": 3}, ["a", "c", "b"]),
    }
    for who, (score, scores, order) in right.items():

        def says(asked: Any, score: Any = score, scores: Any = scores, order: Any = order) -> Any:
            ranks = [1 + order.index(it.text) for it in asked.item.responses] if len(asked.item.responses) > 1 else None
            return {"answer": {"rating": score, "criteria": scores, "ranking": ranks}[asked.item.kind]}

        judge(store, who, says)
    assert {it.annotator: (it.right, it.answered) for it in control_scores(store)} == {"all": (3, 3), "none": (0, 3)}


def test_items_for_named_people_come_to_nobody_else(store: PreferenceStore) -> None:
    store.add_items([pair(0)])
    (theirs,) = store.add_items([pair(1, priority=5.0)], to=["Ann", "Zoë"])
    assert store.assignees() == {theirs: ("Ann", "Zoë")}
    asked = {who: store.next_item(who) for who in ("Ben", "Zoë")}
    assert {who: it and it.item.prompt.id for who, it in asked.items()} == {"Ben": "p0", "Zoë": "p1"}
    assert [store.progress(who).open for who in ("Ann", "Ben")] == [0, 1], "both are lent just now"
    with pytest.raises(DataError, match="to: 1 named, and 2 people are to judge each item"):
        store.add_items([pair(2, overlap=2)], to=["Ann"])
    assert len(list(store.items())) == 2


def test_a_name_is_the_one_that_the_page_takes(
    store: PreferenceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add_response(Prompt("p", "q"), A, B)
    monkeypatch.setattr("sys.argv", ["rlhf-env", "preferences", "ask", str(tmp_path / "s.sqlite"), "--to", " Ann "])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert "1 items asked for, of Ann alone" in capsys.readouterr().out
    assert list(store.assignees().values()) == [("Ann",)], "a space that nobody sees would keep it from everybody"


KINDS: dict[str, Item] = {
    "rating": Item(kind="rating", prompt=Prompt("p", "q"), responses=(A,)),
    "ranking": Item(kind="ranking", prompt=Prompt("p", "q"), responses=(A, B, C)),
    "criteria": Item(kind="criteria", prompt=Prompt("p", "q"), responses=(A,), criteria=("true", "kind")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_abstention_is_a_vote_that_teaches_nothing(store: PreferenceStore, tmp_path: Path, kind: str) -> None:
    store.add_items([KINDS[kind]])
    reason = "all bad" if kind == "ranking" else "cannot say"
    judge(store, "Ann", lambda _: {"abstain": reason, "note": "too hard", "flag": True})
    (vote,) = store.judgements()
    assert isinstance(vote, Abstention)
    assert (vote.reason, vote.note, vote.flag) == (reason, "too hard", True)
    assert (store.progress().complete, list(store.preferences())) == (1, [])
    assert store.counts().judgements["abstentions"] == 1
    assert agreement_of(store.judgements(), np.random.default_rng(0)) == []
    for ending in ("jsonl", "csv"):
        write_judgements(tmp_path / f"x.{ending}", [vote], "csv" if ending == "csv" else "jsonl")
        assert list(read_judgements(tmp_path / f"x.{ending}")) == [vote]
    if kind != "ranking":
        (other,) = store.add_items([Item(kind="rating", prompt=Prompt("p2", "q"), responses=(B,))])
        store.next_item("Ann")
        with pytest.raises(DataError, match="'all bad' is said of two or more responses"):
            store.submit(other, "Ann", None, key="k", abstain="all bad")


def test_one_criterion_alone_may_be_left_open(store: PreferenceStore) -> None:
    store.add_items([KINDS["criteria"]])
    judge(store, "Ann", lambda _: {"answer": {"true": "cannot say", "kind": 3}})
    (vote,) = store.judgements()
    assert isinstance(vote, CriteriaRating) and vote.scores == {"kind": 3}
    store.undo("Ann")
    judge(store, "Ben", lambda _: {"answer": {"true": "cannot say", "kind": "cannot say"}})
    store.add_items([pair(0)])
    assert store.next_item("Ann") is not None
    assert store.counts().judgements["criteria"] == 0


def test_a_comment_a_flag_and_a_strength_stay_with_the_vote(store: PreferenceStore, tmp_path: Path) -> None:
    store.add_items([pair(0)])
    judge(store, "Ann", lambda _: {"answer": "first", "margin": 3.0, "note": "=much", "flag": True})
    (vote,) = store.comparisons()
    assert (vote.margin, vote.note, vote.flag) == (3.0, "=much", True)
    assert vote.preference is not None and vote.preference.margin == 3.0
    write_judgements(tmp_path / "x.csv", [vote], "csv")
    assert list(read_judgements(tmp_path / "x.csv")) == [vote]
    with PreferenceStore(store.path) as again:
        assert list(again.comparisons()) == [vote], "its digest holds"
    (rating,) = store.add_items([KINDS["rating"]])
    store.next_item("Ann")
    with pytest.raises(DataError, match="margin: a rating has none"):
        store.submit(rating, "Ann", 3, key="k", margin=1.0)


def test_a_vote_in_the_place_of_another(store: PreferenceStore) -> None:
    one, two = store.add_items([pair(0), pair(1)])
    judge(store, "Ann", lambda _: "first")
    first, second = store.own_votes("Ann")
    assert [it.assignment.id for it in (first, second)] == [two, one], "the latest first"
    assert store.own_votes("Ann", before=first.number, limit=1) == [second]
    kept = store.submit(one, "Ann", "tie", key="Ann 1", instead=True)
    assert not kept.new, "the same request again, as a retry sends it"
    for new in (True, False):
        changed = store.submit(one, "Ann", "second", key="change", instead=True, ticket=second.assignment.ticket)
        assert changed.new == new
    assert [it.verdict for it in store.comparisons()] == ["first", "second"]
    again = store.own_vote("Ann", one)
    assert again is not None and getattr(again.judgement, "verdict", "") == "second"
    assert (store.own_vote("Ben", one), store.own_votes("nobody")) == (None, [])
    (withdrawn,) = store._db.execute("SELECT count(*) FROM judgements WHERE withdrawn").fetchone()
    assert withdrawn == 1, "what was said first stays as a record"
    with PreferenceStore(store.path) as checked:
        assert checked.progress().complete == 2
    assert not store.submit(two, "Ann", "second", key="other").new, "without `instead` the first vote stands"


def test_a_question_that_is_known_two_ways_is_refused(store: PreferenceStore) -> None:
    store.add_controls([known(0)])
    with pytest.raises(DataError, match="is there already, its responses in another order"):
        store.add_controls([Comparison(Prompt("c0", "control 0"), B, A, "first", "file")])
    assert len(store.controls()) == 1
