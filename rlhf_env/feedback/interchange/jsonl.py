"""JSON lines: judgements of all kinds, or pairs in TRL's formats.

write_jsonl("pairs.jsonl", store.preferences())
store.add(read_jsonl("pairs.jsonl"))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.gathering import Located, Reading, gathered
from rlhf_env.feedback.interchange.provenance import parsed
from rlhf_env.feedback.interchange.rows import pair_row, preference_of
from rlhf_env.feedback.judgements import Preference
from rlhf_env.plain_data import LONGEST_LINE, ending_of, read_file
from rlhf_env.types import JsonObject, JsonView
from rlhf_env.whole_files import written


def write_jsonl(path: str | Path, preferences: Iterable[Preference]) -> int:
    """Write one line per preference in TRL's standard format; returns how many."""
    return write_lines(path, (pair_row(preference) for preference in preferences))


def read_jsonl(path: str | Path, *, annotator: str = "") -> list[Preference]:
    """The pairs of a file in either of TRL's preference formats, in order.

    `annotator` (default: the file's name) judged the lines that do not say who. Raises DataError with each problem as
    "file:line: field: what", up to 20 of them: a line that is not JSON or not UTF-8, a field that is missing, null or
    no text, a preference without a winner, an empty file.
    """
    reading = Reading(source=Path(path).name, annotator=annotator)
    return gathered(path, json_rows(path), lambda row: preference_of(row, reading), "a chosen and a rejected")


def write_lines(path: str | Path, rows: Iterable[JsonView]) -> int:
    """Write one JSON object per line; returns how many. The file appears whole or not at all."""
    count = 0
    with written(path) as file:
        for row in rows:
            # ASCII with escapes, so that lone surrogates and odd line separators survive
            file.write(json.dumps(row, default=dict).encode("ascii") + b"\n")
            count += 1
    return count


def json_rows(path: str | Path) -> Iterator[Located]:
    """Each object of a file of JSON lines, or of a JSON array, or what is wrong with it, and where it stands."""
    content = read_file(path)
    if content.lstrip()[:1] == b"[" or (ending_of(path) == ".json" and not _is_lines(content)):
        return _array(path, content)
    return _lines(path, content)


def _is_lines(content: bytes) -> bool:
    """Data sets of JSON lines are often named .json: more than one line, and the first is an object by itself."""
    first, _, rest = content.strip().partition(b"\n")
    return bool(rest.strip()) and isinstance(_object(first), dict)


def _lines(path: str | Path, content: bytes) -> Iterator[Located]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield f"{path}:{number}", _object(line)


def _object(line: bytes) -> JsonObject | DataError:
    if len(line) > LONGEST_LINE:
        return DataError(f"{len(line):,} bytes, a line may have at most {LONGEST_LINE:,}")
    try:
        row = parsed("", line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return DataError(f"not UTF-8 at byte {error.start + 1} of the line")
    except DataError as error:
        return DataError(*(problem.removeprefix(": ") for problem in error.problems))
    return row if isinstance(row, dict) else DataError("not an object with prompt, chosen and rejected")


def _array(path: str | Path, content: bytes) -> Iterator[Located]:
    try:
        records = parsed("", content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 at byte {error.start + 1} of the file") from error
    except DataError as error:
        raise DataError(*(f"{path}{problem}" for problem in error.problems)) from error
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of rows, of Argilla records or of Label Studio tasks")
    for number, record in enumerate(records, start=1):
        is_row = isinstance(record, dict)
        yield f"{path}: record {number}", record if is_row else DataError("not an object: a row, a record or a task")
