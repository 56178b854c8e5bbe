"""Files of jobs that are done on other machines: what a job leaves travels as bytes, and what it reads is looked for,
and put, at the same path there.

Nothing here knows who carries the bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.folder_lock import hold
from rlhf_env.whole_files import write_whole

Seen = Mapping[str, tuple[int, int]]
"""By path: the size of a file, and when it was last changed in nanoseconds."""

_LAST = "manifest.json"  # of a checkpoint, which is whole when this file is there
_JUST_MADE = 60.0  # seconds in which a new folder may not be locked yet

# ------------------------------------------------------------- what a job leaves


def seen_in(folder: Path, paths: Iterable[Path]) -> dict[str, tuple[int, int]]:
    """The files among `paths`, and in those that are folders, by their place in `folder`. What has a name that begins
    with a dot is being written."""
    found = {}
    for file in _files_among(paths):
        place = file.relative_to(folder)
        if not any(part.startswith(".") for part in place.parts):
            with suppress(FileNotFoundError):
                found[place.as_posix()] = _look_of(file)
    return found


def contents_of(folder: Path, places: Iterable[str]) -> dict[str, bytes]:
    """By its place in `folder`, what is in each file."""
    return {place: (folder / place).read_bytes() for place in places}


def write_contents(folder: Path, contents: Mapping[str, bytes], gone: Iterable[str] = ()) -> None:
    """Write such files into `folder`, each whole, and remove those that are `gone`.

    A reader who comes in between, or after a crash, finds no checkpoint whole before it is: its manifest comes last of
    its files, and after everything the results. Raises DiskRefused; DataError for a place that is not in `folder`.
    """
    for place in sorted(contents, key=lambda place: (place.count("/") < 2, place.endswith(_LAST), place)):
        file = folder / place
        if Path(place).is_absolute() or ".." in Path(place).parts:
            raise DataError(f"{place} is no place in {folder}")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, contents[place])
    for place in gone:
        (folder / place).unlink(missing_ok=True)
        for parent in (folder / place).parents:
            if parent == folder or any(parent.iterdir()):
                break
            parent.rmdir()


def has_checkpoint_beyond(before: Seen, now: Seen) -> bool:
    """Whether there is a checkpoint that was not there before."""
    return any(place.endswith(f"/{_LAST}") and before.get(place) != look for place, look in now.items())


@contextmanager
def work_folder() -> Iterator[Path]:
    """A folder of this machine for one job, removed afterwards; those that killed processes left are removed first."""
    home = Path(tempfile.gettempdir()) / f"rlhf-env-cells-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid() or home.is_symlink():
        raise DataError(f"{home} is another user's: set TMPDIR to a folder of your own")
    for left in home.iterdir():
        with suppress(ConfigError, OSError):
            if time.time() - left.stat().st_mtime > _JUST_MADE:
                with hold(left):  # its owner holds this lock as long as it lives
                    shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=home))
    with hold(folder):
        try:
            yield folder / "work"
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def link_what_is_read(folder: Path, there: Path, paths: Iterable[str | Path]) -> None:
    """In the folder that a job works in: links to what it reads of the folder `there` that it would else work in."""
    for path in map(Path, paths):
        if path.is_relative_to(there) and not (link := folder / path.relative_to(there)).exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)


# -------------------------------------------------------------- what a job reads


def look_at(paths: Iterable[str | Path]) -> dict[str, tuple[int, int]]:
    """The files among some absolute paths, and in those that are folders. A name of a model is no file."""
    return {str(file): _look_of(file) for file in _files_among(Path(path) for path in paths)}


def missing_and_others(expected: Seen) -> tuple[list[str], dict[str, str]]:
    """Of files that look so on another machine: those that are not here, and the sha256 of those that look otherwise.

    A file of the same size that was last changed at the same nanosecond is the same: on a shared disk nothing is read.
    """
    missing, others = [], {}
    for path, look in expected.items():
        if not Path(path).is_file():
            missing.append(path)
        elif _look_of(Path(path)) != look:
            others[path] = sha256_of(path)
    return missing, others


def sha256_of(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_where_missing(contents: Mapping[str, bytes]) -> list[str]:
    """Write files at absolute paths where there is none; those written, and before each the folders made for it."""
    made: list[str] = []
    for path, content in contents.items():
        file = Path(path)
        if file.exists():
            continue
        missing = [folder for folder in file.parents if not folder.exists()]
        file.parent.mkdir(parents=True, exist_ok=True)
        made += map(str, reversed(missing))
        write_whole(file, content)
        made.append(path)
    return made


def take_away(made: Sequence[str]) -> None:
    """Remove what `put_where_missing` made; folders that something else has come into stay."""
    for path in reversed(made):
        with suppress(OSError):
            if Path(path).is_dir():
                Path(path).rmdir()
            else:
                Path(path).unlink()


# ------------------------------------------------------------------------------


def _files_among(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())


def _look_of(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns
