"""A browser's side of the conversation with the annotation page, and a store to have it about."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.store.items import Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

if TYPE_CHECKING:  # the extra 'annotate' may be missing
    import httpx2 as httpx
    from starlette.testclient import TestClient

    from rlhf_env.feedback.page.keys import Keys

OWN = "http://127.0.0.1:8765"
PERSON = Author("human", "the author's name")


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
        self.tickets: dict[object, str] = {}  # of the items that were put before this annotator
        introduced = self.post("enter", token=token, annotator=name)
        assert introduced.status_code == 200, introduced.text
        self.headers["X-CSRF-Token"] = introduced.json()["csrf"]

    def post(self, what: str, **fields: Any) -> httpx.Response:
        headers = {**self.headers, "Content-Type": "application/json"}
        if what == "vote":
            item = fields.get("item")
            fields.setdefault("ticket", self.tickets.get(item, "none") if isinstance(item, int) else "none")
        said = self.client.post(f"/api/{what}", content=json.dumps(fields), headers=headers)  # ASCII, as browsers do
        if said.status_code == 200 and said.json().get("item"):
            self.tickets[said.json()["item"]["id"]] = said.json()["item"]["ticket"]
        return said

    def next(self) -> Any:
        return self.post("next").json()["item"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prefs.sqlite"


@pytest.fixture
def keys(path: Path) -> Keys:
    from rlhf_env.feedback.page.keys import Keys

    return Keys.of(path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def enter(path: Path, keys: Keys, clock: Clock) -> Iterator[Callable[..., Annotator]]:
    """`enter("Ann")`: somebody with a session of her own."""
    from starlette.testclient import TestClient

    from rlhf_env.feedback.page.server import PageConfig, page

    with TestClient(page(PageConfig(store=path), keys, port=8765, clock=clock), base_url=OWN) as client:

        def as_annotator(name: str = "Ann") -> Annotator:
            client.cookies.clear()
            entered = Annotator(client, keys.token, name)
            entered.headers["Cookie"] = f"{keys.cookie}={client.cookies[keys.cookie]}"
            client.cookies.clear()
            return entered

        yield as_annotator


@pytest.fixture
def pairs() -> Callable[..., list[Item]]:
    """`pairs(4, overlap=2)`: items to compare."""

    def make(count: int, **settings: Any) -> list[Item]:
        texts = (Response("a", PERSON), Response("b", PERSON))
        return [
            Item(kind="comparison", prompt=Prompt(f"p{i}", f"question {i}"), responses=texts, **settings)
            for i in range(count)
        ]

    return make


@pytest.fixture
def fill() -> Callable[..., list[int]]:
    """`fill(path, *items)`: their ids in the store."""

    def add(path: Path, *items: Item) -> list[int]:
        with PreferenceStore(path) as store:
            return store.add_items(items)

    return add


@pytest.fixture
def votes() -> Callable[[Path], list[Any]]:
    """`votes(path)`: the judgements in the store."""

    def read(path: Path) -> list[Any]:
        with PreferenceStore(path) as store:
            return list(store.judgements())

    return read


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Callable[..., contextlib.AbstractContextManager[str]]:
    """`with serving(path, lease=0.5) as address`: what `rlhf-env annotate` serves, on a free port, in a thread."""
    import uvicorn

    from rlhf_env.feedback.page import server
    from rlhf_env.feedback.page.keys import Keys
    from rlhf_env.feedback.page.server import PageConfig

    @contextlib.contextmanager
    def served(path: Path, **settings: Any) -> Iterator[str]:
        servers: list[uvicorn.Server] = []
        links: list[str] = []
        announced = threading.Event()
        serve = uvicorn.Server.serve

        def kept(it: uvicorn.Server, **arguments: Any) -> Coroutine[Any, Any, None]:
            servers.append(it)
            return serve(it, **arguments)

        monkeypatch.setattr(uvicorn.Server, "serve", kept)
        config = PageConfig(store=path, **settings)

        def announce(*both: str) -> None:
            links.extend(both)
            announced.set()

        thread = threading.Thread(target=server.serve, args=(config, announce))
        thread.start()
        assert announced.wait(300)
        judge, results = links
        assert judge.partition("/#token=")[2] == Keys.of(path).token
        assert results.partition("/results#token=")[2] == Keys.of(path).owner
        try:
            yield judge.partition("/#")[0]
        finally:
            servers[0].should_exit = True
            thread.join()

    return served
