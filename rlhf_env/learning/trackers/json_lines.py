"""metrics.jsonl: one line of JSON for each row of metrics. Every run has it; resuming and reports read it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rlhf_env.errors import DiskRefused
from rlhf_env.learning.tracking import LoggedRow
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import WAY_ON, refused, write_whole


class JsonLines:
    """Appends whole lines to `file`; half a line, which a killed run leaves behind, is dropped and never read back.

    Every method that writes raises DiskRefused when the disk does not take it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        drop_half_line(file)
        self._stream = file.open("a", encoding="utf-8")

    def log(self, row: LoggedRow, /) -> None:
        try:
            self._stream.write(json.dumps(row, allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as error:
            raise self._refused(error) from error

    def sync(self) -> None:
        """Make what was logged outlive a power cut."""
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def rewind(self, update: int, /) -> None:
        self._stream.close()
        rows, _ = rows_of(self._file)
        replace_rows(self._file, [row for row in rows if row["update"] <= update])
        self._stream = self._file.open("a", encoding="utf-8")

    def close(self) -> None:
        self._stream.close()

    def _refused(self, error: OSError) -> DiskRefused:
        return refused(str(self._file), error, *WAY_ON, self._file.parent)


def rows_of(file: Path) -> tuple[list[JsonObject], list[int]]:
    """The rows of a file of metrics, and the numbers of the lines that are none."""
    rows: list[JsonObject] = []
    unreadable = []
    content = file.read_bytes() if file.exists() else b""
    for number, line in enumerate(content.split(b"\n")[:-1], 1):  # the last of a killed run may be half written
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("update"), int):
            rows.append(row)
        else:
            unreadable.append(number)
    return rows, unreadable


def replace_rows(file: Path, rows: Sequence[LoggedRow]) -> None:
    """Write the file anew with these rows: all of them, or it stays as it was."""
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))


def drop_half_line(file: Path) -> None:
    """Cut off what a killed run left of its last row, so that the next row does not continue it."""
    if file.exists():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(file, whole)
