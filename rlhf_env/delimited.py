"""Tables as text: CSV and TSV files, with each row's place and everything that is wrong with them.

A header is compared letter by letter. What only looks like a column that is wanted ("Prompt", "prompt ", columns set
apart by semicolons) is complained about once, with the likely column, and nothing is guessed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_env.errors import DataError
from rlhf_env.plain_data import LONGEST_LINE, ending_of, read_file

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class TableRow:
    """A row of a table: the line it begins at, and its cells by column, or what is wrong with it."""

    line: int
    cells: dict[str, str] | DataError


def read_table(path: str | Path, wanted: Collection[str] = ()) -> Iterator[TableRow]:
    """The rows of a CSV file, or of a TSV file if its name ends so. Cells may hold line breaks.

    `wanted` are names of columns that are asked for, whichever of them: they decide what the header is likely to mean.
    Where the columns cannot be told, the header comes as what is wrong with it, and nothing after it. A row that cannot
    be read comes as what is wrong with it, and the others come all the same.
    """
    lines = list(_decoded(path))
    unreadable = {number: what for number, (_, what) in enumerate(lines, start=1) if what is not None}
    text = "\n".join(line for line, _ in lines)
    separator = "\t" if ending_of(path) == ".tsv" else ","
    rows = _rows(text, separator)
    header: list[str] = []
    for first, last, cells in rows:
        broken = next((unreadable[line] for line in range(first, last + 1) if line in unreadable), None)
        if not header and not isinstance(cells, str):
            header = cells
            wrong = broken if broken is not None else _header_problem(header, separator, wanted)
            if wrong:
                yield TableRow(first, DataError(wrong))
                return
        elif broken is not None:
            yield TableRow(first, DataError(broken))
        elif isinstance(cells, str):
            yield TableRow(first, DataError(cells))
        elif len(cells) != len(header):
            yield TableRow(first, DataError(f"{len(cells)} fields, the header has {len(header)}"))
        else:
            yield TableRow(first, dict(zip(header, cells, strict=True)))


def _decoded(path: str | Path) -> Iterator[tuple[str, str | None]]:
    """Each line as text, with what is wrong with it; what cannot be decoded is replaced."""
    for line in read_file(path).split(b"\n"):
        try:
            yield line.decode("utf-8", errors="surrogatepass"), None
        except UnicodeDecodeError as error:
            what = f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1} of the line"
            yield line.decode("utf-8", errors="replace"), what


def _rows(text: str, separator: str) -> Iterator[tuple[int, int, list[str] | str]]:
    """(first line, last line, cells or what is wrong) of each row with cells; the first wrong one is the last."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    first = 1
    while True:
        # The limit is one for the whole process, and 131,072 unless somebody says otherwise: ours holds for one row.
        before = csv.field_size_limit(LONGEST_LINE)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "field limit" in str(error):
                what = f"a field of more than {LONGEST_LINE:,} characters, the most that is read"
            else:
                what = f"not CSV: {error}"
            yield first, max(first, reader.line_num), what
            return
        finally:
            csv.field_size_limit(before)
        if cells:
            yield first, reader.line_num, cells
        first = reader.line_num + 1


def _header_problem(header: Sequence[str], separator: str, wanted: Collection[str]) -> str:
    """Why the columns cannot be told; "" where they can."""
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        return f"more than one column is named {', '.join(map(repr, twice))}"
    for other, words in _SEPARATORS.items():
        if other != separator and len(header) == 1 and other in header[0]:
            names = [name.strip().strip('"').casefold() for name in header[0].split(other)]
            # One column that nobody asked for is a table of another kind, whatever its columns are called.
            if wanted and (any(name in wanted for name in names) or _plain(header[0]) not in wanted):
                usual = "commas (or, with tabs, as .tsv)" if separator == "," else "tabs"
                return f"the columns are set apart by {words}: save the table with {usual}"
    return misspelt(header, wanted)


def misspelt(names: Sequence[str], wanted: Collection[str]) -> str:
    """What to say of names that only look like wanted ones; "" where none does.

    "column 'Prompt' is read as nothing: is it 'prompt'? Names are compared letter by letter: rename it".
    """
    likely = {
        name: plain for name in names if name not in wanted and (plain := _plain(name)) in wanted and plain not in names
    }
    if not likely:
        return ""
    each = ", ".join(f"{name!r} (likely {plain!r})" for name, plain in likely.items())
    them = "it" if len(likely) == 1 else "them"
    return f"unknown column {each}: names are compared letter by letter: rename {them}"


def _plain(name: str) -> str:
    return "_".join(name.strip().strip("\ufeff\"'").casefold().replace("-", " ").split())
