"""Ctrl-C, SIGTERM, a terminal that is gone: the update under way is finished and saved before the run stops."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

from rlhf_env.errors import RlhfEnvError


class Interrupted(RlhfEnvError):
    """The run was asked to stop, by one of these, and did, after its update; `exit_code` as shells expect it."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)


_ONE_PRESS = 5.0  # seconds in which what comes from the terminal and from a launcher is one press of Ctrl-C


def hangups() -> tuple[signal.Signals, ...]:
    """SIGHUP, where there is one that is not ignored."""
    number = getattr(signal, "SIGHUP", None)
    return () if number is None or signal.getsignal(number) is signal.SIG_IGN else (number,)


@contextlib.contextmanager
def catch_signals(*, with_launcher: bool = False) -> Iterator[list[int]]:
    """Collects the first of these signals, so that the update under way is finished; a second SIGINT stops at once.

    SIGHUP, which a terminal sends that is closed or whose connection drops, is left alone where it is ignored (nohup).
    `with_launcher`: a launcher, which the terminal interrupts too, passes the signal on: it comes twice.
    """
    caught: list[int] = []
    since = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def remember(number: int, _frame: FrameType | None) -> None:
        nonlocal since
        again = caught and number == signal.SIGINT
        if again and not (with_launcher and time.monotonic() - since < _ONE_PRESS):
            raise KeyboardInterrupt
        since = since or time.monotonic()
        caught.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM, *hangups())}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes that are spawned inside do not hear Ctrl-C, which a terminal sends to all, until they `hear_ctrl_c`.

    One that comes while a process still imports would end it with a traceback. What comes to this process inside is
    heard at the end.
    """
    resource_tracker.ensure_running()  # it comes with the first process that is spawned, and unblocks the signal then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_ctrl_c() -> None:
    """Raises KeyboardInterrupt where it came while this process could not hear it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
