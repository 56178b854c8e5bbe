"""What the files of a run's folder say: its record, its rows of metrics, and where it was before."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from rlhf_env.errors import DataError
from rlhf_env.learning.trackers.json_lines import rows_of
from rlhf_env.types import JsonObject, JsonView
from rlhf_env.whole_files import write_whole

_DISTRIBUTIONS = ("rlhf-env", "torch", "transformers", "gymnasium", "numpy", "stable-baselines3")


def record_of(run: str | Path) -> JsonObject:
    """What `record.json` of a run says, empty where it cannot be read: versions, config hash, command, resumptions."""
    return readable_record(Path(run) / "record.json") or {}


def config_hash(experiment_toml: str) -> str:
    """What a resolved experiment is known by in the files that belong to it."""
    return hashlib.sha256(experiment_toml.encode()).hexdigest()[:16]


def as_logged(row: JsonView) -> JsonObject:
    """A row of metrics as a file has it: a number that is not finite is None."""
    return {key: _finite(value) for key, value in row.items()}


def read_metrics(folder: str | Path) -> list[JsonObject]:
    """The rows of `metrics.jsonl`, whole lines only. Raises DataError for a line that is no row."""
    file = Path(folder) / "metrics.jsonl"
    rows, unreadable = rows_of(file)
    if unreadable:
        raise DataError(f"{file}, line {unreadable[0]}: no row of metrics: the file is damaged")
    return rows


def readable_record(file: Path) -> JsonObject | None:
    """A file `record.json`; None where it is missing or damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def versions() -> dict[str, str]:
    """What this run was made with."""
    return dict(_versions())


@functools.cache  # of this process: reading them takes longer than a small checkpoint
def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hashes_before(run: str | Path) -> list[str]:
    """What a run's experiment was known by before its budget was raised or its inputs were moved, each time."""
    record = readable_record(Path(run) / "record.json") or {}
    return [str(before["config_hash"]) for key in ("budget_raised", "moved") for before in record.get(key, [])]


def lead_inputs(run: str | Path, before: str | Path, now: str | Path) -> None:
    """The run's experiment names what lies in the folder `now` as being in `before`, from where both were moved: name
    it where it is. Nothing where it names nothing in `before`.
    """
    described, record_file = Path(run) / "experiment.toml", Path(run) / "record.json"
    record, led = readable_record(record_file), led_paths(described, before, now)
    if record is None or led is None:
        return
    known_by = config_hash(described.read_bytes().decode())
    record["moved"] = [*record.get("moved", []), {"config_hash": known_by, "from": str(before)}]
    write_whole(record_file, json.dumps(record, indent=1))
    write_whole(described, led)


def led_paths(file: Path, before: str | Path, now: str | Path) -> str | None:
    """The text of a TOML file with the paths into the folder `before` led into `now`; None where there are none."""
    try:
        table = tomllib.loads(file.read_bytes().decode())
    except (OSError, ValueError):
        return None  # whoever reads it says so
    led = _led(table, f"{before}{os.sep}", f"{now}{os.sep}")
    return None if led == table else tomli_w.dumps(led)


def _led(value: Any, before: str, now: str) -> Any:
    if isinstance(value, dict):
        return {key: _led(each, before, now) for key, each in value.items()}
    if isinstance(value, list):
        return [_led(each, before, now) for each in value]
    return now + value.removeprefix(before) if isinstance(value, str) and value.startswith(before) else value


def _finite(value: Any) -> Any:
    """Numbers JSON can hold: a value that is not finite is logged as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
