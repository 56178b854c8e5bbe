"""Atomic writes: a temporary file is written, fsynced and renamed, so that a file is complete or unchanged; so are
whole folders."""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from rlhf_env.errors import DiskRefused

WAY_ON = ("The last checkpoint is whole", "then go on with --resume")
"""Of a run's files: what is not lost, and what to do after the remedy."""
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


def refused(what: str, error: OSError, whole: str, way_on: str, folder: Path) -> DiskRefused:
    """What to raise where `what`, in `folder`, cannot be written: the remedy is the error's, not always more room.

    `whole` says what is not lost, and `way_on` what to do after that.
    """
    said = f"{what} cannot be written: {error.strerror or error}"
    if not folder.is_dir():
        return DiskRefused(f"{said}: there is no folder {folder} (any more): put it back, {way_on}")
    return DiskRefused(f"{said}{'. ' if whole else ''}{whole}: {remedy_of(error)}, {way_on}")


def remedy_of(error: OSError) -> str:
    """What to do about a file that could not be written, though its folder is there."""
    return "see to the permissions" if error.errno in _NOT_ALLOWED else "make room"


@contextmanager
def written(path: str | Path, size: int | None = None) -> Iterator[BinaryIO]:
    """A file to write into, which replaces `path` when the context ends without an error.

    Temporary files of killed processes are removed. Raises DiskRefused; its message has the size of the file if `size`,
    in bytes, is given.
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
        raise refused(
            f"{path}{large}", error, "The earlier file is whole", "or write elsewhere", path.parent
        ) from error
    finally:
        with suppress(OSError):
            half.unlink()


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write `content` with `written`; lone surrogates in a text are kept."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    with written(path, len(data)) as file:
        file.write(data)


def _sweep(path: Path) -> None:
    """Remove temporary files of `path` whose process (its id is in the name) no longer exists."""
    for half in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = half.name.removesuffix(".tmp").rpartition(".")[2]
        if pid.isdecimal() and not _lives(int(pid)):
            with suppress(OSError):
                half.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # the process is another user's
        return True
    return True


@contextmanager
def folder_written(path: str | Path, *, replace: bool = False, first: bool = False) -> Iterator[Path]:
    """A folder to write into, which appears as `path` when the context ends without an error, and not otherwise.

    With `replace` it takes the place of an older one. With `first`, of processes and threads that make the same folder
    at the same time, the first one makes it, and what the others wrote is thrown away. What killed processes have left
    is removed; where one was killed between taking the older folder away and putting the new one there, the older one
    is put back first. Raises DiskRefused.
    """
    path = Path(path)
    who = f"{os.getpid()}.{threading.get_ident()}"
    half, before = (path.with_name(f".{path.name}.{who}.{kind}") for kind in ("tmp", "before"))
    try:
        _sweep_folders(path)
        half.mkdir(parents=True)
        yield half
        usual = half.stat().st_mode & 0o666  # safetensors makes its files the owner's alone; a folder goes by the umask
        for file in half.rglob("*"):
            if file.is_file():
                file.chmod(file.stat().st_mode | usual)
            _sync(file)
        if replace and path.exists():
            path.rename(before)
        try:
            half.rename(path)
        except OSError:
            if not (first and path.is_dir() and any(path.iterdir())):
                raise
        _sync(path.parent)
    except OSError as error:
        raise refused(str(path), error, "", "or write elsewhere", path.parent) from error
    finally:
        if before.is_dir() and not path.exists():
            before.rename(path)
        shutil.rmtree(half, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def _sweep_folders(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        pid, *_, kind = left.name.removeprefix(f".{path.name}.").split(".")
        if kind not in ("tmp", "before") or not pid.isdecimal() or _lives(int(pid)):
            continue
        if kind == "before" and not path.exists():
            left.rename(path)
        else:
            shutil.rmtree(left, ignore_errors=True)


def write_json(file: Path, content: object) -> None:
    """Write JSON atomically. A number that is not finite becomes null, because JSON has no NaN."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False))


def _finite(content: object) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
