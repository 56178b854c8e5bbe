"""Jobs in this process; or in processes of this machine that stay: one that dies costs the job it had alone."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

from rlhf_env.errors import ConfigError
from rlhf_env.lab.jobs import Crew, Job, Progress, outcome_of
from rlhf_env.learning.devices import set_threads
from rlhf_env.learning.folder_lock import GUARD_IT, UNGUARDED
from rlhf_env.learning.loop import Row
from rlhf_env.learning.signals import Interrupted, deaf_to_ctrl_c, hear_ctrl_c

BETWEEN_NEWS = 0.2  # seconds: what a job tells more often is not sent
_TO_SAVE = 10.0  # seconds that a worker has to end, where there is a limit
_TO_END = 60.0  # seconds that a process has to end which has said its last
_LONGEST_WAIT = 3600.0  # seconds: poll(2) takes no day of milliseconds


class OnOneMachine:
    """What backends have in common whose workers see the files that this process sees."""

    retries = 0

    def require_alike(self, _work: Sequence[Job], _folder: Path, /) -> None:
        """They are."""


class InThisProcess(OnOneMachine):
    """One job after the other, here."""

    at_once = 1

    def crew(self, folder: Path, /) -> Crew:
        return _Alone(folder)


class _Alone:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next: Job | None = None
        self._begun = False

    def has_room(self) -> bool:
        return self._next is None

    def start(self, job: Job, /) -> None:
        self._next, self._begun = job, False

    def news(self) -> Progress:
        job = cast("Job", self._next)
        if not self._begun:
            self._begun = True
            return Progress(job, 0.0)
        self._next = None
        return Progress(job, *outcome_of(job, self._folder, lambda _row, _fraction: None))

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class LocalProcesses(OnOneMachine):
    """Up to `at_once` processes. A job whose process died waits for the next call: what killed it here may again."""

    at_once: int
    seconds: float = math.inf
    """The most that a crew may take for all of its jobs, by the clock: for code that may never end. Then the processes
    are killed, and the jobs that are left have failed."""

    def crew(self, folder: Path, /) -> Crew:
        return _Processes(folder, self.at_once, self.seconds)


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None


class _Processes:
    """Workers that stay, loading torch once each; one that died is replaced when there is a job for another."""

    def __init__(self, folder: Path, count: int, seconds: float = math.inf) -> None:
        self._folder, self._count, self._seconds = folder, count, seconds
        self._end = time.monotonic() + seconds
        self._workers: list[_Worker] = []
        self._heard: deque[Progress] = deque()

    def has_room(self) -> bool:
        return len(self._workers) < self._count or any(worker.job is None for worker in self._workers)

    def start(self, job: Job, /) -> None:
        if time.monotonic() >= self._end:
            self._heard.append(self._too_late(job))
            return
        worker = next((worker for worker in self._workers if worker.job is None), None)
        if worker is None:
            worker = _start_worker()
            self._workers.append(worker)
        worker.job = job
        with suppress(OSError):  # it died idle: waiting for its news will say so
            worker.pipe.send((job, self._folder))
        self._heard.append(Progress(job, 0.0))

    def news(self) -> Progress:
        while not self._heard:
            left = self._end - time.monotonic()
            if left <= 0.0:
                self._kill()
                break
            ready = wait([worker.pipe for worker in self._workers if worker.job], min(left, _LONGEST_WAIT))
            for worker in [worker for worker in self._workers if worker.pipe in ready]:
                self._heard.append(self._news_of(worker))
        return self._heard.popleft()

    def _news_of(self, worker: _Worker) -> Progress:
        assert worker.job is not None
        try:
            progress = Progress(worker.job, *worker.pipe.recv())
        except (EOFError, OSError):  # at its end, or before it had read what it was sent
            self._see_it_end(worker)
            if worker.process.exitcode == UNGUARDED:
                raise ConfigError(GUARD_IT) from None
            why = f"its process died (exit code {worker.process.exitcode})"
            progress = Progress(worker.job, 0.0, "died", {}, why, gone=True)
        if progress.ended is not None:
            worker.job = None
        if progress.ended == "died":  # of a full disk, too: it ends after that
            self._see_it_end(worker)
            self._workers.remove(worker)
        return progress

    def _see_it_end(self, worker: _Worker) -> None:
        """Wait for a process that has said its last; one that lives on is killed."""
        _end_within(worker.process, max(0.0, min(self._end - time.monotonic(), _TO_END)))

    def _kill(self) -> None:
        """End those at work, whatever they do: a loop that never ends hears no signal that can be caught."""
        for worker in [worker for worker in self._workers if worker.job is not None]:
            worker.process.kill()
            worker.process.join()
            self._workers.remove(worker)
            self._heard.append(self._too_late(cast("Job", worker.job)))

    def _too_late(self, job: Job) -> Progress:
        return Progress(job, 1.0, "failed", {}, f"it had not ended after {self._seconds:,g} seconds")

    def close(self) -> None:
        """SIGTERM to those at work, on which `train` saves its run; all are waited for, or killed if time is short."""
        for worker in self._workers:
            with suppress(OSError):
                worker.pipe.send(None)
            if worker.job is not None:  # we were interrupted: the worker saves its run and ends
                worker.process.terminate()
        for worker in self._workers:
            _end_within(worker.process, None if self._seconds == math.inf else _TO_SAVE)


def _end_within(process: BaseProcess, seconds: float | None) -> None:
    """Wait for the process to end, and kill it if it has not. None: however long it takes."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()


def _start_worker() -> _Worker:
    context = multiprocessing.get_context("spawn")  # forking a process that has used torch's threads can deadlock
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    with deaf_to_ctrl_c():
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(pipe: Connection) -> None:
    """A worker's life. Ctrl-C reaches it too; the run under way is saved by `train`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, BrokenPipeError, Interrupted, KeyboardInterrupt):
        hear_ctrl_c()
        set_threads()
        _work(pipe)


def _work(pipe: Connection) -> None:
    """Jobs in, progress out."""
    while (task := pipe.recv()) is not None:
        job, folder = task
        last = 0.0

        def report(row: Row, fraction: float) -> None:
            nonlocal last
            if time.monotonic() - last > BETWEEN_NEWS:
                last = time.monotonic()
                pipe.send((fraction, None, row))

        outcome = outcome_of(job, folder, report)
        pipe.send(outcome)
        if outcome[1] == "died":  # another process is started in its place
            return


def _end_with_parent() -> None:
    """Of a parent that was killed nothing is left to report to, and to go on would keep the run's folder locked."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
