"""Slow rewards in threads, so that they are computed while texts are being written; no thread is left behind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Protocol, Self, TypeVar, runtime_checkable

_AGAIN = 0.02  # seconds between two hang-ups: the first may come before the call can be interrupted

Answer = TypeVar("Answer")


@runtime_checkable
class WaitsOutside(Protocol):
    """A reward that another process or a server computes, while this process only waits for the answer.

    It is called in threads, while texts are being written.
    """

    @property
    def connections(self) -> int:
        """How many calls it takes at the same time."""

    def hang_up(self) -> None:
        """End the calls that are running in other threads: they raise soon. Later calls are answered."""


class Asking:
    """A context in which rewards are called in threads: each reward has one thread per connection.

    Calls of a reward start in the order in which they were asked for. Leaving the context hangs up on running calls,
    drops those that have not started, and waits for the threads to end.
    """

    def __init__(self) -> None:
        self._threads: dict[int, ThreadPoolExecutor] = {}
        self._asked: dict[Future[object], WaitsOutside] = {}

    def ask(self, whom: WaitsOutside, question: Callable[[], Answer]) -> Future[Answer]:
        """The future result of `question`, a function that calls the reward `whom`."""
        if id(whom) not in self._threads:
            self._threads[id(whom)] = ThreadPoolExecutor(whom.connections, thread_name_prefix="reward")
        answer = self._threads[id(whom)].submit(question)
        self._asked[answer] = whom  # type: ignore[index]  # a future of anything is one of an object
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)
        while under_way := [answer for answer in self._asked if not answer.done()]:
            for answer in under_way:
                self._asked[answer].hang_up()
            wait(under_way, _AGAIN)
        for thread in self._threads.values():
            thread.shutdown()
