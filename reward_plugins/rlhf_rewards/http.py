"""Scores from a server: it gets `POST {"prompts": [...], "responses": [...]}` and answers `{"scores": [...]}`.

Temporary failures are tried again, `attempts` times in all and within `deadline` seconds: a connection that is refused
or broken, an answer that does not come in time, a status of 5xx or 429. Permanent failures are errors at once: any
other status, redirects (which are not followed), and an answer that is not one finite number per text. No score is
invented: the caller gets the server's scores or a RewardError.

judge = {plugin = "http", url = "https://example.org/score", token_env = "JUDGE_TOKEN"}

During a rollout, the server scores finished texts while the others are still being written. That needs texts that end
in different steps: `action_length = 16`, for example, but not whole responses, which all end in the same step.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import ssl
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import field
from functools import cached_property
from typing import Any

import numpy as np

from rlhf_env.errors import Problem, RewardError
from rlhf_env.settings import AtLeastOne, Positive, fault, settings
from rlhf_env.types import Episode, Float

_LONGEST_ANSWER = 1 << 20  # bytes, plus this many for each text:
_BYTES_A_SCORE = 64
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0  # seconds


class _Temporary(Exception):
    """A failure after which the request is tried again."""


class _Call:
    """One call of the reward; another thread may end it."""

    def __init__(self) -> None:
        self.connection: Any = None
        self.over = threading.Event()

    def hang_up(self) -> None:
        self.over.set()
        self.cut()

    def cut(self) -> None:
        """Close the connection. A server that sends byte by byte never exceeds the timeout of a single read."""
        with suppress(OSError):
            if self.connection is not None and self.connection.sock is not None:
                self.connection.sock.shutdown(socket.SHUT_RDWR)

    def pause(self, seconds: float) -> None:
        self.over.wait(seconds)


@settings(kw_only=False, frozen=False, eq=False)
class Http:
    """Scores from a server; no other address than `url` is contacted."""

    url: str
    """http:// or https://. A user name and password in it are sent as basic authentication. Messages leave them out,
    and what follows a "?"; the run folder's experiment.toml does not."""
    token_env: str = ""
    """The environment variable that holds a token, sent as `Authorization: Bearer ...`."""
    attempts: AtLeastOne = 4
    """How often one batch is asked for, at most."""
    patience: Positive = 10.0
    """Seconds for one answer, from connecting to its last byte."""
    deadline: Positive = 60.0
    """Seconds for all attempts and the pauses between them."""
    connections: AtLeastOne = 1
    """Batches that the server may be asked about at the same time, where texts end one after the other."""
    seed: int = 0
    """Draws the pauses: each is between half and all of 0.25 s, 0.5 s, 1 s and so on, up to 8 s, so that many runs do
    not come back at the same moment."""
    jitter: np.random.Generator | None = field(default=None, repr=False)
    """Draws the pauses instead of `seed`."""
    _calls: list[_Call] = field(default_factory=list, init=False, repr=False)

    def problems(self) -> Iterator[Problem]:
        try:
            parts = self._parts
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except (ValueError, AttributeError):
            usable = False
        if not usable:
            yield fault("url", "must be http://HOST/PATH or https://HOST/PATH")
        elif not parts.path.isascii() or not parts.query.isascii() or any(c.isspace() for c in self.url):
            yield fault("url", "must have spaces and letters beyond ASCII written as %XX")
        if self.token_env and not os.environ.get(self.token_env):
            yield fault("token_env", f"names no environment variable with a token in it, got {self.token_env}")

    @cached_property
    def _parts(self) -> urllib.parse.SplitResult:
        return urllib.parse.urlsplit(self.url)

    @cached_property
    def _jitter(self) -> np.random.Generator:
        return np.random.default_rng(self.seed) if self.jitter is None else self.jitter

    def __repr__(self) -> str:
        return f"Http({self.shown_url})"

    @property
    def shown_url(self) -> str:
        """The URL as it may stand in a log: without user, password, query and fragment."""
        host = self._parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        port = "" if self._parts.port is None else f":{self._parts.port}"
        return f"{self._parts.scheme}://{host}{port}{self._parts.path}"

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]. Raises RewardError."""
        if not episodes:
            return np.zeros(0)
        body = json.dumps(
            {"prompts": [it.prompt.text for it in episodes], "responses": [it.response for it in episodes]}
        ).encode()
        self._calls.append(call := _Call())
        try:
            return self._scores(self._ask_repeatedly(call, body, len(episodes)), len(episodes))
        finally:
            self._calls.remove(call)

    def hang_up(self) -> None:
        """End the calls in other threads."""
        for call in tuple(self._calls):
            call.hang_up()

    def _ask_repeatedly(self, call: _Call, body: bytes, count: int) -> bytes:
        """The body of the answer, after at most `attempts` requests. Raises RewardError."""
        end = time.monotonic() + self.deadline
        for attempt in range(1, self.attempts + 1):
            try:
                return self._ask(call, body, count, min(self.patience, end - time.monotonic()))
            except _Temporary as error:
                most = min(_FIRST_PAUSE * 2.0 ** (attempt - 1), _LONGEST_PAUSE)
                pause = float(self._jitter.uniform(0.5 * most, most))
                if attempt == self.attempts or time.monotonic() + pause >= end:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise self._error(f"{error}; asked {times}, in at most {self.deadline:g} s") from error
                call.pause(pause)
            if call.over.is_set():
                raise self._error("the run ended the call while it waited for an answer")
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, call: _Call, body: bytes, count: int, seconds: float) -> bytes:
        """One request; the body of its answer. Raises _Temporary or RewardError."""
        secure = {"context": ssl.create_default_context()} if self._parts.scheme == "https" else {}
        kind: Any = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._parts.hostname, self._parts.port, timeout=max(seconds, 0.001), **secure)
        call.connection = connection
        late = threading.Event()

        def too_late() -> None:
            late.set()
            call.cut()

        timer = threading.Timer(max(seconds, 0.001), too_late)
        timer.daemon = True
        timer.start()
        most = _LONGEST_ANSWER + _BYTES_A_SCORE * count
        try:
            path = urllib.parse.urlunsplit(("", "", self._parts.path or "/", self._parts.query, ""))
            connection.request("POST", path, body=body, headers=self._headers())
            answer = connection.getresponse()
            if answer.status >= 500 or answer.status == 429:
                raise _Temporary(f"{answer.status} {answer.reason}")
            if answer.status in range(300, 400):
                raise self._error(
                    f"{answer.status} {answer.reason}: redirects are not followed, give the final address"
                )
            if answer.status != 200:
                raise self._error(f"{answer.status} {answer.reason}")
            if (answer.length or 0) > most:
                raise self._error(f"the answer has {answer.length:,} bytes; {most:,} are enough for {count} scores")
            content: bytes = answer.read(most + 1)
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise _Temporary(f"no answer within {seconds:.3g} s") from error
            if isinstance(error, ssl.SSLCertVerificationError):
                raise self._error(f"its certificate is not valid: {error.verify_message}") from error
            raise _Temporary(f"{type(error).__name__}: {error}") from error
        finally:
            timer.cancel()
            connection.close()
        if len(content) > most:
            raise self._error(f"the answer has more than {most:,} bytes, which are enough for {count} scores")
        if late.is_set() or answer.length:  # cut off in the middle
            raise _Temporary(f"the answer is not complete within {seconds:.3g} s")
        return content

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "rlhf-env"}
        if self.token_env:
            headers["Authorization"] = f"Bearer {os.environ.get(self.token_env, '')}"
        elif self._parts.username is not None:
            user, password = (urllib.parse.unquote(it or "") for it in (self._parts.username, self._parts.password))
            headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        return headers

    def _scores(self, content: bytes, count: int) -> Float:
        def refuse_constant(name: str) -> float:
            raise ValueError(f"{name} is not a score")

        try:
            answer = json.loads(content, parse_constant=refuse_constant)
        except (ValueError, RecursionError) as error:
            raise self._error(f"the answer is not JSON: {error}") from error
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list):
            raise self._error('the answer has no list "scores": {"scores": [0.5, ...]} is expected')
        if len(scores) != count:
            raise self._error(f"{len(scores)} scores for {count} texts")
        for place, score in enumerate(scores):
            if isinstance(score, bool) or not isinstance(score, (int, float)):
                raise self._error(f"score {place} is {json.dumps(score)[:40]}, not a number")
            if not abs(score) <= sys.float_info.max:  # 1e999 is JSON, and so is a whole number of 400 digits
                raise self._error(f"score {place} is not finite")
        return np.array(scores, dtype=np.float64)

    def _error(self, what: str) -> RewardError:
        return RewardError(f"POST {self.shown_url}: {what}")
