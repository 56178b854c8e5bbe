"""Questions to a server over HTTP: `POST`, answered in time or tried again.

Temporary failures are tried again, `attempts` times in all and within `deadline` seconds: a connection that is refused
or broken, an answer that does not come in time, a status of 5xx, 408 or 429. Between two attempts it is waited, and at
least for as long as the server's `Retry-After` says. Any other status is refused at once, and so are redirects.

Whoever asks says which statuses are about all of his questions. What a token or a password is stands in no message.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rlhf_env.errors import Problem, RewardError
from rlhf_env.settings import fault
from rlhf_env.shown_text import for_terminal

LONGEST_ANSWER = 1 << 20  # bytes, plus what whoever asks expects
_LONGEST_REASON = 4_000  # bytes that are read of what a server says beside a refusal; of them are shown:
_SHOWN_REASON = 200
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0  # seconds
_ABOUT_ALL = (401, 403, 404, 405)  # the key, the address: another question would fare no better


class RequestRefused(RewardError):
    """The server does not answer this question. `about_all`: it would not answer another one either."""

    def __init__(self, said: str, *, about_all: bool = True) -> None:
        self.about_all = about_all
        super().__init__(said)


class _Temporary(Exception):
    """A failure after which the request is tried again, not before `wait` seconds have gone."""

    def __init__(self, said: str, wait: float = 0.0) -> None:
        self.wait = wait
        super().__init__(said)


class _Call:
    """One question that is under way; another thread may end it."""

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


@dataclass(eq=False)
class Server:
    """Whom to ask; no other address than `url` is contacted. It may be asked by several threads at the same time.

    `token_env` names the environment variable that holds a token, sent as `Authorization: Bearer ...`; a user name and
    password in `url` are sent as basic authentication. `patience`: seconds for one answer; `deadline`: for all
    attempts and the pauses between them, which `jitter` draws.
    """

    url: str
    token_env: str = ""
    attempts: int = 4
    patience: float = 10.0
    deadline: float = 60.0
    jitter: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0), repr=False)
    _calls: list[_Call] = field(default_factory=list, init=False, repr=False)

    def problems(self, *, only_secure: bool = False) -> Iterator[Problem]:
        """What is wrong with the settings `url` and `token_env`.

        `only_secure`: an address without encryption is refused, but on this machine.
        """
        try:
            parts = self._parts
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except (ValueError, AttributeError):
            usable = False
        if not usable:
            yield fault("url", "must be http://HOST/PATH or https://HOST/PATH")
        elif not parts.path.isascii() or not parts.query.isascii() or any(c.isspace() for c in self.url):
            yield fault("url", "must have spaces and letters beyond ASCII written as %XX")
        elif only_secure and parts.scheme == "http" and not _is_this_machine(parts.hostname or ""):
            why = "must be https://: by http://, texts and token would cross the network in the clear"
            yield fault("url", f"{why} (unencrypted = true, if that is your own network)")
        if self.token_env and not os.environ.get(self.token_env):
            yield fault("token_env", f"names no environment variable with a token in it, got {self.token_env}")
        elif self.token_env and not self._token.isprintable():
            yield fault("token_env", f"names {self.token_env}, which has a line break in it: that is no token")
        elif self.token_env and not self._token.isascii():
            yield fault("token_env", f"names {self.token_env}, which has letters beyond ASCII in it: that is no token")

    @cached_property
    def _parts(self) -> urllib.parse.SplitResult:
        return urllib.parse.urlsplit(self.url)

    @property
    def _token(self) -> str:
        return os.environ.get(self.token_env, "")

    @property
    def shown_url(self) -> str:
        """The URL as it may stand in a log: without user, password, query and fragment."""
        host = self._parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        port = "" if self._parts.port is None else f":{self._parts.port}"
        return f"{self._parts.scheme}://{host}{port}{self._parts.path}"

    def post(self, body: bytes, most: int, enough_for: str) -> bytes:
        """The body of the answer. Raises RequestRefused.

        More than `most` bytes are not read; a message says for what that many would have been enough.
        """
        self._calls.append(call := _Call())
        try:
            return self._ask_repeatedly(call, body, most, enough_for)
        finally:
            self._calls.remove(call)

    def hang_up(self) -> None:
        """End the calls in other threads."""
        for call in tuple(self._calls):
            call.hang_up()

    def refusal(self, what: str, *, about_all: bool = True) -> RequestRefused:
        said = f"POST {self.shown_url}: {what}"
        if self.token_env and self._token:  # a server may say what it was told
            said = said.replace(self._token, "***")
        return RequestRefused(said, about_all=about_all)

    def _ask_repeatedly(self, call: _Call, body: bytes, most: int, enough_for: str) -> bytes:
        end = time.monotonic() + self.deadline
        for attempt in range(1, self.attempts + 1):
            try:
                return self._ask(call, body, most, enough_for, min(self.patience, end - time.monotonic()))
            except _Temporary as error:
                longest = min(_FIRST_PAUSE * 2.0 ** (attempt - 1), _LONGEST_PAUSE)
                pause = max(float(self.jitter.uniform(0.5 * longest, longest)), error.wait)
                if attempt == self.attempts or time.monotonic() + pause >= end:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    wait = f"; it says to wait {error.wait:.0f} s" if error.wait else ""
                    said = f"{error}; asked {times}, in at most {self.deadline:g} s{wait}"
                    raise self.refusal(said, about_all=False) from error
                call.pause(pause)
            if call.over.is_set():
                raise self.refusal("the run ended the call while it waited for an answer")
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, call: _Call, body: bytes, most: int, enough_for: str, seconds: float) -> bytes:
        """One request; the body of its answer. Raises _Temporary or RequestRefused."""
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
        try:
            path = urllib.parse.urlunsplit(("", "", self._parts.path or "/", self._parts.query, ""))
            connection.request("POST", path, body=body, headers=self._headers())
            answer = connection.getresponse()
            if answer.status >= 500 or answer.status in (408, 429):
                raise _Temporary(f"{answer.status} {answer.reason}", _seconds_to_wait(answer.headers))
            if answer.status in range(300, 400):
                raise self.refusal(
                    f"{answer.status} {answer.reason}: redirects are not followed, give the final address"
                )
            if answer.status != 200:
                said = f"{answer.status} {answer.reason}{_reason(answer.read(_LONGEST_REASON))}"
                raise self.refusal(said, about_all=answer.status in _ABOUT_ALL)
            if (answer.length or 0) > most:
                raise self.refusal(f"the answer has {answer.length:,} bytes; {most:,} are enough for {enough_for}")
            content: bytes = answer.read(most + 1)
        except (OSError, http.client.HTTPException) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise _Temporary(f"no answer within {seconds:.3g} s") from error
            if isinstance(error, ssl.SSLCertVerificationError):
                raise self.refusal(f"its certificate is not valid: {error.verify_message}") from error
            raise _Temporary(f"{type(error).__name__}: {error}") from error
        finally:
            timer.cancel()
            connection.close()
        if len(content) > most:
            raise self.refusal(f"the answer has more than {most:,} bytes, which are enough for {enough_for}")
        if late.is_set() or answer.length:  # cut off in the middle
            raise _Temporary(f"the answer is not complete within {seconds:.3g} s")
        return content

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "rlhf-env"}
        if self.token_env:
            headers["Authorization"] = f"Bearer {self._token}"
        elif self._parts.username is not None:
            user, password = (urllib.parse.unquote(it or "") for it in (self._parts.username, self._parts.password))
            headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        return headers


def _seconds_to_wait(headers: Mapping[str, str]) -> float:
    """What `Retry-After` says, seconds or a date (RFC 9110, section 10.2.3); 0 where it says nothing."""
    said = (headers.get("Retry-After") or "").strip()
    if said.isascii() and said.isdecimal():
        return float(said[:9])
    with suppress(TypeError, ValueError, IndexError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    return 0.0


def _reason(content: bytes) -> str:
    """What a server says beside a refusal, in one line: OpenAI's `error.message`, or FastAPI's `detail`."""
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    said = said.get("error", said.get("detail")) if isinstance(said, dict) else None
    said = said.get("message") if isinstance(said, dict) else said
    return f": {for_terminal(' '.join(said.split()))[:_SHOWN_REASON]}" if isinstance(said, str) and said else ""


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
