"""Jobs spread over processes that stay: each leaves a result file, and one that dies costs the job it had alone."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Protocol

from rlhf_env.errors import DiskRefused, RlhfEnvError
from rlhf_env.learning.engine import set_threads
from rlhf_env.learning.loop import Row
from rlhf_env.learning.signals import Interrupted
from rlhf_env.shown_text import without_secrets

_BETWEEN_NEWS = 0.2  # seconds: what a job tells more often is not sent


class Job(Protocol):
    """A piece of work for a process of its own; it is done when its result file is there. It can be pickled."""

    @property
    def key(self) -> str:
        """Its name, unlike any other's of the folder."""

    @property
    def title(self) -> str:
        """Its name in words."""

    def result_file(self, folder: Path, /) -> Path: ...

    def work(self, folder: Path, on_update: Callable[[Row, float], None], /) -> object:
        """Do the job, report progress, and leave the result file. A job that was cut short is resumed."""

    def failed(self, folder: Path, why: str, /) -> None:
        """`work` raised: leave a result that says so where the others can go on without it, or nothing."""


@dataclass(frozen=True)
class Progress:
    """How far a job is: `fraction` of it, the last `row` of metrics, and how it `ended`, None while it is at work.

    "died": its process is gone, or found no room on the disk. No result is written, and the next call resumes from its
    last checkpoint. `why`: it failed, or died. `score`: of a run that has been evaluated, if whoever runs the jobs
    knows of one.
    """

    job: Job
    fraction: float
    ended: Literal["finished", "failed", "died"] | None = None
    row: Row = field(default_factory=dict)
    why: str = ""
    score: float | None = None


def run_jobs(
    work: Sequence[Job], folder: Path, *, jobs: int = 2, on_progress: Callable[[Progress], None] | None = None
) -> list[Path]:
    """Do what has no result file yet, in order, in up to `jobs` processes; the result files of all.

    With 0 `jobs` it is done in this process, for a debugger. Stopped by an exception (Ctrl-C), it sends SIGTERM to
    those at work, on which `train` saves its run, and waits.
    """
    missing = [job for job in work if not job.result_file(folder).exists()]
    tell = on_progress or (lambda _progress: None)
    for job in work:
        if job not in missing:
            tell(Progress(job, 1.0, "finished"))
    with closing(_run_in_processes(missing, folder, jobs) if jobs else _run_here(missing, folder)) as heard:
        for progress in heard:
            tell(progress)
    return [job.result_file(folder) for job in work]


def _run_here(work: Sequence[Job], folder: Path) -> Generator[Progress, None, None]:
    for job in work:
        yield Progress(job, 0.0)
        progress = Progress(job, *outcome_of(job, folder, lambda _row, _fraction: None))
        if progress.ended == "failed":
            job.failed(folder, progress.why)
        yield progress


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None


def _run_in_processes(work: Sequence[Job], folder: Path, count: int) -> Generator[Progress, None, None]:
    """Hand jobs to workers that stay (loading torch once each); replace one that dies."""
    waiting = list(work)
    workers = [_start_worker() for _ in range(min(max(1, count), len(waiting)))]
    try:
        for worker in workers:
            yield from _hand_over(worker, waiting, folder)
        while any(worker.job for worker in workers):
            ready = wait([worker.pipe for worker in workers if worker.job])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                progress = _news_of(worker)
                if progress.ended == "failed":
                    progress.job.failed(folder, progress.why)
                if progress.ended == "died" and waiting:
                    fresh = _start_worker()
                    worker.process, worker.pipe = fresh.process, fresh.pipe
                yield progress
                if progress.ended is not None:
                    yield from _hand_over(worker, waiting, folder)
    finally:
        for worker in workers:
            with suppress(OSError):
                worker.pipe.send(None)
            if worker.job is not None:  # we were interrupted: the worker saves its run and ends
                worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _news_of(worker: _Worker) -> Progress:
    assert worker.job is not None
    try:
        return Progress(worker.job, *worker.pipe.recv())
    except (EOFError, OSError):  # at its end, or before it had read what it was sent
        worker.process.join()
        code = worker.process.exitcode
        return Progress(worker.job, 0.0, "died", {}, f"its process died (exit code {code}): the next call resumes it")


def _hand_over(worker: _Worker, waiting: list[Job], folder: Path) -> Iterator[Progress]:
    """The next job; that it has begun is the first that is heard of it."""
    worker.job = waiting.pop(0) if waiting else None
    if worker.job is not None:
        with suppress(OSError):  # it died idle: waiting for its news will say so
            worker.pipe.send((worker.job, folder))
        yield Progress(worker.job, 0.0)


def _start_worker() -> _Worker:
    context = multiprocessing.get_context("spawn")  # forking a process that has used torch's threads can deadlock
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _serve(pipe: Connection) -> None:
    """A worker's life: jobs in, progress out. Ctrl-C reaches it too; the run under way is saved by `train`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    set_threads()
    while True:
        try:
            task = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if task is None:
            return
        job, folder = task
        last = 0.0

        def report(row: Row, fraction: float) -> None:
            nonlocal last
            if time.monotonic() - last > _BETWEEN_NEWS:
                last = time.monotonic()
                pipe.send((fraction, None, row))

        try:
            outcome = outcome_of(job, folder, report)
            pipe.send(outcome)
        except (Interrupted, KeyboardInterrupt):
            return
        if outcome[1] == "died":  # another process is started in its place
            return


def outcome_of(job: Job, folder: Path, report: Callable[[Row, float], None]) -> tuple[Any, ...]:
    """Do the job: what comes after `job` in the last Progress of it. Raises Interrupted and KeyboardInterrupt only."""
    try:
        job.work(folder, report)
    except Interrupted:
        raise
    except DiskRefused as error:  # not the job's fault: a result that says it failed would stand for good
        return 0.0, "died", {}, f"{error}: the next call resumes it"
    except RlhfEnvError as error:
        return 1.0, "failed", {}, without_secrets(str(error))
    except Exception as error:  # a plugin may raise anything; the other jobs go on
        return 1.0, "failed", {}, without_secrets(f"{type(error).__name__}: {error}")
    return 1.0, "finished"


def _end_with_parent() -> None:
    """Of a parent that was killed nothing is left to report to, and to go on would keep the run's folder locked."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
