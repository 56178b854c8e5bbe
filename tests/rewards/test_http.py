"""Scores from a server: what may pass is asked again, what will not is an error at once, and nothing is made up."""

from __future__ import annotations

import base64
import json
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rlhf_rewards.http import Http

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.reward_server import Answer, Asked, Server, announce, drip, hang_up, say, serving, stop_in_the_middle

from rlhf_env import web_calls
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.testing import make_episode

BATCH = [make_episode("q1", "a"), make_episode("q2\ud800", "b é")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(web_calls, "_FIRST_PAUSE", 0.004)
    with serving() as one:
        yield one


def test_prompts_and_responses_go_out_and_scores_come_back(server: Server) -> None:
    scores = Http(server.url + "?model=x")(BATCH)
    assert scores.dtype == np.float64 and scores.tolist() == [0.5, -2.0]
    ((path, headers, body),) = server.seen
    assert path == "/score?model=x" and headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers
    assert json.loads(body) == {"prompts": ["q1", "q2\ud800"], "responses": ["a", "b é"]}
    assert Http(server.url)([]).tolist() == [] and len(server.seen) == 1


@pytest.mark.parametrize(
    "first",
    [say(500), say(503), say(429), hang_up, stop_in_the_middle, drip],
    ids=["500", "503", "429", "hung up", "half an answer", "drip"],
)
def test_what_may_pass_is_asked_again(server: Server, first: Answer) -> None:
    server.answers = [first, say(200)]
    assert Http(server.url, patience=1.0)(BATCH).tolist() == [0.5, -2.0]
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (say(500), "500 Internal Server Error; asked 3 times"),
        (drip, r"no answer within 0\.5 s; asked 3 times"),
        (lambda _: time.sleep(1.0), r"no answer within 0\.5 s; asked 3 times"),
    ],
    ids=["500", "drip", "silence"],
)
def test_but_only_so_often(server: Server, answer: Answer, says: str) -> None:
    server.answers = [answer]
    with pytest.raises(RewardError, match=says):
        Http(server.url, attempts=3, patience=0.5)(BATCH)
    assert len(server.seen) == 3


def test_and_only_for_so_long(server: Server) -> None:
    server.answers = [drip]
    began = time.monotonic()
    with pytest.raises(RewardError, match=r"asked (once|2 times)"):
        Http(server.url, attempts=1000, patience=0.2, deadline=0.3)(BATCH)
    assert time.monotonic() - began < 60 and len(server.seen) <= 3


def test_nobody_there_is_asked_again_and_then_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(
        RewardError, match=rf"POST http://127\.0\.0\.1:{port}/: ConnectionRefusedError: .* asked 2 times"
    ):
        Http(f"http://127.0.0.1:{port}/", attempts=2, jitter=_Still())(BATCH)  # type: ignore[arg-type]


class _Still:
    """A generator that draws no pause."""

    def uniform(self, _low: float, _high: float) -> float:
        return 0.0


def test_pauses_are_drawn_from_the_generator_and_double(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [say(500)]
    slept: list[float] = []
    monkeypatch.setattr(web_calls._Call, "pause", lambda _, seconds: slept.append(seconds))
    for _ in range(2):
        with pytest.raises(RewardError):
            Http(server.url, attempts=4, seed=3)(BATCH)
    stream = np.random.default_rng(3)
    expected = [float(stream.uniform(most / 2, most)) for most in (0.004, 0.008, 0.016)]
    assert slept == expected * 2


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (say(401), "401 Unauthorized"),
        (say(404), "404 Not Found"),
        (say(302, Location="http://127.0.0.1:1/"), "302 Found: redirects are not followed"),
        (say(204, b""), "204 No Content"),
        (say(200, b"{scores"), "the answer is not JSON"),
        (say(200, b"[" * 100_000), "the answer is not JSON"),
        (say(200, b"\xff\xfe\xff"), "the answer is not JSON"),
        (say(200, b"[0.5, 1.0]"), 'has no list "scores"'),
        (say(200, b'{"score": [0.5, 1.0]}'), 'has no list "scores"'),
        (say(200, b'{"scores": {"0": 1}}'), 'has no list "scores"'),
        (say(200, b'{"scores": [0.5]}'), "1 scores for 2 texts"),
        (say(200, b'{"scores": [0.5, NaN]}'), "NaN is not a score"),
        (say(200, b'{"scores": [0.5, Infinity]}'), "Infinity is not a score"),
        (say(200, b'{"scores": [0.5, 1e999]}'), "score 1 is not finite"),
        (say(200, b'{"scores": [0.5, 1' + b"0" * 400 + b"]}"), "score 1 is not finite"),
        (say(200, b'{"scores": [0.5, "1"]}'), 'score 1 is "1", not a number'),
        (say(200, b'{"scores": [null, 1]}'), "score 0 is null, not a number"),
        (say(200, b'{"scores": [true, 1]}'), "score 0 is true, not a number"),
        (say(200, b"", **{"Content-Length": str(100 << 20)}), "."),
    ],
)
def test_what_will_not_pass_is_an_error_at_the_first_answer(server: Server, answer: Answer, says: str) -> None:
    server.answers = [answer, say(200)]
    with pytest.raises(RewardError, match=says):
        Http(server.url)(BATCH)
    assert len(server.seen) == 1


def test_a_hundred_megabytes_are_refused_before_they_are_read(server: Server) -> None:
    server.answers = [announce]
    with pytest.raises(RewardError, match="the answer has 104,857,600 bytes; 1,048,704 are enough for 2 scores"):
        Http(server.url)(BATCH)
    assert len(server.seen) == 1


def test_a_hundred_megabytes_that_nobody_announced_are_not_read_to_their_end(server: Server) -> None:
    """S17. What was sent and not read lies in the sockets' buffers."""
    sent = []

    def endless(asked: Asked) -> None:
        asked.send_response(200)
        asked.end_headers()
        for _ in range(100):
            asked.wfile.write(b" " * 2**20)
            sent.append(2**20)

    server.answers = [endless, say(200)]
    with pytest.raises(RewardError, match="the answer has more than 1,048,704 bytes, which are enough for 2 scores"):
        Http(server.url)(BATCH)
    assert len(server.seen) == 1 and 0 < sum(sent) < 50 * 2**20


def test_who_asks_is_told_by_token_or_password_and_no_message_holds_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "canary-token")
    Http(server.url, token_env="JUDGE_TOKEN")(BATCH)
    assert server.seen[-1][1]["Authorization"] == "Bearer canary-token"
    secret = server.url.replace("http://", "http://user:canary%21@") + "?key=canary#canary"
    Http(secret)(BATCH)
    assert server.seen[-1][1]["Authorization"] == "Basic " + base64.b64encode(b"user:canary!").decode()
    server.answers = [say(401)]
    mix = load_rewards({"judge": {"plugin": "http", "url": secret}}, Count("a", 4))
    with pytest.raises(RewardError) as caught:
        mix.score(BATCH)
    assert str(caught.value) == f"reward 'judge': POST {server.url}: 401 Unauthorized"
    assert "canary" not in f"{caught.value} {mix.parts['judge']!r}"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": "judge.example.org/score"}, "url must be http://HOST/PATH"),
        ({"url": "ftp://judge.example.org/"}, "url must be http://HOST/PATH"),
        ({"url": "http:///score"}, "url must be http://HOST/PATH"),
        ({"url": "http://host:port/"}, "url must be http://HOST/PATH"),
        ({"url": "http://host/a b"}, "url must have spaces"),
        ({"url": "http://host/", "attempts": 0}, "attempts must be at least 1, got 0"),
        ({"url": "http://host/", "connections": 0}, "connections must be at least 1, got 0"),
        ({"url": "http://host/", "patience": 0.0}, "patience must be above 0"),
        ({"url": "http://host/", "deadline": float("inf")}, "deadline must be a finite number, got inf"),
        (
            {"url": "http://host/", "token_env": "NO_SUCH_TOKEN"},
            "token_env names no environment variable with a token in it, got NO_SUCH_TOKEN",
        ),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"reward 'judge': {says}"):
        load_rewards({"judge": {"plugin": "http", **settings}}, Count("a", 4))


def test_a_token_that_no_header_can_hold_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for token, says in {"canary\nX: 1": "a line break in it", "canaryé": "letters beyond ASCII in it"}.items():
        monkeypatch.setenv("JUDGE_TOKEN", token)
        with pytest.raises(ConfigError, match=says) as caught:
            Http("https://judge.example.org/", token_env="JUDGE_TOKEN")
        assert "canary" not in str(caught.value)


def test_what_a_server_says_beside_a_refusal_is_said_without_the_token(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "canary-token")
    for said in ({"error": {"message": "no such\nkey: canary-token"}}, {"detail": "no such key: canary-token"}):
        server.answers = [say(401, json.dumps(said).encode())]
        with pytest.raises(RewardError, match=r"401 Unauthorized: no such key: \*\*\*$"):
            Http(server.url, token_env="JUDGE_TOKEN")(BATCH)


def test_it_waits_as_long_as_the_server_says(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(web_calls._Call, "pause", lambda _, seconds: slept.append(seconds))
    monkeypatch.setattr(web_calls.time, "time", lambda: 784_111_770.0)
    date = {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"}  # RFC 9110's own example: 784,111,777
    server.answers = [say(429, **{"Retry-After": "3"}), say(503, **date), say(503, **{"Retry-After": "soon"}), say(200)]
    assert Http(server.url)(BATCH).tolist() == [0.5, -2.0]
    assert slept[:2] == [3.0, 7.0] and 0 < slept[2] < 0.1


def test_but_not_longer_than_the_deadline(server: Server) -> None:
    server.answers = [say(429, **{"Retry-After": "3600"})]
    with pytest.raises(RewardError, match=r"asked once, in at most 60 s; it says to wait 3600 s"):
        Http(server.url)(BATCH)
    assert len(server.seen) == 1
