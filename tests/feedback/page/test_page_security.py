"""What other web pages, networks and texts cannot do to the annotation page."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'annotate' is not installed")
import httpx2 as httpx
from starlette.testclient import TestClient

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.page import server
from rlhf_env.feedback.page.keys import Keys
from rlhf_env.feedback.page.server import PageConfig, page
from rlhf_env.feedback.store.items import Criterion, Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.local_page import server as local_page
from rlhf_env.types import Prompt

OWN = "http://127.0.0.1:8765"
PERSON = Author("human", "the author's name")
STATIC = Path(str(server.__file__)).parent / "static"

Enter = Callable[..., Any]
Pairs = Callable[..., list[Item]]
Fill = Callable[..., list[int]]
Votes = Callable[[Path], list[Any]]


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


def test_what_others_wrote_is_data(path: Path, enter: Enter, fill: Fill, votes: Votes) -> None:
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
        form = item["form"]
        assert (form["question"], form["guidelines"]) == (f"How good is this response by “{text}”?", text)
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


def test_unseen_characters_are_written_out(path: Path, enter: Enter, fill: Fill) -> None:
    """S9. And half a surrogate pair, which a tokenizer may leave behind, does not break the answer."""
    half = Response("\ud800\x1b[2J", PERSON)
    fill(path, Item(kind="criteria", prompt=Prompt("p", "a\u202eb\u200b"), responses=(half,), criteria=("\ud800",)))
    ann = enter()
    item = ann.next()
    assert item["prompt"]["text"] == "a⟨U+202E⟩b⟨U+200B⟩"
    assert item["responses"][0]["text"] == "⟨U+D800⟩⟨U+001B⟩[2J"
    (asked,) = item["form"]["inputs"]
    assert (asked["name"], asked["label"]) == ("\ud800", "⟨U+D800⟩")
    assert ann.post("vote", item=item["id"], answer={"\ud800": 3}, key="k", seconds=1).status_code == 200


@pytest.mark.parametrize(
    "origin", [None, "null", "", "http://evil.example", "https://127.0.0.1:8765", "http://127.0.0.1:8766", OWN + "/"]
)
def test_a_foreign_page_cannot_vote(
    path: Path, enter: Enter, origin: str | None, pairs: Pairs, fill: Fill, votes: Votes
) -> None:
    """S10: neither by Origin, nor without the session's token although the cookie came along."""
    (one,) = fill(path, *pairs(1))
    ann = enter()
    foreign = {name: value for name, value in ann.headers.items() if name != "Origin"}
    foreign |= {} if origin is None else {"Origin": origin}
    vote = {"item": one, "answer": "first", "key": "k"}
    assert ann.client.post("/api/vote", json=vote, headers=foreign).status_code == 403
    assert votes(path) == []


def test_a_vote_needs_the_token_of_its_own_session(
    path: Path, enter: Enter, pairs: Pairs, fill: Fill, votes: Votes
) -> None:
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
        with pytest.raises(ConfigError, match="say --remote if they may"):
            PageConfig(store=path, host=host)
    with pytest.raises(ConfigError, match="names must say how the page is reached"):
        PageConfig(store=path, host="0.0.0.0", remote=True)
    remote = PageConfig(store=path, host="0.0.0.0", remote=True, names=("Box.example",))
    assert remote.known_as == ("box.example",)
    assert PageConfig(store=path, host="192.168.1.5", remote=True).known_as == ("192.168.1.5",)


def test_nobody_enters_without_the_token(path: Path, keys: Keys, enter: Enter, pairs: Pairs, fill: Fill) -> None:
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
    path: Path, keys: Keys, enter: Enter, monkeypatch: pytest.MonkeyPatch, pairs: Pairs, fill: Fill
) -> None:
    """S13: hmac.compare_digest decides about both links, a session and its token, and nothing beside it does."""
    fill(path, *pairs(1))
    ann = enter()
    item = ann.next()["id"]
    ann.post("vote", item=item, answer="tie", key="k", seconds=1)  # all is judged: agreement is open
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
def test_sql_is_text_like_any_other(
    path: Path, enter: Enter, text: str, pairs: Pairs, fill: Fill, votes: Votes
) -> None:
    """S14: as name, key, answer and item."""
    (one,) = fill(path, *pairs(1))
    ann = enter(text)
    assert ann.next()["id"] == one
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


def test_caps(path: Path, enter: Enter, monkeypatch: pytest.MonkeyPatch, fill: Fill) -> None:
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
    monkeypatch.setattr(local_page, "REQUESTS_PER_WINDOW", 5)
    monkeypatch.setattr(local_page, "WINDOW_SECONDS", 1e9)
    assert [ann.client.get("/").status_code for _ in range(8)] == [200] * 5 + [429] * 3
    forged = {"X-Forwarded-For": "192.0.2.7", "Forwarded": "for=192.0.2.7", "X-Real-IP": "192.0.2.7"}
    assert ann.client.get("/", headers=forged).status_code == 429, "who is connected counts, not who they say they are"
    other = TestClient(ann.client.app, base_url=OWN, client=("192.0.2.7", 5000))
    assert other.get("/").status_code == 200
