"""Every format behind two functions. Reading finds the format out from the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.interchange.argilla import argilla_judgements, argilla_record
from rlhf_env.feedback.interchange.gathering import Located, gathered
from rlhf_env.feedback.interchange.jsonl import located_lines, write_lines
from rlhf_env.feedback.interchange.label_studio import label_studio_judgements, label_studio_tasks
from rlhf_env.feedback.interchange.provenance import parsed
from rlhf_env.feedback.interchange.rows import (
    conversational_pair_row,
    judgement_of,
    judgement_row,
    judgements_of,
    pair_row,
    unpaired_rows,
)
from rlhf_env.feedback.interchange.tables import csv_rows, dataset_rows, write_csv, write_dataset
from rlhf_env.feedback.judgements import (
    Comparison,
    CriteriaRating,
    Judgement,
    Preference,
    Ranking,
    Rating,
    Response,
    preferences_of,
)
from rlhf_env.plain_data import read_file
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import written

Format = Literal["jsonl", "csv", "trl", "trl-conversational", "trl-unpaired", "datasets", "argilla", "label-studio"]
FORMATS: tuple[Format, ...] = get_args(Format)


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
            return write_lines(path, (row for it in _pairs_and_ratings(judgements) for row in unpaired_rows(it)))
        case "datasets":
            return write_dataset(path, preferences_of(judgements))
        case "argilla":
            return _write_array(path, [argilla_record(judgement) for judgement in judgements])
        case "label-studio":
            return _write_array(path, label_studio_tasks(judgements))
    raise ConfigError(f"format: {format!r} is none of {', '.join(FORMATS)}")


def read_judgements(path: str | Path, *, annotator: str = "") -> list[Judgement]:
    """Every judgement of a file (.jsonl, .ndjson, .csv, .json) or `datasets` folder, in order; nothing if one is bad.

    `annotator` judged what does not say who (default: the file's name). Raises DataError with each problem as
    "file:line: field: what" (or "file: record 3: ..."), up to 20 of them.
    """
    source = Path(path).name
    suffix = Path(path).suffix.lower()
    told: JsonObject = {"source": source, "annotator": annotator}
    if suffix == ".json":
        records = list(_array(path))
        tasks = any(isinstance(record, dict) and "annotations" in record for _, record in records)
        read = partial(label_studio_judgements if tasks else argilla_judgements, **told)
        judged = [judgement for made in gathered(path, records, read, "responses and judged") for judgement in made]
        if not judged:
            raise DataError(f"{path}: nobody has judged anything in it")
        return judged
    if suffix in (".jsonl", ".ndjson"):
        rows = located_lines(path)
    elif suffix == ".csv":
        rows = csv_rows(path)
    elif Path(path).is_dir():
        rows = dataset_rows(path)
    else:
        raise DataError(f"{path}: judgements come as .jsonl, .ndjson, .csv, .json, or a folder of the datasets library")
    return judgements_of(gathered(path, rows, lambda row: (row, judgement_of(row, **told)), "a chosen and a rejected"))


def without_emails(judgements: Iterable[Judgement]) -> Iterator[Judgement]:
    """The judgements with "person 1", "person 2", ... for everybody whose name is an e-mail address."""
    names: dict[str, str] = {}

    def unnamed(name: str) -> str:
        return names.setdefault(name, f"person {len(names) + 1}") if "@" in name else name

    def by(response: Response) -> Response:
        return replace(response, author=replace(response.author, name=unnamed(response.author.name)))

    for it in judgements:
        who = unnamed(it.annotator)
        match it:
            case Comparison():
                yield replace(it, annotator=who, first=by(it.first), second=by(it.second))
            case Ranking():
                yield replace(it, annotator=who, responses=tuple(map(by, it.responses)))
            case Rating() | CriteriaRating():
                yield replace(it, annotator=who, response=by(it.response))


def _pairs_and_ratings(judgements: Iterable[Judgement]) -> Iterator[Preference | Rating]:
    for judgement in judgements:
        match judgement:
            case Rating():
                yield judgement
            case CriteriaRating():
                yield from judgement.ratings
            case Comparison() | Ranking():
                yield from preferences_of([judgement])


def _write_array(path: str | Path, records: list[JsonObject]) -> int:
    with written(path) as file:
        file.write(json.dumps(records, default=dict, indent=1).encode("ascii") + b"\n")
    return len(records)


def _array(path: str | Path) -> Iterator[Located]:
    try:
        records = parsed("", read_file(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start + 1}") from error
    except DataError as error:
        raise DataError(*(f"{path}{problem}" for problem in error.problems)) from error
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of Argilla records or Label Studio tasks")
    for number, record in enumerate(records, start=1):
        yield f"{path}: record {number}", record
