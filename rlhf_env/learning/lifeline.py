"""A connection from each process of a run to the first one, by which the end of any of them is noticed at once.

The kernel closes a process's connections when it dies, however it dies. So whoever is waiting for a process that is
gone learns it here, and in words: who is gone, what it said last, what it was at. Processes that wait in vain would
otherwise wait for as long as their collective operation allows.

The first process listens; the others are told where. Messages are lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

GRACE = 2.0  # seconds in which a process that has noticed the end may end by itself
WAITED = 60.0  # seconds of waiting after which those that are waited for are named; then twice as many, and so on
_REPLY = 60.0  # seconds that a process with an error waits for the first one to have said it


@dataclass
class Ending:
    """Why a run's processes end: what there is to say, and the exit status."""

    lines: tuple[str, ...]
    status: int


@dataclass
class _Other:
    """Another process, as this one knows it."""

    connection: socket.socket
    rank: int
    pid: int = 0
    host: str = ""
    at: str = "starting"
    waits: bool = False
    left: bool = False  # it has said that it is done
    ended: bool = False  # it has said why it ends
    unread: bytes = b""

    def __str__(self) -> str:
        return f"process {self.rank} (pid {self.pid} on {self.host})"


@dataclass
class Lifeline:
    """This process's end of it. `start` connects; from then on a thread of it looks after the others."""

    rank: int
    size: int
    patience: float
    ending: Ending | None = None
    """Why all end, as soon as it is known."""
    _others: dict[int, _Other] = field(default_factory=dict)
    _waits_since: float | None = None
    _says_at: str = "starting"
    _has_said_it_waits: bool = False
    _named: float = 0.0  # seconds of waiting after which the others were named last
    _ends_itself: bool = False
    _first_has_said: threading.Event = field(default_factory=threading.Event)
    _known: threading.Event = field(default_factory=threading.Event)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def start(self, host: str, tell: Callable[[str], str], *, loopback: bool) -> None:
        """Connect. All call `tell` once: the first with its address, which the others get.

        `host`: where the others reach the first process. `loopback`: all are on one machine. Raises OSError.
        """
        if self.rank == 0:
            token = secrets.token_hex(16)
            with socket.create_server(("127.0.0.1" if loopback else "", 0), backlog=self.size) as server:
                tell(json.dumps([host, server.getsockname()[1], token]))
                self._accept(server, token)
        else:
            place, port, token = json.loads(tell(""))
            connection = socket.create_connection((place, port), timeout=60.0)
            hello = {"rank": self.rank, "pid": os.getpid(), "host": socket.gethostname(), "token": token}
            connection.sendall(json.dumps(hello).encode() + b"\n")
            first = json.loads(_first_line(connection))
            self._others[0] = _Other(connection, 0, int(first["pid"]), str(first["host"]))
        for other in self._others.values():
            other.connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine may vanish, too
            with contextlib.suppress(AttributeError, OSError):
                other.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
                other.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
                other.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
            other.connection.settimeout(5.0)
        self._thread = threading.Thread(target=self._look_after, name="lifeline", daemon=True)
        self._thread.start()

    def _accept(self, server: socket.socket, token: str) -> None:
        server.settimeout(60.0)
        while len(self._others) < self.size - 1:
            connection, _ = server.accept()
            connection.settimeout(5.0)
            try:
                hello = json.loads(_first_line(connection))
                if not secrets.compare_digest(str(hello["token"]), token):
                    raise ValueError
                rank = int(hello["rank"])
                connection.sendall(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode() + b"\n")
            except (OSError, ValueError, KeyError, TypeError, RecursionError):  # a stranger: ports are scanned
                connection.close()
                continue
            self._others[rank] = _Other(connection, rank, int(hello["pid"]), str(hello["host"]))

    # ---------------------------------------------------------------- what the process says

    def at(self, what: str) -> None:
        """What this process is at, in a few words: it is named so if the others wait for it for long."""
        if what != self._says_at:
            self._says_at = what
            self._tell({"at": what}, to=self._partner)

    @property
    def _partner(self) -> tuple[int, ...]:
        """Who names this process if it is waited for: the first does, and the second the first."""
        return (0,) if self.rank else (1,)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which this process waits for the others."""
        self._waits_since, self._named = time.monotonic(), 0.0
        try:
            yield
        finally:
            self._waits_since = None
            if self._has_said_it_waits:
                self._has_said_it_waits = False
                self._tell({"waits": False}, to=self._partner)

    def speaks(self, lines: Sequence[str], status: int) -> bool:
        """Whether it is this process that says why the run ends, where it is about to end with these `lines`.

        One process speaks: the first, or the second where the first is gone. The others wait until it has.
        """
        self._ends_itself = True
        others = tuple(self._others)
        if self.rank == 0:
            self._tell({"ended": list(lines), "status": status}, to=others)
            return True
        self._tell({"ended": list(lines), "status": status}, to=others)
        deadline = time.monotonic() + _REPLY
        while not self._first_has_said.wait(0.05):
            if self._others[0].left or time.monotonic() > deadline:
                return self.rank == 1 or not self._others[0].left
        return False

    def leave(self) -> None:
        """Say that this process is done; it is not missed from now on."""
        self._ends_itself = True
        self._tell({"left": True}, to=tuple(self._others))
        self._stopped.set()
        for other in self._others.values():
            with contextlib.suppress(OSError):
                other.connection.close()

    def known_ending(self, patience: float = 3.0) -> Ending | None:
        """Why all end, as far as it is known within `patience` seconds."""
        self._known.wait(patience)
        return self.ending

    # ---------------------------------------------------------------- what its thread does

    def _look_after(self) -> None:
        with selectors.DefaultSelector() as selector:
            for other in self._others.values():
                selector.register(other.connection, selectors.EVENT_READ, other)
            while not self._stopped.is_set():
                try:
                    ready = selector.select(timeout=0.25)
                except (OSError, ValueError):  # closed by `leave`
                    return
                for key, _ in ready:
                    self._hear(key.data, selector)
                self._name_who_is_waited_for()

    def _hear(self, other: _Other, selector: selectors.BaseSelector) -> None:
        try:
            heard = other.connection.recv(65_536)
        except TimeoutError:
            return
        except (OSError, ValueError):
            heard = b""
        if not heard:
            with contextlib.suppress(KeyError, ValueError):
                selector.unregister(other.connection)
            if not (other.left or other.ended or self._stopped.is_set()):
                said = f"{other} is gone without a word (killed, or out of memory?), last at: {other.at}"
                self._all_end(Ending((f"{said}; every process ends, and the run resumes with --resume",), 3))
            other.left = True
            return
        *lines, other.unread = (other.unread + heard).split(b"\n")
        for line in lines:
            self._understand(other, json.loads(line))

    def _understand(self, other: _Other, message: Mapping[str, Any]) -> None:
        if "at" in message:
            other.at, other.waits = str(message["at"]), False
        if "waits" in message:
            other.waits = bool(message["waits"])
        if message.get("left"):
            other.left = True
        if "ended" in message:
            other.ended = True
            if other.rank == 0:
                self._first_has_said.set()
            lines = tuple(f"process {other.rank}: {line}" for line in message["ended"])
            self._all_end(Ending(lines or (f"{other} ended",), int(message["status"])))

    def _all_end(self, ending: Ending) -> None:
        """All processes are to end, for this reason. One that has not begun to within `GRACE` seconds is ended."""
        with self._lock:
            if self.ending is not None:
                return
            self.ending = ending
        self._known.set()
        threading.Thread(target=self._end_unless_it_does, name="lifeline ending", daemon=True).start()

    def _end_unless_it_does(self) -> None:
        time.sleep(GRACE)
        if self._ends_itself or self._stopped.is_set() or self.ending is None:
            return
        if self.speaks(self.ending.lines, self.ending.status):
            for line in self.ending.lines:
                _say(line)
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # a progress bar had hidden the cursor
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(self.ending.status)

    def _name_who_is_waited_for(self) -> None:
        """Where this process has waited for long, say for whom: the first process says it, or the second of the first.

        Whoever waits says so after half of that time; whoever has not is at something else.
        """
        since = self._waits_since
        waited = 0.0 if since is None else time.monotonic() - since
        if waited < self.patience / 2:
            return
        if not self._has_said_it_waits:
            self._has_said_it_waits = True
            self._tell({"waits": True}, to=self._partner)
        if waited < max(self.patience, 2 * self._named) or self.rank > 1:
            return
        self._named = waited
        missing = [it for it in self._others.values() if not (it.waits or it.left or it.ended)]
        for other in missing:
            _say(f"{other} has been at this for {waited:.0f} s, and the others wait for it: {other.at}", "warning: ")

    def _tell(self, message: Mapping[str, object], to: Sequence[int]) -> None:
        line = json.dumps(message).encode() + b"\n"
        for rank in to:
            if (other := self._others.get(rank)) is not None:
                with contextlib.suppress(OSError), self._lock:
                    other.connection.sendall(line)


def _first_line(connection: socket.socket) -> bytes:
    read = b""
    while not read.endswith(b"\n") and len(read) < 4096:
        more = connection.recv(1)
        if not more:
            raise ValueError("closed")
        read += more
    return read


def _say(line: str, kind: str = "") -> None:
    print(f"rlhf-env: {kind}{line}", file=sys.stderr, flush=True)
