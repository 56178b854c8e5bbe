"""Files that are read whole, or refused with all that is wrong; and what a reader passes over, counted and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlhf_env.delimited import misspelt
from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.label_config import LabelConfig

MOST_PROBLEMS = 20
MOST_REASONS = 10
Located = tuple[str, Any]
"""(where, content): "pairs.jsonl:3" and its object, or the DataError that stands in place of it."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a file of judgements is read, and what was passed over so far."""

    source: str
    """The file's name: who judged and wrote what nobody signed."""
    annotator: str = ""
    """Who judged what does not say who; the file's name by default."""
    buckets: Sequence[str] = ()
    """The names of Label Studio's buckets, the best first: without it buckets are groups in no order."""
    label_config: LabelConfig | None = None
    """Label Studio's labeling configuration, which says what each tag is about."""
    skip: bool = False
    """Leave out what cannot be read, and count it."""
    off_scale: Collection[str] = ()
    """Tags of Label Studio whose ratings are on another scale than ours."""
    layout: str = ""
    """The layout of a published set that the file must be in; by default its columns tell."""
    criteria: Collection[str] = ()
    """Only what was judged by one of these; by default by any."""
    limit: int | None = None
    """Only so many rows from the beginning (of a layout that reads several together, as many of those)."""
    sample: int | None = None
    """Only so many rows, drawn from all."""
    seed: int = 0
    """Draws the sample."""
    tell: Callable[[int], None] = field(default=lambda rows: None)
    """Told how many rows have been read, after each."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """How often what was passed over, in words."""

    assumed: dict[str, None] = field(default_factory=dict)
    """What was not said by the file and taken to be so, in words."""

    def passes_over(self, what: str, count: int = 1) -> None:
        self.passed_over[what] += count


class UnknownFields(DataError):
    """A row that has not the fields it needs. Rows with the same fields are complained about once."""

    def __init__(self, names: Sequence[str], wanted: Sequence[str], problem: str) -> None:
        near = misspelt(names, wanted)
        super().__init__(near or problem)
        self.names = tuple(names)


def gathered(
    path: str | Path,
    contents: Iterable[Located],
    make: Callable[[Any], _T],
    wanted: str,
    reading: Reading | None = None,
) -> list[_T]:
    """`make(content)` of each; DataError with the problems of all, up to 20, each with its place.

    Where `reading` says to skip, what cannot be read is counted instead, as long as anything is left.
    """
    made: list[_T] = []
    problems: list[str] = []
    fields: dict[tuple[str, ...], int] = {}
    reasons: dict[str, tuple[str, int]] = {}
    for where, content in contents:
        try:
            if isinstance(content, DataError):
                raise content
            made.append(make(content))
        except DataError as error:
            reason = "; ".join(map(str, error.problems))
            first, times = reasons.get(reason, (where, 0))
            reasons[reason] = first, times + 1
            repeated = isinstance(error, UnknownFields)
            if isinstance(error, UnknownFields):
                fields[error.names] = fields.get(error.names, 0) + 1
                repeated = fields[error.names] > 1
            if not repeated and len(problems) <= MOST_PROBLEMS:
                problems += (f"{where}: {problem}" for problem in error.problems)
        if len(problems) > MOST_PROBLEMS and not (reading and reading.skip):
            problems[MOST_PROBLEMS:] = [f"{path}: and more after these {MOST_PROBLEMS}"]
            break
    more = sum(fields.values()) - len(fields)
    if more and len(problems) <= MOST_PROBLEMS:
        problems.append(f"{path}: and {more:,} more with the same fields")
    if not problems and not made:
        problems = [f"{path}: the file is empty: it must hold a prompt, {wanted} text"]
    if reading and reading.skip and made:
        _count_skipped(reasons, reading)
    elif problems:
        raise DataError(*problems[: MOST_PROBLEMS + 1])
    return made


def _count_skipped(reasons: Mapping[str, tuple[str, int]], reading: Reading) -> None:
    """Each reason with the first of its lines, the most frequent first; the rare ones of many together."""
    ordered = sorted(reasons.items(), key=lambda one: -one[1][1])
    for reason, (first, times) in ordered[:MOST_REASONS]:
        reading.passes_over(f"lines that cannot be read, the first: {first}: {reason}", times)
    rest = sum(times for _, (_, times) in ordered[MOST_REASONS:])
    if rest:
        reading.passes_over(f"lines that cannot be read for {len(ordered) - MOST_REASONS:,} other reasons", rest)
