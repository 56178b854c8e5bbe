"""The annotation page's server: what each request does, and what other web pages, networks and texts cannot do."""

from __future__ import annotations

import contextlib
import hmac
import json
import math
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'annotate' is not installed")
import httpx2 as httpx
import uvicorn
from starlette.testclient import TestClient

from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.asking.tournament import blind_pairs
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.page import server
from rlhf_env.feedback.page.server import Keys, PageConfig, page
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.feedback.store.items import Criterion, Item, VerificationItem
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

OWN = "http://127.0.0.1:8765"
PERSON = Author("human", "the author's name")
STATIC = Path(str(server.__file__)).parent / "static"
Enter = Callable[..., "Annotator"]


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


class Annotator:
    """A browser's side of the conversation."""

    def __init__(self, client: TestClient, token: str, name: str) -> None:
        self.client = client
        self.headers = {"Origin": OWN}
        introduced = self.post("enter", token=token, annotator=name)
        assert introduced.status_code == 200, introduced.text
        self.headers["X-CSRF-Token"] = introduced.json()["csrf"]

    def post(self, what: str, **fields: Any) -> httpx.Response:
        headers = {**self.headers, "Content-Type": "application/json"}
        return self.client.post(f"/api/{what}", content=json.dumps(fields), headers=headers)  # ASCII, as browsers do

    def next(self) -> Any:
        return self.post("next").json()["item"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prefs.sqlite"


@pytest.fixture
def keys(path: Path) -> Keys:
    return Keys.of(path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def enter(path: Path, keys: Keys, clock: Clock) -> Iterator[Enter]:
    with TestClient(page(PageConfig(store=path), keys, port=8765, clock=clock), base_url=OWN) as client:

        def as_annotator(name: str = "Ann") -> Annotator:
            client.cookies.clear()
            entered = Annotator(client, keys.token, name)
            entered.headers["Cookie"] = f"{keys.cookie}={client.cookies[keys.cookie]}"
            client.cookies.clear()
            return entered

        yield as_annotator


def pairs(count: int, **settings: Any) -> list[Item]:
    texts = (Response("a", PERSON), Response("b", PERSON))
    return [
        Item(kind="comparison", prompt=Prompt(f"p{i}", f"question {i}"), responses=texts, **settings)
        for i in range(count)
    ]


def fill(path: Path, *items: Item) -> list[int]:
    with PreferenceStore(path) as store:
        return store.add_items(items)


def votes(path: Path) -> list[Any]:
    with PreferenceStore(path) as store:
        return list(store.judgements())


# -------------------------------------------------------------------- judging


def test_each_kind_from_request_to_judgement(path: Path, enter: Enter) -> None:
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
    assert shown[1]["criteria"] == [{"name": "kind", "label": "kind", "guidelines": "Would you say this to a friend?"}]
    assert [it["name"] for it in shown[3]["criteria"]] == ["kind", "true"]
    assert "the author's name" not in str(shown), "judging is blind"


def test_a_retried_vote_is_one_and_undo_takes_it_back(path: Path, enter: Enter) -> None:
    one, two = fill(path, *pairs(2))
    ann = enter()
    for new, answer, key in ((True, "first", "k"), (False, "first", "k"), (False, "second", "other")):
        said = ann.post("vote", item=two, answer=answer, key=key, seconds=1).json()
        assert (said["new"], said["item"]["id"]) == (new, one)
    assert [it.verdict for it in votes(path)] == ["first"]
    for _ in range(2):
        back = ann.post("undo", item=two).json()
        assert (back["undone"], back["item"]["id"]) == (two, two), "the item taken back, not the one held besides"
    assert votes(path) == []
    assert ann.post("undo", item=None).json()["undone"] is None


def test_a_lost_lease_is_a_conflict(path: Path, enter: Enter, clock: Clock) -> None:
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


def test_agreement_of_what_was_judged(path: Path, enter: Enter) -> None:
    ids = fill(path, *pairs(4, overlap=2))
    for name, last in (("Ann", "tie"), ("Ben", "cannot say")):
        annotator = enter(name)
        for item in ids:
            annotator.post("vote", item=item, answer="tie" if item != ids[-1] else last, key=f"{name}{item}", seconds=3)
    (found,) = annotator.client.get("/api/agreement", headers=annotator.headers).json()["agreement"]
    assert (found["judgements"], found["annotators"], found["units"]) == (8, 2, 3)
    assert found["agreement"] == [1.0, 1.0, 1.0]
    assert found["alpha"] is None, "one value only: chance alone would agree as well"
    assert found["seconds"] == [3.0, 3.0, 3.0]


def results(annotator: Annotator, token: str | None = None) -> httpx.Response:
    return annotator.post("results", token=token)


def test_results_are_for_the_owner_until_everything_is_judged(path: Path, keys: Keys, enter: Enter) -> None:
    """Whoever has something left to judge, and whoever knows only how to judge, learns nothing of who wrote what."""

    def answers(who: str) -> list[tuple[Prompt, Response]]:
        author = Author("policy", f"<b>{who}\u202e")
        return [(Prompt(f"{who} {i}", f"q{i}"), Response(f"{who} {i}", author)) for i in range(3)]

    asked = [*blind_pairs([answers("x"), answers("y")]).items, *pairs(1)]
    ids = fill(path, *asked)
    ann, ben = enter("Ann"), enter("Ben")
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


def test_results_of_a_reward_model_and_a_note_that_tells_nothing_of_it(path: Path, keys: Keys, enter: Enter) -> None:
    item, other = pairs(2, purpose="verification")
    with PreferenceStore(path) as store:
        store.add_checks(
            [VerificationItem(item=item, model="rm", reason="long", favoured=item.responses[0], log_odds=1.5)]
        )
        store.add_items([other])
    ann = enter()
    shown = ann.next()
    assert shown["purpose"] == "verification"
    assert set(shown) == {"id", "kind", "purpose", "prompt", "responses", "criteria", "lease"}
    assert [set(it) for it in shown["responses"]] == [{"text", "length"}] * 2
    assert not re.search(r"long|rm|1\.5|favour|reason", json.dumps({**shown, "length": ""}).replace("length", ""))
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
    path: Path, enter: Enter, what: str, fields: Mapping[str, Any], says: str
) -> None:
    fill(path, *pairs(1))
    refused = enter().post(what, **fields)
    assert refused.status_code == 422, refused.text
    assert says in "; ".join(refused.json()["problems"])
    assert votes(path) == []


def test_a_store_that_cannot_be_written_says_so(path: Path, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
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


# -------------------------------------------------------------------- what others cannot do

PAYLOADS = [
    "<script>alert(1)</script>",
    "<ScRiPt>alert(1)</sCrIpT>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<body onload=alert(1)>",
    "<iframe src=javascript:alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<a href='javascript:alert(1)'>x</a>",
    "<details open ontoggle=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "<video><source onerror=alert(1)></video>",
    "<math><mtext></table><mglyph><style><img src=x onerror=alert(1)>",
    "<template><script>alert(1)</script></template>",
    "<style>*{background:url(//evil.example)}</style>",
    "<link rel=stylesheet href=//evil.example>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example>",
    "<form action=//evil.example><button>x</button></form>",
    "<object data=//evil.example></object>",
    "<embed src=//evil.example>",
    '"><script>alert(1)</script>',
    "'-alert(1)-'",
    "${alert(1)}",
    "{{constructor.constructor('alert(1)')()}}",
    "<!--><script>alert(1)</script>-->",
    "]]><script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "javascript:alert(1)",
]


def test_what_others_wrote_is_data(path: Path, enter: Enter) -> None:
    """S8: each payload as prompt, response, criterion, guidelines and name leaves as JSON, never as HTML."""
    assert len(set(PAYLOADS)) == 30
    items = [
        Item(kind="rating", prompt=Prompt(f"p{i}", text), responses=(Response(text, PERSON),), criterion=text)
        for i, text in enumerate(PAYLOADS)
    ]
    fill(path, *items)
    with PreferenceStore(path) as store:
        for text in PAYLOADS:
            store.set_criterion(Criterion(text, text))
    ann = enter()
    for text in PAYLOADS:
        said = ann.post("next")
        item = said.json()["item"]
        assert (item["prompt"]["text"], item["responses"][0]["text"]) == (text, text)
        assert item["criteria"] == [{"name": text, "label": text, "guidelines": text}]
        assert said.headers["content-type"] == "application/json"
        ann.post("vote", item=item["id"], answer=3, key=text, seconds=1)
        named = ann.post("enter", token=None, annotator=text)
        assert (named.json()["annotator"], named.headers["content-type"]) == (text, "application/json")
    assert len(votes(path)) == 30


def test_the_page_makes_text_nodes_only_and_loads_nothing() -> None:
    """S8, S16: no sink that reads HTML, nothing inline, no address but its own."""
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|setHTML"
        assert not re.search(sinks + r"|createContextualFragment|\bsrcdoc\b|https?:|//\w+\.|@import|url\(", text), file
    for name in ("index.html", "results.html"):
        html = (STATIC / name).read_text(encoding="utf-8")
        assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*src=\"/)", html)
    assert {it.name for it in STATIC.iterdir()} == {name for name, _ in server._STATIC.values()}
    assert all(not path.endswith(".html") for path in server._STATIC)


def test_every_answer_carries_the_headers(enter: Enter) -> None:
    client = enter().client
    for response in (
        client.get("/"),
        client.get("/page.js"),
        client.get("/nothing"),
        client.put("/"),
        client.post("/api/vote"),
        client.get("/", headers={"Host": "evil.example"}),
    ):
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'" in policy
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in response.headers


def test_unseen_characters_are_written_out(path: Path, enter: Enter) -> None:
    """S9. And half a surrogate pair, which a tokenizer may leave behind, does not break the answer."""
    half = Response("\ud800\x1b[2J", PERSON)
    fill(path, Item(kind="criteria", prompt=Prompt("p", "a\u202eb\u200b"), responses=(half,), criteria=("\ud800",)))
    ann = enter()
    item = ann.next()
    assert item["prompt"]["text"] == "a⟨U+202E⟩b⟨U+200B⟩"
    assert item["responses"][0]["text"] == "⟨U+D800⟩⟨U+001B⟩[2J"
    assert item["criteria"] == [{"name": "\ud800", "label": "⟨U+D800⟩", "guidelines": ""}]
    assert ann.post("vote", item=item["id"], answer={"\ud800": 3}, key="k", seconds=1).status_code == 200


@pytest.mark.parametrize(
    "origin", [None, "null", "", "http://evil.example", "https://127.0.0.1:8765", "http://127.0.0.1:8766", OWN + "/"]
)
def test_a_foreign_page_cannot_vote(path: Path, enter: Enter, origin: str | None) -> None:
    """S10: neither by Origin, nor without the session's token although the cookie came along."""
    (one,) = fill(path, *pairs(1))
    ann = enter()
    foreign = {name: value for name, value in ann.headers.items() if name != "Origin"}
    foreign |= {} if origin is None else {"Origin": origin}
    vote = {"item": one, "answer": "first", "key": "k"}
    assert ann.client.post("/api/vote", json=vote, headers=foreign).status_code == 403
    assert votes(path) == []


def test_a_vote_needs_the_token_of_its_own_session(path: Path, enter: Enter) -> None:
    """S10."""
    (one,) = fill(path, *pairs(1))
    ann, ben = enter("Ann"), enter("Ben")
    for csrf in ("", "x", ben.headers["X-CSRF-Token"], "\u00e4".encode("latin-1")):
        headers = {**ann.headers, "X-CSRF-Token": csrf}
        refused = ann.client.post("/api/vote", json={"item": one, "answer": "first", "key": "k"}, headers=headers)
        assert refused.status_code == 403
    form = ann.client.post("/api/vote", data={"item": "1"}, headers=ann.headers)
    assert form.status_code == 415, "what a form could send without asking first"
    assert votes(path) == []


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1", "127.0.0.1:80", "localhost.:8765", ""]
)
def test_dns_rebinding_ends_at_the_host(enter: Enter, host: str) -> None:
    """S11: for pages and data alike, GET too."""
    ann = enter()
    for path in ("/", "/api/session"):
        assert ann.client.get(path, headers={**ann.headers, "Host": host}).status_code == 421
    assert ann.client.get("/", headers={"Host": "LOCALHOST:8765"}).status_code == 200


def test_where_it_listens(path: Path) -> None:
    """S12."""
    assert PageConfig(store=path).known_as == ("127.0.0.1", "localhost", "[::1]")
    assert PageConfig(store=path, host="::1").known_as[0] == "[::1]"
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.org", ""):
        with pytest.raises(DataError, match="say --remote if they may"):
            PageConfig(store=path, host=host)
    with pytest.raises(DataError, match="is no name to reach the page by"):
        PageConfig(store=path, host="0.0.0.0", remote=True)
    remote = PageConfig(store=path, host="0.0.0.0", remote=True, names=("Box.example",))
    assert remote.known_as == ("box.example",)
    assert PageConfig(store=path, host="192.168.1.5", remote=True).known_as == ("192.168.1.5",)


def test_nobody_enters_without_the_token(path: Path, keys: Keys, enter: Enter) -> None:
    """S12, S13: not remote, not local; and a session cannot be made up."""
    (one,) = fill(path, *pairs(1))
    ann = enter()
    own = {"Origin": OWN}
    for token in (None, "", keys.token[:-1], keys.token + "x", keys.owner, "é", 7):
        refused = ann.client.post("/api/enter", json={"token": token, "annotator": "Eve"}, headers=own)
        assert refused.status_code == 401
    session = ann.headers["Cookie"].partition("=")[2]
    value, _, signature = session.partition(".")
    for forged in ("", "x", value, f"{value}.", f"{value[:-2]}.{signature}", f"{value}.{keys.token}"):
        headers = {**ann.headers, "Cookie": f"{keys.cookie}={forged}"}
        assert ann.client.post("/api/next", json={}, headers=headers).status_code == 401
        assert ann.client.get("/api/agreement", headers=headers).status_code == 401
        assert ann.client.get("/api/session", headers=headers).json() == {"annotator": None, "csrf": None}
    assert ann.next()["id"] == one


def test_the_cookie_and_the_secret(path: Path, keys: Keys) -> None:
    """S13: HttpOnly, SameSite=Strict; random per store, read by its owner only, the same after a restart."""
    with TestClient(page(PageConfig(store=path), keys, port=8765), base_url=OWN) as client:
        said = client.post("/api/enter", json={"token": keys.token, "annotator": "Ann"}, headers={"Origin": OWN})
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(said.headers["set-cookie"].split("; "))
    assert keys.token not in said.text + said.headers["set-cookie"]
    secret = path.with_name("prefs.sqlite.key")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert Keys.of(path) == keys != Keys.of(path.with_name("other"))
    secret.chmod(0o640)
    with pytest.raises(DataError, match="only you can read"):
        Keys.of(path)
    secret.chmod(0o600)
    secret.write_bytes(b"short")
    with pytest.raises(DataError, match="delete it"):
        Keys.of(path)


def test_keys_are_compared_in_a_time_that_tells_nothing(
    path: Path, keys: Keys, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S13: hmac.compare_digest decides about both links, a session and its token, and nothing beside it does."""
    fill(path, *pairs(1))
    ann = enter()
    cookie, _, signature = ann.headers["Cookie"].rpartition(".")
    send, own = ann.client.request, {"Origin": OWN}
    compares: dict[str, Callable[[str], httpx.Response]] = {
        keys.token: lambda key: send("POST", "/api/enter", json={"token": key, "annotator": "Ann"}, headers=own),
        keys.owner: lambda key: send("POST", "/api/results", json={"token": key}, headers=own),
        signature: lambda key: send("GET", "/api/agreement", headers={"Cookie": f"{cookie}.{key}"}),
        ann.headers["X-CSRF-Token"]: lambda key: send(
            "POST", "/api/next", json={}, headers={**ann.headers, "X-CSRF-Token": key}
        ),
    }
    usual = hmac.compare_digest
    for expected, ask in compares.items():
        for answer in (True, False):
            monkeypatch.setattr(
                hmac,
                "compare_digest",
                lambda a, b, it=expected, says=answer: says if b == it.encode() else usual(a, b),
            )
            assert [ask(given).status_code == 200 for given in (expected, "x")] == [answer, answer]


INJECTIONS = ["'; DROP TABLE judgements; --", '" OR 1=1 --', "x') UNION SELECT * FROM responses --", "%' OR '1'='1"]


@pytest.mark.parametrize("text", INJECTIONS)
def test_sql_is_text_like_any_other(path: Path, enter: Enter, text: str) -> None:
    """S14: as name, key, answer and item."""
    (one,) = fill(path, *pairs(1))
    ann = enter(text)
    assert ann.post("vote", item=text, answer="first", key=text).status_code == 422
    assert ann.post("vote", item=one, answer=text, key=text).status_code == 422
    assert ann.post("vote", item=one, answer="first", key=text).status_code == 200
    assert [it.annotator for it in votes(path)] == [text]


def test_no_path_becomes_a_file(path: Path, enter: Enter) -> None:
    """S15."""
    client = enter().client
    for name in ("../server.py", "%2e%2e/server.py", "..%2fserver.py", "%252e%252e%252fserver.py", "..\\server.py"):
        assert client.get(f"/{name}").status_code == 404
    for name in ("/index.html", "//etc/passwd", "/static/page.js", f"/{path}", "/prefs.sqlite.key"):
        assert client.get(OWN + name).status_code == 404


def test_caps(path: Path, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """S17: length and depth of a body, length of a text, requests per address."""
    fill(path, Item(kind="rating", prompt=Prompt("p", "x" * 50_001), responses=(Response("y" * 50_000, PERSON),)))
    ann = enter()
    json_headers = {**ann.headers, "Content-Type": "application/json"}
    assert ann.client.post("/api/next", content=b" " * 65_537, headers=json_headers).status_code == 413
    pieces = (b" " * 1000 for _ in range(100))
    assert ann.client.post("/api/next", content=pieces, headers=json_headers).status_code == 413, "no length said"
    for body in (b"[" * 60_000, b"{", b"[]", b"\xff", b"1" * 6000):
        assert ann.client.post("/api/next", content=body, headers=json_headers).status_code == 422
    item = ann.next()
    assert (item["prompt"]["length"], len(item["prompt"]["text"])) == (50_001, 50_000)
    assert (item["responses"][0]["length"], len(item["responses"][0]["text"])) == (None, 50_000)
    monkeypatch.setattr(server, "REQUESTS_PER_WINDOW", 5)
    monkeypatch.setattr(server, "WINDOW_SECONDS", 1e9)
    assert [ann.client.get("/").status_code for _ in range(8)] == [200] * 5 + [429] * 3
    forged = {"X-Forwarded-For": "192.0.2.7", "Forwarded": "for=192.0.2.7", "X-Real-IP": "192.0.2.7"}
    assert ann.client.get("/", headers=forged).status_code == 429, "who is connected counts, not who they say they are"
    other = TestClient(ann.client.app, base_url=OWN, client=("192.0.2.7", 5000))
    assert other.get("/").status_code == 200


FAULTS = Path(__file__).parents[2] / "faults" / "annotation_server.py"


def test_killed_among_votes_every_acknowledged_one_is_there_once() -> None:
    """F36, small: the whole of it is `make faults-annotation`."""
    command = [sys.executable, str(FAULTS), "--rounds", "2", "--votes", "25"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert re.fullmatch(
        r"2 rounds, \d+ acknowledged votes: 0 lost, 0 twice; integrity_check ok 2 of 2; .*\n", done.stdout
    ), done.stderr
    assert done.returncode == 0


@contextlib.contextmanager
def served(monkeypatch: pytest.MonkeyPatch, path: Path, **settings: Any) -> Iterator[str]:
    """What `rlhf-env annotate` serves, on a free port, in a thread: its address."""
    servers: list[uvicorn.Server] = []
    links: list[str] = []
    ready = threading.Event()
    run = uvicorn.Server.run

    def kept(it: uvicorn.Server, **arguments: Any) -> None:
        servers.append(it)
        ready.set()
        run(it, **arguments)

    monkeypatch.setattr(uvicorn.Server, "run", kept)
    config = PageConfig(store=path, **settings)
    thread = threading.Thread(target=server.serve, args=(config, lambda *both: links.extend(both)))
    thread.start()
    assert ready.wait(30)
    judge, results = links
    assert judge.partition("/#token=")[2] == Keys.of(path).token
    assert results.partition("/results#token=")[2] == Keys.of(path).owner
    try:
        yield judge.partition("/#")[0]
    finally:
        servers[0].should_exit = True
        thread.join()


def test_eight_annotators_at_once_give_every_pair_its_votes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F38, through the server: 3 votes from 3 people on each of 16 pairs, although two people leave in between.

    What the two hold, and never judge, is free for others when the lease is over.
    """
    names = fill(path, *pairs(16, overlap=3))
    everybody = threading.Barrier(8)
    with served(monkeypatch, path, lease=0.5) as address:

        def annotate(number: int) -> None:
            with httpx.Client(base_url=address, headers={"Origin": address}) as client:
                entered = {"token": Keys.of(path).token, "annotator": f"person {number}"}
                client.headers["X-CSRF-Token"] = client.post("/api/enter", json=entered).json()["csrf"]
                said = client.post("/api/next", json={})
                everybody.wait()  # all eight hold one
                while number > 1 and said.json()["progress"]["votes"] < 48:
                    if (item := said.json()["item"]) is None:
                        time.sleep(0.05)  # others hold what is left
                    else:
                        vote = {"item": item["id"], "answer": "tie", "key": f"{number} {item['id']}", "seconds": 1}
                        assert client.post("/api/vote", json=vote).status_code in (200, 409)
                    said = client.post("/api/next", json={})

        with ThreadPoolExecutor(8) as people:
            list(people.map(annotate, range(8)))
    with PreferenceStore(path) as store:
        given = [(item, it.annotator) for item, it in store.votes()]
    assert len(set(given)) == len(given) == 48
    assert Counter(item for item, _ in given) == dict.fromkeys(names, 3)


def test_a_slow_request_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S17: heads, bodies, and bodies that nobody reads, a byte at a time; who is quick may stay."""
    fill(path)
    monkeypatch.setattr(server, "REQUEST_SECONDS", 1.0)
    with served(monkeypatch, path) as address:
        host = address.removeprefix("http://")

        def trickled(first: str) -> tuple[float, bytes]:
            """Seconds until the server ends it, and what it said: `first` at once, then a byte now and then."""
            begin, heard = time.monotonic(), b""
            with socket.create_connection(("127.0.0.1", int(host.partition(":")[2]))) as connection:
                connection.settimeout(0.05)
                connection.sendall(first.encode())
                while time.monotonic() - begin < 30:
                    try:
                        connection.sendall(b"x")
                        if not (got := connection.recv(65536)):
                            break
                        heard += got
                    except TimeoutError:
                        continue  # nothing was said
                    except OSError:
                        break
            return time.monotonic() - begin, heard

        body = f"Host: {host}\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n"
        cases = {
            "": b"",
            f"GET / HTTP/1.1\r\nHost: {host}\r\nX: ": b"",
            f"POST /api/enter HTTP/1.1\r\n{body}Origin: {address}\r\n\r\n{{": b"",
            f"POST /api/enter HTTP/1.1\r\n{body}Origin: http://evil.example\r\n\r\n{{": b"HTTP/1.1 403",
            f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\nGET / HTTP/1.1\r\nX: ": b"HTTP/1.1 200",
        }
        with ThreadPoolExecutor(len(cases)) as slow:
            for (first, expected), (took, heard) in zip(cases.items(), slow.map(trickled, cases), strict=True):
                assert 0.9 < took < 25, first
                assert heard[: len(expected)] == expected and (expected or not heard), heard
        port = int(host.partition(":")[2])
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(server.CONNECTIONS)]
        end = time.monotonic() + 30
        while httpx.get(address).status_code != 200:  # 503 at first, until those who say nothing are gone
            assert time.monotonic() < end
            time.sleep(0.1)
        for one in crowd:
            one.close()
        try:
            status = httpx.get(address, headers={"X": "x" * 200_000}).status_code
        except httpx.TransportError:
            status = 400  # it was cut off before all of it was sent
        assert status == 400, "a head without end is not read to its end"
        with httpx.Client(base_url=address) as quick:
            assert [quick.get("/").status_code for _ in range(3) if not time.sleep(0.4)] == [200] * 3


def test_a_port_in_use_is_one_line(path: Path) -> None:
    fill(path)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="Address already in use; choose another"),
    ):
        server.serve(PageConfig(store=path, port=taken.getsockname()[1]))


def test_a_store_that_is_not_there_is_not_made(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rlhf-env", "annotate", "--store", str(path)])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "there is no such file" in capsys.readouterr().err
    assert list(path.parent.iterdir()) == []
