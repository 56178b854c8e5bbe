"""CSV tables, Parquet files and `datasets` folders.

A CSV of ours has the columns kind, prompt, response_1 ... response_K, answer, annotator, criterion, weight, created,
seconds, provenance (JSON). A cell that a spreadsheet would take for a formula (it begins with = + - @, a tab or a
carriage return) begins with an apostrophe, and so does one that began with an apostrophe; reading takes it off again.
CSV of other programs has TRL's columns: prompt, chosen, rejected, or prompt, completion, label; and those of `rows.py`
that say who judged, by which criterion, with which weight and margin.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from rlhf_env.delimited import read_table
from rlhf_env.errors import ConfigError, DataError, MissingExtra
from rlhf_env.feedback.interchange.gathering import Located
from rlhf_env.feedback.interchange.provenance import parsed, provenance_of
from rlhf_env.feedback.interchange.rows import FIELDS, NUMBERS, pair_row
from rlhf_env.feedback.judgements import Judgement, Preference
from rlhf_env.feedback.kinds import kind_named, kind_of
from rlhf_env.plain_data import LARGEST_FILE
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import written

_CIRCUMSTANCES = ("annotator", "criterion", "weight", "created", "seconds")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_APOSTROPHE = "'"
_BATCH = 1000  # rows of Parquet that are in memory at once


def write_csv(path: str | Path, judgements: Sequence[Judgement]) -> int:
    """Write one line per judgement; returns how many."""
    width = max((len(judgement.responses) for judgement in judgements), default=2)
    texts = [f"response_{place}" for place in range(1, width + 1)]
    later = [name for name in ("margin", "note") if any(getattr(judgement, name, None) for judgement in judgements)]
    header = ["kind", "prompt", *texts, "answer", *_CIRCUMSTANCES, *later, "provenance"]
    content = io.StringIO(newline="")
    table = csv.DictWriter(content, header, restval="")
    table.writeheader()
    for judgement in judgements:
        provenance = provenance_of(judgement)
        circumstances = {name: str(provenance.pop(name)) for name in (*_CIRCUMSTANCES, *later) if name in provenance}
        kind = kind_of(judgement)
        answer = kind.answer_of(judgement)
        cells = {
            "kind": kind.name,
            "prompt": judgement.prompt.text,
            **{column: response.text for column, response in zip(texts, judgement.responses, strict=False)},
            "answer": str(answer) if kind.text_answer else json.dumps(answer),
            **circumstances,
            "provenance": json.dumps(provenance, default=dict),
        }
        table.writerow({column: quoted(cell) for column, cell in cells.items()})
    with written(path) as file:
        file.write(content.getvalue().encode("utf-8", errors="surrogatepass"))
    return len(judgements)


def quoted(cell: str) -> str:
    """A cell that no spreadsheet runs."""
    return _APOSTROPHE + cell if cell.startswith((*_FORMULA, _APOSTROPHE)) else cell


def unquoted(cell: str) -> str:
    return cell.removeprefix(_APOSTROPHE) if cell[1:2] in (*_FORMULA, _APOSTROPHE) else cell


def csv_rows(path: str | Path, wanted: Collection[str] = FIELDS) -> Iterator[Located]:
    """Each line of a CSV file as a row of `rows.py`. `wanted` are the columns that have a meaning."""
    for row in read_table(path, wanted):
        content = row.cells if isinstance(row.cells, DataError) else _csv_row(row.cells)
        yield f"{path}:{row.line}", content


def _csv_row(cells: Mapping[str, str]) -> JsonObject | DataError:
    row: JsonObject = dict(cells)
    try:
        if "kind" in row and "answer" in row:
            return _own_row({column: unquoted(cell) for column, cell in row.items()})
        if "provenance" in row:
            row["provenance"] = parsed("provenance", row["provenance"] or "{}")
        if "label" in row:
            row["label"] = {"true": True, "1": True, "false": False, "0": False}.get(row["label"].lower(), row["label"])
        for name in NUMBERS:
            if row.get(name):
                row[name] = _number(row[name])
        return row
    except DataError as error:
        return error


def _number(cell: str) -> float | int | str:
    """What a cell says as a number; the cell where it says none, which is refused with the other problems."""
    try:
        return int(cell)
    except ValueError:
        try:
            return float(cell)
        except ValueError:
            return cell


def _own_row(row: Mapping[str, str]) -> JsonObject:
    kind = kind_named(row["kind"])
    answer = row.get("answer", "") if kind.text_answer else parsed("answer", row.get("answer", ""))
    provenance = parsed("provenance", row.get("provenance") or "{}")
    if not isinstance(provenance, dict):
        raise DataError("provenance: must be an object")
    provenance |= {name: row[name] for name in ("annotator", "criterion", "created", "note") if row.get(name)}
    provenance |= {name: parsed(name, row[name]) for name in ("weight", "seconds", "margin") if row.get(name)}
    many = kind.count if kind.count is not None else len(answer) if isinstance(answer, list) else _filled(row)
    texts = [row.get(f"response_{place}") for place in range(1, many + 1)]
    return {
        "kind": kind.name,
        "prompt": row.get("prompt"),
        "responses": texts,
        "answer": answer,
        "provenance": provenance,
    }


def _filled(row: Mapping[str, str]) -> int:
    """How many responses a line has, where neither its kind nor its answer says so."""
    return next(place for place in count(1) if not row.get(f"response_{place}")) - 1


def write_dataset(path: str | Path, preferences: Iterable[Preference]) -> int:
    """Write a folder for `datasets.load_from_disk`: prompt, chosen, rejected, provenance (JSON); returns the rows."""
    datasets, path = _datasets(), Path(path)
    if path.exists():
        raise ConfigError(f"{path}: there is something at this path: name another one")
    rows = [pair_row(preference) for preference in preferences]
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        for row in rows:
            row["provenance"] = json.dumps(row["provenance"], default=dict)
        columns = ["prompt", "chosen", "rejected", *(["margin"] if any("margin" in row for row in rows) else [])]
        table = {column: [row.get(column) for row in rows] for column in (*columns, "provenance")}
        datasets.Dataset.from_dict(table).save_to_disk(half)
        half.rename(path)
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: a text has a lone surrogate, which Arrow cannot hold: export it as jsonl") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return len(rows)


def dataset_rows(path: str | Path) -> Iterator[Located]:
    """Each row of a folder that `save_to_disk` wrote, with TRL's columns."""
    datasets = _datasets()
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises what it likes
        raise DataError(f"{path}: no folder that datasets.save_to_disk wrote: {error}") from error
    if isinstance(dataset, Mapping):
        raise DataError(f"{path}: holds the splits {', '.join(sorted(dataset))}: name the folder of one of them")
    yield from _stored_rows(path, map(dict, dataset))


def parquet_rows(path: str | Path) -> Iterator[Located]:
    """Each row of a Parquet file."""
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise MissingExtra("pyarrow (needed to read Parquet files)", "datasets") from error
    if Path(path).is_file() and Path(path).stat().st_size > LARGEST_FILE:
        raise DataError(f"{path} is larger than {LARGEST_FILE:,} bytes, the most that is read: split it")

    def rows() -> Iterator[JsonObject]:
        try:
            with parquet.ParquetFile(str(path)) as file:
                for batch in file.iter_batches(batch_size=_BATCH):
                    yield from batch.to_pylist()
        except Exception as error:  # the library raises what it likes
            what = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise DataError(f"{path}: no Parquet file that can be read: {what}") from error

    yield from _stored_rows(path, rows())


def _stored_rows(path: str | Path, rows: Iterable[JsonObject]) -> Iterator[Located]:
    for number, given in enumerate(rows, start=1):
        row = {column: value for column, value in given.items() if column != "provenance" or value is not None}
        if isinstance(row.get("provenance"), str):
            try:
                row["provenance"] = parsed("provenance", row["provenance"])
            except DataError as error:
                yield f"{path}: row {number}", error
                continue
        yield f"{path}: row {number}", row


def _datasets() -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtra("datasets (needed to read and write its folders)", "datasets") from error
    return datasets
