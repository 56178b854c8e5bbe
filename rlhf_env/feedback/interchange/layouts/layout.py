"""What a layout of a published data set is: the columns it is known by, what each becomes, and how a row is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_env.feedback.interchange.gathering import Located, Reading
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.types import JsonView

CellKind = Literal["text", "number", "flag", "json"]
"""What a cell of a CSV table holds: text as it is, a number, true or false, or JSON (a list or an object)."""
Read = Callable[[Any, Reading], Sequence[Judgement]]
"""The judgements of a row, or of what `Layout.units` makes of several. Raises DataError with all that is wrong."""
UNCHECKED = "from memory, not checked"
NOT_READ = ""
"""What a column becomes that is known and has no place in a judgement."""


@dataclass(frozen=True)
class PublishedColumn:
    """One column of a layout, as the table in docs/preference-layouts.md has it."""

    name: str
    becomes: str
    """In words; `NOT_READ` for a column that has no place in a judgement."""
    source: str
    """Which of the layout's sources says what it means; `UNCHECKED` where none was found."""
    cell: CellKind = "text"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout in which a data set of preferences is published."""

    name: str
    """What `--layout` calls it."""
    sets: str
    """The data sets that have it."""
    known_by: tuple[str, ...]
    """Columns that every row must have. A file whose rows have them is in this layout."""
    columns: tuple[PublishedColumn, ...]
    """Those of `known_by` among them. Other columns of a file are passed over, named and counted."""
    sources: Mapping[str, str]
    """Where the meaning of columns was read: a short name, and the page, card or code with its version."""
    read: Read
    units: Callable[[Iterator[Located], Reading], Iterable[Located]] = field(default=lambda rows, reading: rows)
    """Puts rows together that only mean something together. By default each row is read by itself."""
    fits: Callable[[JsonView], bool] = field(default=lambda row: True)
    """What a row with these columns must be besides, where other layouts have the same columns."""
    mixes: bool = False
    """One of this project's own or TRL's layouts: one file may hold several of these, row by row."""

    def of(self, row: JsonView) -> bool:
        """Whether a row is in this layout, as far as its columns tell."""
        return all(name in row for name in self.known_by) and self.fits(row)


def columns_of(source: str, **becomes: str | tuple[str, CellKind]) -> tuple[PublishedColumn, ...]:
    """Columns whose meaning one source tells: `question="the prompt", score=("the margin", "number")`."""
    return tuple(
        PublishedColumn(name, *((what, source) if isinstance(what, str) else (what[0], source, what[1])))
        for name, what in becomes.items()
    )


def unread(source: str, *names: str) -> tuple[PublishedColumn, ...]:
    """Columns that are known and have no place in a judgement."""
    return tuple(PublishedColumn(name, NOT_READ, source) for name in names)
