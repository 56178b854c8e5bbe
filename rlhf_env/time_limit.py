"""A limit on the time that somebody else's code may take."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeIsOver(BaseException):
    """Not an Exception: code that catches those, and tries again, must not catch this."""


@contextmanager
def at_most(seconds: float, *, of_processor: bool = False) -> Iterator[None]:
    """Raise TimeIsOver in the block after so many seconds; `of_processor`: of its time, of which waiting costs none.

    Without effect outside the main thread, and where another limit of this kind is running: there is one alarm of each.
    """
    timer, alarm = signal.ITIMER_REAL, signal.SIGALRM
    if of_processor:
        timer, alarm = signal.ITIMER_PROF, signal.SIGPROF
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(timer)[0]:
        yield
        return

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise TimeIsOver

    before = signal.signal(alarm, give_up)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0.0)
        signal.signal(alarm, before)
