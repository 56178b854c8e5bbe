"""Asking what waits outside this process while this one goes on: in threads, of which none is left behind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Protocol, Self, TypeVar, runtime_checkable

_AGAIN = 0.02  # seconds between two hang-ups: the first may have come before the call was where it could be ended

Answer = TypeVar("Answer")


@runtime_checkable
class WaitsOutside(Protocol):
    """A reward that another process or a server computes, so that this one has nothing to do until the answer comes.

    It is called from other threads than the one that made it, while texts are being written. `connections`: how many
    calls it takes at the same time.
    """

    @property
    def connections(self) -> int: ...

    def hang_up(self) -> None:
        """End the calls that are under way in other threads: they raise, soon. Calls that come later are answered."""


class Asking:
    """A context in which questions are answered in threads, of which each that is asked has one for each connection.

    Its questions are begun in their order. Leaving the context hangs up on whoever is still at an answer, drops the
    questions that wait, and waits for the threads.
    """

    def __init__(self) -> None:
        self._threads: dict[int, ThreadPoolExecutor] = {}
        self._asked: dict[Future[object], WaitsOutside] = {}

    def ask(self, whom: WaitsOutside, question: Callable[[], Answer]) -> Future[Answer]:
        """What `question`, which calls `whom`, will return or raise."""
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
