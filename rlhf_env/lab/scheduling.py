"""The one loop over jobs: hand them to a crew while it has room, record failures, and give a job whose worker is gone
to another worker, which resumes it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from rlhf_env.lab.jobs import Backend, Crew, Job, Progress
from rlhf_env.lab.processes import InThisProcess, LocalProcesses


def run_jobs(
    work: Sequence[Job],
    folder: Path,
    *,
    jobs: int | Backend = 2,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Path]:
    """Do what has no result file yet, in order; the result files of all.

    `jobs`: in up to so many processes of this machine, or where the backend does them. With 0 it is done in this
    process, for a debugger. Stopped by an exception (Ctrl-C), it has those at work save what they have, and waits.
    """
    missing = [job for job in work if not job.result_file(folder).exists()]
    tell = on_progress or (lambda _progress: None)
    for job in work:
        if job not in missing:
            tell(Progress(job, 1.0, "finished"))
    if missing:
        backend = backend_of(jobs)
        backend.require_alike(missing, folder)
        with closing(backend.crew(folder)) as crew:
            _do_all(missing, folder, crew, backend.retries, tell)
    return [job.result_file(folder) for job in work]


def _do_all(work: Sequence[Job], folder: Path, crew: Crew, retries: int, tell: Callable[[Progress], None]) -> None:
    waiting, at_work = deque(work), 0
    tries: Counter[str] = Counter()
    while waiting or at_work:
        while waiting and crew.has_room():
            crew.start(waiting.popleft())
            at_work += 1
        progress = crew.news()
        if progress.ended is not None:
            at_work -= 1
        if progress.gone and tries[progress.job.key] < retries:
            tries[progress.job.key] += 1
            waiting.append(progress.job)
            again = f"{progress.why}; another worker resumes it ({tries[progress.job.key]} of {retries})"
            progress = replace(progress, ended=None, why=again)
        elif progress.ended == "died":
            progress = replace(progress, why=f"{progress.why}: the next call resumes it")
        elif progress.ended == "failed":
            progress.job.failed(folder, progress.why)
        tell(progress)


def backend_of(jobs: int | Backend) -> Backend:
    """That of so many processes of this machine; another as it is."""
    if not isinstance(jobs, int):
        return jobs
    return LocalProcesses(jobs) if jobs else InThisProcess()


def at_once(jobs: int | Backend) -> int:
    """How many jobs are done at the same time."""
    return jobs if isinstance(jobs, int) else jobs.at_once
