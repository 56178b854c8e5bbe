"""Jobs: what stands as a failure for good, and what is left to the next call. With processes: test_benchmark.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import DiskRefused, RunFailed
from rlhf_env.lab.jobs import Progress
from rlhf_env.lab.scheduling import run_jobs


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
