"""A run's folder: the resolved experiment, versions, metrics (one JSON line an update), TensorBoard, checkpoints.

Metrics are numbers by name, and histograms: `{"low", "high", "counts"}`, bins of equal width.

`record.json` holds versions, config hash and command of the run, and an entry in `resumed` for each time that it was
resumed. If `not_exact` is empty in all of these, the run ends in the same bits as one that was never stopped.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rlhf_env.errors import ConfigError, DataError, DiskRefused
from rlhf_env.learning import checkpoints
from rlhf_env.learning.folder_lock import hold
from rlhf_env.learning.tracking import WandbRun
from rlhf_env.shown_text import without_secrets
from rlhf_env.types import JsonObject, JsonView
from rlhf_env.whole_files import write_whole

_DISTRIBUTIONS = ("rlhf-env", "torch", "transformers", "gymnasium", "numpy", "stable-baselines3")


class RunFolder:
    """One run's directory, held by one process at a time (use it as a context manager).

    `wandb` names a project on Weights & Biases that metrics go to as well. A run whose files are damaged or missing is
    refused, each problem named; with `allow_partial` it goes on with what is whole. `lost` then says, a line each, what
    is gone, and `not_exact` what is not as it was when the checkpoint was made.

    Raises ConfigError when another process holds the folder, or when it holds a run and `resume` is False.
    """

    def __init__(
        self,
        path: str | Path,
        experiment_toml: str,
        *,
        resume: bool = False,
        allow_partial: bool = False,
        tensorboard: bool = True,
        wandb: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.lost: list[str] = []
        self.not_exact: list[str] = []
        self._toml = experiment_toml
        self._resume = resume
        self._allow_partial = allow_partial
        self._tensorboard = tensorboard
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._writer: Any = None
        self._wandb = wandb
        self._tracking: WandbRun | None = None
        self._purge_step: int | None = None

    def __enter__(self) -> RunFolder:
        self._lock = hold(self.path)
        try:
            self._refuse_what_ran_here()
            self._refuse_lost_rows()
            if self._wandb is not None:  # before anything is written: it may not be able to start
                self._tracking = WandbRun(self._wandb, self.path, self._toml)
            self._describe()
            _drop_half_line(self.path / "metrics.jsonl")
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_what_ran_here(self) -> None:
        """Refuse the folder if it holds another experiment's run, or a run that is not to be resumed."""
        described, record = self.path / "experiment.toml", self.path / "record.json"
        newest = checkpoints.latest(self.path / "checkpoints")
        if not described.exists() and newest is None:
            return  # nothing ran here
        if not self._resume:
            raise ConfigError(
                f"{self.path} already holds a run: choose another folder, or resume it with --resume (resume=True)"
            )
        made_with = None if newest is None else checkpoints.manifest_of(newest).get("config_hash")
        if made_with != self.config_hash:
            if not described.exists():
                raise DataError(f"{described} is missing, and {newest} is of another experiment than this one")
            _refuse_other_experiment(described, self._toml)
        elif not described.exists() or described.read_bytes() != self._toml.encode():
            # The checkpoint is of this experiment, so the file must have changed since.
            self._without(f"{described} is missing or damaged", "it is written anew", described)
        if _read_record(record) is None:
            self._without(f"{record} is missing or damaged", "how the run was started is no longer known", record)

    def _refuse_lost_rows(self) -> None:
        """Refuse, or drop, rows of metrics that cannot be read."""
        file = self.path / "metrics.jsonl"
        rows, unreadable = _rows_of(file)
        if unreadable:
            self._without(
                f"{file}, line {unreadable[0]}: no row of metrics ({len(unreadable)} such)", "they are dropped"
            )
            write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))

    def _without(self, problem: str, consequence: str, file: Path | None = None) -> None:
        """Refuse the run; with `allow_partial`, add the problem to `lost` and remove the rest of the file."""
        if not self._allow_partial:
            raise DataError(f"{problem}: put it back, or resume without it (--allow-partial): {consequence}")
        self.lost.append(f"{problem}: {consequence}")
        if file is not None:
            file.unlink(missing_ok=True)

    def _describe(self) -> None:
        """Write experiment.toml and record.json, if they do not exist."""
        described, record = self.path / "experiment.toml", self.path / "record.json"
        if not record.exists():
            command = [without_secrets(word) for word in sys.argv]
            begun = {"versions": versions(), "config_hash": self.config_hash, "command": command}
            write_whole(record, json.dumps(begun, indent=1))
        if not described.exists():
            write_whole(described, self._toml)

    def close(self) -> None:
        """Close the files and release the lock. (It is released at the end of the process in any case.)"""
        for stream in (self._metrics, self._writer, self._tracking, self._lock):
            if stream is not None:
                with suppress(OSError):  # a disk that is full has been told of when it was written to
                    stream.close()
        self._metrics = self._writer = self._tracking = self._lock = None

    @property
    def config_hash(self) -> str:
        return config_hash(self._toml)

    def log(self, row: JsonView) -> None:
        """Append one row of metrics (`row["update"]` says where): a whole JSON line, and TensorBoard's events.

        Raises DiskRefused; half a line is never read back.
        """
        if self._metrics is None:
            raise RuntimeError("the run folder is not open")
        clean = as_logged(row)
        try:
            self._metrics.write(json.dumps(clean, allow_nan=False) + "\n")
            self._metrics.flush()
            self._to_tensorboard(clean)
        except OSError as error:
            raise self._refused(error) from error
        if self._tracking is not None:
            self._tracking.log(clean)

    def _to_tensorboard(self, row: JsonView) -> None:
        """The row as events; of a long run fewer and fewer rows (`drawn`), but every evaluation."""
        writer = self._tensorboard_writer()
        if writer is None:
            return
        update = int(row["update"])
        shown = drawn(update)
        for key, value in row.items():
            if not shown and not key.startswith("eval/"):
                continue
            if isinstance(value, Mapping):
                writer.add_histogram_raw(key, **_tensorboard_bins(value), global_step=update)
            elif isinstance(value, (int, float)) and key != "update":
                writer.add_scalar(key, value, update)

    def _refused(self, error: OSError) -> DiskRefused:
        return DiskRefused(
            f"cannot write the metrics of {self.path}: {error.strerror or error}. The last checkpoint is whole: make "
            "room, then go on with --resume"
        )

    def save(self, step: int, state: JsonView, threads: int) -> Path:
        """Write a checkpoint of `state`; metrics up to here are made durable first. Raises DiskRefused."""
        try:
            if self._metrics is not None:
                os.fsync(self._metrics.fileno())
        except OSError as error:
            raise self._refused(error) from error
        record = {"versions": versions(), "threads": threads, "config_hash": self.config_hash}
        return checkpoints.save(self.path / "checkpoints", step, state, record)

    @property
    def threads(self) -> int | None:
        """The thread count of the newest valid checkpoint; a resumed run needs the same to end in the same bits."""
        folder = checkpoints.latest(self.path / "checkpoints")
        return None if folder is None else int(checkpoints.manifest_of(folder)["threads"])

    def restore(self, threads: int | None = None) -> tuple[JsonObject, JsonObject] | None:
        """(state, manifest) of the newest checkpoint, and the metrics cut back to it; None where none was saved yet.

        What is not as it was then (this run has `threads`) is in `not_exact` and in record.json. Raises DataError for
        a checkpoint, or rows of metrics before it, that are damaged or missing; if `allow_partial`, what is damaged is
        set aside, and the newest valid checkpoint is taken.
        """
        folder, wrong = checkpoints.survey(self.path / "checkpoints")
        problems = [problem for found in reversed(wrong.values()) for problem in found]
        if folder is None:
            if problems:
                raise DataError("no valid checkpoint is left: start the run anew in another folder", *problems)
            self._cut_metrics(0)
            return None
        if wrong and not self._allow_partial:
            again = f"{folder.name} is whole: --allow-partial resumes from there and repeats the updates after it"
            raise DataError(*problems, again)
        for damaged in wrong:
            self.lost.append(f"{damaged.name}: set aside; the updates after {folder.name} are repeated")
            checkpoints.set_aside(damaged)
        state, manifest = checkpoints.load(folder)
        step = int(manifest["step"])
        kept = {row["update"] for row in read_metrics(self.path)}
        if missing := [update for update in range(1, step + 1) if update not in kept]:
            self._without(
                f"{self.path / 'metrics.jsonl'} has no rows of updates {missing[0]} to {missing[-1]}",
                "they stay missing",
            )
        self._cut_metrics(step)
        self._note_resume(manifest, threads)
        return state, manifest

    def began_with(self, what: str, fingerprint: str) -> None:
        """Record the fingerprint of something outside the folder that the run depends on, such as its model.

        Raises ConfigError if the run was started with another.
        """
        record = _read_record(self.path / "record.json") or {}
        before = record.setdefault(what, fingerprint)
        if before != fingerprint:
            raise ConfigError(
                f"{self.path}: cannot resume: {what} are not those that the run was started with (sha256 was "
                f"{before[:12]}, now {fingerprint[:12]}): put the model back, or start anew in another folder"
            )
        write_whole(self.path / "record.json", json.dumps(record, indent=1))

    def _note_resume(self, manifest: JsonView, threads: int | None) -> None:
        before, now = (
            {"threads": at, **made}
            for at, made in (
                (manifest.get("threads"), manifest.get("versions", {})),
                (threads or manifest.get("threads"), versions()),
            )
        )
        self.not_exact = [
            f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}"
            for name in now | before
            if before.get(name) != now.get(name)
        ]
        record = _read_record(self.path / "record.json") or {}
        entry = {"update": manifest["step"], "not_exact": self.not_exact, "lost": self.lost}
        record["resumed"] = [*record.get("resumed", []), entry]
        write_whole(self.path / "record.json", json.dumps(record, indent=1))

    def _cut_metrics(self, step: int) -> None:
        """Keep the rows up to `step`: what came later is done again. A half-written last line goes."""
        if self._metrics is not None:
            self._metrics.close()
        file = self.path / "metrics.jsonl"
        rows = [row for row in read_metrics(self.path) if row["update"] <= step]
        write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
        self._metrics = file.open("a", encoding="utf-8")
        self._purge_step = step + 1

    def _tensorboard_writer(self) -> Any:
        if self._writer is None and self._tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:  # an extra: runs work without it
                self._tensorboard = False
                return None
            # On a resume, the points that are drawn again are taken back.
            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=self._purge_step)
        return self._writer


def drawn(update: int) -> bool:
    """Whether a curve needs this update: all of the first 1,000, then half of the next 1,000, a quarter of the next
    2,000, ...: 500 more with every doubling, so that the files of a run of a million updates stay small.
    """
    return update % (1 << (update // 1000).bit_length()) == 0


def config_hash(experiment_toml: str) -> str:
    """What a resolved experiment is known by in the files that belong to it."""
    return hashlib.sha256(experiment_toml.encode()).hexdigest()[:16]


def as_logged(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics as a file has it: a number that is not finite is None."""
    return {key: _finite(value) for key, value in row.items()}


def read_metrics(folder: str | Path) -> list[JsonObject]:
    """The rows of `metrics.jsonl`, whole lines only. Raises DataError for a line that is no row."""
    file = Path(folder) / "metrics.jsonl"
    rows, unreadable = _rows_of(file)
    if unreadable:
        raise DataError(f"{file}, line {unreadable[0]}: no row of metrics: the file is damaged")
    return rows


def _rows_of(file: Path) -> tuple[list[JsonObject], list[int]]:
    """The rows of a file of metrics, and the numbers of lines that are none."""
    rows: list[JsonObject] = []
    unreadable = []
    content = file.read_bytes() if file.exists() else b""
    for number, line in enumerate(content.split(b"\n")[:-1], 1):  # the last of a killed run may be half written
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("update"), int):
            rows.append(row)
        else:
            unreadable.append(number)
    return rows, unreadable


def _read_record(file: Path) -> JsonObject | None:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _tensorboard_bins(histogram: JsonView) -> JsonObject:
    """A histogram as TensorBoard takes it. Sums are those of values in the middle of their bins."""
    counts, low, high = histogram["counts"], histogram["low"], histogram["high"]
    width = (high - low) / len(counts)
    middles = [low + (i + 0.5) * width for i in range(len(counts))]
    return {
        "min": low,
        "max": high,
        "num": sum(counts),
        "sum": sum(count * at for count, at in zip(counts, middles, strict=True)),
        "sum_squares": sum(count * at**2 for count, at in zip(counts, middles, strict=True)),
        # Upper ends. An empty bin below the first says where that one begins.
        "bucket_limits": [low + i * width for i in range(len(counts))] + [high],
        "bucket_counts": [0, *counts],
    }


def versions() -> dict[str, str]:
    """What this run was made with."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _drop_half_line(file: Path) -> None:
    """Cut off what a killed run left of its last row, so that the next row does not continue it."""
    if file.exists():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(file, whole)


def _refuse_other_experiment(described: Path, toml: str) -> None:
    try:
        before = _flat(tomllib.loads(described.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{described} cannot be read, so nothing says what ran here: {error}") from error
    now = _flat(tomllib.loads(toml))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise ConfigError(
            *(
                f"{described.parent}: cannot resume with another {key}: "
                f"was {_spoken(before, key)}, now {_spoken(now, key)}"
                for key in changed
            )
        )


def _flat(table: JsonView, above: str = "") -> JsonObject:
    """{"agent": {"lr": 1}} -> {"agent.lr": 1}"""
    flat: JsonObject = {}
    for key, value in table.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat


def _spoken(flat: JsonView, key: str) -> str:
    return repr(flat[key]) if key in flat else "not set"


def _finite(value: Any) -> Any:
    """Numbers JSON can hold: a value that is not finite is logged as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
