"""A reward in a process of its own: if it hangs, leaks or dies, that costs its answer and not the run.

This contains mistakes; it is not a sandbox. The child has limits of memory, processor time and open files, and sees
only a short list of environment variables. But it is the same user on the same machine, with the same files and
network.

Requests go to the child as pickles, because the child may trust the run. Answers come back as JSON, because a pickle
would let the child execute code in the run. `multiprocessing` cannot be used: cells of a benchmark run in its daemonic
processes, which may not start processes of its kind.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env.errors import ConfigError, Problem, RewardError
from rlhf_env.settings import AtLeastOne, Positive, settings
from rlhf_env.types import (
    AnyReward,
    Episode,
    Float,
    JsonObject,
    State,
    TrainerState,
)

# What a child says: a table of JSON. Its answer may be anything that the reward returned, and `RewardMix` looks at it.
Said = JsonObject
_Unchecked = Any

START_SECONDS = 60.0  # for importing and building the reward with its model; at least the timeout
_SHOWN_OUTPUT, _KEPT_OUTPUT = (
    4_000,
    4_000,
)  # bytes of what a child prints: the first are shown, the last kept for errors
_LONGEST_ANSWER = 1 << 25  # bytes; a batch of 512 texts with a number for each of 1,024 tokens is a third of it
_SERVE = "from rlhf_env.envs.isolated_process import serve_reward; serve_reward()"
_HEADER = 8  # bytes that say how long a message is

# What a child sees of the environment: how to find programs, libraries and caches, and in which language to speak.
_VARIABLES = re.compile(
    "PATH|HOME|USER|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|VIRTUAL_ENV|LD_LIBRARY_PATH|CUDA_VISIBLE_DEVICES"
    "|(OMP|MKL|OPENBLAS)_NUM_THREADS|HF_HOME|HF_HUB_OFFLINE|TRANSFORMERS_OFFLINE|XDG_CACHE_HOME"
)


@settings
class Limits:
    """What a reward in a process of its own may take."""

    timeout: Positive = 60.0
    """Seconds that one call (a batch of texts) may take; then its process is killed."""
    memory_mb: AtLeastOne = 16_384
    """Mebibytes of address space (RLIMIT_AS), which is more than what is in use: torch alone maps several thousand, and
    a GPU's libraries tens of thousands."""
    env_vars: Sequence[str] = ()
    """Names of additional environment variables that it may see, for a reward that needs a key."""


class RewardFailed(Exception):
    """An isolated reward gave no answer. Its text says what the reward did: "raised ZeroDivisionError: ...".

    `lost`: the process is gone because it died or took too long, so that another attempt costs another process.
    """

    def __init__(self, did: str, *, lost: bool = False) -> None:
        self.lost = lost
        super().__init__(did)


def isolated(build: Callable[[], AnyReward], limits: Limits) -> AnyReward:
    """The reward that `build` makes, in a process that starts now, and again whenever it has died.

    `build` must be picklable by an importable name. It is called in the process, which imports what it needs; the run
    imports none of it. Calls raise RewardFailed, or RewardError if the reward raised that. Raises ConfigError if the
    reward cannot be built.
    """
    try:
        request = pickle.dumps(build)
    except Exception as error:  # pickle raises what the object likes
        raise ConfigError(f"cannot run in a process of its own, to which it must be sent: {error}") from error
    child = _Child(limits)
    welcome = _build(child, request, limits)
    if welcome["kind"] == "kl":
        return IsolatedKLPenalty(request, limits, child, welcome)
    if welcome["kind"] == "token":
        return IsolatedTokenReward(request, limits, child, welcome)
    if welcome["kind"] == "group":
        return IsolatedGroupReward(request, limits, child, welcome)
    if welcome["follows"]:
        return IsolatedFunction(request, limits, child, welcome)
    return IsolatedReward(request, limits, child, welcome)


def _build(child: _Child, request: bytes, limits: Limits) -> Said:
    """What a newly started child says about the reward that it has made. Raises ConfigError."""
    try:
        said = child.ask(request, max(START_SECONDS, limits.timeout))
    except RewardFailed as error:
        raise ConfigError(f"could not be made in a process of its own: it {error}") from error
    if "kind" not in said:
        child.end()
        refused = [Problem(text, keys) for text, keys in said.get("refused", ())]
        raise ConfigError(*refused or (f"could not be made: {said}",))
    return said


class _Isolated:
    """What the three kinds share: the process, and asking it."""

    connections = 1  # one call at a time

    def __init__(self, request: bytes, limits: Limits, child: _Child, welcome: Said) -> None:
        self.limits = limits
        self.needs_logprobs = bool(welcome["needs_logprobs"])
        self.needs_batch = bool(welcome["needs_batch"])
        self.low, self.high = welcome["low"], welcome["high"]
        self._request = request
        self._coefficient = float(welcome.get("coefficient", 1.0))  # of a KL penalty, as its process last said
        self._state: State | None = welcome["state"]  # None: the reward remembers nothing
        self._standing: TrainerState | None = None
        self._logged: dict[str, list[float]] = {}
        self._child = child
        self._turn = threading.RLock()  # one question at a time, whoever asks

    @property
    def pid(self) -> int:
        """Of the process that answers next."""
        return self._ready().pid

    def hang_up(self) -> None:
        """Kill the process, which ends the call in another thread; the next call starts a new process."""
        self._child.kill()

    def observe(self, episodes: Sequence[Episode], /) -> None:
        if self._state is not None:
            self._state = self._ask("observe", list(episodes))

    def state_dict(self) -> State:
        return {} if self._state is None else dict(self._state)

    def load_state_dict(self, state: State, /) -> None:
        if self._state is not None:
            self._state = self._ask("load_state_dict", dict(state))

    def _ask(self, method: str, argument: object) -> _Unchecked:
        with self._turn:
            said = self._ready().ask(pickle.dumps((method, argument)), self.limits.timeout)
            if said.get("gone"):
                self._child.end()
        if "answer" in said:
            self._coefficient = float(said.get("coefficient", self._coefficient))
            for name, values in said.get("logged", {}).items():
                self._logged.setdefault(name, []).extend(values)
            return said["answer"]
        if said.get("speaks_for_all"):
            raise RewardError(str(said["raised"]))
        raise RewardFailed(f"raised {said['raised']}")

    def _ready(self) -> _Child:
        """The child; if it has died, a new one with the state of the old."""
        if not self._child.alive:
            self._child.end()
            self._child = _Child(self.limits)
            _build(self._child, self._request, self.limits)
            if self._state is not None:
                self._ask("load_state_dict", self._state)
        return self._child


class IsolatedReward(_Isolated):
    def __call__(self, episodes: Sequence[Episode], /) -> _Unchecked:
        return self._ask("__call__", list(episodes))


class IsolatedFunction(IsolatedReward):
    """A function in TRL's convention: it is told where training stands, and what it logs comes back with its answer."""

    def follow(self, state: TrainerState, /) -> None:
        self._standing = state

    def take_logged(self) -> dict[str, list[float]]:
        logged, self._logged = self._logged, {}
        return logged

    def __call__(self, episodes: Sequence[Episode], /) -> _Unchecked:
        with self._turn:
            if self._standing is not None:
                self._ask("follow", self._standing)
            return super().__call__(episodes)


class IsolatedTokenReward(_Isolated):
    def token_rewards(self, episodes: Sequence[Episode], /) -> _Unchecked:
        return self._ask("token_rewards", list(episodes))


class IsolatedKLPenalty(IsolatedTokenReward):
    @property
    def coefficient(self) -> float:
        return self._coefficient

    @property
    def reference(self) -> IsolatedReference:
        return IsolatedReference(self)

    def reference_logprobs(self, episodes: Sequence[Episode], /) -> _Unchecked:
        return self._ask("reference_logprobs", list(episodes))


@dataclass(frozen=True)
class IsolatedReference:
    """The reference of a KL penalty in a process of its own, which holds it."""

    penalty: IsolatedKLPenalty

    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        """log p(response token | text before it): B arrays, float64[T_b]."""
        return [np.asarray(row, dtype=np.float64) for row in self.penalty.reference_logprobs(episodes)]


class IsolatedGroupReward(_Isolated):
    def group_rewards(self, group: Sequence[Episode], /) -> _Unchecked:
        return self._ask("group_rewards", list(group))


class IsolatedCalls(_Isolated):
    """What is no reward, in a process of its own: an object with a method `call`."""

    def call(self, argument: object, /) -> _Unchecked:
        """What the object's `call(argument)` gives, made of plain values. Raises RewardFailed."""
        return self._ask("call", argument)


def isolated_calls(build: Callable[[], object], limits: Limits) -> IsolatedCalls:
    """The object that `build` makes, in a process that starts now, as a reward does. Raises ConfigError."""
    request = pickle.dumps(build)
    child = _Child(limits)
    return IsolatedCalls(request, limits, child, _build(child, request, limits))


class _Child:
    """A process with a socket to it. It leads a process group, so that processes it starts end with it."""

    def __init__(self, limits: Limits) -> None:
        ours, theirs = socket.socketpair()
        printed, output = os.pipe()
        with theirs, os.fdopen(output, "wb"):
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno()), str(limits.memory_mb), str(limits.timeout)],
                env=_environment(limits.env_vars),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the run, which ends its children itself
            )
        self._socket = ours
        self._printed = _Printed(printed, self._process.pid)
        self._end = weakref.finalize(self, _kill, self._process, ours, os.getpid())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._end.alive and self._process.poll() is None

    def ask(self, request: bytes, seconds: float) -> Said:
        """The child's answer. Raises RewardFailed, after killing it, if there is none within `seconds`."""
        try:
            deadline = time.monotonic() + seconds
            send(self._socket, request, deadline)
            said: Said = json.loads(receive(self._socket, deadline))
            if not isinstance(said, dict):
                raise ValueError(f"it said {said!r}")
            return said
        except TimeoutError:
            self.end()
            raise RewardFailed(f"gave no answer within {seconds:g} s: its process {self.pid} was killed", lost=True)  # noqa: B904 - the cause is said
        except (OSError, EOFError):
            raise RewardFailed(f"died: {self._how_it_ended()}", lost=True) from None
        except (ValueError, RecursionError) as error:
            self.end()
            raise RewardFailed(f"answered what is no answer: {error}", lost=True) from error
        except BaseException:  # Ctrl-C: otherwise its answer would be read as that to the next request
            self.end()
            raise

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):  # it closes its end of the socket a moment before it exits
            self._process.wait(1.0)
        status = self._process.poll()
        self.end()
        if status is None:
            return f"its process {self.pid} stopped listening and was killed"
        last = self._printed.last_line()
        if status >= 0:
            return f"its process {self.pid} ended with status {status}{last}"
        return f"its process {self.pid} was killed by {signal.Signals(-status).name}{last}"

    def end(self) -> None:
        """Kill the child and the processes that it started. Further calls do nothing."""
        self._end()

    def kill(self) -> None:
        """Kill the child from another thread; the thread that waits for its answer then cleans up."""
        if self.alive:
            _kill_group(self._process)


class _Printed:
    """What a child prints, read as it comes so that the child never waits: the first of it is shown, the last kept."""

    left = _SHOWN_OUTPUT  # of all children together

    def __init__(self, pipe: int, pid: int) -> None:
        self._last = bytearray()
        self._thread = threading.Thread(target=self._read, args=(pipe, pid), daemon=True)
        self._thread.start()

    def _read(self, pipe: int, pid: int) -> None:
        with os.fdopen(pipe, "rb", buffering=0) as stream:
            while part := stream.read(1 << 16):
                self._last = (self._last + part)[-_KEPT_OUTPUT:]
                shown = part[: _Printed.left]
                _Printed.left -= len(shown)
                with suppress(OSError, ValueError):  # whoever reads our own output may be gone
                    if shown:
                        sys.stderr.write(shown.decode(errors="replace"))
                    if shown and not _Printed.left:
                        sys.stderr.write(f"\n(what else a reward's process, as {pid}, prints is not shown)\n")

    def last_line(self) -> str:
        """Of what was printed when it is over, for an error; "" if that is nothing."""
        self._thread.join(1.0)
        lines = self._last.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f", and printed last: {last[:200]}" if last else ""


def _kill(process: subprocess.Popen[bytes], ours: socket.socket, owner: int) -> None:
    ours.close()
    if os.getpid() == owner:  # not in a fork of the process that started it
        _kill_group(process)
        process.wait()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(more: Sequence[str]) -> dict[str, str]:
    seen = {name: value for name, value in os.environ.items() if _VARIABLES.fullmatch(name) or name in more}
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name not in seen}
    # The child imports from the same folders as this process, also from those of scripts.
    return seen | one_thread | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def send(to: socket.socket, message: bytes, deadline: float | None = None) -> None:
    _wait_until(to, deadline)
    to.sendall(len(message).to_bytes(_HEADER, "big") + message)


def receive(by: socket.socket, deadline: float | None = None) -> bytearray:
    length = int.from_bytes(_exactly(by, _HEADER, deadline), "big")
    if deadline is not None and length > _LONGEST_ANSWER:
        raise ValueError(f"{length} bytes, of at most {_LONGEST_ANSWER}")
    return _exactly(by, length, deadline)


def _exactly(by: socket.socket, count: int, deadline: float | None) -> bytearray:
    message = bytearray()
    while len(message) < count:
        _wait_until(by, deadline)
        part = by.recv(min(count - len(message), 1 << 20))
        if not part:
            raise EOFError
        message += part
    return message


def _wait_until(one: socket.socket, deadline: float | None) -> None:
    """Bound the next operation by what is left of the time. Raises TimeoutError."""
    if deadline is not None:
        left = deadline - time.monotonic()
        if left <= 0.0:
            raise TimeoutError
        one.settimeout(left)
