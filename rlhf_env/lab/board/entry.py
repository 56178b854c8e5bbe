"""An entry: one JSON file that holds a track's runs of one agent, with the code that they were made with.

    {"format": 1, "name", "track", "track_sha256",
     "experiment": "...TOML...",                              the seed of the first run in it
     "sources": {"agent.py": {"sha256", "text"}},             as the runs recorded it, and as it is
     "made_with": {"versions", "processor", "library"},
     "runs": [{"seed", "threads", "initial_weights", "result": {"reached", "spent", "gold"}, "rows": [...]}]}

What is in it is not trusted. Reading it runs none of it: it is text and numbers, each checked here, up to a size.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lab.board.costs import Cost
from rlhf_env.learning.experiment import Experiment
from rlhf_env.plain_data import read_file, read_json
from rlhf_env.types import JsonObject, JsonView
from rlhf_env.whole_files import write_whole

ENTRY_ENDING = ".entry.json"
_FORMAT = 1
LARGEST = 2**24  # bytes of an entry
_LONGEST_EXPERIMENT, _LONGEST_WORD = 2**14, 200  # characters of its TOML; of what is shown
_MOST_SOURCES, _LARGEST_SOURCE = 64, 2**18  # files; characters of one
_MOST_RUNS, _MOST_ROWS, _MOST_THREADS = 100, 20_000, 1024
_LARGEST, _SEEDS = 1e300, 2**40
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_STEP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # of a path: not "..", nothing hidden
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class EntrySource:
    """A file of code: its text, and the hash that the runs recorded."""

    sha256: str
    text: str

    @property
    def is_whole(self) -> bool:
        return text_sha256(self.text) == self.sha256


@dataclass(frozen=True)
class EntryRun:
    """One seed."""

    seed: int
    threads: int
    initial_weights: str
    result: Cost
    rows: tuple[JsonView, ...]
    """Those of metrics.jsonl, numbers alone."""


@dataclass(frozen=True)
class BoardEntry:
    """What a file says; `sha256` is that of the file."""

    name: str
    track: str
    track_sha256: str
    experiment: str
    sources: Mapping[str, EntrySource]
    made_with: Mapping[str, Any]
    runs: tuple[EntryRun, ...]
    sha256: str = ""

    def loaded(self, seed: int | None = None, folder: Path | None = None) -> Experiment:
        """Its experiment, with code led from `folder`. Raises ConfigError."""
        table = _toml(self.experiment)
        return Experiment.from_table(table if seed is None else {**table, "seed": seed}, "experiment", folder=folder)

    def save(self, file: Path) -> None:
        """Write it, whole or not at all. Raises ConfigError where it would be refused."""
        content = json.dumps({"format": _FORMAT, **asdict(self)} | {"sha256": None}, ensure_ascii=False, indent=0)
        read_entry_text(content.encode("utf-8", "surrogatepass"), str(file))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)

    def unpack(self, folder: Path) -> None:
        """Write its sources into a folder. Raises DataError for a path that would lead out of it."""
        for path, source in self.sources.items():
            file = folder / path
            if not is_source_path(path) or not file.resolve().is_relative_to(folder.resolve()):
                raise DataError(f"the source {path!r} would lie outside of {folder}")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, source.text)


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_entry(file: Path) -> BoardEntry:
    """The entry in a file. Raises DataError, all on one line, for what is none."""
    return read_entry_text(read_file(file, LARGEST), str(file))


def read_entry_text(content: bytes, where: str) -> BoardEntry:
    """The same of its bytes; `where` begins the message."""
    try:
        if len(content) > LARGEST:
            raise ValueError(f"larger than {LARGEST:,} bytes")
        table = read_json(content)
        if _typed(table, "format", int) != _FORMAT:
            raise ValueError(f"format {table['format']}, and this version reads {_FORMAT}")
        return BoardEntry(
            name=entry_name(_typed(table, "name", str)),
            track=_word(table, "track"),
            track_sha256=_hash(table, "track_sha256"),
            experiment=_experiment(_typed(table, "experiment", str)),
            sources=dict(_sources(_typed(table, "sources", dict))),
            made_with=_made_with(_typed(table, "made_with", dict)),
            runs=tuple(_runs(_typed(table, "runs", list))),
            sha256=hashlib.sha256(content).hexdigest(),
        )
    except RecursionError:
        raise DataError(f"{where}: no entry of a board: brackets too deep to be read") from None
    except ValueError as error:  # of JSON, or said above and below
        raise DataError(f"{where}: no entry of a board: {error}") from error


def entry_name(name: str) -> str:
    """The same. Raises ConfigError for what cannot be one."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name[:80]!r} is no name of an entry: letters, digits and . _ -, at most 64")
    return name


def is_source_path(path: str) -> bool:
    """Whether a file of this path can be in an entry: below its folder, with plain names."""
    return len(path) <= 200 and path.endswith(".py") and all(map(_STEP.fullmatch, path.split("/")))


def _experiment(text: str) -> str:
    if len(text) > _LONGEST_EXPERIMENT:
        raise ValueError(f"its experiment is longer than {_LONGEST_EXPERIMENT:,} characters")
    return text


def _sources(table: JsonObject) -> Iterator[tuple[str, EntrySource]]:
    if len(table) > _MOST_SOURCES:
        raise ValueError(f"{len(table)} sources, and {_MOST_SOURCES} are the most")
    for path, source in table.items():
        if not is_source_path(path):
            raise ValueError(f"the source {path[:80]!r} is no path of a Python file below the entry's folder")
        if any(other.startswith(f"{path}/") for other in table):
            raise ValueError(f"the source {path[:80]!r} is a file and a folder")
        text = _typed(source, "text", str)
        if len(text) > _LARGEST_SOURCE:
            raise ValueError(f"the source {path} is longer than {_LARGEST_SOURCE:,} characters")
        yield path, EntrySource(_hash(source, "sha256"), text)


def _made_with(table: JsonObject) -> JsonObject:
    versions = _typed(table, "versions", dict)
    if not all(isinstance(each, str) for each in versions.values()):
        raise ValueError("made_with: versions must be texts")
    words = {name: _word(table, name) for name in ("processor", "library")}
    return {"versions": versions, **words}


def _runs(listed: list[Any]) -> Iterator[EntryRun]:
    if not 0 < len(listed) <= _MOST_RUNS:
        raise ValueError(f"{len(listed)} runs, and 1 to {_MOST_RUNS} can be read")
    for run in listed:
        rows = _typed(run, "rows", list)
        if len(rows) > _MOST_ROWS:
            raise ValueError(f"{len(rows):,} rows of a run, and {_MOST_ROWS:,} are the most")
        if not all(isinstance(row, dict) and all(map(_is_number, row.values())) for row in rows):
            raise ValueError("a row of a run holds something else than numbers")
        if any(len(name) > _LONGEST_WORD for row in rows for name in row):
            raise ValueError(f"a number of a run has a name longer than {_LONGEST_WORD} characters")
        if not 1 <= (threads := _typed(run, "threads", int)) <= _MOST_THREADS:
            raise ValueError(f"threads must be from 1 to {_MOST_THREADS:,}")
        result = _typed(run, "result", dict)
        yield EntryRun(
            seed=_seed(run),
            threads=threads,
            initial_weights=_hash(run, "initial_weights"),
            result=Cost(_typed(result, "reached", bool), _typed(result, "spent", float), _typed(result, "gold", float)),
            rows=tuple(rows),
        )


def _is_number(value: object) -> bool:
    """None, or what a float can hold: 1e999 and 10**400 are JSON."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST)


def _typed(table: Any, name: str, kind: type) -> Any:
    value = table.get(name) if isinstance(table, dict) else None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{name} is missing, or no {kind.__name__}")
    return value


def _seed(table: Any) -> int:
    seed: int = _typed(table, "seed", int)
    if not 0 <= seed < _SEEDS:
        raise ValueError(f"seed must be from 0 to {_SEEDS - 1:,}")
    return seed


def _word(table: Any, name: str) -> str:
    value: str = _typed(table, name, str)
    if len(value) > _LONGEST_WORD:
        raise ValueError(f"{name} is longer than {_LONGEST_WORD} characters")
    return value


def _hash(table: Any, name: str) -> str:
    value: str = _typed(table, name, str)
    if not _SHA256.fullmatch(value):
        raise ValueError(f"{name} is no sha256")
    return value


def _toml(text: str) -> JsonObject:
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"its experiment is no TOML: {error}") from error
