"""Every format behind two functions. Reading finds the format out from the file."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.interchange.argilla import argilla_judgements, argilla_record, is_record, questions_in
from rlhf_env.feedback.interchange.gathering import Located, Reading, gathered
from rlhf_env.feedback.interchange.jsonl import json_rows, write_lines
from rlhf_env.feedback.interchange.label_studio import (
    is_minimal,
    is_task,
    label_studio_judgements,
    label_studio_tasks,
    wide_scales,
)
from rlhf_env.feedback.interchange.layouts import LAYOUTS, Layout, detected, in_layout, layout_named, out_of_layouts
from rlhf_env.feedback.interchange.rows import (
    FIELDS,
    conversational_pair_row,
    judgement_of,
    judgement_row,
    judgements_of,
    pair_row,
    unpaired_rows,
)
from rlhf_env.feedback.interchange.selection import by_criteria, chosen_rows
from rlhf_env.feedback.interchange.tables import csv_rows, dataset_rows, parquet_rows, write_csv, write_dataset
from rlhf_env.feedback.judgements import Judgement, Preference, Response
from rlhf_env.feedback.kinds import ScoredResponse, kind_of, preferences_of
from rlhf_env.plain_data import ending_of
from rlhf_env.types import JsonObject, JsonView
from rlhf_env.whole_files import written

Format = Literal["jsonl", "csv", "trl", "trl-conversational", "trl-unpaired", "datasets", "argilla", "label-studio"]
FORMATS: tuple[Format, ...] = get_args(Format)
_KNOWN_COLUMNS = FIELDS | {column.name for layout in LAYOUTS for column in layout.columns if "-" in column.name}
"""Names that a table's header is compared with: "chosen-rating" is a column of a set, not "chosen_rating" misspelt."""


def write_judgements(path: str | Path, judgements: Iterable[Judgement], format: Format) -> int:
    """Write judgements, or the weighted pairs of them; returns how many lines, rows or records.

    The file appears whole or not at all, in place of an older one (a `datasets` folder only where there is nothing).
    """
    match format:
        case "jsonl":
            return write_lines(path, map(judgement_row, judgements))
        case "csv":
            return write_csv(path, list(judgements))
        case "trl":
            return write_lines(path, map(pair_row, preferences_of(judgements)))
        case "trl-conversational":
            return write_lines(path, map(conversational_pair_row, preferences_of(judgements)))
        case "trl-unpaired":
            return write_lines(path, (row for one in _pairs_and_ratings(judgements) for row in unpaired_rows(one)))
        case "datasets":
            return write_dataset(path, preferences_of(judgements))
        case "argilla":
            return _write_array(path, [argilla_record(judgement) for judgement in judgements])
        case "label-studio":
            return _write_array(path, label_studio_tasks(judgements))
    raise ConfigError(f"format: {format!r} is none of {', '.join(FORMATS)}")


def read_judgements(path: str | Path, *, annotator: str = "", layout: str = "") -> list[Judgement]:
    """Every judgement of a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet) or `datasets` folder, in order.

    `annotator` judged what does not say who (default: the file's name). `layout` is that of a published set (one of
    `LAYOUTS`), which by default the columns tell. Raises DataError with each problem as "file:line: field: what" (or
    "file: record 3: ..."), up to 20 of them; then nothing is taken.
    """
    return judgements_in(path, Reading(source=Path(path).name, annotator=annotator, layout=layout))


def judgements_in(path: str | Path, reading: Reading) -> list[Judgement]:
    """The same with all there is to say of how to read it; what is passed over is counted in `reading`.

    A file in the layout of a published set is read by it. It is the layout that `reading` names, or the one whose
    columns the first row has.
    """
    named = layout_named(reading.layout) if reading.layout else None
    rows = _counted(located_rows(path, _KNOWN_COLUMNS), reading)
    first: list[Located] = []
    for where, row in rows:
        first.append((where, row))
        if isinstance(row, Mapping):
            break
    layout = named or _detected(first)
    rows = chain(first, rows)
    if layout is not None:
        table = ending_of(path) in (".csv", ".tsv")
        rows = in_layout(rows, layout, named=named is not None, table=table, reading=reading)
    if layout is None or layout.mixes:
        found = _mixed_judgements(path, rows, reading)
    else:
        units = chosen_rows(layout.units(rows, reading), reading)
        read = layout.read
        each = gathered(path, units, lambda unit: read(unit, reading), "responses and a judgement as", reading)
        found = [judgement for judgements in each for judgement in judgements]
    found = list(by_criteria(found, reading))
    if not found:
        left = "; ".join(f"{what} ({count:,})" for what, count in reading.passed_over.items())
        raise DataError(f"{path}: nobody has judged anything in it{': passed over: ' if left else ''}{left}")
    return found


def _counted(rows: Iterable[Located], reading: Reading) -> Iterator[Located]:
    for count, row in enumerate(rows, start=1):
        reading.tell(count)
        yield row


def _detected(first: Sequence[Located]) -> Layout | None:
    """The layout of the first row that can be read; None for what annotation tools and this project write."""
    for where, row in first:
        ours = not isinstance(row, Mapping) or is_task(row) or is_minimal(row) or is_record(row)
        if not ours and not {"kind", "answer"} <= row.keys():
            layout = detected(where, row)
            return None if layout is None or layout.mixes else layout
    return None


def _mixed_judgements(path: str | Path, rows: Iterable[Located], reading: Reading) -> list[Judgement]:
    """What this project, TRL and annotation tools write, which one file may hold side by side."""
    rows = list(chosen_rows(out_of_layouts(rows), reading))
    contents = [content for _, content in rows if isinstance(content, dict)]
    reading = replace(reading, off_scale=wide_scales(contents, reading))
    questions = questions_in(row for row in contents if is_record(row))

    def made(row: JsonView) -> tuple[JsonView, list[Judgement]]:
        if is_task(row) or is_minimal(row):
            return row, label_studio_judgements(row, reading)
        if is_record(row):
            return row, argilla_judgements(row, questions, reading)
        return row, [judgement_of(row, reading)]

    found = judgements_of(gathered(path, rows, made, "a chosen and a rejected", reading))
    if not found and reading.label_config is None and any(is_minimal(row) and not is_task(row) for row in contents):
        raise DataError(
            f"{path}: Label Studio's JSON-MIN and CSV do not say which text is on which side: give the labeling "
            "configuration, --label-config FILE.xml, or export as JSON"
        )
    return found


def located_rows(path: str | Path, wanted: Collection[str]) -> Iterator[Located]:
    """The rows of a file or folder of any of these endings. `wanted` are the columns of a table that have a meaning."""
    ending = ending_of(path)
    if ending in (".jsonl", ".ndjson", ".json"):
        return json_rows(path)
    if ending in (".csv", ".tsv"):
        return csv_rows(path, wanted)
    if ending == ".parquet" and Path(path).suffix.lower() == ending:
        return parquet_rows(path)
    if Path(path).is_dir():
        return dataset_rows(path)
    raise DataError(
        f"{path}: judgements come as .jsonl, .ndjson, .csv, .json, .tsv, .parquet, or a folder of the datasets library "
        "(all but the last two also with .gz)"
    )


def may_hold_judgements(path: str | Path) -> bool:
    """Whether it is a folder, or a file with the name of one that `located_rows` reads."""
    return Path(path).is_dir() or ending_of(path) in (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def without_emails(judgements: Iterable[Judgement]) -> Iterator[Judgement]:
    """The judgements with "person 1", "person 2", ... for everybody whose name is an e-mail address."""
    names: dict[str, str] = {}

    def unnamed(name: str) -> str:
        return names.setdefault(name, f"person {len(names) + 1}") if "@" in name else name

    def by(response: Response) -> Response:
        return replace(response, author=replace(response.author, name=unnamed(response.author.name)))

    for judgement in judgements:
        who, responses = unnamed(judgement.annotator), [by(response) for response in judgement.responses]
        yield kind_of(judgement).again(judgement, responses, annotator=who)


def _pairs_and_ratings(judgements: Iterable[Judgement]) -> Iterator[Preference | ScoredResponse]:
    for judgement in judgements:
        kind = kind_of(judgement)
        yield from kind.ratings(judgement)
        yield from kind.pairs(judgement)


def _write_array(path: str | Path, records: list[JsonObject]) -> int:
    with written(path) as file:
        file.write(json.dumps(records, default=dict, indent=1).encode("ascii") + b"\n")
    return len(records)
