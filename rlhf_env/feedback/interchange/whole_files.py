"""Files that are read whole or refused with all that is wrong, and that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from rlhf_env.errors import DataError, RunFailed

MOST_PROBLEMS = 20
Located = tuple[str, Any]
"""(where, content): "pairs.jsonl:3" and its object, or the DataError that stands in place of it."""

T = TypeVar("T")


@contextmanager
def written(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name when all is written. Raises RunFailed when the disk refuses."""
    path = Path(path)
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with half.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError as error:
        raise RunFailed(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        half.unlink(missing_ok=True)


def gathered(path: str | Path, contents: Iterable[Located], make: Callable[[Any], T], wanted: str) -> list[T]:
    """`make(content)` of each; DataError with the problems of all, up to 20, each with its place."""
    made: list[T] = []
    problems: list[str] = []
    for where, content in contents:
        try:
            if isinstance(content, DataError):
                raise content
            made.append(make(content))
        except DataError as error:
            problems += (f"{where}: {problem}" for problem in error.problems)
        if len(problems) > MOST_PROBLEMS:
            problems[MOST_PROBLEMS:] = [f"{path}: and more after these {MOST_PROBLEMS}"]
            break
    if not problems and not made:
        problems = [f"{path}: the file is empty: it must hold a prompt, {wanted} text"]
    if problems:
        raise DataError(*problems)
    return made
