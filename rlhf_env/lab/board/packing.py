"""Pack the runs of a track into an entry: what `rlhf-env submit` does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lab.board.checking import faults_of
from rlhf_env.lab.board.costs import cost_of
from rlhf_env.lab.board.entry import BoardEntry, EntryRun, EntrySource, entry_name, is_source_path, text_sha256
from rlhf_env.lab.board.tracks import Track
from rlhf_env.learning import checkpoints
from rlhf_env.learning.code_of_runs import led_from
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.run_record import as_logged, read_metrics, record_of
from rlhf_env.plain_data import read_file, read_json
from rlhf_env.plugins import OWN, host
from rlhf_env.runs_on_disk import DESCRIBED, paths_from
from rlhf_env.shown_text import near
from rlhf_env.types import JsonObject, JsonView

_FILES_OF_CODE = 2**20  # bytes of one


def pack(runs: Sequence[Path], track: Track, name: str) -> BoardEntry:
    """The entry that these run folders make: one for each of the track's seeds, alike in all else.

    Raises ConfigError, a line for each thing that a board would refuse: it is better said here.
    """
    entry_name(name)
    packed: dict[int, EntryRun] = {}
    first: tuple[Path, Experiment, dict[str, EntrySource], JsonObject] | None = None
    for folder in runs:
        experiment, record = _ended(folder)
        if experiment.seed in packed:
            raise ConfigError(f"{folder}: a second run with seed {experiment.seed}: name one run a seed")
        sources, made_with = _sources(folder, record), _made_with(folder, record)
        if first is None:
            first = folder, experiment, sources, made_with
        _require_alike(first, (folder, experiment, sources, made_with))
        packed[experiment.seed] = _run(folder, track, experiment.seed, record)
    if first is None:
        raise ConfigError("name the run folders of the track's seeds")
    if missing := [seed for seed in track.seeds if seed not in packed]:
        raise ConfigError(
            f"no run with seed {', '.join(map(str, missing))}: the track {track.name} has the seeds "
            f"{', '.join(map(str, track.seeds))}, and one run folder for each is to be named"
        )
    _, experiment, sources, made_with = first
    entry = BoardEntry(
        name=name,
        track=track.name,
        track_sha256=track.sha256,
        experiment=experiment.to_toml(),
        sources=sources,
        made_with=made_with,
        runs=tuple(packed[seed] for seed in sorted(packed)),
    )
    if faults := faults_of(entry, track):
        raise ConfigError(*faults)
    return entry


def _ended(folder: Path) -> tuple[Experiment, JsonObject]:
    """The experiment and the record of a run that ended, and that anybody can run again."""
    if not (folder / DESCRIBED).is_file():
        raise ConfigError(f"{folder} holds no run: it has no {DESCRIBED} (rlhf-env train makes such folders)")
    record = record_of(folder)
    try:
        ended = read_json(read_file(folder / "evaluation.json")).get("reason")
    except (DataError, ValueError, AttributeError):
        ended = None
    if ended is None:
        raise ConfigError(f"{folder} has not ended: resume it first (rlhf-env train ... --resume)")
    if "processor" not in record:
        raise ConfigError(f"{folder} was made by a version that did not record the processor: run it again")
    if changes := [change for time in record.get("resumed", []) for change in time.get("not_exact", [])]:
        raise ConfigError(f"{folder} was resumed, and not exactly ({changes[0]}): nobody can repeat it: run it again")
    experiment = replace(Experiment.load(folder / DESCRIBED), folder=paths_from(folder))
    _require_code_at_hand(folder, experiment.agent)
    return experiment, record


def _require_code_at_hand(folder: Path, agent: JsonView) -> None:
    """Refuse an agent, or one that it wraps, that an installed distribution of others has: an entry holds the code of
    files, and whoever keeps a board has this library alone."""
    name, inner = agent.get("name"), agent.get("agent")
    if isinstance(name, str) and (of := host().entry("agent", name).origin) != OWN:
        raise ConfigError(
            f"{folder} trained the agent {name!r} of {of}, which is not installed where a board is kept: put its code "
            f'into a file beside the experiment, name it there by [agent] function = "FILE.py:NAME", and run it again'
        )
    if isinstance(inner, Mapping):
        _require_code_at_hand(folder, inner)


def _sources(folder: Path, record: JsonView) -> dict[str, EntrySource]:
    """The files of code, each with the hash that the run recorded. Raises ConfigError for one that changed since."""
    code, lead_from = record.get("code", {}), paths_from(folder) or Path()
    found = {}
    for (path, sha256), file in zip(code.items(), led_from(code, lead_from), strict=True):
        if not is_source_path(path):
            raise ConfigError(
                f"{folder} ran {path}, which is not below the folder of its experiment: put it beside the experiment, "
                "name it by a relative path of plain letters, and run it again"
            )
        text = _text_of(Path(file))
        if text_sha256(text) != sha256:
            raise ConfigError(f"{near(Path(file))} is not what {folder} ran: put it back, or run it again")
        found[path] = EntrySource(sha256, text)
    return found


def _text_of(file: Path) -> str:
    try:
        return file.read_bytes()[:_FILES_OF_CODE].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{near(file)} cannot be read as UTF-8: {error}") from error


def _made_with(folder: Path, record: JsonView) -> JsonObject:
    versions = {name: version for name, version in record.get("versions", {}).items() if name != "platform"}
    return {"versions": versions, "processor": record["processor"], "library": record.get("library", "")}


def _require_alike(first: tuple[Path, Any, Any, Any], this: tuple[Path, Any, Any, Any]) -> None:
    """Of two runs, what is recorded of them, but for the seed."""
    for what, one, other in zip(("settings", "code", "versions or processor"), first[1:], this[1:], strict=True):
        if isinstance(one, Experiment):
            one, other = (replace(each, seed=0, name="entry", folder=None).to_toml() for each in (one, other))
        if one != other:
            raise ConfigError(f"{this[0]} and {first[0]} are not of one entry: their {what} differ")


def _run(folder: Path, track: Track, seed: int, record: JsonView) -> EntryRun:
    rows = tuple(kept_row(row) for row in read_metrics(folder))
    newest = checkpoints.latest(folder / "checkpoints")
    threads = 1 if newest is None else int(checkpoints.manifest_of(newest)["threads"])
    return EntryRun(seed, threads, str(record.get("initial weights", "")), cost_of(track, rows), rows)


def kept_row(row: JsonView) -> JsonObject:
    """What an entry keeps of a row of metrics: its numbers."""
    return {
        key: value
        for key, value in as_logged(row).items()
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value))
    }
