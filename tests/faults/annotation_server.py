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
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2 as httpx
from rich.console import Console
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.catalogue import fault

from rlhf_env.feedback.preferences import Author, Item, PreferenceStore, Response
from rlhf_env.types import Prompt

CLIENTS = 4
SERVE = "from rlhf_env.cli import main; main()"
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
            self.pending = {"item": item["id"], "answer": "first", "key": key, "seconds": 1}
            said = client.post("/api/vote", json=self.pending, headers=headers)


def serve(store: Path, port: int) -> tuple[subprocess.Popen[str], str, str]:
    """The command itself: its process, its address and its token."""
    command = [sys.executable, "-c", SERVE, "annotate", "--store", str(store), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    found = re.fullmatch(r"Open (http://[\d.]+:\d+)/#token=([\w-]{43})\n", process.stdout.readline())
    assert found
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
        process.communicate()
    for thread in threads:
        thread.join()


def run(folder: Path, *, rounds: int, votes: int, seed: int = 0) -> tuple[str, bool]:
    """The line to print, and whether all is well."""
    store = folder / "prefs.sqlite"
    texts = (Response("a", Author("human", "x")), Response("b", Author("human", "x")))
    count = rounds * (votes + 60) // CLIENTS + 10  # votes go on while the server is being killed
    with PreferenceStore(store) as opened:
        opened.add_items(
            Item(kind="comparison", prompt=Prompt(f"p{i}", f"question {i}"), responses=texts, overlap=CLIENTS)
            for i in range(count)
        )
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


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=40, help="how often the server is killed (40)")
    options.add_argument("--votes", type=int, default=75, help="acknowledged votes in a round, at least (75)")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        said, well = run(Path(folder), rounds=given.rounds, votes=given.votes)
    print(said)
    sys.exit(not well)
