"""Jobs: what stands as a failure for good, and what is left to the next call. With processes: test_benchmark.py."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from rlhf_env.errors import ConfigError, DiskRefused, RunFailed
from rlhf_env.lab import processes
from rlhf_env.lab.jobs import Job, Progress
from rlhf_env.lab.processes import LocalProcesses, _Worker
from rlhf_env.lab.scheduling import run_jobs
from rlhf_env.learning.folder_lock import UNGUARDED, hold


@dataclass
class Raises:
    """A job that raises; `failed` leaves a result."""

    error: Exception
    key = title = "job"

    def result_file(self, folder: Path, /) -> Path:
        return folder / "result.json"

    def work(self, _folder: Path, _on_update: Any, /) -> None:
        raise self.error

    def failed(self, folder: Path, why: str, /) -> None:
        self.result_file(folder).write_text(why)


@pytest.mark.parametrize(
    ("error", "ended", "kept"),
    [
        (RunFailed("the evaluation is not finite"), "failed", ["result.json"]),
        (ZeroDivisionError("a plugin's"), "failed", ["result.json"]),
        (DiskRefused("metrics.jsonl cannot be written"), "died", []),
    ],
)
def test_a_full_disk_is_no_failure_of_the_job(error: Exception, ended: str, kept: list[str], tmp_path: Path) -> None:
    told: list[Progress] = []
    run_jobs([Raises(error)], tmp_path, jobs=0, on_progress=told.append)
    assert [progress.ended for progress in told] == [None, ended]
    assert str(error) in told[-1].why
    assert [file.name for file in tmp_path.iterdir()] == kept


def test_a_script_that_would_begin_again_in_its_workers_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit) as ended:
        hold(tmp_path / "run")
    assert ended.value.code == UNGUARDED and "__main__" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_its_first_process_says_so_once(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=sys.exit, args=(UNGUARDED,))
    ours, theirs = multiprocessing.Pipe()
    process.start()
    theirs.close()
    crew = LocalProcesses(1).crew(tmp_path)
    crew._workers.append(_Worker(process, ours, job=cast("Job", object())))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="__main__"):
        crew.news()


def asleep(seconds: float = 1e6, *held: object) -> None:
    """What is `held` stays open as long."""
    time.sleep(seconds)


def sleeper(*, with_pipe: bool = True) -> _Worker:
    """A worker that reads nothing and ends on no signal but SIGKILL or its default ones."""
    ours, theirs = multiprocessing.Pipe()
    held = (theirs,) if with_pipe else ()
    process = multiprocessing.get_context("spawn").Process(target=asleep, args=(1e6, *held), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def test_a_job_that_never_ends_is_killed_when_the_time_is_over(tmp_path: Path) -> None:
    never, waiting = (cast("Job", Raises(RunFailed(name))) for name in ("never", "waiting"))
    crew = LocalProcesses(1, seconds=0.01).crew(tmp_path)
    worker = sleeper()
    worker.job = never
    crew._workers.append(worker)  # type: ignore[attr-defined]
    told = crew.news()
    assert (told.job, told.ended, told.why) == (never, "failed", "it had not ended after 0.01 seconds")
    assert worker.process.exitcode == -9
    crew.start(waiting)  # and no process begins after that
    assert crew.news().ended == "failed" and not crew._workers  # type: ignore[attr-defined]


def test_a_worker_that_says_nothing_more_and_lives_on_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may close its process's pipe: whoever waits for its end waits for ever."""
    monkeypatch.setattr(processes, "_TO_END", 0.01)
    crew = LocalProcesses(1).crew(tmp_path)
    worker = sleeper(with_pipe=False)
    worker.job = cast("Job", Raises(RunFailed("never")))
    crew._workers.append(worker)  # type: ignore[attr-defined]
    assert crew.news().ended == "died" and worker.process.exitcode == -9


def test_a_worker_that_does_not_end_when_told_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_TO_SAVE", 0.01)
    crew = LocalProcesses(1, seconds=3600.0).crew(tmp_path)
    worker = sleeper()  # idle, as one is whose job left a thread behind
    crew._workers.append(worker)  # type: ignore[attr-defined]
    crew.close()
    assert worker.process.exitcode == -9


def test_ctrl_c_while_a_worker_still_imports_is_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """The terminal sends it to all, and the one in front says what there is to say."""
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell begins with & ignores it
    worker = processes._start_worker()
    signal.signal(signal.SIGINT, heard)
    os.kill(worker.process.pid or 0, signal.SIGINT)
    worker.process.join(60)
    assert (worker.process.exitcode, capfd.readouterr().err) == (0, "")
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, set()), "this process hears it as before"
