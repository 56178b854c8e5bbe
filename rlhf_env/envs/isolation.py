"""A reward in a process of its own: one that hangs, leaks or dies costs its answer, and not the run.

It contains mistakes and is no sandbox. The child has limits of memory, processor time and open files, and sees only a
short list of environment variables; but it is the same user on the same machine, with the same files and network.

Requests go to the child as pickles, for the run trusts itself. Answers come back as JSON: a pickle would let the child
run code in the run. It is made by hand and not with a pool of `multiprocessing`, whose processes may not be started by
the daemonic ones that cells of a benchmark run in.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import resource
import select
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
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np

from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.types import (
    AnyReward,
    BoundedAbove,
    BoundedBelow,
    Episode,
    Float,
    GroupReward,
    JsonObject,
    KLPenalty,
    ReadsLogprobs,
    Remembers,
    State,
    TokenReward,
)

# What a child says: a table of JSON. Its answer may be anything that the reward returned, and `RewardMix` looks at it.
Said = JsonObject
_Unchecked = Any

_START_SECONDS = 60.0  # for importing and building the reward, a model included; longer where the timeout is
_OPEN_FILES = 256
_LONGEST_ANSWER = 1 << 25  # bytes; a batch of 512 texts with a number for each of 1,024 tokens is a third of it
_SERVE = "from rlhf_env.envs.isolation import serve_reward; serve_reward()"
_HEADER = 8  # bytes that say how long a message is

# What a child sees of the environment: how to find programs, libraries and caches, and in which language to speak.
_VARIABLES = re.compile(
    "PATH|HOME|USER|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|VIRTUAL_ENV|LD_LIBRARY_PATH|CUDA_VISIBLE_DEVICES"
    "|(OMP|MKL|OPENBLAS)_NUM_THREADS|HF_HOME|HF_HUB_OFFLINE|TRANSFORMERS_OFFLINE|XDG_CACHE_HOME"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a reward in a process of its own may take.

    `timeout`: seconds for one call (a batch of texts); then the process is killed, whatever it is at.
    `memory_mb`: mebibytes of address space (RLIMIT_AS), which is more than what is in use: torch alone maps several
        thousand, and a GPU's libraries tens of thousands.
    `env_vars`: names of environment variables it may see beside the usual ones, for a reward that needs a key.
    """

    timeout: float = 60.0
    memory_mb: int = 16_384
    env_vars: Sequence[str] = ()

    def __post_init__(self) -> None:
        problems = []
        if not _is_number(self.timeout) or not 0.0 < self.timeout < math.inf:
            problems.append(f"timeout: seconds above 0, got {self.timeout!r}")
        if not isinstance(self.memory_mb, int) or isinstance(self.memory_mb, bool) or self.memory_mb < 1:
            problems.append(f"memory_mb: mebibytes, a whole number of at least 1, got {self.memory_mb!r}")
        if isinstance(self.env_vars, str) or not all(isinstance(name, str) for name in self.env_vars):
            problems.append(f"env_vars: a list of names of environment variables, got {self.env_vars!r}")
        if problems:
            raise ConfigError(*problems)


class RewardFailed(Exception):
    """A reward in a process of its own has not answered. `str` says what it did: "raised ZeroDivisionError: ...".

    `lost`: its process is gone, because it died or took too long, so that asking again costs as much again.
    """

    def __init__(self, did: str, *, lost: bool = False) -> None:
        self.lost = lost
        super().__init__(did)


def isolated(build: Callable[[], AnyReward], limits: Limits) -> AnyReward:
    """The reward that `build` makes, in a process that is started now, and again whenever it is gone.

    `build` and what it holds must be known by an importable name. It is called in the process, which imports what it
    needs; the run itself imports none of it. Calls raise RewardFailed, or RewardError where the reward did. Raises
    ConfigError for a reward that cannot be made there.
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
    return IsolatedReward(request, limits, child, welcome)


def _build(child: _Child, request: bytes, limits: Limits) -> Said:
    """What a newly started child says about the reward that it has made. Raises ConfigError."""
    try:
        said = child.ask(request, max(_START_SECONDS, limits.timeout))
    except RewardFailed as error:
        raise ConfigError(f"could not be made in a process of its own: it {error}") from error
    if "kind" not in said:
        child.end()
        raise ConfigError(*said["refused"]) if "refused" in said else ConfigError(f"could not be made: {said}")
    return said


class _Isolated:
    """What the three kinds share: the process, and asking it."""

    connections = 1  # a process that is busy listens to nobody

    def __init__(self, request: bytes, limits: Limits, child: _Child, welcome: Said) -> None:
        self.limits = limits
        self.needs_logprobs = bool(welcome["needs_logprobs"])
        self.low, self.high = welcome["low"], welcome["high"]
        self._request = request
        self._coefficient = float(welcome.get("coefficient", 1.0))  # of a KL penalty, as its process last said
        self._state: State | None = welcome["state"]  # None: the reward remembers nothing
        self._child = child
        self._turn = threading.RLock()  # one question at a time, whoever asks

    @property
    def pid(self) -> int:
        """Of the process that answers next."""
        return self._ready().pid

    def hang_up(self) -> None:
        """End the call under way in another thread, and the process with it; the next call has another."""
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
            return said["answer"]
        if said.get("speaks_for_all"):
            raise RewardError(str(said["raised"]))
        raise RewardFailed(f"raised {said['raised']}")

    def _ready(self) -> _Child:
        """The child, or in the place of one that is gone another, which remembers what it did."""
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


class _Child:
    """One process with a socket to it. It leads a process group, so that what it starts ends with it."""

    def __init__(self, limits: Limits) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno()), str(limits.memory_mb), str(limits.timeout)],
                env=_environment(limits.env_vars),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the run, which ends its children itself
            )
        self._socket = ours
        self._end = weakref.finalize(self, _kill, self._process, ours, os.getpid())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._end.alive and self._process.poll() is None

    def ask(self, request: bytes, seconds: float) -> Said:
        """Its answer. Raises RewardFailed, and the process is gone, if there is none within `seconds`."""
        try:
            deadline = time.monotonic() + seconds
            _send(self._socket, request, deadline)
            said: Said = json.loads(_receive(self._socket, deadline))
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
        except BaseException:  # Ctrl-C: its answer would be taken for that to the next request
            self.end()
            raise

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):  # its end of the socket is closed a moment before it is gone
            self._process.wait(1.0)
        status = self._process.poll()
        self.end()
        if status is None:
            return f"its process {self.pid} stopped listening and was killed"
        if status >= 0:
            return f"its process {self.pid} ended with status {status}"
        return f"its process {self.pid} was killed by {signal.Signals(-status).name}"

    def end(self) -> None:
        """Kill it, and what it has started. Once is enough."""
        self._end()

    def kill(self) -> None:
        """As `end`, from another thread than the one that asks: that one finds it dead, and puts it away."""
        if self.alive:
            _kill_group(self._process)


def _kill(process: subprocess.Popen[bytes], ours: socket.socket, owner: int) -> None:
    ours.close()
    if os.getpid() == owner:  # not in a process that was forked from the one which started it
        _kill_group(process)
        process.wait()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(more: Sequence[str]) -> dict[str, str]:
    seen = {name: value for name, value in os.environ.items() if _VARIABLES.fullmatch(name) or name in more}
    one_thread = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name not in seen}
    # It finds what this process finds, scripts' folders too.
    return seen | one_thread | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def _send(to: socket.socket, message: bytes, deadline: float | None = None) -> None:
    _wait_until(to, deadline)
    to.sendall(len(message).to_bytes(_HEADER, "big") + message)


def _receive(by: socket.socket, deadline: float | None = None) -> bytearray:
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


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ---------------------------------------------------------------- in the child


def serve_reward() -> None:
    """The child's life, by the arguments that `_Child` gives it: limits, the reward, then question by question."""
    number, memory_mb, timeout = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    line = socket.socket(fileno=number)
    threading.Thread(target=_end_with, args=(line,), daemon=True).start()
    _limit(resource.RLIMIT_AS, memory_mb << 20)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    reward: AnyReward | None = None
    while True:
        try:
            request = _receive(line)
        except (EOFError, OSError):
            return
        _allow_processor_time(_START_SECONDS + timeout if reward is None else timeout)
        if reward is None:
            reward, said = _made(request)
        else:
            said = _answered(reward, request)
        _send(line, _as_json(said))
        if said.get("gone"):
            return


def _made(request: bytearray) -> tuple[AnyReward | None, Said]:
    try:
        reward = pickle.loads(request)()
    except ConfigError as error:
        return None, {"refused": error.problems}
    except Exception as error:  # whatever a plugin raises while it is imported and built
        return None, {"refused": [f"{type(error).__name__}: {error}"]}
    kind = (
        "kl"
        if isinstance(reward, KLPenalty)
        else "token"
        if isinstance(reward, TokenReward)
        else "group"
        if isinstance(reward, GroupReward)
        else "episode"
    )
    state = reward.state_dict() if isinstance(reward, Remembers) else None
    try:
        json.dumps(state)
    except (TypeError, ValueError) as error:
        return None, {"refused": [f"its state cannot leave its process, because it is more than plain values: {error}"]}
    low = reward.low if isinstance(reward, BoundedBelow) else None
    high = reward.high if isinstance(reward, BoundedAbove) else None
    return reward, {
        "kind": kind,
        "state": state,
        "needs_logprobs": isinstance(reward, ReadsLogprobs) and bool(reward.needs_logprobs),
        "low": float(low) if _is_number(low) else None,
        "high": float(high) if _is_number(high) else None,
        **_coefficient(reward),
    }


def _coefficient(reward: object) -> dict[str, float]:
    """Where a KL penalty's controller stands, which moves in its process and is asked for in ours."""
    return {"coefficient": float(reward.coefficient)} if isinstance(reward, KLPenalty) else {}


def _answered(reward: Any, request: bytearray) -> Said:
    try:
        method, argument = pickle.loads(request)
        asked = reward.reference.response_logprobs if method == "reference_logprobs" else getattr(reward, method)
        answer = asked(argument)
        if method in ("observe", "load_state_dict"):
            answer = reward.state_dict()
        return {"answer": _plain(answer), **_coefficient(reward)}
    except MemoryError as error:  # what it still holds it would hold for ever
        return {"raised": f"MemoryError: {error}".strip(": "), "gone": True}
    except RewardError as error:
        return {"raised": str(error), "speaks_for_all": True}
    except Exception as error:
        return {"raised": f"{type(error).__name__}: {error}"}


@runtime_checkable
class _BecomesAList(Protocol):
    """An array of numpy, a tensor of torch, a number of either."""

    def tolist(self) -> object: ...


def _plain(answer: object) -> object:
    """Arrays, and lists and tuples of them, as lists; what it is not, whoever asked will say."""
    if isinstance(answer, (list, tuple)):
        return [_plain(value) for value in answer]
    return answer.tolist() if isinstance(answer, _BecomesAList) else answer


def _as_json(said: Said) -> bytes:
    try:
        return json.dumps(said).encode()
    except (TypeError, ValueError) as error:
        what = type(said.get("answer")).__name__
        return json.dumps(
            {"raised": f"its answer, {what}, is not made of numbers: {error}", "speaks_for_all": True}
        ).encode()


def _limit(what: int, most: int) -> None:
    """As much as asked, or less where the run itself may not have that much."""
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _allow_processor_time(seconds: float) -> None:
    """From now on. It ends what is busy for ever once nobody is left to kill it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = math.ceil(used.ru_utime + used.ru_stime + seconds * (os.cpu_count() or 1)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _end_with(line: socket.socket) -> None:
    """When the run is gone there is nobody to answer."""
    hung_up = select.poll()
    hung_up.register(line, 0)  # hang-ups are always reported
    hung_up.poll()
    os._exit(1)
