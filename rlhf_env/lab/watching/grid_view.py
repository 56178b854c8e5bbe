"""A grid as the page shows it, while it runs or after: what each cell has come to, and the way to its run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rlhf_env.errors import ConfigError
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.benchmark.results import SCORES, agent_order
from rlhf_env.lab.report.figures import agent_styles
from rlhf_env.lab.watching.reading import is_number, json_in, object_in, state_of
from rlhf_env.lab.watching.run_view import RunView, fraction_spent, is_held
from rlhf_env.runs_on_disk import DESCRIBED
from rlhf_env.shown_text import for_page
from rlhf_env.toml_files import read_toml
from rlhf_env.types import JsonObject

DESCRIBED_GRID = "benchmark.toml"
_TAIL = 64 * 1024  # bytes: a row of metrics has a few thousand


class GridView:
    """What is known of the grid in `folder`; each cell's files are read again where they changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runs: dict[str, RunView] = {}
        self._results: dict[Path, tuple[tuple[int, int], JsonObject]] = {}
        self._budgets: dict[Path, JsonObject] = {}

    def run(self, cell: str) -> RunView:
        """The run of "task/agent/seed". Raises ConfigError where the grid has no such cell, or it was not begun."""
        for task, agent, seed in self._places():
            if cell == f"{task}/{agent}/{seed}":
                folder = self._folder(task, agent, seed)
                if not (folder / DESCRIBED).is_file():
                    raise ConfigError(f"{cell} has not begun")
                if cell not in self._runs:
                    self._runs.clear()  # one is looked at, and the curves of a long run take room
                    self._runs[cell] = RunView(folder)
                return self._runs[cell]
        raise ConfigError(f"this grid has no cell {cell[:80]!r}")

    def _folder(self, task: str, agent: str, seed: int) -> Path:
        return self.folder / "cells" / task / agent / f"seed-{seed}"

    def _name(self) -> str:
        """That of the file, as the report's; of a file that cannot be read, the folder's."""
        try:
            return str(read_toml(self.folder / DESCRIBED_GRID).get("name") or self.folder.name)
        except (ConfigError, OSError):
            return self.folder.name

    def _places(self) -> list[tuple[str, str, int]]:
        """What the file says; of a file that cannot be read, what has left a folder."""
        try:
            return Grid.load(self.folder / DESCRIBED_GRID).places
        except (ConfigError, OSError):
            return sorted(_left_behind(self.folder))

    def about(self) -> JsonObject:
        """Tasks, agents, and the state of each cell."""
        places = self._places()
        cells = [{"task": t, "agent": a, "seed": s, **self._cell(t, a, s)} for t, a, s in places]
        about = object_in(self.folder / "about.json")
        done = sum(cell["status"] in ("finished", "failed") for cell in cells)
        report = self.folder / "report.html"
        agents = sorted({agent for _, agent, _ in places}, key=agent_order)  # as in the report, colours too
        return {
            "name": for_page(str(about.get("title") or self._name())),
            "folder": for_page(str(self.folder)),
            "tasks": list(dict.fromkeys(task for task, _, _ in places)),
            "agents": agents,
            "colours": {agent: style.colour for agent, style in agent_styles(agents).items()},
            "cells": cells,
            "done": done,
            "at_work": is_held(self.folder / "lock"),
            "trials": sum(1 for _ in (self.folder / "tuning").glob("*.json")),
            "report": for_page(str(report)) if report.is_file() else None,
        }

    def _cell(self, task: str, agent: str, seed: int) -> JsonObject:
        result = self._result(self.folder / "results" / f"{task}--{agent}--seed-{seed}.json")
        folder = self._folder(task, agent, seed)
        begun = (folder / DESCRIBED).is_file()
        if result:
            measured = result.get("evaluation", {})
            score = next((name for name in SCORES if is_number(measured.get(name))), None)
            failed = result.get("status") == "failed"
            return {
                "status": "failed" if failed else "finished",
                "begun": begun,
                "score": None if score is None else measured[score],
                "measure": score,
                "why": for_page(str(result.get("error") or "")),
            }
        if not begun:
            return {"status": "waiting", "begun": False}
        last = _last_row(folder / "metrics.jsonl")
        alerts = json_in(folder / "warnings.json")
        return {
            "status": "running" if is_held(folder / "lock") else "stopped",
            "begun": True,
            "fraction": fraction_spent(self._budget(folder), last),
            "update": last.get("update"),
            "reward": last.get("rollout/reward") if is_number(last.get("rollout/reward")) else None,
            "warnings": len(alerts) if isinstance(alerts, list) else 0,
        }

    def _budget(self, folder: Path) -> JsonObject:
        if folder not in self._budgets:
            try:
                self._budgets[folder] = {"budget": read_toml(folder / DESCRIBED).get("budget", {})}
            except (ConfigError, OSError):
                return {}
        return self._budgets[folder]

    def _result(self, file: Path) -> JsonObject:
        changed = state_of(file)
        if changed is None:
            return {}
        if file not in self._results or self._results[file][0] != changed:
            found = object_in(file)
            kept = {name: found.get(name) for name in ("status", "evaluation", "error")}
            self._results[file] = (changed, kept if isinstance(kept["evaluation"], dict) else {})
        return self._results[file][1]


def _left_behind(folder: Path) -> Iterator[tuple[str, str, int]]:
    for described in folder.glob(f"cells/*/*/seed-*/{DESCRIBED}"):
        task, agent, seed = described.parts[-4:-1]
        if seed.removeprefix("seed-").isdecimal():
            yield task, agent, int(seed.removeprefix("seed-"))


def _last_row(file: Path) -> JsonObject:
    """The last whole row, without reading the others."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _TAIL))
            lines = stream.read().split(b"\n")[:-1]
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            return row
    return {}
