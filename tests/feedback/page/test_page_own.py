"""What the page says of one's own judgements, of guidelines and strengths, and what it does not say while judging."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'annotate' is not installed")
from starlette.testclient import TestClient

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.feedback.page.keys import Keys
from rlhf_env.feedback.page.server import GUIDELINES_BYTES, PageConfig, page
from rlhf_env.feedback.store.items import Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

OWN = "http://127.0.0.1:8765"
PERSON = Author("human", "the author's name")
A, B, C = (Response(text, PERSON) for text in "abc")

Enter = Callable[..., Any]
Pairs = Callable[..., list[Item]]
Fill = Callable[..., list[int]]
Votes = Callable[[Path], list[Any]]


def test_a_vote_is_opened_again_and_changed(path: Path, enter: Enter, pairs: Pairs, fill: Fill, votes: Votes) -> None:
    one, two = fill(path, *pairs(2))
    ann, ben = enter("Ann"), enter("Ben")
    ann.next()
    said: dict[str, Any] = {"note": " why ", "flag": True}
    assert ann.post("vote", item=one, answer="first", key="1", seconds=1, **said).status_code == 200
    ann.post("vote", item=two, answer="tie", key="2", seconds=1)
    listed = ann.post("own", before=None).json()
    assert [(it["item"], it["said"], it["note"], it["flag"]) for it in listed["votes"]] == [
        (two, "Equally good", "", False),
        (one, "Response 1 is better", "why", True),
    ]
    assert (listed["more"], ben.post("own").json()["votes"]) == (False, [])
    assert [it["item"] for it in ann.post("own", before=listed["votes"][0]["number"]).json()["votes"]] == [one]
    again = ann.post("open", item=one).json()
    assert again["item"]["id"] == one
    assert again["vote"] == {"answer": "first", "abstain": None, "margin": None, "note": "why", "flag": True}
    assert votes(path)[0].verdict == "first", "looking takes nothing back"
    changed = ann.post("vote", item=one, answer="second", key="3", seconds=1, instead=True)
    assert (changed.json()["new"], [it.verdict for it in votes(path)]) == (True, ["tie", "second"])
    assert ben.post("open", item=one).status_code == 409, "not his to look at"
    stale = ben.post("vote", item=one, ticket=ann.tickets[one], answer="first", key="4", seconds=1, instead=True)
    assert (stale.status_code, len(votes(path))) == (409, 2)


def test_an_earlier_judgement_is_called_by_the_last_words_of_its_conversation(
    path: Path, enter: Enter, fill: Fill
) -> None:
    """Not by "User: ...", and not by what the model's template puts around it."""
    spoken = {"messages": [{"role": "user", "content": "hello"}]}
    chatml = "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n"
    prompts = [Prompt("a", "User: hello\nAssistant:", spoken), Prompt("b", chatml), Prompt("c", "plain")]
    fill(path, *(Item(kind="rating", prompt=prompt, responses=(A,)) for prompt in prompts))
    ann = enter("Ann")
    for key in "123":
        assert ann.post("vote", item=ann.next()["id"], answer=5, key=key, seconds=1).status_code == 200
    assert {vote["prompt"] for vote in ann.post("own").json()["votes"]} == {"hello", "hi there", "plain"}


def test_each_kind_is_opened_as_it_was_judged(path: Path, enter: Enter, fill: Fill) -> None:
    prompt = Prompt("p", "q")
    fill(
        path,
        Item(kind="rating", prompt=prompt, responses=(A,)),
        Item(kind="ranking", prompt=prompt, responses=(A, B, C)),
        Item(kind="criteria", prompt=prompt, responses=(A,), criteria=("kind", "true")),
        Item(kind="rating", prompt=prompt, responses=(B,)),
    )
    ann = enter()
    said: list[tuple[dict[str, Any], str]] = [
        ({"answer": 4}, "good"),
        ({"answer": [2, 1, 1]}, "Best first: response 2 = 3, then 1"),
        ({"answer": {"kind": 5, "true": "cannot say"}}, "kind: very good"),
        ({"answer": None, "abstain": "cannot say"}, "Cannot say"),
    ]
    item = ann.next()
    for place, (vote, _) in enumerate(said):
        answered = item["id"]
        told = ann.post("vote", item=answered, key=str(place), seconds=1, **vote)
        assert told.status_code == 200, told.text
        item = told.json()["item"]
        again = ann.post("open", item=answered).json()["vote"]
        assert (again["answer"], again["abstain"]) == (vote["answer"], vote.get("abstain"))
    assert [it["said"] for it in ann.post("own").json()["votes"]] == [words for _, words in reversed(said)]


@pytest.mark.parametrize(
    ("kind", "count", "instead"),
    [("comparison", 2, []), ("rating", 1, ["n"]), ("ranking", 2, ["b", "n"]), ("ranking", 3, ["b", "n"])],
)
def test_every_kind_may_be_left_open(
    path: Path, enter: Enter, fill: Fill, kind: str, count: int, instead: list[str]
) -> None:
    fill(path, Item(kind=kind, prompt=Prompt("p", "q"), responses=(A, B, C)[:count]))
    form = enter().next()["form"]
    assert [it["key"] for it in form["instead"]] == instead
    own = [it["value"] for one in form["inputs"] for it in one.get("options", ())]
    assert ("cannot say" in own) == (not instead)
    assert (form["comment"], form["flag"]) == (True, True)


def test_a_control_question_looks_like_any_other(path: Path, enter: Enter, pairs: Pairs, fill: Fill) -> None:
    fill(path, *pairs(1))
    with PreferenceStore(path) as store:
        (control,) = store.add_controls([Comparison(Prompt("c", "question 0"), A, B, "first", "file")])
    ann = enter()
    shown = {}
    item = ann.next()
    for number in range(2):
        shown[item["id"]] = {name: item[name] for name in item if name not in ("id", "ticket", "responses", "lease")}
        item = ann.post("vote", item=item["id"], answer="tie", key=str(number), seconds=1).json()["item"]
    assert shown[control] == shown[next(it for it in shown if it != control)]
    assert "control" not in json.dumps(ann.post("open", item=control).json()["item"]["purpose"])


def test_agreement_comes_when_all_is_judged_and_controls_to_the_owner(
    path: Path, keys: Keys, enter: Enter, pairs: Pairs, fill: Fill
) -> None:
    fill(path, *pairs(1, overlap=2))
    with PreferenceStore(path) as store:
        store.add_controls([Comparison(Prompt("c", "known"), A, B, "first", "file")])
    ann, ben = enter("Ann"), enter("Ben")
    for who, name in ((ann, "Ann"), (ben, "Ben")):
        refused = who.client.get("/api/agreement", headers=who.headers)
        assert (refused.status_code, "Judging is blind" in refused.text) == (403, True)
        while (item := who.next()) is not None:
            who.post("vote", item=item["id"], answer="tie", key=f"{name} {item['id']}", seconds=1)
    assert ann.client.get("/api/agreement", headers=ann.headers).json()["agreement"][0]["units"] == 1
    assert ann.post("results", token=None).json()["controls"] == []
    told = ann.post("results", token=keys.owner).json()
    assert [(it["annotator"], it["right"], it["answered"]) for it in told["controls"]] == [("Ann", 0, 1), ("Ben", 0, 1)]


def served(path: Path, keys: Keys, **settings: Any) -> TestClient:
    return TestClient(page(PageConfig(store=path, **settings), keys, port=8765), base_url=OWN)


def entered(client: TestClient, keys: Keys) -> tuple[Mapping[str, Any], dict[str, str]]:
    said = client.post("/api/enter", json={"token": keys.token, "annotator": "Ann"}, headers={"Origin": OWN}).json()
    return said, {"Origin": OWN, "X-CSRF-Token": said["csrf"]}


def test_guidelines_are_shown_to_who_judges_and_a_strength_is_a_margin(
    path: Path, tmp_path: Path, keys: Keys, pairs: Pairs, fill: Fill, votes: Votes
) -> None:
    fill(path, *pairs(1))
    guidelines = tmp_path / "g.md"
    guidelines.write_bytes(b"\xef\xbb\xbf# Read\r\nall\xe2\x80\xae")
    with served(path, keys, guidelines=guidelines, strength=True) as client:
        said, headers = entered(client, keys)
        assert said["guidelines"] == "# Read\nall⟨U+202E⟩"
        item = client.post("/api/next", json={}, headers=headers).json()["item"]
        options = item["form"]["inputs"][0]["options"]
        assert [(it["value"], it["margin"], it["key"]) for it in options] == [
            *(("first", margin, key) for margin, key in ((3.0, "a"), (2.0, "s"), (1.0, "d"))),
            *(("second", margin, key) for margin, key in ((3.0, "j"), (2.0, "k"), (1.0, "l"))),
            *((value, None, key) for value, key in (("tie", "t"), ("both bad", "b"), ("cannot say", "n"))),
        ]
        vote = {"item": item["id"], "ticket": item["ticket"], "answer": "second", "margin": 1.0, "key": "k"}
        assert client.post("/api/vote", json={**vote, "seconds": 1}, headers=headers).status_code == 200
        (listed,) = client.post("/api/own", json={}, headers=headers).json()["votes"]
        assert listed["said"] == "Response 2 is better (slightly)"
    assert [(it.verdict, it.margin) for it in votes(path)] == [("second", 1.0)]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), (b"\xff", "no UTF-8 text"), (b"a" * (GUIDELINES_BYTES + 1), "longer than 200,000 bytes")],
)
def test_guidelines_that_cannot_be_shown(path: Path, tmp_path: Path, keys: Keys, content: Any, says: str) -> None:
    file = tmp_path / "g.md"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        served(path, keys, guidelines=file)


@pytest.mark.parametrize(
    ("what", "fields", "says"),
    [
        ("vote", {"note": "n" * 10_001}, "note: longer than 10,000 characters"),
        ("vote", {"note": 7}, "note: expected text"),
        ("vote", {"flag": "yes"}, "flag: 'yes' is none of"),
        ("vote", {"abstain": "bored"}, "abstain: 'bored' is none of cannot say, all bad"),
        ("vote", {"margin": -1}, "margin: expected a finite number"),
        ("own", {"before": "x"}, "before: expected a whole number"),
        ("open", {"item": None}, "item: expected a whole number"),
    ],
)
def test_nonsense_beside_a_vote_is_refused(
    path: Path, enter: Enter, pairs: Pairs, fill: Fill, votes: Votes, what: str, fields: dict[str, Any], says: str
) -> None:
    fill(path, *pairs(1))
    ann = enter()
    item = ann.next()["id"]
    vote = {"item": item, "answer": "first", "key": "k", "seconds": 1} if what == "vote" else {}
    refused = ann.post(what, **{**vote, **fields})
    assert refused.status_code == 422, refused.text
    assert says in "; ".join(refused.json()["problems"])
    assert votes(path) == []
