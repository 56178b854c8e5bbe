"""Another process writes a policy's texts while this one learns, with the weights that the last update began with.

    writer = AheadWriter(policy)
    policy.writer = writer               # from now on `policy.write` asks it
    writer.hand_over(policy, update=3)   # write with these weights, those after 3 updates, from now on
    writer.ask_ahead(policy, observation)  # and begin with these texts: they will be asked for

The process has no environment, no reward and no random stream. What it writes is a function of the weights handed over,
the texts to continue, and the numbers that draw the tokens, which all come from here. So `ask_ahead` changes when a
text is written and never which: what was foretold wrongly is thrown away, and written when it is asked for.

Weights go through memory that both processes share. Requests are pickles, because the process may trust the run;
answers are numbers.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlhf_env.envs.isolation import receive, send
from rlhf_env.errors import WriterFailed
from rlhf_env.policies.policy import Sampling, Written
from rlhf_env.policies.writer_distance import WriterDistance
from rlhf_env.types import Bool, Float, Int, Observation, State

if TYPE_CHECKING:
    from rlhf_env.policies.language_model import LanguageModel

# Texts of a rollout that the policy reads to find out how far it has moved: a few, as reading costs a forward pass.
CHECKED_TEXTS = 8

_ALIGNED = 64  # bytes: where a weight may begin in the shared memory
_SERVE = "from rlhf_env.policies.ahead_writer import serve_texts; serve_texts()"


@dataclass(frozen=True, eq=False)
class _Request:
    """Texts to continue: all that they depend on but the weights."""

    texts: Int
    mask: Bool
    rows: Bool
    numbers: Float
    sampling: Sampling
    stops: Any
    stop_states: Int | None
    threads: int

    @classmethod
    def of(cls, policy: LanguageModel, observation: Observation, rows: Bool, numbers: Float) -> _Request:
        mask = np.asarray(observation["attention_mask"], bool)
        states = observation.get("stop_states")
        return cls(
            np.where(mask, np.asarray(observation["input_ids"], np.int64), 0),
            mask,
            np.asarray(rows, bool),
            numbers,
            policy.sampling,
            observation.get("stops"),
            None if states is None else np.asarray(states, np.int64),
            torch.get_num_threads(),
        )

    def is_like(self, other: _Request) -> bool:
        """Whether the same is written."""
        if self.sampling != other.sampling or self.stops is not other.stops:
            return False
        names = ("texts", "mask", "rows", "numbers", "stop_states")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    def written_by(self, policy: LanguageModel) -> Written:
        observation: Observation = {"input_ids": self.texts, "attention_mask": self.mask.astype(np.int8)}
        if self.stops is not None and self.stop_states is not None:
            observation |= {"stops": self.stops, "stop_states": self.stop_states}
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        return policy.write_by(self.numbers, observation, self.rows)


class Served(Protocol):
    """Who serves at the other end of a socket."""

    def how_it_ended(self) -> str: ...

    def end(self) -> None: ...


Start = Callable[[socket.socket, int], Served]


class AheadWriter:
    """A process that has a copy of one policy; see `TextWriter`."""

    name = "the process that writes ahead"
    of_training = True
    max_kl = math.inf  # the policy moves as far as an update takes it

    update: int
    """How many updates had been made to the weights that write now."""

    def __init__(self, policy: LanguageModel, update: int = 0, start: Start | None = None) -> None:
        """`start` the process at the other end of a socket (default: a new Python), with the descriptor of the memory
        that the weights are in."""
        self.update = update
        self._distance = WriterDistance(CHECKED_TEXTS)
        self._served_ahead: list[bool] = []
        self._asked: _Request | None = None  # and not answered so far
        weights = policy.state_dict()
        descriptor = _memory(max(1, _places(weights)[1]))
        try:
            self._weights = _views(descriptor, weights)
            self._put(weights)
            ours, theirs = socket.socketpair()
            with theirs:
                self._served = (start or _Process)(theirs, descriptor)
        finally:
            os.close(descriptor)
        self._socket = ours
        self._finish = weakref.finalize(self, _ended, ours, self._served)
        self._send(policy)

    def write(
        self, policy: LanguageModel, weights: tuple[object, ...], observation: Observation, rows: Bool, numbers: Float
    ) -> Written:
        """By the weights that were handed over last, whatever `policy` has now. Raises WriterFailed."""
        request = _Request.of(policy, observation, rows, numbers)
        ahead = self._asked is not None and self._asked.is_like(request)
        if not ahead:
            self._forget_asked()
            self._ask(request)
        self._served_ahead.append(ahead)
        written = self._answer()
        self._distance.read(policy, request.texts, request.mask.sum(1), written)
        return written

    def hand_over(self, policy: LanguageModel, update: int) -> None:
        """Write with the weights that `policy` now has, after `update` updates, until the next call."""
        self._forget_asked()  # while it writes, it may still have to read the weights
        self._put(policy.state_dict())
        self.update = update
        self._send("weights")

    def ask_ahead(self, policy: LanguageModel, observation: Observation, length: int) -> None:
        """Begin to write up to `length` tokens for all rows, as `policy.write` will ask if nothing else comes before.

        That the process is gone is said by `write`.
        """
        self._forget_asked()
        rows = len(observation["input_ids"])
        self._ask(_Request.of(policy, observation, np.ones(rows, bool), policy.next_numbers(rows, length)))

    def take_distance(self) -> dict[str, float]:
        """`written_ahead` is the share of calls since the last one that were foretold; for others see
        `WriterDistance.take`."""
        served, self._served_ahead = self._served_ahead, []
        share = {"written_ahead": float(np.mean(served))} if served else {}
        return {**share, **self._distance.take()}

    def state_dict(self) -> State:
        """The weights that write next, which are not the policy's, in memory that the next `hand_over` changes."""
        return {"update": self.update, "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises RuntimeError for weights of another model."""
        if state["weights"].keys() != self._weights.keys():
            raise RuntimeError("the weights that wrote are of another model")
        self._forget_asked()
        self._put(state["weights"])
        self.update = int(state["update"])
        self._send("weights")

    def close(self) -> None:
        """End the process."""
        self._finish()

    def _put(self, weights: Mapping[str, Any]) -> None:
        for name, place in self._weights.items():
            place.copy_(weights[name].detach())

    def _ask(self, request: _Request) -> None:
        self._asked = request
        self._send(request)

    def _send(self, what: object) -> None:
        with suppress(OSError):  # it is gone: whoever waits for its answer says so
            send(self._socket, pickle.dumps(what))

    def _forget_asked(self) -> None:
        if self._asked is not None:
            with suppress(WriterFailed):
                self._answer()

    def _answer(self) -> Written:
        assert self._asked is not None
        shape, self._asked = self._asked.numbers.shape, None
        try:
            said = json.loads(receive(self._socket))
            content = receive(self._socket) if said == {} else b""
        except (OSError, EOFError):
            raise WriterFailed(f"{self.name} {self._served.how_it_ended()}") from None
        if said:
            raise WriterFailed(f"{self.name} failed: {said['failed']}")
        tokens, logprobs = np.frombuffer(content, np.int64).reshape(2, *shape)
        return Written(tokens.copy(), logprobs.view(np.float64).copy())


def serve_texts() -> None:
    """The other process: write what is asked for until the run is gone, which is noticed at once, in any step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        answer_requests(connection, int(sys.argv[2]), lambda: os._exit(0))


def answer_requests(connection: socket.socket, descriptor: int, on_end: Callable[[], None]) -> None:
    """Answer what an `AheadWriter` at the other end asks; in its thread, `on_end` is called when that is gone."""
    messages: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()

    def listen() -> None:
        with suppress(OSError, EOFError):
            while True:
                messages.put(receive(connection))
        messages.put(None)
        on_end()

    threading.Thread(target=listen, daemon=True).start()
    first = messages.get()
    if first is None:
        return
    policy = pickle.loads(first)
    held = policy.state_dict()
    weights = _views(descriptor, held)
    while (message := messages.get()) is not None:
        request = pickle.loads(message)
        if not isinstance(request, _Request):
            with torch.no_grad():
                for name, value in weights.items():
                    held[name].copy_(value)
            policy.forget()
            continue
        try:
            written = request.written_by(policy)
        except Exception as error:  # of the model: any may come
            lines = str(error).strip().splitlines() or [""]
            send(connection, json.dumps({"failed": f"{type(error).__name__}: {lines[0]}"}).encode())
            continue
        with suppress(OSError):
            send(connection, b"{}")
            send(connection, written.tokens.astype(np.int64).tobytes() + written.logprobs.astype(np.float64).tobytes())


class _Process:
    """A new Python, in a session of its own: Ctrl-C in a terminal is for the run alone."""

    def __init__(self, theirs: socket.socket, descriptor: int) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _SERVE, str(theirs.fileno()), str(descriptor)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            pass_fds=[theirs.fileno(), descriptor],
            start_new_session=True,
        )

    def how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):  # it closes its end of the socket a moment before it exits
            self.process.wait(1.0)
        status = self.process.poll()
        if status is None:
            return f"(pid {self.process.pid}) does not answer any more"
        if status < 0:
            return f"(pid {self.process.pid}) was killed by {signal.Signals(-status).name}"
        self._said.seek(0)
        last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        return ": ".join([f"(pid {self.process.pid}) ended with status {status}", *last])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._said.close()


def _ended(connection: socket.socket, served: Served) -> None:
    connection.close()
    served.end()


def _memory(size: int) -> int:
    """A descriptor of `size` bytes that have no name: they are gone with the processes that use them."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("rlhf-env-weights")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


def _places(weights: Mapping[str, Any]) -> tuple[dict[str, int], int]:
    """Where each weight begins, and the bytes of all."""
    places, end = {}, 0
    for name, value in weights.items():
        places[name] = end
        end += -(-value.numel() * value.element_size() // _ALIGNED) * _ALIGNED  # rounded up
    return places, end


def _views(descriptor: int, like: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors as those of `like`, in the memory of `descriptor`."""
    places, size = _places(like)
    shared = mmap.mmap(descriptor, max(1, size))
    return {
        name: torch.frombuffer(shared, dtype=value.dtype, count=value.numel(), offset=places[name]).view(value.shape)
        for name, value in like.items()
        if value.numel()
    }


__all__ = ["CHECKED_TEXTS", "AheadWriter", "Served", "answer_requests", "serve_texts"]
