"""`rlhf-env ...` in a process of its own, made in an instant: by forking one that has imported everything."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from rlhf_env.cli import main as cli

torch.set_num_threads(1)  # a pool of threads would not come along


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit status (minus the signal that killed it), and what it wrote."""

    status: int
    stdout: str
    stderr: str


class Running:
    """A forked process that runs `work`; it ends with the status that `work` exits with."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="process-")
        self._out, self._err = (Path(self._place.name) / name for name in ("stdout", "stderr"))
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(work)

    def _live(self, work: Callable[[], object]) -> None:
        status = 1
        try:
            for number, file in ((1, self._out), (2, self._err)):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
            sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 - for as long as it lives
            # As a shell leaves them: whoever forks may have set its own.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            _forget_the_launch()
            # torch makes its pool anew after a fork, at the first call, and of two threads that call it (transformers
            # loads weights in several) one may find none: "Invalid thread pool".
            torch.set_num_threads(1)
            work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):  # it may have forbidden itself to write
                    stream.flush()
            os._exit(status)

    def said(self) -> str:
        """What it has written to stdout so far."""
        return self._out.read_text(errors="replace") if self._out.exists() else ""

    def complained(self) -> str:
        """What it has written to stderr so far."""
        return self._err.read_text(errors="replace") if self._err.exists() else ""

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self, patience: float = 120.0) -> Ended:
        """How it ended. What is not over after `patience` seconds is killed, and an AssertionError."""
        deadline = time.monotonic() + patience
        with self._place:
            while (ended := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
                if time.monotonic() > deadline:
                    self.kill()
                    os.waitpid(self.pid, 0)
                    raise AssertionError(f"still running after {patience:.0f} s: {self._err.read_text()}")
                time.sleep(0.002)
            status = os.waitstatus_to_exitcode(ended[1])
            said = [file.read_text(errors="replace") if file.exists() else "" for file in (self._out, self._err)]
        return Ended(status, *said)


FORKING = SimpleNamespace(
    get_context=lambda _how: multiprocessing.get_context("fork"), parent_process=multiprocessing.parent_process
)
"""In the place of `rlhf_env.lab.processes.multiprocessing`: workers of a grid that begin as forks, in an instant."""


def _forget_the_launch() -> None:
    """accelerate looks once a process at who launched it; a trainer of TRL, in the process that forks, has it look."""
    if "accelerate" in sys.modules:
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)


def started(*arguments: str, before: Callable[[], object] | None = None) -> Running:
    """`rlhf-env ARGUMENTS`, begun; `before` is called first in its process (it may patch what it likes)."""

    def work() -> None:
        if before is not None:
            before()
        sys.argv = ["rlhf-env", *arguments]
        cli.main()

    return Running(work)


def script(file: Path, *arguments: str, before: Callable[[], object] | None = None) -> Running:
    """`python FILE ARGUMENTS`, begun; its process draws what a fresh one would, whatever this one has drawn."""

    def work() -> None:
        if before is not None:
            before()
        torch.manual_seed(torch.Generator().initial_seed())
        sys.argv = [str(file), *arguments]
        sys.path.insert(0, str(file.parent))
        runpy.run_path(str(file), run_name="__main__")

    return Running(work)


def rlhf_env(*arguments: str, before: Callable[[], object] | None = None) -> Ended:
    """`rlhf-env ARGUMENTS`, to its end."""
    return started(*arguments, before=before).wait()


def warm_up() -> None:
    """Train once here, all but silently: most of a short command is imports, and forked ones have them then."""
    toml = """
        budget = { updates = 1 }
        policy = { tokenizer = "alphabet:ab" }
        environment = { num_envs = 2, max_new_tokens = 2, max_prompt_tokens = 4 }
        evaluation = { prompts = 2 }
        task = { name = "prompts", prompts = ["a", "b"] }
        rewards = { length = { target = 1 }, kl = 0.1 }
    """
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
        file = Path(place) / "experiment.toml"
        file.write_text(toml, encoding="utf-8")
        cli.app(["train", str(file), "--out", str(Path(place) / "run")], standalone_mode=False)
