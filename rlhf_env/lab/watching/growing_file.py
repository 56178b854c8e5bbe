"""A file of lines that somebody else may be writing, read once: each call gives what has come since the last one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_AT_ONCE = 1 << 20  # bytes


class GrowingFile:
    """`read` gives whole lines with the place at which each begins; a last line without its end waits for it.

    A file that was replaced or became shorter, as when a run is resumed from a checkpoint, is read from its beginning:
    `restarts` then counts one more, and what was read before is of a file that is no more.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._identity: tuple[int, int] | None = None
        self._size = 0
        self._offset = 0
        self.restarts = 0

    @property
    def left(self) -> float:
        """The share of the file that was not read yet, when it was last looked at."""
        return 1.0 - self._offset / self._size if self._size else 0.0

    def read(self, most: int = _AT_ONCE) -> list[tuple[int, bytes]]:
        """The next whole lines, of about `most` bytes together; of a longer line, that line."""
        try:
            with self._file.open("rb") as stream:
                return self._read(stream, most)
        except OSError:  # it is not there, or not any more
            if self._identity is not None:
                self._begin_anew(None)
            return []

    def _read(self, stream: BinaryIO, most: int) -> list[tuple[int, bytes]]:
        about = os.fstat(stream.fileno())
        identity = (about.st_dev, about.st_ino)
        if self._identity != identity or about.st_size < self._offset:
            if self._identity is not None:
                self._begin_anew(identity)
            self._identity = identity
        self._size = about.st_size
        stream.seek(self._offset)
        content = stream.read(most)
        if content and b"\n" not in content:
            content += stream.readline()
        whole = content[: content.rfind(b"\n") + 1]
        lines, at = [], self._offset
        for line in whole.split(b"\n")[:-1]:
            lines.append((at, line))
            at += len(line) + 1
        if not whole:  # half a line is all that is left
            self._size = self._offset
        self._offset = at
        return lines

    def _begin_anew(self, identity: tuple[int, int] | None) -> None:
        self._identity, self._offset, self._size = identity, 0, 0
        self.restarts += 1
