"""A server that scores, and fails in the middle of a run: gone, late, broken, or answering what is no answer.

What may pass is asked for again, so often and so long; what will not pass ends the run at the first such answer. Either
way it ends with exit 3 and one line, a checkpoint of the last update, and not one score that the server has not given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.catalogue import fault
from faults.resume_matrix import timeless
from faults.reward_server import (
    Answer,
    Asked,
    Server,
    announce,
    drip,
    endless,
    hang_up,
    not_a_number,
    say,
    scores,
    serving,
    stop_in_the_middle,
)
from faults.rewards import rows, stops, train

BEFORE = [scores, scores]  # of the evaluation before training, and of the first update


def settings(server: Server, *, attempts: int = 3, patience: float = 5.0, deadline: float = 20.0) -> str:
    """Of the reward. The URL has what no message may show."""
    url = server.url.replace("http://", "http://user:canary@") + "?key=canary"
    return f'plugin = "http"\nurl = "{url}"\nattempts = {attempts}\npatience = {patience}\ndeadline = {deadline}'


def quickly() -> None:
    """In the process of the run: the pauses between attempts are short."""
    from rlhf_env import web_calls

    web_calls._FIRST_PAUSE = 0.01


def ended_by(folder: Path, server: Server, answer: Answer, *said: str, asked: int, **limits: Any) -> None:
    """The second update meets `answer`, again and again, and ends the run after so many requests."""
    server.answers, server.seen = [*BEFORE, answer], []
    line = stops(folder, settings(server, **limits), server.url, *said, updates=1, prepare=quickly)
    assert "canary" not in line, line
    assert len(server.seen) == len(BEFORE) + asked, f"it was asked {len(server.seen)} times"


def _passes(answer: Answer) -> Callable[[Path], object]:
    def inject(folder: Path) -> None:
        left = []
        with serving() as server:
            for place, answers in (("untouched", [scores]), ("harmed", [*BEFORE, answer, scores])):
                (folder / place).mkdir()
                server.answers, server.seen = answers, []
                ended, run = train(folder / place, settings(server, patience=0.5), prepare=quickly)
                assert ended.status == 0, ended
                left.append([timeless(row) for row in rows(run)])
        assert left[0] == left[1], "scores that the server has not given"
        assert len(server.seen) == 6, f"it is asked 5 times, once again here, and was {len(server.seen)} times"

    return inject


for what, answer in (
    ("500, then 200", say(500)),
    ("hung up on, then 200", hang_up),
    ("half an answer, then 200", stop_in_the_middle),
):
    fault("HTTP", f"{what}: asked again, and the run is as if nothing had been")(_passes(answer))


@fault("HTTP", "refused: asked again, so often, then exit 3; the run goes on when the server is back")
def refused(folder: Path) -> None:
    def close(asked: Asked) -> None:
        asked.server.socket.close()
        hang_up(asked)

    with serving() as server:
        port, server.answers = server.server_address[1], [*BEFORE, close]

        def prepare() -> None:
            server.socket.close()  # a copy of it came along
            quickly()

        said = "ConnectionRefusedError", "asked 3 times"
        stops(folder, settings(server), server.url, *said, updates=1, prepare=prepare)
    with serving(port) as server:
        server.answers = [scores]
        ended, run = train(folder, settings(server), "--resume")
    assert ended.status == 0 and len(rows(run)) == 3, ended


def _bounded(answer: Answer) -> Callable[[Path], object]:
    def inject(folder: Path) -> None:
        with serving() as server:
            for place, limits, said, asked in (
                ("count", {"patience": 0.2}, "asked 3 times", 3),
                ("clock", {"attempts": 1000, "deadline": 0.4}, "asked once", 1),
            ):
                (folder / place).mkdir()
                began = time.monotonic()
                ended_by(folder / place, server, answer, "within 0.", said, asked=asked, **limits)
                assert time.monotonic() - began < 30.0

    return inject


fault("HTTP", "no answer: given up by count and by clock, exit 3")(_bounded(lambda _: time.sleep(1.0)))
fault("HTTP", "a byte now and then: given up by count and by clock, exit 3")(_bounded(drip))


def _ends(answer: Answer, *said: str) -> Callable[[Path], object]:
    def inject(folder: Path) -> None:
        with serving() as server:
            ended_by(folder, server, answer, *said, asked=1)

    return inject


for what, answer, said in (
    ("401", say(401), "401 Unauthorized"),
    ("404", say(404), "404 Not Found"),
    ("malformed JSON", say(200, b'{"scores": [0.5'), "the answer is not JSON"),
    ("a missing key", say(200, b'{"score": [0.5]}'), 'no list "scores"'),
    ("the wrong length", say(200, b'{"scores": [0.5]}'), "1 scores for "),
    ("NaN", not_a_number, "NaN is not a score"),
    ("100 MB, announced", announce, "the answer has 104,857,600 bytes"),
    ("100 MB, not announced", endless, "the answer has more than"),
):
    fault("HTTP", f"{what}: exit 3 at the first answer")(_ends(answer, said))
