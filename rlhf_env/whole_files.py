"""Files that appear whole or not at all: written beside their place, made durable, renamed."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from rlhf_env.errors import DiskRefused


@contextmanager
def written(path: str | Path, size: int | None = None) -> Iterator[BinaryIO]:
    """A file to write that takes its name when all is written; until then, what was there before is there.

    What a process that was killed left half written is removed. Raises DiskRefused, which says how
    large the file was to be, if `size`, in bytes, is known.
    """
    path = Path(path)
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _sweep(path)
        with half.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError as error:
        large = "" if size is None else f" ({size:,} bytes)"
        raise DiskRefused(
            f"{path}{large} cannot be written: {error.strerror or error}. What stood before is whole: make room, or "
            "write elsewhere"
        ) from error
    finally:
        with suppress(OSError):
            half.unlink()


def write_whole(path: str | Path, content: str | bytes) -> None:
    """`written`, of what is known already; half a surrogate pair in a text stays what it is."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    with written(path, len(data)) as file:
        file.write(data)


def _sweep(path: Path) -> None:
    """Remove what killed writers of `path` left behind: their process ids, which are in the names, live no more."""
    for half in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = half.name.removesuffix(".tmp").rpartition(".")[2]
        if pid.isdecimal() and not _lives(int(pid)):
            with suppress(OSError):
                half.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def write_json(file: Path, content: object) -> None:
    """All of it or nothing. A number that is not finite becomes null: JSON has no NaN."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False))


def _finite(content: object) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
