"""Ctrl-C and SIGTERM: the update under way is finished and saved before the run stops."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from rlhf_env.errors import RlhfEnvError


class Interrupted(RlhfEnvError):
    """The run was asked to stop (Ctrl-C, SIGTERM) and did, after its update; `exit_code` as shells expect it."""

    def __init__(self, signal_number: int, message: str) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM, so that the update under way is finished; a second SIGINT stops at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def remember(number: int, _frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
