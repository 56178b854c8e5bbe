"""The faults that are injected for real: how one is written, and how it is run.

    @fault("F21", "a reward that never returns", quick=True)
    def never_returns(folder: Path) -> None: ...

It gets an empty folder, does the damage, and raises AssertionError where the project did not bear it as it must. It
runs in a process of its own, forked from one that has imported everything, so that it may set limits, register plugins
and die as it likes. `run.py` runs all that stand in the modules of this folder; the suite runs those that are `quick`.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NOT_HERE = 77  # the exit status of a fault that this machine cannot have
PATIENCE = 600  # seconds for one fault: what hangs has not survived


@dataclass(frozen=True)
class Fault:
    """`number`: as in the project's list of faults. `inject` raises AssertionError where it was not survived, and may
    return a word on how it was.
    """

    number: str
    what: str
    inject: Callable[[Path], object]
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.number} {self.what}"


class NotHere(Exception):
    """Raised by a fault that this machine cannot have (nothing may be mounted, say): it does not count."""


@dataclass(frozen=True)
class Outcome:
    """`survived`: None where the fault could not be had here. `said`: what it returned, or what went wrong."""

    survived: bool | None
    said: str


FAULTS: list[Fault] = []


def fault(
    number: str, what: str, *, quick: bool = False
) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Put a function into the catalogue. `quick`: under a second, and worth having in every run of the suite."""

    def register(inject: Callable[[Path], object]) -> Callable[[Path], object]:
        FAULTS.append(Fault(number, what, inject, quick))
        return inject

    return register


def survive(one: Fault, patience: float = PATIENCE) -> Outcome:
    """Inject it in a forked process, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="fault-") as place:
        said = Path(place) / "said"
        folder = Path(place) / "here"
        folder.mkdir()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)  # a group of its own
            status, words = 1, ""
            try:
                words = str(one.inject(folder) or "")
                status = 0
            except NotHere as why:
                status, words = NOT_HERE, str(why)
            except BaseException:
                words = traceback.format_exc()
            finally:
                said.write_text(words, encoding="utf-8", errors="replace")
                os._exit(status)
        deadline = time.monotonic() + patience
        try:
            while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    return Outcome(False, f"still at it after {patience:.0f} s")
                time.sleep(0.005)
        finally:  # whatever it has started, and itself where Ctrl-C came
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(ended[1])
        if not said.exists():
            return Outcome(False, f"its process ended with status {status}")
        return Outcome({0: True, NOT_HERE: None}.get(status, False), said.read_text(encoding="utf-8"))


def chosen(words: Sequence[str], *, quick: bool = False) -> list[Fault]:
    """The faults whose number is among `words`, or in whose name one stands; all without words."""
    return [
        one
        for one in FAULTS
        if (not quick or one.quick) and (not words or any(w == one.number or w in one.what for w in words))
    ]
