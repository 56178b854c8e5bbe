"""A run's folder: the resolved experiment, versions, metrics (one JSON line an update), TensorBoard, checkpoints."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning import checkpoints

_DISTRIBUTIONS = ("rlhf-env", "torch", "transformers", "gymnasium", "numpy", "stable-baselines3")


class RunFolder:
    """One run's directory, held by one process at a time (use it as a context manager).

    Raises ConfigError when another process holds it, or when it holds a run and `resume` is False.
    """

    def __init__(
        self, path: str | Path, experiment_toml: str, *, resume: bool = False, tensorboard: bool = True
    ) -> None:
        self.path = Path(path)
        self._toml = experiment_toml
        self._resume = resume
        self._tensorboard = tensorboard
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._writer: Any = None
        self._purge_step: int | None = None

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write in the run folder {self.path}: {error}") from error
        self._take_lock(self._lock)
        try:
            self._describe(self.path / "experiment.toml")
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

    def _describe(self, described: Path) -> None:
        """Write down what runs here, or see that it is what ran here before."""
        if not described.exists():
            record = {"versions": versions(), "config_hash": self.config_hash, "command": sys.argv}
            (self.path / "record.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
            partial = described.with_suffix(".tmp")
            partial.write_text(self._toml, encoding="utf-8")
            partial.replace(described)
        elif self._resume:
            _refuse_other_experiment(described, self._toml)
        else:
            raise ConfigError(f"{self.path} already holds a run: choose another folder, or resume it with --resume")

    def close(self) -> None:
        """Give the folder back. The lock goes with the process anyway, however it ends."""
        for stream in (self._metrics, self._writer, self._lock):
            if stream is not None:
                stream.close()
        self._metrics = self._writer = self._lock = None

    @property
    def config_hash(self) -> str:
        return hashlib.sha256(self._toml.encode()).hexdigest()[:16]

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row of metrics (`row["update"]` says where), as a whole JSON line and as TensorBoard scalars."""
        if self._metrics is None:
            raise RuntimeError("the run folder is not open")
        clean = {key: _finite(value) for key, value in row.items()}
        self._metrics.write(json.dumps(clean, allow_nan=False) + "\n")
        self._metrics.flush()
        writer = self._tensorboard_writer()
        if writer is not None:
            for key, value in clean.items():
                if isinstance(value, (int, float)) and key != "update":
                    writer.add_scalar(key, value, int(row["update"]))

    def save(self, step: int, state: Mapping[str, Any], threads: int) -> Path:
        """Write a checkpoint of `state`; metrics up to here are made durable first."""
        if self._metrics is not None:
            os.fsync(self._metrics.fileno())
        record = {"versions": versions(), "threads": threads, "config_hash": self.config_hash}
        return checkpoints.save(self.path / "checkpoints", step, state, record)

    def restore(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(state, manifest) of the newest valid checkpoint, and the metrics cut back to it; None without one."""
        folder = checkpoints.latest(self.path / "checkpoints")
        if folder is None:
            damaged = [p for c in sorted((self.path / "checkpoints").glob("step-*")) for p in checkpoints.problems(c)]
            if damaged:
                raise DataError("no valid checkpoint is left", *damaged)
            self._cut_metrics(0)
            return None
        state, manifest = checkpoints.load(folder)
        self._cut_metrics(int(manifest["step"]))
        return state, manifest

    def _cut_metrics(self, step: int) -> None:
        """Keep the rows up to `step`: what came later is done again. A half-written last line goes."""
        if self._metrics is not None:
            self._metrics.close()
        file = self.path / "metrics.jsonl"
        rows = [row for row in read_metrics(self.path) if row["update"] <= step] if file.exists() else []
        partial = file.with_suffix(".tmp")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        partial.replace(file)
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

    def _take_lock(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            self._lock = None
            raise ConfigError(f"{self.path} is in use ({holder}): wait for it, or choose another folder") from error
        lock.seek(0)
        lock.truncate()
        lock.write(f"pid {os.getpid()}")
        lock.flush()


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`, whole lines only."""
    return list(_whole_rows(Path(folder) / "metrics.jsonl"))


def _whole_rows(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):  # the last line of a killed run may be half written
            yield json.loads(line)


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


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"agent": {"lr": 1}} -> {"agent.lr": 1}"""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat


def _spoken(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "not set"


def _finite(value: Any) -> Any:
    """Numbers JSON can hold: a value that is not finite is logged as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
