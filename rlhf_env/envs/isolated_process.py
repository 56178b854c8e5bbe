"""The side of an isolated reward that runs in a process of its own: it builds the reward, and answers calls."""

from __future__ import annotations

import json
import math
import os
import pickle
import resource
import select
import socket
import sys
import threading
from typing import Any, Protocol, TypeGuard, runtime_checkable

from rlhf_env.envs.isolation import START_SECONDS, Said, receive, send
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.own_code import error_in_words
from rlhf_env.types import (
    AnyReward,
    BoundedAbove,
    BoundedBelow,
    FollowsTraining,
    GroupReward,
    KLPenalty,
    ReadsBatch,
    ReadsLogprobs,
    Remembers,
    TokenReward,
)

_OPEN_FILES = 256


def serve_reward() -> None:
    """The child's main loop. The first request builds the reward; each later one is a call."""
    number, memory_mb, timeout = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    line = socket.socket(fileno=number)
    threading.Thread(target=_end_with, args=(line,), daemon=True).start()
    _limit(resource.RLIMIT_AS, memory_mb << 20)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    reward: AnyReward | None = None
    while True:
        try:
            request = receive(line)
        except (EOFError, OSError):
            return
        _allow_processor_time(START_SECONDS + timeout if reward is None else timeout)
        if reward is None:
            reward, said = _made(request)
        else:
            said = _answered(reward, request)
        send(line, _as_json(said))
        if said.get("gone"):
            return


def _made(request: bytearray) -> tuple[AnyReward | None, Said]:
    try:
        reward = pickle.loads(request)()
    except ConfigError as error:
        return None, {"refused": [(str(problem), getattr(problem, "keys", ())) for problem in error.problems]}
    except Exception as error:  # whatever a plugin raises while it is imported and built
        return None, {"refused": [(f"{type(error).__name__}: {error}", ())]}
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
        why = f"its state cannot leave its process, because it is more than plain values: {error}"
        return None, {"refused": [(why, ())]}
    low = reward.low if isinstance(reward, BoundedBelow) else None
    high = reward.high if isinstance(reward, BoundedAbove) else None
    return reward, {
        "kind": kind,
        "state": state,
        "needs_logprobs": isinstance(reward, ReadsLogprobs) and bool(reward.needs_logprobs),
        "needs_batch": isinstance(reward, ReadsBatch) and bool(reward.needs_batch),
        "follows": isinstance(reward, FollowsTraining),
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
        logged = {"logged": dict(reward.take_logged())} if isinstance(reward, FollowsTraining) else {}
        return {"answer": _plain(answer), **logged, **_coefficient(reward)}
    except MemoryError as error:  # the process ends, because it may never free what it allocated
        return {"raised": f"MemoryError: {error}".strip(": "), "gone": True}
    except RewardError as error:
        return {"raised": str(error), "speaks_for_all": True}
    except Exception as error:
        return {"raised": error_in_words(error)}


@runtime_checkable
class _BecomesAList(Protocol):
    """An array of numpy, a tensor of torch, a number of either."""

    def tolist(self) -> object: ...


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
    """Set a limit to `most`, or to the run's own limit if that is lower."""
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _allow_processor_time(seconds: float) -> None:
    """Limit processor time from now on, which ends an endless loop even if nobody is left to kill it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = math.ceil(used.ru_utime + used.ru_stime + seconds * (os.cpu_count() or 1)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _end_with(line: socket.socket) -> None:
    """Exit when the run is gone."""
    hung_up = select.poll()
    hung_up.register(line, 0)  # hang-ups are always reported
    hung_up.poll()
    os._exit(1)
