"""metrics.jsonl: whole lines, which outlive kills and are taken back by a resume."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import DataError, DiskRefused
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.trackers.json_lines import JsonLines
from rlhf_env.learning.tracking import Rewinds, Tracker


def test_it_is_a_tracker_that_takes_rows_back(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    assert isinstance(lines, Tracker)
    assert isinstance(lines, Rewinds)
    for update in range(5):
        lines.log({"update": update, "x": None, "h": {"low": 0.0, "high": 1.0, "counts": [update]}})
    lines.rewind(2)
    lines.log({"update": 3, "again": 1.0})
    lines.sync()
    lines.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == [0, 1, 2, 3]
    assert rows[2] == {"update": 2, "x": None, "h": {"low": 0.0, "high": 1.0, "counts": [2]}}
    assert rows[3] == {"update": 3, "again": 1.0}


def test_a_row_is_on_its_way_to_the_disk_before_the_next_update(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.log({"update": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"update": 1}\n', "a kill loses no row that was logged"
    lines.close()


def test_a_row_cut_in_half_is_not_continued_by_the_next(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "x = 1", tensorboard=False) as run:
        run.log({"update": 0, "x": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 1, "x')
    with RunFolder(tmp_path, "x = 1", resume=True, tensorboard=False) as run:
        run.log({"update": 1, "x": 2.0})
    assert read_metrics(tmp_path) == [{"update": 0, "x": 1.0}, {"update": 1, "x": 2.0}]


@pytest.mark.parametrize("line", ["{}", "[1]", "no json", '{"update": "3"}'])
def test_a_line_that_is_no_row_is_refused_by_number(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"update": 0}}\n{line}\n{{"update": 2}}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: no row of metrics: the file is damaged"):
        read_metrics(tmp_path)


class Full:
    """A stream whose disk has no room left."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fileno(self) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def close(self) -> None: ...


@pytest.mark.parametrize(("act", "said"), [("log", "No space left on device"), ("sync", "Input/output error")])
def test_a_disk_that_refuses_a_row_ends_the_run_with_a_remedy(act: str, said: str, tmp_path: Path) -> None:
    lines: Any = JsonLines(tmp_path / "metrics.jsonl")
    lines._stream.close()
    lines._stream = Full()
    with pytest.raises(
        DiskRefused, match=rf"{said}. The last checkpoint is whole: make room, then go on with --resume"
    ):
        lines.log({"update": 1}) if act == "log" else lines.sync()
