"""Whether the code in a response passes the task's tests. It runs what a model wrote: read SECURITY.md first.

    [rewards.code]          # of a task with a column `tests`: ["assert add(1, 2) == 3", ...], or one text
    trust = true

The code is the last fenced block of the response, or all of it. Each test runs after the code in a process of its own,
with limits of time, memory, file sizes and processes, in an empty folder that is removed afterwards, without your
environment variables; where the system lets it (Linux with user namespaces), without a network and without a view of
other processes. It can still read what you can read. `code_process.py` is all that runs there.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlhf_env.errors import Problem, RewardError
from rlhf_env.settings import AtLeastOne, Name, Positive, fault, settings
from rlhf_env.types import Episode, Float, TrainerState

_PROCESS = Path(__file__).with_name("code_process.py")
_BLOCK = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_START_SECONDS = 30.0  # for Python to start on a busy machine
_LONGEST_ANSWER = 1 << 20


@settings(frozen=False, eq=False)
class CodeTests:
    """The share of a task's tests that the response's Python code passes."""

    trust: bool = False
    """Run code that a model wrote, on this machine and as your user: it has to be said."""
    column: Name = "tests"
    """The task's column with the tests: Python that raises where the code is wrong; a list of texts, or one."""
    score: Literal["share", "all"] = "share"
    """The share of the tests that pass, or 1 where all of them do and else 0."""
    seconds: Positive = 5.0
    """For one test, the code before it included; of processor time as well."""
    memory_mb: AtLeastOne = 1_024
    """Mebibytes of address space of each process."""
    file_mb: AtLeastOne = 16
    """Mebibytes of the largest file that it may write."""
    processes: AtLeastOne = 8
    """Processes and threads that one test may have; not counted for root, and where there are no user namespaces."""
    network: Literal["cut if possible", "must be cut"] = "cut if possible"
    """"must be cut" ends the run where the system does not let the network be taken away."""
    at_once: AtLeastOne = 2
    """Responses that are tested at the same time."""
    _cut: list[float] = field(default_factory=list, init=False, repr=False)

    low, high = 0.0, 1.0  # what no score leaves
    connections = 1  # asked while texts are written: other processes work

    def problems(self) -> Iterator[Problem]:
        if not self.trust:
            why = "this reward runs code that a model wrote, as your user (SECURITY.md says what holds it)"
            yield fault("trust", f"must be true: {why}")

    def hang_up(self) -> None:
        """The call in another thread ends with its limits of time."""

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]. Raises RewardError for a prompt without tests."""
        asked = [(program_in(it.response), self._tests(it)) for it in episodes]
        with ThreadPoolExecutor(self.at_once, thread_name_prefix="code") as threads:
            passed = list(threads.map(lambda it: self._passed(*it), asked))
        shares = [sum(each) / len(each) for each in passed]
        return np.array([float(it == 1.0) if self.score == "all" else it for it in shares], dtype=np.float64)

    def _tests(self, episode: Episode) -> list[str]:
        given = episode.prompt.meta.get(self.column)
        tests = [given] if isinstance(given, str) else given
        if not isinstance(tests, (list, tuple)) or not tests or not all(isinstance(it, str) for it in tests):
            raise RewardError(
                f"column {self.column!r}: prompt {episode.prompt.id!r} has no tests there, a text or a list of texts, "
                f"but {given!r}"[:400]
            )
        return list(tests)

    def _passed(self, code: str, tests: Sequence[str]) -> list[bool]:
        limits = {name: getattr(self, name) for name in ("seconds", "memory_mb", "file_mb", "processes")}
        asked = json.dumps({"code": code, "tests": list(tests), **limits})
        with tempfile.TemporaryDirectory(prefix="rlhf-env-code-", ignore_cleanup_errors=True) as folder:
            try:
                done = subprocess.run(
                    [sys.executable, "-I", str(_PROCESS)],
                    check=False,
                    input=asked.encode("utf-8", "surrogatepass"),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    cwd=folder,
                    env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder},
                    start_new_session=True,
                    timeout=_START_SECONDS + math.ceil(len(tests) * (self.seconds + 1.0)),
                )
                said: Any = json.loads(done.stdout[:_LONGEST_ANSWER])
                passed, cut = [bool(it) for it in said["passed"]], bool(said["offline"])
            except (subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
                raise RewardError(f"the process that runs tests gave no answer: {type(error).__name__}") from error
        if self.network == "must be cut" and not cut:
            raise RewardError("network: this system does not let it be cut off (no user namespaces)")
        self._cut.append(float(cut))
        return passed

    def follow(self, _state: TrainerState, /) -> None: ...

    def take_logged(self) -> Mapping[str, Sequence[float]]:
        """1 for each response since the last time whose code had no network, 0 for the others."""
        cut, self._cut[:] = list(self._cut), []
        return {"code/offline": cut} if cut else {}


def program_in(response: str) -> str:
    """The last fenced block of a response, or all of it."""
    blocks = _BLOCK.findall(response)
    return str(blocks[-1]) if blocks else response
