"""The page's server: who may look, what it says, and how the command ends."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'annotate' is not installed")
from starlette.testclient import TestClient

from rlhf_env.errors import ConfigError
from rlhf_env.lab.watching import page
from rlhf_env.lab.watching.page import serve_watch, view_of, watch_page
from rlhf_env.local_page import server as local_page

sys.path.insert(0, str(Path(__file__).parents[2]))
from faults.processes import started

OWN = "http://127.0.0.1:8766"
TOKEN = "a token"


class Looker:
    """A browser's side of the conversation."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def post(self, what: str, *, origin: str = OWN, **fields: Any) -> Any:
        headers = {"Origin": origin, "Content-Type": "application/json"}
        return self.client.post(f"/api/{what}", content=json.dumps(fields), headers=headers)

    def run(self, **fields: Any) -> Any:
        said = self.post("run", **{"sections": ["main", "parts"], **fields})
        assert said.status_code == 200, said.text
        return said.json()


@pytest.fixture
def looker(seen: Path) -> Iterator[Looker]:
    with TestClient(watch_page(view_of(seen), TOKEN, port=8766), base_url=OWN) as client:
        yield Looker(client)


def test_only_whoever_has_the_link_may_look(looker: Looker) -> None:
    for what in ("run", "texts", "grid"):
        assert looker.post(what).status_code == 401
    assert looker.post("enter", token="another").status_code == 401
    assert looker.post("enter", token=None).status_code == 401
    entered = looker.post("enter", token=TOKEN)
    assert entered.json() == {"kind": "run"}
    assert "HttpOnly" in entered.headers["set-cookie"] and "SameSite=strict" in entered.headers["set-cookie"]
    assert looker.post("run").status_code == 200
    assert looker.post("run", origin="http://evil.example").status_code == 403
    assert looker.client.get("/", headers={"Host": "evil.example:8766"}).status_code == 421
    assert looker.client.get("/api/run").status_code == 405
    assert looker.client.put("/", content=b"").status_code == 405


def test_every_answer_has_the_headers_and_no_path_is_a_file(looker: Looker) -> None:
    asked = [looker.client.get(path) for path in (*page._STATIC, "/base.css", "/elements.js", "/nothing")]
    assert [it.status_code for it in asked] == [200] * (len(page._STATIC) + 2) + [404]
    for said in [*asked, looker.post("run")]:
        assert {name: said.headers[name] for name in local_page.HEADERS} == local_page.HEADERS
    for name in ("/../page.py", "/%2e%2e/page.py", "/static/run.js", "/texts.jsonl", "/metrics.jsonl"):
        assert looker.client.get(name).status_code == 404


def test_static_files_load_nothing_of_others_and_write_no_html() -> None:
    folder = Path(str(page.__file__)).parent / "static"
    assert {it.name for it in folder.iterdir()} == {name for name, _ in page._STATIC.values()}
    for file in [*folder.iterdir(), *(Path(str(local_page.__file__)).parent / "static").iterdir()]:
        text = file.read_text(encoding="utf-8")
        for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http:", "https:"):
            assert forbidden not in text, f"{file.name}: {forbidden}"
        assert "<style" not in text and "style=" not in text and "onclick=" not in text


def test_a_run_is_told_once_and_then_what_is_new(looker: Looker, seen: Path) -> None:
    looker.post("enter", token=TOKEN)
    said = looker.run()
    assert said["about"]["name"] == "seen" and said["left"] == 0
    assert {panel["section"] for panel in said["panels"]} == {"main", "parts"}
    assert said["texts"]["count"] == 40
    again = looker.run(have=said["version"])
    assert again["same"] and "panels" not in again
    with (seen / "metrics.jsonl").open("a") as stream:
        stream.write('{"update": 13, "rollout/reward": 5}\n')
    new = looker.run(have=said["version"], sections=["main"])
    assert new["about"]["update"] == 13 and {panel["section"] for panel in new["panels"]} == {"main"}
    (reward,) = [panel for panel in new["panels"] if panel["title"] == "Reward, all parts"]
    assert reward["lines"][0]["last"] == 5
    assert looker.run(sections="main")["panels"] == looker.run(sections=None)["panels"] == []


def test_what_cannot_be_asked_is_said(looker: Looker) -> None:
    looker.post("enter", token=TOKEN)
    assert looker.post("texts", sort=["x"]).status_code == 422
    said = looker.post("texts", path="/etc/passwd")
    assert (said.status_code, said.json()) == (422, {"problems": ["path: no such field"]})
    assert looker.post("texts", sort="no such", search="a").status_code == 200


def test_a_number_that_no_browser_reads_is_null() -> None:
    said = local_page.Json({"a": [math.nan, {"b": -math.inf}], "c": (1.5, "x\ud800")})
    assert said.body == b'{"a":[null,{"b":null}],"c":[1.5,"x\\ud800"]}'


def test_texts_of_a_cell_of_a_grid(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "benchmark.toml").write_text('seeds = 1\n[agents.ppo]\n[experiment]\ntask = { name = "echo" }\n')
    shutil.copytree(trained, tmp_path / "cells/echo/ppo/seed-0")
    with TestClient(watch_page(view_of(tmp_path), TOKEN, port=8766), base_url=OWN) as client:
        looker = Looker(client)
        assert looker.post("enter", token=TOKEN).json() == {"kind": "grid"}
        assert [it["status"] for it in looker.post("grid").json()["cells"]] == ["stopped"]
        assert looker.run(cell="echo/ppo/0")["about"]["update"] == 12
        assert looker.post("texts", cell="echo/ppo/0").json()["total"] == 40
        assert looker.post("run", cell="echo/ppo/1").json()["problems"] == ["this grid has no cell 'echo/ppo/1'"]
        assert looker.post("run").status_code == 422


def test_a_folder_that_is_neither_is_one_line(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, said in {
        tmp_path / "nothing": "there is no such folder",
        tmp_path / "file": "is a file",
        tmp_path: "is neither a run nor a grid",
    }.items():
        with pytest.raises(ConfigError, match=said):
            serve_watch(path)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match="Address already in use; choose another"),
    ):
        serve_watch(trained, port=taken.getsockname()[1])


def test_ctrl_c_ends_the_page_and_touches_nothing(trained: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in trained.rglob("*")}
    for number, status in ((signal.SIGINT, 0), (signal.SIGTERM, 143)):
        running = started("watch", str(trained), "--port", "0")
        while "Open http://127.0.0.1:" not in running.said():
            assert running.complained() == ""
            time.sleep(0.01)
        address = running.said().split()[1].partition("/#")[0]
        while True:  # until it serves
            with contextlib.suppress(OSError), urllib.request.urlopen(address) as said:
                assert said.status == 200
                break
        running.kill(number)
        ended = running.wait()
        assert ended.status == status
        assert ("The page is closed" in ended.stdout) == (number == signal.SIGINT)
        assert ended.stderr == ("" if number == signal.SIGINT else "rlhf-env: stopped\n")
    assert {file: file.stat().st_mtime_ns for file in trained.rglob("*")} == before
