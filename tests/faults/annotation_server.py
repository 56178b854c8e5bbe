"""The annotation server killed with -9 among votes, again and again: what it acknowledged is in the store, once.

    make faults-annotation                                          # 40 rounds, at least 3,000 votes
    python tests/faults/annotation_server.py --rounds 2 --votes 25

Four clients vote as fast as they can. Once the server has acknowledged (HTTP 200) `votes` more of them it is killed, at
a random moment, and started again. The clients go on in their sessions and send the vote that had no answer once more
with its key, as the page does. After every round each acknowledged vote must be in the store, none twice, at most one
unacknowledged vote of each client, and SQLite must find the file sound. One line says what came out; the exit status is
1 when anything was lost, doubled or damaged.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.catalogue import fault
from faults.processes import Running, rlhf_env, started

from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.store.items import Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

CLIENTS = 4
PERSON = Author("human", "x")
Vote = tuple[str, int]  # annotator, item


@dataclass
class Client:
    """One annotator's browser: it keeps its session, and the vote that the server has not answered yet."""

    name: str
    acknowledged: list[Vote] = field(default_factory=list)
    resent: int = 0
    entered: int = 0
    pending: dict[str, Any] | None = None
    cookies: dict[str, str] = field(default_factory=dict)

    def annotate(self, address: str, token: str) -> None:
        """Until nothing is left to judge, or the server is gone."""
        try:
            with httpx.Client(base_url=address, headers={"Origin": address}, cookies=self.cookies) as client:
                self._annotate(client, token)
        except httpx.TransportError:
            return

    def _annotate(self, client: httpx.Client, token: str) -> None:
        if not (csrf := client.get("/api/session").json()["csrf"]):
            csrf = client.post("/api/enter", json={"token": token, "annotator": self.name}).json()["csrf"]
            self.cookies.update(client.cookies)
            self.entered += 1
        headers = {"X-CSRF-Token": csrf}
        if self.pending:
            self.resent += 1
            said = client.post("/api/vote", json=self.pending, headers=headers)
        else:
            said = client.post("/api/next", json={}, headers=headers)
        while True:
            if said.status_code not in (200, 409):  # 409: its lease had run out
                raise AssertionError(f"{said.status_code}: {said.text}")
            if self.pending and said.status_code == 200:
                self.acknowledged.append((self.name, self.pending["item"]))
            item = said.json()["item"] if said.status_code == 200 else None
            self.pending = None
            if item is None:
                return
            key = f"{self.name} {item['id']}"
            about = {"item": item["id"], "ticket": item["ticket"]}
            self.pending = {**about, "answer": "first", "key": key, "seconds": 1}
            said = client.post("/api/vote", json=self.pending, headers=headers)


def prepare() -> None:
    """What the servers' processes are forked with."""
    importlib.import_module("rlhf_env.feedback.page.server")


def serve(store: Path, port: int = 0, *settings: str) -> tuple[Running, str, str]:
    """The command itself: its process, its address and its token."""
    process = started("annotate", "--store", str(store), "--port", str(port), *settings)
    deadline = time.monotonic() + 60
    while not (found := re.search(r"Open (http://[\d.]+:\d+)/#token=([\w-]{43})\n", process.said())):
        assert time.monotonic() < deadline, process.said()
        time.sleep(0.002)
    return process, found[1], found[2]


def kill_among_votes(clients: list[Client], store: Path, port: int, votes: int, moment: float) -> None:
    """One round: the server lives until `votes` more are acknowledged, and `moment` seconds longer."""
    process, address, token = serve(store, port)
    try:
        target = sum(len(client.acknowledged) for client in clients) + votes
        threads = [threading.Thread(target=client.annotate, args=(address, token)) for client in clients]
        for thread in threads:
            thread.start()
        while sum(len(client.acknowledged) for client in clients) < target:
            assert any(thread.is_alive() for thread in threads), "the clients have stopped: too few items?"
            threads[0].join(0.002)
        time.sleep(moment)
    finally:
        process.kill()
        process.wait()
    for thread in threads:
        thread.join()


def filled(store: Path, count: int, overlap: int) -> None:
    """Make a store with so many pairs of an answer "a ..." and one "b ...", each to be judged by `overlap` people."""
    texts = [(Response(f"a {i}", PERSON), Response(f"b {i}", PERSON)) for i in range(count)]
    with PreferenceStore(store) as opened:
        opened.add_items(
            Item(kind="comparison", prompt=Prompt(f"p{i}", f"question {i}"), responses=both, overlap=overlap)
            for i, both in enumerate(texts)
        )


def run(folder: Path, *, rounds: int, votes: int, seed: int = 0) -> tuple[str, bool]:
    """The line to print, and whether all is well."""
    store = folder / "prefs.sqlite"
    # votes go on while the server is being killed
    filled(store, rounds * (votes + 60) // CLIENTS + 10, CLIENTS)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    clients = [Client(f"person {number}") for number in range(CLIENTS)]
    moments, start = random.Random(seed), time.monotonic()
    lost: set[Vote] = set()
    twice = unanswered = sound = 0
    for _ in track(range(rounds), "Killing", console=Console(stderr=True), transient=True):
        kill_among_votes(clients, store, port, votes, moments.uniform(0.0, 0.05))
        with PreferenceStore(store) as opened:
            kept = Counter((it.annotator, item) for item, it in opened.votes())
            sound += opened._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        acknowledged = {vote for client in clients for vote in client.acknowledged}
        lost |= acknowledged - kept.keys()
        twice += sum(number > 1 for number in kept.values())
        more = len(kept.keys() - acknowledged)
        unanswered += more
        assert more <= CLIENTS, f"{more} votes that nobody was told of: a client has one at most on its way"
    told = sum(len(client.acknowledged) for client in clients)
    assert all(client.entered == 1 for client in clients), "a session did not outlive the server"
    line = (
        f"{rounds} rounds, {told:,} acknowledged votes: {len(lost)} lost, {twice} twice; integrity_check ok {sound} of "
        f"{rounds}; {sum(client.resent for client in clients)} votes sent again, {unanswered} of them had been kept; "
        f"{time.monotonic() - start:.0f} s"
    )
    return line, not lost and not twice and sound == rounds


@fault("F36", "the annotation server killed with -9 among votes, 8 times")
def killed_among_votes(folder: Path) -> str:
    said, well = run(folder, rounds=8, votes=40)
    assert well, said
    return said


# ---------------------------------------------------------------- one by one


@contextmanager
def page(store: Path, *settings: str) -> Iterator[tuple[str, str]]:
    """The server, until it is killed: its address and token."""
    process, *links = serve(store, 0, *settings)
    try:
        yield links[0], links[1]
    finally:
        process.kill()
        process.wait()


@contextmanager
def entered(address: str, token: str, name: str) -> Iterator[httpx.Client]:
    """A browser in which `name` has opened the link."""
    with httpx.Client(base_url=address, headers={"Origin": address}, timeout=30) as client:
        said = client.post("/api/enter", json={"token": token, "annotator": name}).json()
        client.headers["X-CSRF-Token"] = said["csrf"]
        yield client


def together(work: Sequence[Callable[[], object]]) -> None:
    """All at once, each in a thread."""
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@fault("F37", "a double click, a retry after a time-out, a replay with another answer or key: one vote, the first")
def sent_again(folder: Path) -> str:
    store = folder / "prefs.sqlite"
    filled(store, 20, 1)
    with page(store) as (address, token), entered(address, token, "ann") as ann:
        late, said = 0, list[int]()
        for _ in range(20):
            item = ann.post("/api/next", json={}).json()["item"]
            about = {"item": item["id"], "ticket": item["ticket"]}
            vote = {**about, "answer": "first", "key": f"key {item['id']}", "seconds": 1}

            def click(vote: dict[str, Any] = vote) -> None:
                said.append(ann.post("/api/vote", json=vote).status_code)

            try:
                ann.post("/api/vote", json=vote, timeout=httpx.Timeout(30, read=0.001))
            except httpx.TimeoutException:
                late += 1
            together([click, click])
            for change in ({"answer": "second"}, {"key": "another"}, {"answer": "tie", "key": "a third"}):
                click(vote | change)
    assert said == [200] * 100, Counter(said)
    assert late, "every answer came at once"
    with PreferenceStore(store) as opened:
        kept = {it.prompt.id: it.preference for it in opened.comparisons()}
        items = [item for _, item in opened.items()]
        assert opened.progress().votes == len(kept) == 20
    for item in items:
        preference, first = kept[item.prompt.id], item.responses[item.order_for("ann")[0]]
        assert preference is not None and preference.chosen.text == first.text, "not the first answer was kept"
    return f"20 votes sent 6 times each, {late} of them without waiting for the answer: 20 kept"


@fault(
    "F38", "8 annotators at once, 3 votes a pair, and a ninth who takes a pair and leaves: 3 votes from 3 people each"
)
def all_at_once(folder: Path) -> str:
    store = folder / "prefs.sqlite"
    filled(store, 24, 3)
    clients = [Client(f"person {number}") for number in range(8)]
    with page(store, "--lease", "0.05") as (address, token):
        with entered(address, token, "somebody who leaves") as ninth:
            assert ninth.post("/api/next", json={}).json()["item"] is not None
        deadline = time.monotonic() + 120

        def annotate(client: Client) -> None:
            while sum(len(it.acknowledged) for it in clients) < 72 and time.monotonic() < deadline:
                client.annotate(address, token)
                time.sleep(0.1)  # nothing is free: a lease has to run out

        together([lambda client=client: annotate(client) for client in clients])
    with PreferenceStore(store) as opened:
        votes = Counter((it.annotator, it.prompt.id) for it in opened.comparisons())
    assert set(votes.values()) == {1}
    each = Counter(prompt for _, prompt in votes)
    assert each == {f"p{i}": 3 for i in range(24)}, each
    return f"24 of 24 pairs, {len({who for who, _ in votes})} people"


@fault(
    "F40", "80 pairs shown to 3 people each: the order is a fair coin's, outlives the server, and the export undoes it"
)
def order_shown(folder: Path) -> str:
    store = folder / "prefs.sqlite"
    filled(store, 80, 3)
    first: Counter[str] = Counter()
    for name in ("ann", "bob", "cid"):
        shown = []
        for _ in range(2):  # the server is killed in between
            with page(store) as (address, token), entered(address, token, name) as person:
                shown.append(person.post("/api/next", json={}).json()["item"])
        assert shown[0]["responses"] == shown[1]["responses"], "another order after a restart"
        with page(store) as (address, token), entered(address, token, name) as person:
            item = shown[0]
            while item is not None:
                letter = item["responses"][0]["text"][0]
                first[letter] += 1
                answer = "first" if letter == "a" else "second"
                about = {"item": item["id"], "ticket": item["ticket"]}
                vote = {**about, "answer": answer, "key": f"{name} {item['id']}", "seconds": 1}
                item = person.post("/api/vote", json=vote).json()["item"]
    assert first.total() == 240 and abs(first["a"] - 120) < 4 * (240 / 4) ** 0.5, first
    exported = rlhf_env("preferences", "export", str(store), str(folder / "pairs.jsonl"), "--format", "trl")
    assert exported.status == 0, exported
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(pairs) == 240 and {(it["chosen"][0], it["rejected"][0]) for it in pairs} == {("a", "b")}
    return f"the same answer stood first {first['a']} times of 240"


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=40, help="how often the server is killed (40)")
    options.add_argument("--votes", type=int, default=75, help="acknowledged votes in a round, at least (75)")
    given = options.parse_args()
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        said, well = run(Path(folder), rounds=given.rounds, votes=given.votes)
    print(said)
    sys.exit(not well)
