"""The annotation page's server: killed, crowded, slow, and where it cannot listen."""

from __future__ import annotations

import gc
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'annotate' is not installed")
import httpx2 as httpx

from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError
from rlhf_env.feedback.page import server
from rlhf_env.feedback.page.keys import Keys
from rlhf_env.feedback.page.server import PageConfig
from rlhf_env.feedback.store.items import Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.local_page import server as local_page

Pairs = Callable[..., list[Item]]
Fill = Callable[..., list[int]]
Serving = Callable[..., AbstractContextManager[str]]


FAULTS = Path(__file__).parents[2] / "faults" / "annotation_server.py"


def test_killed_among_votes_every_acknowledged_one_is_there_once() -> None:
    """F36, small: the whole of it is `make faults-annotation`."""
    command = [sys.executable, str(FAULTS), "--rounds", "2", "--votes", "25"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert re.fullmatch(
        r"2 rounds, \d+ acknowledged votes: 0 lost, 0 twice; integrity_check ok 2 of 2; .*\n", done.stdout
    ), done.stderr
    assert done.returncode == 0


def test_stopped_before_it_serves_nothing_is_said_of_what_never_began(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after the address was printed and before the server runs."""

    def interrupted(*_arguments: object, **_settings: object) -> None:
        raise KeyboardInterrupt

    PreferenceStore(path).close()
    monkeypatch.setattr("asyncio.Runner.run", interrupted)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt):
            server.serve(PageConfig(store=path, host="127.0.0.1", port=0), lambda *_links: None)
        gc.collect()
    assert [str(warning.message) for warning in said if "never awaited" in str(warning.message)] == []


def test_eight_annotators_at_once_give_every_pair_its_votes(
    path: Path, pairs: Pairs, fill: Fill, serving: Serving
) -> None:
    """F38, through the server: 3 votes from 3 people on each of 16 pairs, although two people leave in between.

    What the two hold, and never judge, is free for others when the lease is over.
    """
    names = fill(path, *pairs(16, overlap=3))
    everybody = threading.Barrier(8)
    with serving(path, lease=0.5) as address:

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
                        about = {"item": item["id"], "ticket": item["ticket"]}
                        vote = {**about, "answer": "tie", "key": f"{number} {item['id']}", "seconds": 1}
                        assert client.post("/api/vote", json=vote).status_code in (200, 409)
                    said = client.post("/api/next", json={})

        with ThreadPoolExecutor(8) as people:
            list(people.map(annotate, range(8)))
    with PreferenceStore(path) as store:
        given = [(item, it.annotator) for item, it in store.votes()]
    assert len(set(given)) == len(given) == 48
    assert Counter(item for item, _ in given) == dict.fromkeys(names, 3)


def test_a_slow_request_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch, fill: Fill, serving: Serving) -> None:
    """S17: heads, bodies, and bodies that nobody reads, a byte at a time; who is quick may stay."""
    fill(path)
    monkeypatch.setattr(local_page, "REQUEST_SECONDS", 2.0)
    with serving(path) as address:
        host = address.removeprefix("http://")

        def trickled(first: str) -> tuple[float, bytes]:
            """Seconds until the server ends it, and what it said: `first` at once, then a byte now and then."""
            begin, heard = time.monotonic(), b""
            with socket.create_connection(("127.0.0.1", int(host.partition(":")[2]))) as connection:
                connection.settimeout(0.05)
                connection.sendall(first.encode())
                while time.monotonic() - begin < 300:
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
                assert 1.9 < took < 250, first
                assert heard[: len(expected)] == expected and (expected or not heard), heard
        port = int(host.partition(":")[2])
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(local_page.CONNECTIONS)]
        end = time.monotonic() + 300
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


def test_a_port_in_use_is_one_line(path: Path, fill: Fill) -> None:
    fill(path)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="Address already in use; choose another"),
    ):
        server.serve(PageConfig(store=path, port=taken.getsockname()[1]))


def test_an_address_that_nobody_has_is_said(path: Path, monkeypatch: pytest.MonkeyPatch, fill: Fill) -> None:
    fill(path)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_server", unknown)
    with pytest.raises(ConfigError, match=r"host 256\.0\.0\.1: this machine knows no such address \(Name or"):
        server.serve(PageConfig(store=path, host="256.0.0.1", remote=True))


def test_a_store_that_is_not_there_is_not_made(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rlhf-env", "annotate", "--store", str(path)])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "there is no such file" in capsys.readouterr().err
    assert list(path.parent.iterdir()) == []
