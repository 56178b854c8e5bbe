"""A run as the page shows it, read from its folder while it is written, after it ended or was killed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.lab.evaluation.health import WARNINGS_FILE
from rlhf_env.lab.evaluation.runs import EVALUATION_FILE
from rlhf_env.lab.watching.curves import Curves, Panel, SectionName
from rlhf_env.lab.watching.growing_file import GrowingFile
from rlhf_env.lab.watching.reading import is_number, json_in, object_in, state_of
from rlhf_env.lab.watching.texts import TextIndex
from rlhf_env.own_code import label_of
from rlhf_env.runs_on_disk import DESCRIBED
from rlhf_env.shown_text import for_page
from rlhf_env.toml_files import read_toml
from rlhf_env.types import JsonObject, JsonView

AT_ONCE_SECONDS = 0.4


class RunView:
    """What is known of the run in `folder`. `refresh` reads what has come, for a while; everything else looks at it."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._clock = clock
        self._metrics = GrowingFile(folder / "metrics.jsonl")
        self._restarts = 0
        self.curves = Curves()
        self.texts = TextIndex(folder)
        self.version = 0
        """Counts on when there is something new."""
        self._small: tuple[object, ...] = ()
        self.experiment = _experiment(folder)
        self._ended: JsonObject = {}
        self.warnings: list[JsonObject] = []

    @property
    def left(self) -> float:
        """The share of the files that `refresh` has still to read."""
        return max(self._metrics.left, self.texts.left)

    def refresh(self, seconds: float = AT_ONCE_SECONDS) -> None:
        """Read on, and stop after about `seconds`: a long run is read in several calls."""
        end = self._clock() + seconds
        while self._read_on() and self._clock() < end:
            pass
        self._read_small()

    def _read_on(self) -> bool:
        """Whether there was something, and may be more."""
        lines = self._metrics.read()
        if self._metrics.restarts != self._restarts:
            self._restarts = self._metrics.restarts
            self.curves = Curves()
            self.version += 1
        for _, line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("update"), int):
                self.curves.add(row)
        new = self.texts.read()
        if lines or new:
            self.version += 1
        return bool(lines) or new

    def _read_small(self) -> None:
        """The files that are written whole, where they changed."""
        seen = tuple(state_of(self.folder / name) for name in (EVALUATION_FILE, WARNINGS_FILE, DESCRIBED, "lock"))
        state = (*seen, self.at_work)
        if state == self._small:
            return
        self._small = state
        self.version += 1
        self._ended = object_in(self.folder / EVALUATION_FILE)
        found = json_in(self.folder / WARNINGS_FILE)
        self.warnings = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
        self.experiment = _experiment(self.folder)

    # ---------------------------------------------------------------- what it says

    @property
    def at_work(self) -> bool:
        """Whether a process holds the folder."""
        return is_held(self.folder / "lock")

    @property
    def update(self) -> int:
        return int(self.curves.last.get("update", 0))

    @property
    def ended(self) -> str | None:
        """Why it ended, if it has: an evaluation is written last, and is of the last update."""
        reason = self._ended.get("reason")
        if self.at_work or not isinstance(reason, str) or self._ended.get("update", self.update) != self.update:
            return None
        return reason

    @property
    def evaluation(self) -> Mapping[str, float]:
        """Of a run that has ended, its last evaluation."""
        found = self._ended.get("metrics", {})
        return {str(key): value for key, value in found.items() if is_number(value)} if found else {}

    @property
    def status(self) -> Literal["running", "ended", "stopped", "waiting"]:
        if self.at_work:
            return "running"
        if self.ended is not None:
            return "ended"
        return "stopped" if self.curves.rows else "waiting"

    def about(self) -> JsonObject:
        """The head of the page."""
        agent, task = self.experiment.get("agent", {}), self.experiment.get("task", {})
        policy = self.experiment.get("policy", {})
        last = self.curves.last
        return {
            "name": for_page(str(self.experiment.get("name", self.folder.name))),
            "folder": for_page(str(self.folder)),
            "agent": for_page(_label(agent, "agent")),
            "task": for_page(_label(task, "task")),
            "model": for_page(str(policy.get("model", "tiny"))) if isinstance(policy, dict) else "",
            "seed": self.experiment.get("seed", 0),
            "status": self.status,
            "reason": for_page(self.ended or ""),
            "update": self.update,
            "fraction": fraction_spent(self.experiment, last),
            "episodes": last.get("spent/episodes"),
            "tokens": last.get("spent/generated_tokens"),
            "seconds": last.get("spent/seconds"),
            "silent": self._silent(),
            "warnings": [
                {name: for_page(str(one.get(name, ""))) for name in ("name", "message", "remedy")}
                | {"update": one.get("update") if isinstance(one.get("update"), int) else None}
                for one in self.warnings
            ],
        }

    def _silent(self) -> float | None:
        """Seconds since something was logged."""
        try:
            return max(0.0, time.time() - (self.folder / "metrics.jsonl").stat().st_mtime)
        except OSError:
            return None

    def panels(self, sections: tuple[SectionName, ...], by: Literal["update", "tokens"] = "update") -> list[Panel]:
        return self.curves.panels(sections, by=by)


def fraction_spent(experiment: JsonView, row: JsonView) -> float | None:
    """The share of the budget that a row of metrics has spent; None where no limit can be compared with it."""
    budget = experiment.get("budget", {})
    shares = []
    for name, limit in budget.items() if isinstance(budget, dict) else ():
        spent = row.get("update") if name == "updates" else row.get(f"spent/{name}")
        if is_number(spent) and is_number(limit) and limit > 0:
            shares.append(spent / limit)
    return min(1.0, max(shares)) if shares else None


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock, as far as the system tells: asking by locking would be in a run's way."""
    try:
        pid, inode = int(lock.read_text(encoding="utf-8").removeprefix("pid ")), lock.stat().st_ino
    except (OSError, ValueError):
        return False
    try:
        held = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:  # no Linux
        return _lives(pid)
    of_it = [line.split() for line in held if f" {pid} " in line]
    return any("FLOCK" in words and any(word.endswith(f":{inode}") for word in words) for words in of_it)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _label(table: Any, what: str) -> str:
    try:
        return label_of(table, what)
    except (ConfigError, TypeError, AttributeError, KeyError):
        return str(table.get("name", "")) if isinstance(table, dict) else ""


def _experiment(folder: Path) -> JsonObject:
    try:
        return dict(read_toml(folder / DESCRIBED))
    except (ConfigError, DataError, OSError):  # half copied: the page shows what there is
        return {}
