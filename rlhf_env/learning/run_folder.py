"""A run's folder: the resolved experiment, versions, metrics (one JSON line for each update), checkpoints.

Metrics are numbers by name, and histograms: `{"low", "high", "counts"}`, bins of equal width. They go to metrics.jsonl
and to the run's trackers (see `tracking`).

The newest checkpoints are in `checkpoints/`; that of the agent which was best in the evaluations on the way is in
`best/`.

`record.json` holds versions, config hash and command of the run, and an entry in `resumed` for each time that it was
resumed. If `not_exact` is empty in all of these, the run ends in the same bits as one that was never stopped.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from rlhf_env.errors import ConfigError, DataError, MissingExtra, RlhfEnvError
from rlhf_env.learning import checkpoints
from rlhf_env.learning.code_of_runs import as_recorded, led_from, mark_of
from rlhf_env.learning.data_of_runs import changed_data
from rlhf_env.learning.folder_lock import hold, require_in_place
from rlhf_env.learning.provenance import library_sha256, processor_family
from rlhf_env.learning.recorded_texts import TEXTS_FILE, RecordedTexts
from rlhf_env.learning.run_record import as_logged, config_hash, hashes_before, read_metrics, readable_record, versions
from rlhf_env.learning.trackers.json_lines import JsonLines, replace_rows, rows_of
from rlhf_env.learning.tracking import Rewinds, Tracker, load_tracker
from rlhf_env.own_code import changed
from rlhf_env.plain_data import flat
from rlhf_env.shown_text import near, without_secrets
from rlhf_env.time_limit import TimeIsOver, at_most
from rlhf_env.types import JsonObject, JsonView
from rlhf_env.whole_files import write_whole

BEST = "best"  # of a run's folder: the checkpoint of the best agent
_TO_CLOSE = 300.0  # seconds that a tracker may take for its last rows


class RunFolder:
    """One run's directory, held by one process at a time (use it as a context manager).

    `trackers` says by name where metrics go beside metrics.jsonl, with the settings of each, as in
    `{"wandb": {"project": "toy"}}`; `tensorboard` adds TensorBoard's files where TensorBoard is installed. A tracker
    that fails on the way gets no more rows, and the run goes on without it. `name` is what trackers call the run: the
    folder's name, if nothing else is given. Relative paths in the experiment lead from `paths_from` (default: the
    working directory), which is kept, so that the run can be read from anywhere. `code` are the files of the user's own
    code, sha256 by path: a run that was started with others is refused, unless `allow_changed_code`. `data` are the
    files that it reads, likewise: a run whose files changed goes on, and says so. `plugins` are the versions of the
    distributions that its plugins are of, by name; a run that resumes with others says so too.

    A run whose files are damaged or missing is refused, each problem named; with `allow_partial` it goes on with what
    is whole. `lost` says, a line each, what is gone, and `not_exact` what is not as it was when the checkpoint was
    made.

    `texts`, while it is open, keeps texts with the numbers of their tokens, in no more than `megabytes_of_texts`.

    Raises ConfigError when another process holds the folder, when it holds a run and `resume` is False, or when a
    tracker cannot start.
    """

    def __init__(
        self,
        path: str | Path,
        experiment_toml: str,
        *,
        resume: bool = False,
        allow_partial: bool = False,
        tensorboard: bool = True,
        trackers: Mapping[str, object] | None = None,
        name: str | None = None,
        paths_from: Path | None = None,
        code: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        plugins: Mapping[str, str] | None = None,
        allow_changed_code: bool = False,
        megabytes_of_texts: int = 16,
    ) -> None:
        self.path = Path(path).absolute()  # whatever becomes of the working directory
        self._paths_from = (paths_from or Path()).resolve()
        self.lost: list[str] = []
        self.not_exact: list[str] = []
        self._toml = experiment_toml
        self._raised: list[str] = []
        self._code = as_recorded(code or {}, paths_from)
        self._allow_changed_code = allow_changed_code
        self._changed_code: list[str] = []
        self._data = as_recorded(data or {}, paths_from)
        self._changed_data: list[str] = []
        self._versions = versions() | dict(plugins or {})
        self._resume = resume
        self._allow_partial = allow_partial
        self._tensorboard = tensorboard
        self._lock: IO[str] | None = None
        self._place: os.stat_result | None = None
        self._metrics: JsonLines | None = None
        self._megabytes_of_texts = megabytes_of_texts
        self.texts: RecordedTexts | None = None
        self._wanted = dict(trackers or {})
        self._name = name or self.path.resolve().name
        self._trackers: dict[str, Tracker] = {}

    def __enter__(self) -> RunFolder:
        self._lock = hold(self.path)
        try:
            self._place = self.path.stat()
            self._refuse_what_ran_here()
            self._refuse_lost_rows()
            self._start_trackers()  # before anything is written: they may not be able to start
            self._describe()
            self._metrics = JsonLines(self.path / "metrics.jsonl")
            self.texts = RecordedTexts(self.path / TEXTS_FILE, self._megabytes_of_texts)
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
        self._refuse_other_code(record)
        made_with = None if newest is None else checkpoints.manifest_of(newest).get("config_hash")
        if made_with != self.config_hash or self.config_hash in hashes_before(self.path):
            if not described.exists():
                raise DataError(f"{described} is missing, and {newest} is of another experiment than this one")
            self._raised = _refuse_other_experiment(described, self._toml)
            if self._raised and readable_record(record) is not None:
                self._note_raised(described.read_bytes().decode())
        elif not described.exists() or described.read_bytes() != self._toml.encode():
            # The checkpoint is of this experiment, so the file must have changed since.
            self._without(f"{described} is missing or damaged", "it is written anew", described)
        if readable_record(record) is None:
            self._without(f"{record} is missing or damaged", "how the run was started is no longer known", record)

    def _refuse_other_code(self, record: Path) -> None:
        """What a reward pays is part of the experiment, also where its file alone says it. A run that has measured
        nothing yet, because the code failed, has nothing to be compared with."""
        if not rows_of(self.path / "metrics.jsonl")[0] and checkpoints.latest(self.path / "checkpoints") is None:
            return
        before = (readable_record(record) or {}).get("code", {} if record.exists() else self._code)
        others = changed(*(led_from(code, self._paths_from) for code in (before, self._code)))
        self._changed_code = [str(near(Path(file))) for file in others]
        if self._changed_code and not self._allow_changed_code:
            raise ConfigError(
                f"{self.path}: cannot resume: {', '.join(self._changed_code)} is not what the run was started with: "
                "put it back, start anew in another folder, or resume with it as it is now (--allow-changed-code)"
            )

    def _note_raised(self, toml_before: str) -> None:
        """The experiment is the same but for a larger budget: keep what it was known by until now, then write it anew.

        Checkpoints until here have the hash of the smaller budget.
        """
        record = readable_record(self.path / "record.json") or {}
        record["budget_raised"] = [
            *record.get("budget_raised", []),
            {"config_hash": config_hash(toml_before), "changes": self._raised},
        ]
        write_whole(self.path / "record.json", json.dumps(record, indent=1))
        write_whole(self.path / "experiment.toml", self._toml)

    def _refuse_lost_rows(self) -> None:
        """Refuse, or drop, rows of metrics that cannot be read."""
        file = self.path / "metrics.jsonl"
        rows, unreadable = rows_of(file)
        if unreadable:
            self._without(
                f"{file}, line {unreadable[0]}: no row of metrics ({len(unreadable)} such)", "they are dropped"
            )
            replace_rows(file, rows)

    def _start_trackers(self) -> None:
        for name, settings in self._wanted.items():
            self._trackers[name] = self._tracker(name, settings)
        if self._tensorboard and "tensorboard" not in self._trackers:
            with suppress(MissingExtra):  # a run that did not ask for it by name works without it
                self._trackers["tensorboard"] = self._tracker("tensorboard", {})

    def _tracker(self, name: str, settings: object) -> Tracker:
        return load_tracker(name, settings, folder=self.path, run_name=self._name, experiment_toml=self._toml)

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
            begun = {"versions": self._versions, "config_hash": self.config_hash, "command": command}
            begun["paths_from"] = str(self._paths_from)
            begun |= {"processor": processor_family(), "library": library_sha256()}
            begun["conversations"] = "own"  # how they are asked where nothing is said; older versions knew "plain" only
            write_whole(record, json.dumps(begun, indent=1))
        if not described.exists():
            write_whole(described, self._toml)
        if self._code:
            self._note_code(record)
        if self._data:
            self._note_data(record)

    def _note_code(self, record: Path) -> None:
        """Which code the run is trained with, and a mark by which its user is known."""
        noted = readable_record(record) or {}
        if self._changed_code:
            noted["code_before"] = [*noted.get("code_before", []), noted.get("code", {})]
        paths_from = str(noted.setdefault("paths_from", str(self._paths_from)))
        noted |= {"code": self._code, "made_here": mark_of(self._toml, paths_from, self._code)}
        write_whole(record, json.dumps(noted, indent=1))

    def _note_data(self, record: Path) -> None:
        noted = readable_record(record) or {}
        before = noted.get("data", {})
        then, now = (led_from(files, self._paths_from) for files in (before, self._data))
        self._changed_data = [str(near(Path(file))) for file in changed_data(then, now)]
        if self._changed_data:
            noted["data_before"] = [*noted.get("data_before", []), before]
        if before != self._data:
            noted["data"] = self._data
            write_whole(record, json.dumps(noted, indent=1))

    def close(self) -> None:
        """Close the files and release the lock. (It is released at the end of the process in any case.)"""
        for name, tracker in list(self._trackers.items()):
            try:
                with at_most(_TO_CLOSE), suppress(OSError):  # a disk that is full was reported when it was written to
                    tracker.close()
            except TimeIsOver:
                self._give_up(name, TimeoutError(f"close() has not come back for {_TO_CLOSE:g} s"))
            except (Exception, SystemExit) as error:
                self._give_up(name, error)
        for stream in (self._metrics, self._lock):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self._trackers, self._metrics, self.texts, self._lock = {}, None, None, None

    @property
    def config_hash(self) -> str:
        return config_hash(self._toml)

    def log(self, row: JsonView) -> None:
        """Append one row of metrics (`row["update"]` says where): a whole JSON line, and a row for each tracker.

        Raises DiskRefused; half a line is never read back.
        """
        if self._metrics is None or self._place is None:
            raise RuntimeError("the run folder is not open")
        require_in_place(self.path, self._place)
        clean = as_logged(row)
        self._metrics.log(clean)
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(copy.deepcopy(clean))  # one that changes its row changes nobody else's
            except RlhfEnvError:
                raise
            except (Exception, SystemExit) as error:  # whatever it may be: training is worth more than its picture
                self._give_up(name, error)

    def _give_up(self, tracker: str, error: BaseException) -> None:
        """Go on without a tracker that failed, and say so."""
        del self._trackers[tracker]
        why = str(error).strip().splitlines()
        said = f"the tracker {tracker!r} failed ({type(error).__name__}: {why[0] if why else 'no message'})"
        self.lost.append(f"{said}: it got no more rows; metrics.jsonl has them all")
        warnings.warn(f"{said}: the run goes on without it", RuntimeWarning, stacklevel=3)

    def save(self, step: int, state: JsonView, threads: int, hardware: str = "cpu") -> Path:
        """Write a checkpoint of `state`; metrics up to here are made durable first. Raises DiskRefused.

        `hardware` is `Engine.hardware`, on which the state came about.
        """
        if self._place is not None:
            require_in_place(self.path, self._place)
        if self._metrics is not None:
            self._metrics.sync()
        if self.texts is not None:
            self.texts.sync()
        record = self._record_of(threads, hardware)
        return checkpoints.save(self.path / "checkpoints", step, state, record)

    def save_best(self, step: int, state: JsonView, threads: int, hardware: str = "cpu") -> Path:
        """Keep a checkpoint as that of the best agent so far, in the place of the one before. Raises DiskRefused."""
        record = self._record_of(threads, hardware)
        return checkpoints.save(self.path / BEST, step, state, record, keep=1)

    def _record_of(self, threads: int, hardware: str) -> JsonObject:
        return {"versions": self._versions, "threads": threads, "hardware": hardware, "config_hash": self.config_hash}

    @property
    def threads(self) -> int | None:
        """The thread count of the newest valid checkpoint; a resumed run needs the same to end in the same bits."""
        folder = checkpoints.latest(self.path / "checkpoints")
        return None if folder is None else int(checkpoints.manifest_of(folder)["threads"])

    def restore(self, threads: int | None = None, hardware: str = "cpu") -> tuple[JsonObject, JsonObject] | None:
        """(state, manifest) of the newest checkpoint, and the metrics cut back to it; None where none was saved yet.

        What is not as it was then (this run has `threads` and `hardware`) is in `not_exact` and in record.json. Raises
        DataError for a checkpoint, or rows of metrics before it, that are damaged or missing; if `allow_partial`, what
        is damaged is set aside, and the newest valid checkpoint is taken.
        """
        folder, wrong = checkpoints.survey(self.path / "checkpoints")
        problems = [problem for found in reversed(wrong.values()) for problem in found]
        if folder is None:
            if problems:
                raise DataError("no valid checkpoint is left: start the run anew in another folder", *problems)
            self._rewind(0)
            self.not_exact = self._said_of_files()
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
        self._rewind(step)
        self._note_resume(manifest, threads, hardware)
        return state, manifest

    def _rewind(self, update: int) -> None:
        """Keep the rows up to `update`: what came later is done again."""
        if isinstance(self._metrics, Rewinds):
            self._metrics.rewind(update)
        for name, tracker in list(self._trackers.items()):
            if isinstance(tracker, Rewinds):
                try:
                    tracker.rewind(update)
                except RlhfEnvError:
                    raise
                except (Exception, SystemExit) as error:
                    self._give_up(name, error)
        if self.texts is not None:
            self.texts.rewind(update)

    def began_with(self, what: str, fingerprint: str) -> None:
        """Record the fingerprint of something outside the folder that the run depends on, such as its model.

        Raises ConfigError if the run was started with another.
        """
        record = readable_record(self.path / "record.json") or {}
        before = record.setdefault(what, fingerprint)
        if before != fingerprint:
            raise ConfigError(
                f"{self.path}: cannot resume: {what} are not those that the run was started with (sha256 was "
                f"{before[:12]}, now {fingerprint[:12]}): put the model back, or start anew in another folder"
            )
        write_whole(self.path / "record.json", json.dumps(record, indent=1))

    def note(self, notes: Sequence[str]) -> None:
        """Record what there is to say about the texts that the run reads, as "notes"; nothing where that is nothing."""
        record = readable_record(self.path / "record.json") or {}
        if notes or "notes" in record:
            record["notes"] = list(notes)
            write_whole(self.path / "record.json", json.dumps(record, indent=1))

    def _said_of_files(self) -> list[str]:
        files = ", ".join([*self._changed_code, *self._changed_data])
        return [f"{files} changed: the updates before were trained with what it was"] if files else []

    def _note_resume(self, manifest: JsonView, threads: int | None, hardware: str) -> None:
        before, now = (
            {"threads": at, "device": place, **made}
            for at, place, made in (
                (manifest.get("threads"), manifest.get("hardware", "cpu"), manifest.get("versions", {})),
                (threads or manifest.get("threads"), hardware, self._versions),
            )
        )
        self.not_exact = [
            f"{name} {before.get(name, 'none')} -> {now.get(name, 'none')}"
            for name in now | before
            if before.get(name) != now.get(name)
        ]
        if self._raised:
            said = "what goes by the share of the budget (a learning-rate schedule, a curriculum) goes by the new one"
            self.not_exact.append(f"{', '.join(self._raised)}: {said}")
        self.not_exact += self._said_of_files()
        record = readable_record(self.path / "record.json") or {}
        entry = {"update": manifest["step"], "not_exact": self.not_exact, "lost": self.lost}
        record["resumed"] = [*record.get("resumed", []), entry]
        write_whole(self.path / "record.json", json.dumps(record, indent=1))


def _refuse_other_experiment(described: Path, toml: str) -> list[str]:
    """The limits of the budget that were raised, as "budget.updates 2 -> 4"; ConfigError for any other change."""
    try:
        before = flat(tomllib.loads(described.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"{described} cannot be read, so nothing says what ran here: {error}") from error
    now = flat(tomllib.loads(toml))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    raised = [key for key in changed if is_raised(key, before.get(key), now.get(key))]
    if refused := [key for key in changed if key not in raised]:
        raise ConfigError(
            *(
                f"{described.parent}: cannot resume with another {key}: "
                f"was {_spoken(before, key)}, now {_spoken(now, key)}"
                + (" (a budget may be raised)" if key.startswith("budget.") else "")
                for key in refused
            )
        )
    return [f"{key} {_spoken(before, key)} -> {_spoken(now, key)}" for key in raised]


def is_raised(key: str, before: object, now: object) -> bool:
    """Whether the setting is a limit of the budget that became larger, or was taken away."""
    numbers = isinstance(before, (int, float)) and isinstance(now, (int, float)) and now > before
    return key.startswith("budget.") and (numbers or now is None)


def _spoken(settings: Mapping[str, object], key: str) -> str:
    return repr(settings[key]) if key in settings else "not set"
