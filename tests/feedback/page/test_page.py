"""What each request of the annotation page does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'annotate' is not installed")
import httpx2 as httpx

from rlhf_env.feedback.asking.tournament import blind_pairs
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.page.keys import Keys
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.feedback.store.items import Criterion, Item, VerificationItem
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

OWN = "http://127.0.0.1:8765"
PERSON = Author("human", "the author's name")

Enter = Callable[..., Any]
Pairs = Callable[..., list[Item]]
Fill = Callable[..., list[int]]
Votes = Callable[[Path], list[Any]]


def test_each_kind_from_request_to_judgement(path: Path, enter: Enter, fill: Fill, votes: Votes) -> None:
    texts = tuple(Response(text, PERSON) for text in "abc")
    prompt = Prompt("p", "q")
    fill(
        path,
        Item(kind="comparison", prompt=prompt, responses=texts[:2]),
        Item(kind="rating", prompt=prompt, responses=texts[:1], criterion="kind"),
        Item(kind="ranking", prompt=prompt, responses=texts),
        Item(kind="criteria", prompt=prompt, responses=texts[:1], criteria=("kind", "true")),
    )
    with PreferenceStore(path) as store:
        store.set_criterion(Criterion("kind", "Would you say this to a friend?"))
    ann = enter()
    shown = []
    for number, answer in enumerate(("second", 4, [2, 1, 2], {"kind": 1, "true": 5})):
        item = ann.next()
        shown.append(item)
        said = ann.post("vote", item=item["id"], answer=answer, key=f"k{number}", seconds=2.5)
        assert (said.status_code, said.json()["new"], said.json()["progress"]["own"]) == (200, True, number + 1)
    assert said.json()["item"] is None
    comparison, rating, ranking, criteria = votes(path)
    assert (comparison.verdict, rating.score, ranking.ranks) == ("second", 4, (2, 1, 2))
    assert criteria.scores == {"kind": 1, "true": 5}
    for item, judgement in zip(shown, votes(path), strict=True):
        assert [it["text"] for it in item["responses"]] == [it.text for it in judgement.responses], "the order shown"
        assert judgement.seconds == 2.5
    rated, by_criteria = shown[1]["form"], shown[3]["form"]
    assert (rated["question"], rated["guidelines"]) == (
        "How good is this response by “kind”?",
        "Would you say this to a friend?",
    )
    assert [(it["name"], it["label"], it["guidelines"]) for it in by_criteria["inputs"]] == [
        ("kind", "kind", "Would you say this to a friend?"),
        ("true", "true", ""),
    ]
    assert [it["form"]["inputs"][0]["type"] for it in shown] == ["choice", "choice", "order", "choice"]
    assert "the author's name" not in str(shown), "judging is blind"


@pytest.mark.parametrize(
    ("text", "turn", "shown"),
    [
        ("Hello, you.<|turn|>", "Hello, you.", "Hello, you."),
        ("Hello, you.<|turn|> Bye.", "Hello, you.", "Hello, you.\n Bye."),
        ("Hello, you.", "3", "Hello, you."),  # a column of somebody's own
        ("Hello.<|turn|>", None, "Hello."),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", None, "user: Hi"),
        ("<s>[INST] Hi [/INST]", None, " Hi "),
        ("<｜User｜>Hi<｜Assistant｜>", None, "Hi"),
        ("<s>[INST] Hi [/INST] Ha</s><s>[INST] Ho [/INST]", None, " Hi \n Ha\n Ho "),
        ("<bos><|turn>user\nHi<turn|>\n<|turn>model\n", None, "user: Hi"),
        ("a <s>struck</s> b</s></s>", None, "a <s>struck</s> b"),
        ("<|a b|> 1 <| 2 |> <bosh>", None, "<|a b|> 1 <| 2 |> <bosh>"),
    ],
)
def test_the_markers_of_models_are_not_shown(
    path: Path, enter: Enter, fill: Fill, text: str, turn: str | None, shown: str
) -> None:
    texts = (Response("a", PERSON), Response("b", PERSON))
    fill(path, Item(kind="comparison", prompt=Prompt("p", text, {"turn": turn}), responses=texts))
    assert enter().next()["prompt"]["text"] == shown


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi\n\nyou<|im_end|>\n<|im_start|>assistant\n",
            [("system", "Be brief."), ("user", "Hi\n\nyou")],
        ),
        (
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHa",
            [("user", "Hi"), ("assistant", "Ha")],
        ),
        ("<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", [("user", "Hi")]),
        ("Be brief.\n<|user|>\nHi</s>\n<|assistant|>\n", [("", "Be brief."), ("user", "Hi")]),
        ("Hi<|im_end|>", None),
    ],
)
def test_a_conversation_that_a_template_wrote_is_shown_turn_by_turn(
    path: Path, enter: Enter, fill: Fill, text: str, turns: list[tuple[str, str]] | None
) -> None:
    fill(path, Item(kind="rating", prompt=Prompt("p", text), responses=(Response("a", PERSON),)))
    shown = enter().next()["prompt"].get("turns")
    assert (shown and [(it["role"], it["text"]) for it in shown]) == turns


def test_a_retried_vote_is_one_and_undo_takes_it_back(
    path: Path, enter: Enter, pairs: Pairs, fill: Fill, votes: Votes
) -> None:
    two, one = fill(path, *pairs(2))
    ann = enter()
    assert ann.next()["id"] == two
    for new, answer, key in ((True, "first", "k"), (False, "first", "k"), (False, "second", "other")):
        said = ann.post("vote", item=two, answer=answer, key=key, seconds=1).json()
        assert (said["new"], said["item"]["id"]) == (new, one)
    assert [it.verdict for it in votes(path)] == ["first"]
    for _ in range(2):
        back = ann.post("undo", item=two).json()
        assert (back["undone"], back["item"]["id"]) == (two, two), "the item taken back, not the one held besides"
    assert votes(path) == []
    assert ann.post("undo", item=None).json()["undone"] is None


def test_a_lost_lease_is_a_conflict(
    path: Path, enter: Enter, clock: Any, pairs: Pairs, fill: Fill, votes: Votes
) -> None:
    (one,) = fill(path, *pairs(1))
    ann, ben = enter("Ann"), enter("Ben")
    assert 599 < ann.next()["lease"] <= 600
    assert ben.next() is None
    clock.now += 601
    assert ben.next()["id"] == one
    assert ben.post("vote", item=one, answer="tie", key="b", seconds=1).status_code == 200
    late = ann.post("vote", item=one, answer="first", key="a", seconds=1)
    assert (late.status_code, "too long ago" in late.json()["problems"][0]) == (409, True)
    assert [it.annotator for it in votes(path)] == ["Ben"]


def test_a_vote_of_a_stale_tab_is_never_somebody_else_s(
    path: Path, enter: Enter, pairs: Pairs, fill: Fill, votes: Votes
) -> None:
    """Two tabs share a cookie. Ann's shows an item; in the other one Ben enters, and is lent the same item."""
    (one,) = fill(path, *pairs(1, overlap=2))
    ann = enter("Ann")
    assert ann.next()["id"] == one
    ben = enter("Ben")
    stale = {**ann.headers, "Cookie": ben.headers["Cookie"]}  # the cookie is the browser's, the rest is the tab's
    vote = {"item": one, "ticket": ann.tickets[one], "answer": "first", "key": "k", "seconds": 1}
    refused = ann.client.post("/api/vote", json=vote, headers=stale)
    assert refused.status_code == 403, "another session"
    for asked in (False, True):  # the tab was loaded again, and sends what was still on its way
        if asked:
            assert ben.next()["id"] == one
        refused = ben.post("vote", **vote)
        assert (refused.status_code, "was not put before 'Ben'" in refused.json()["problems"][0]) == (409, True)
    assert votes(path) == []
    assert ann.post("vote", **vote).status_code == 200, "in her own session it is hers"
    assert [(it.annotator, it.verdict) for it in votes(path)] == [("Ann", "first")]


def test_agreement_of_what_was_judged(path: Path, enter: Enter, pairs: Pairs, fill: Fill) -> None:
    ids = fill(path, *pairs(4, overlap=2))
    for name, last in (("Ann", "tie"), ("Ben", "cannot say")):
        annotator = enter(name)
        assert annotator.next()["id"] == ids[0]
        for item in ids:
            annotator.post("vote", item=item, answer="tie" if item != ids[-1] else last, key=f"{name}{item}", seconds=3)
    (found,) = annotator.client.get("/api/agreement", headers=annotator.headers).json()["agreement"]
    assert (found["judgements"], found["annotators"], found["units"]) == (8, 2, 3)
    assert found["agreement"] == [1.0, pytest.approx(3 / (3 + 1.959964**2), abs=1e-6), 1.0], "Wilson's, of 3 of 3"
    assert found["alpha"] is None, "one value only: chance alone would agree as well"
    assert found["seconds"] == [3.0, None, None], "all alike: nothing to resample"


def results(annotator: Any, token: str | None = None) -> httpx.Response:
    return annotator.post("results", token=token)


def test_results_are_for_the_owner_until_everything_is_judged(
    path: Path, keys: Keys, enter: Enter, pairs: Pairs, fill: Fill
) -> None:
    """Whoever has something left to judge, and whoever knows only how to judge, learns nothing of who wrote what."""

    def answers(who: str) -> list[tuple[Prompt, Response]]:
        author = Author("policy", f"<b>{who}\u202e")
        return [(Prompt(f"{who} {i}", f"q{i}"), Response(f"{who} {i}", author)) for i in range(3)]

    asked = [*blind_pairs([answers("x"), answers("y")]).items, *pairs(1)]
    ids = fill(path, *asked)
    ann, ben = enter("Ann"), enter("Ben")
    ann.next()
    for place, item in enumerate(ids):
        answer = "first" if asked[place].order_for("Ann")[0] == 0 else "second"
        for token in (None, "", keys.token, keys.owner[:-1], 7):
            for annotator in (ann, ben):
                refused = results(annotator, token)
                assert refused.status_code == (403 if token is None else 401)
                assert set(refused.json()) == {"problems"}
        ann.post("vote", item=item, answer=answer, key=str(item), seconds=1)
    for token, origin, status in ((None, OWN, 401), (keys.owner, OWN, 200), (keys.owner, "null", 403)):
        asking = ann.client.post("/api/results", json={"token": token}, headers={"Origin": origin})
        assert asking.status_code == status, "the owner has no session, and needs none"
    (found,) = results(ann).json()["contests"]
    x, y = found["contenders"]
    assert (x["name"], y["name"]) == ("policy <b>x⟨U+202E⟩", "policy <b>y⟨U+202E⟩")
    assert (x["win_rate"], x["comparisons"]) == ([1.0, *wilson_interval(1.0, 3)], 3)
    assert x["rating"] == [pytest.approx(200 * math.log10(3.5 / 0.5), abs=1e-9), None, None]
    ann.post("undo", item=ids[0])
    assert results(ann).status_code == 403, "there is something to judge again"
    assert ann.client.get("/results").headers["content-type"].startswith("text/html")


def test_results_of_a_reward_model_and_a_note_that_tells_nothing_of_it(
    path: Path, keys: Keys, enter: Enter, pairs: Pairs
) -> None:
    item, other = pairs(2, purpose="verification")
    with PreferenceStore(path) as store:
        store.add_checks(
            [VerificationItem(item=item, model="rm", reason="long", favoured=item.responses[0], log_odds=1.5)]
        )
        store.add_items([other])
    ann = enter()
    shown = ann.next()
    assert shown["purpose"] == "verification"
    assert set(shown) == {"id", "ticket", "kind", "purpose", "prompt", "responses", "form", "lease"}
    assert [set(it) for it in shown["responses"]] == [{"text", "length"}] * 2
    assert not re.search(
        r"long|\brm\b|1\.5|favour|reason", json.dumps({**shown, "ticket": "", "length": ""}).replace("length", "")
    )
    first = item.order_for("Ann")[0] == 0
    ann.post("vote", item=shown["id"], answer="second" if first else "first", key="k", seconds=1)
    told = results(ann, keys.owner).json()
    assert (told["progress"]["votes"], told["progress"]["wanted"], told["contests"]) == (1, 2, [])
    (found,) = told["verified"]
    assert (found["model"], found["reason"], found["pairs"], found["votes"]) == ("rm", "long", 1, 1)
    assert found["agreement"][0] == 0.0
    assert found["stated"] == pytest.approx(1 / (1 + math.exp(-1.5)), abs=1e-12)


NONSENSE: list[tuple[str, Mapping[str, Any], str]] = [
    ("vote", {"item": "1", "answer": "first", "key": "k"}, "item: expected a whole number"),
    ("vote", {"item": 10**30, "answer": "first", "key": "k"}, "item: expected a whole number"),
    ("vote", {"item": True, "answer": "first", "key": ["k"]}, "key: expected text"),
    ("vote", {"item": 99, "answer": "first", "key": "k"}, "no such item"),
    ("vote", {"item": 1, "answer": {"a": []}, "key": "k"}, "verdict"),
    ("vote", {"item": 1, "answer": "first", "key": "k" * 201}, "longer than 200"),
    ("vote", {"item": 1, "answer": "first", "key": "k", "seconds": "1"}, "seconds"),
    ("vote", {"item": 1, "answer": "first", "key": "k", "annotator": "Ben"}, "annotator: no such field"),
    ("undo", {"item": -1}, "item: expected a whole number"),
    ("enter", {"annotator": " "}, "name: empty"),
    ("enter", {"annotator": "A\u202enn"}, "characters that nobody can see"),
    ("enter", {"annotator": "n" * 101}, "longer than 100"),
    ("enter", {"annotator": {}}, "name: expected text"),
]


@pytest.mark.parametrize(("what", "fields", "says"), NONSENSE)
def test_nonsense_is_refused_with_words(
    path: Path, enter: Enter, what: str, fields: Mapping[str, Any], says: str, pairs: Pairs, fill: Fill, votes: Votes
) -> None:
    fill(path, *pairs(1))
    ann = enter()
    ann.next()
    refused = ann.post(what, **fields)
    assert refused.status_code == 422, refused.text
    assert says in "; ".join(refused.json()["problems"])
    assert votes(path) == []


def test_a_store_that_cannot_be_written_says_so(
    path: Path, enter: Enter, monkeypatch: pytest.MonkeyPatch, pairs: Pairs, fill: Fill
) -> None:
    import sqlite3

    from rlhf_env.feedback.store import store as preferences

    fill(path, *pairs(1))
    ann = enter()
    full = sqlite3.OperationalError("database or disk is full")

    def fail(*_: Any) -> None:
        raise full

    monkeypatch.setattr(preferences.PreferenceStore, "_annotator", fail)
    refused = ann.post("next")
    assert (refused.status_code, "disk is full" in refused.text) == (503, True)
