"""Items, leases and votes: every item gets the votes it asks for, once each, whoever retries, leaves or comes back."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import DataError, LeaseExpired
from rlhf_env.feedback.judgements import Author, Response, digest, prompt_digest, response_digest
from rlhf_env.feedback.kinds import Comparison, CriteriaRating, Ranking, Rating
from rlhf_env.feedback.store.items import Assignment, Criterion, Item, Purpose, VoteProgress
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

PERSON = Author("human", "Zoë")
Lend = Callable[[PreferenceStore, int, str], None]


class Clock:
    """Ten milliseconds pass between any two looks at it."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Any:
    with PreferenceStore(tmp_path / "preferences.sqlite", clock=clock) as opened:
        yield opened


def pair(i: int, **settings: Any) -> Item:
    texts = (Response(f"a{i}", PERSON), Response(f"b{i}", PERSON))
    return Item(**{"kind": "comparison", "prompt": Prompt(f"p{i}", f"q{i}"), "responses": texts, **settings})


def lent(store: PreferenceStore, annotator: str, **settings: Any) -> Assignment:
    assignment = store.next_item(annotator, **settings)
    assert assignment is not None
    return assignment


KINDS: dict[str, tuple[Item, Any, Callable[..., Any]]] = {
    "comparison": (pair(0), "second", lambda p, r: Comparison(p, *r, "second", "ann")),
    "rating": (
        Item(kind="rating", prompt=Prompt("p", "q"), responses=(Response("a", PERSON),), criterion="kind"),
        4,
        lambda p, r: Rating(p, *r, 4, "ann", "kind"),
    ),
    "ranking": (
        Item(kind="ranking", prompt=Prompt("p", "q"), responses=tuple(Response(x, PERSON) for x in "abc")),
        [2, 1, 2],
        lambda p, r: Ranking(p, r, (2, 1, 2), "ann"),
    ),
    "criteria": (
        Item(kind="criteria", prompt=Prompt("p", "q"), responses=(Response("a", PERSON),), criteria=("kind", "true")),
        {"kind": 1, "true": 5},
        lambda p, r: CriteriaRating(p, *r, {"kind": 1, "true": 5}, "ann"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_from_item_to_judgement(store: PreferenceStore, kind: str) -> None:
    item, answer, expected = KINDS[kind]
    (name,) = store.add_items([item])
    assert list(store.items()) == [(name, item)]
    shown = lent(store, "ann")
    receipt = store.submit(shown.id, "ann", answer, key="k", seconds=2.5)
    made = receipt.judgement
    assert receipt.new
    assert made.seconds == 2.5
    assert made.created.startswith("2023-11-14T22:13:20")
    given = expected(item.prompt, shown.item.responses)
    assert type(made) is type(given)
    assert (made.prompt, made.responses, made.criterion) == (given.prompt, given.responses, given.criterion)
    assert list(store.judgements()) == [made]
    assert store.progress("ann") == VoteProgress(items=1, complete=1, votes=1, wanted=1, own=1, open=0)
    counts = store.counts().judgements
    assert [counts[word] for word in ("comparisons", "ratings", "rankings", "criteria")] == [kind == k for k in KINDS]


def test_an_answer_that_does_not_fit_is_refused_and_changes_nothing(store: PreferenceStore, put_before: Lend) -> None:
    names = store.add_items([item for item, _, _ in KINDS.values()])
    for name in names:
        put_before(store, name, "ann")
    for name, answer, says in zip(
        names, ["left", 0, [1, 3, 1], {"kind": 1}], ["verdict: 'left'", "score", "dense", "kind, true"], strict=True
    ):
        with pytest.raises(DataError, match=says):
            store.submit(name, "ann", answer, key="k")
    with pytest.raises(DataError, match="no such item"):
        store.submit(99, "ann", "first", key="k")
    with pytest.raises(DataError, match="annotator: empty; key: empty"):
        store.submit(names[0], "", "first", key="")
    assert store.annotators() == ["ann"]
    assert store.progress().votes == 0


def test_a_double_click_is_one_vote_and_the_first_answer_stands(store: PreferenceStore, put_before: Lend) -> None:
    """F37: the same key, another key, another answer."""
    one, two = store.add_items([pair(0), pair(1)])
    for item, who in ((one, "ann"), (two, "ann")):
        put_before(store, item, who)
    first = store.submit(one, "ann", "first", key="k1")
    for answer, key in (("first", "k1"), ("second", "k1"), ("second", "k2")):
        again = store.submit(one, "ann", answer, key=key)
        assert (again.new, again.judgement) == (False, first.judgement)
    assert len(list(store.judgements())) == 1
    with pytest.raises(DataError, match="key: it came with another vote"):
        store.submit(two, "ann", "first", key="k1")
    with pytest.raises(DataError, match="key: it came with another vote"):
        store.submit(one, "bob", "first", key="k1")


def test_an_item_is_lent_to_as_many_as_it_needs(store: PreferenceStore, clock: Clock) -> None:
    (name,) = store.add_items([pair(0, overlap=2)])
    assert lent(store, "ann").id == lent(store, "bob").id == name
    assert store.next_item("cid") is None
    assert store.progress("cid").open == 0
    assert lent(store, "ann").id == name, "what one holds is shown again after a reload"
    clock.now += 601
    assert lent(store, "cid", lease=1.0).id == name
    store.submit(name, "bob", "first", key="late")  # a place was still free
    with pytest.raises(LeaseExpired, match="lent to 'ann' too long ago"):
        store.submit(name, "ann", "first", key="too late")
    assert store.submit(name, "cid", "tie", key="c").new
    assert [it.annotator for it in store.judgements()] == ["bob", "cid"]
    clock.now += 601
    assert store.next_item("ann") is None
    assert store.progress() == VoteProgress(items=1, complete=1, votes=2, wanted=2, own=0, open=0)


def test_undo_takes_the_vote_back_and_lends_the_item_again(store: PreferenceStore) -> None:
    one, two = store.add_items([pair(0), pair(1)])
    for key, answer in (("k1", "first"), ("k2", "second")):
        store.submit(lent(store, "ann").id, "ann", answer, key=key)
    back = store.undo("ann")
    assert back is not None
    assert back.id == two
    assert store.next_item("bob") is None, "the place is kept for who took the vote back"
    assert [it.prompt.id for it in store.judgements()] == ["p0"]
    assert (store.progress("ann").votes, store.progress("ann").own, store.counts().judgements["comparisons"]) == (
        1,
        1,
        1,
    )
    again = store.undo("ann", two)
    assert again is not None
    assert again.id == two, "a retried undo takes nothing more back"
    assert not store.submit(two, "ann", "second", key="k2").new, "a late retry of the vote that was taken back"
    assert store.submit(two, "ann", "tie", key="k3").judgement.verdict == "tie"  # type: ignore[union-attr]
    assert lent_ids(store, "ann") == []
    assert [store.undo("ann", one).id, store.undo("ann").id] == [one, two]  # type: ignore[union-attr]
    assert store.undo("ann", 77) is None
    assert store.undo("nobody") is None


def test_what_one_holds_comes_before_what_became_free(store: PreferenceStore, clock: Clock) -> None:
    one, two = store.add_items([pair(0), pair(1)])
    assert lent(store, "bob", lease=60.0).id == one
    assert lent(store, "ann").id == two
    clock.now += 61
    assert lent(store, "ann").id == two
    assert lent(store, "cid").id == one


def test_the_same_vote_again_in_the_same_moment(tmp_path: Path) -> None:
    with PreferenceStore(tmp_path / "preferences.sqlite", clock=lambda: 1.7e9) as store:
        (name,) = store.add_items([pair(0)])
        assert lent(store, "ann").id == name
        assert store.submit(name, "ann", "first", key="k1").new
        assert store.undo("ann") is not None
        assert store.submit(name, "ann", "first", key="k2").new
        assert store.progress().votes == len(list(store.judgements())) == 1


def test_the_file_itself_refuses_a_second_vote(store: PreferenceStore) -> None:
    """Whatever another program does: one standing vote of a person on an item, one row of a key."""
    store.add_items([pair(0)])
    store.submit(lent(store, "ann").id, "ann", "first", key="k")
    again = "INSERT INTO judgements SELECT NULL, 'new', kind, prompt, annotator, criterion, weight, created, payload, "
    for rest in ("seconds, item, NULL, 0 FROM judgements", "seconds, NULL, idempotency_key, 0 FROM judgements"):
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            store._db.execute(again + rest)


def lent_ids(store: PreferenceStore, annotator: str) -> list[int]:
    found = store.next_item(annotator)
    return [] if found is None else [found.id]


def test_priority_and_repeats(store: PreferenceStore) -> None:
    one, two, three = store.add_items([pair(0), pair(1, priority=2.0), pair(0, repeat=1)])
    assert store.add_items([pair(0), pair(1, overlap=9)]) == [one, two], "an item that is there stays as it is"
    assert store.progress().wanted == 3
    with pytest.raises(DataError, match="priority of item 1: nan is not a finite number"):
        store.prioritise({one: math.nan})
    store.prioritise({three: 5.0})
    order = []
    while (shown := store.next_item("ann")) is not None:
        store.submit(shown.id, "ann", "first", key=str(shown.id))
        order.append(shown.id)
    assert order == [three, two, one]


def test_a_purpose_makes_another_item_and_none_leaves_it_as_it_was(store: PreferenceStore) -> None:
    """What schema version 2 called an item is still called so: a pair asked for again is no second item."""
    it = pair(0)
    name = prompt_digest(it.prompt)
    shown = sorted(response_digest(name, response) for response in it.responses)
    assert it.digest == digest("item", "comparison", name, shown, "overall", [], 0)
    purposes: list[Purpose] = ["collection", "evaluation", "verification"]
    asked = [pair(0, purpose=purpose) for purpose in purposes]
    names = store.add_items([*asked, it])
    assert names == [1, 2, 3, 1]
    assert [item for _, item in store.items()] == asked
    with pytest.raises(DataError, match="purpose: 'fun' is none of collection, evaluation, verification"):
        pair(0, purpose="fun")


def test_the_order_shown_is_drawn_per_annotator_without_bias_and_kept(store: PreferenceStore) -> None:
    """F40: 600 draws; a fair coin leaves 4 standard errors once in 16,000. Undoing the order gives the text back."""
    store.add_items([pair(i, overlap=3, seed=5) for i in range(20)])
    flipped = Counter(tuple(pair(i, seed=seed).order_for("ann")) for i in range(20) for seed in range(30))
    assert abs(flipped[0, 1] - 300) < 4 * math.sqrt(600 / 4)
    orders = {tuple(pair(0, seed=5).order_for(f"person {i}")) for i in range(20)}
    assert orders == {(0, 1), (1, 0)}
    three = KINDS["ranking"][0]
    assert len({tuple(three.order_for(f"person {i}")) for i in range(60)}) == 6
    for annotator in ("ann", "bob", "cid"):
        while (shown := store.next_item(annotator)) is not None:
            texts = [response.text for response in shown.item.responses]
            store.submit(shown.id, annotator, "first" if texts[0][0] == "a" else "second", key=f"{annotator}{shown.id}")
    made = list(store.comparisons())
    assert {it.verdict for it in made} == {"first", "second"}
    assert {it.preference.chosen.text[0] for it in made if it.preference} == {"a"}
    assert len(made) == 60


def test_criteria_carry_guidelines(store: PreferenceStore) -> None:
    store.set_criterion(Criterion("kind", "Would you say this to a friend?"))
    store.set_criterion(Criterion("true"))
    store.set_criterion(Criterion("kind", "Is it friendly?"))
    assert store.criteria() == [Criterion("kind", "Is it friendly?"), Criterion("true")]


def test_items_that_make_no_sense() -> None:
    with pytest.raises(DataError, match=r"responses: 1 do not make an item of kind 'comparison'; overlap"):
        Item(kind="comparison", prompt=Prompt("p", "q"), responses=(Response("a", PERSON),), overlap=0)
    same = (Response("a", PERSON), Response("a", PERSON))
    with pytest.raises(DataError, match="responses: 1 and 2 say the same"):
        Item(kind="comparison", prompt=Prompt("p", "q"), responses=same)
    with pytest.raises(DataError, match="criteria: names go with the kind 'criteria'"):
        Item(kind="criteria", prompt=Prompt("p", "q"), responses=(Response("a", PERSON),))


ANNOTATE = """
import sys, threading
from rlhf_env.feedback.store.store import PreferenceStore

def annotate(who):
    with PreferenceStore(sys.argv[1]) as store:
        while (shown := store.next_item(who)) is not None:
            store.submit(shown.id, who, "first", key=f"{who} {shown.id}")
            print(who, shown.id, flush=True)

threads = [threading.Thread(target=annotate, args=(who,)) for who in sys.argv[2:]]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_eight_annotators_in_two_processes_give_exactly_the_votes_asked_for(tmp_path: Path) -> None:
    """F36, F38: 24 items, 3 votes each from 3 people. One process is killed and its leases run out: no vote is lost."""
    path = tmp_path / "preferences.sqlite"
    with PreferenceStore(path) as store:
        store.add_items([pair(i, overlap=3) for i in range(24)])
    command = [sys.executable, "-c", ANNOTATE, str(path)]
    with (
        subprocess.Popen([*command, "a", "b", "c", "d"], stdout=subprocess.PIPE, text=True) as killed,
        subprocess.Popen(
            [*command, "e", "f", "g", "h"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as other,
    ):
        assert killed.stdout is not None
        acknowledged = [killed.stdout.readline() for _ in range(5)]
        killed.kill()
        acknowledged += killed.stdout.read().splitlines(keepends=True)
        rest, complaints = other.communicate()
    assert complaints == "", "a writer waits for the others, and never fails"
    acknowledged = [line for line in [*acknowledged, *rest.splitlines(keepends=True)] if line.endswith("\n")]
    with PreferenceStore(path, clock=lambda: time.time() + 3600) as store:  # the leases of the killed have run out
        for who in ("i", "j", "k"):
            while (shown := store.next_item(who)) is not None:
                store.submit(shown.id, who, "first", key=f"{who} {shown.id}")
        votes = Counter((it.annotator, it.prompt.id) for it in store.comparisons())
        assert set(votes.values()) == {1}
        assert Counter(prompt for _, prompt in votes) == {f"p{i}": 3 for i in range(24)}
        names = {item.prompt.id: name for name, item in store.items()}
        kept = {(who, names[prompt]) for who, prompt in votes}
        assert {(who, int(item)) for who, item in (line.split() for line in acknowledged)} <= kept
        assert store.progress().complete == 24
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
