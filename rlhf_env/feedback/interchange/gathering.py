"""Files that are read whole, or refused with all that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from rlhf_env.errors import DataError

MOST_PROBLEMS = 20
Located = tuple[str, Any]
"""(where, content): "pairs.jsonl:3" and its object, or the DataError that stands in place of it."""

_T = TypeVar("_T")


def gathered(path: str | Path, contents: Iterable[Located], make: Callable[[Any], _T], wanted: str) -> list[_T]:
    """`make(content)` of each; DataError with the problems of all, up to 20, each with its place."""
    made: list[_T] = []
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
