"""One cell of a grid: an agent on a task with a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from rlhf_env.errors import RunFailed
from rlhf_env.lab.benchmark.results import FORMAT
from rlhf_env.lab.evaluation.equal_texts import kept
from rlhf_env.lab.evaluation.health import Alert
from rlhf_env.lab.evaluation.metrics import METRICS, metrics_of
from rlhf_env.lab.evaluation.runs import evaluation_curve, run
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import Row
from rlhf_env.learning.run_record import config_hash, read_metrics
from rlhf_env.learning.spending import Spending
from rlhf_env.learning.workplace import build
from rlhf_env.relative_paths import paths_of
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import write_json


@dataclass(frozen=True)
class GridCell:
    """One agent on one task with one seed: a result of the report or, while tuning, a `trial` of a `configuration`."""

    benchmark: str
    task: str
    agent: str
    seed: int
    experiment: Experiment
    optimum: float | None = None
    configuration: int = 0
    trial: bool = False

    @property
    def key(self) -> str:
        tried = f"--try-{self.configuration}" if self.trial else ""
        return f"{self.task}--{self.agent}{tried}--seed-{self.seed}"

    @property
    def title(self) -> str:
        tried = f" · try {self.configuration}" if self.trial else ""
        return f"{self.task} · {self.agent}{tried} · seed {self.seed}"

    @property
    def run(self) -> str:
        """The run folder, relative to the benchmark's."""
        if self.trial:
            return f"tuning/runs/{self.task}/{self.agent}/try-{self.configuration}/seed-{self.seed}"
        return f"cells/{self.task}/{self.agent}/seed-{self.seed}"

    def result_file(self, folder: Path) -> Path:
        return folder / ("tuning" if self.trial else "results") / f"{self.key}.json"

    def leaves(self, folder: Path) -> list[Path]:
        return [folder / self.run, self.result_file(folder)]

    def reads(self, _folder: Path) -> list[str]:
        """Data, models, code: whatever the experiment names by a path."""
        return paths_of(Path(), self.experiment, Experiment)

    def matches(self, pattern: str) -> bool:
        """Whether it is one of "task/agent/seed", of which the end may be left out."""
        wanted, names = pattern.split("/"), (self.task, self.agent, str(self.seed))
        return len(wanted) <= 3 and all(map(fnmatchcase, names, wanted))

    def work(self, folder: Path, on_update: Callable[[Row, float], None]) -> JsonObject:
        return run_cell(self, folder, on_update)

    def failed(self, folder: Path, why: str) -> None:
        """A failed cell stays in the results, with the curve it got to."""
        rows = read_metrics(folder / self.run)
        last = rows[-1] if rows else {}
        spent = {key.removeprefix("spent/"): value for key, value in last.items() if "spent/" in key}
        result = {
            "format": FORMAT,
            **_identity(self, ""),
            "status": "failed",
            "reason": "error",
            "error": why.splitlines()[0] if why else "unknown",
            "spending": {**Spending().as_dict(), **spent},
            "evaluation": {},
            "curve": evaluation_curve(folder / self.run),
            "samples": [],
        }
        write_json(self.result_file(folder), result)


def run_cell(cell: GridCell, folder: Path, on_update: Callable[[Row, float], None] | None = None) -> JsonObject:
    """Build, train, evaluate; the result that was written to `cell.result_file(folder)`.

    Raises what the run raises, and RunFailed for an evaluation that is not finite: then no result is written.
    """
    where = folder / cell.run
    with kept():
        finished = run(
            build(cell.experiment),
            where,
            resume=True,
            allow_partial=True,  # a damaged checkpoint costs the way from the one before it, not the cell
            threads=torch.get_num_threads(),  # as its process has them
            name=cell.key,
            on_update=on_update,
            on_warning=_kept_in_the_folder,
        )
    final = finished.evaluation
    diverged = [name for name, value in final.metrics.items() if not math.isfinite(value)]
    if diverged:
        raise RunFailed(f"the evaluation is not finite: {', '.join(diverged)}")
    result = {
        "format": FORMAT,
        **_identity(cell, config_hash(cell.experiment.to_toml())),
        "status": "finished",
        "reason": finished.reason,
        "error": None,
        "weights": dict(finished.workplace.env.reward.weights),
        "spending": finished.spending.as_dict(),
        "evaluation": dict(final.metrics),
        "curve": evaluation_curve(where),
        "samples": list(final.samples[:32]),
    }
    asked_for = metrics_of(cell.experiment.evaluation)
    if of_plugins := {metric.name: metric.words for metric in asked_for if metric not in METRICS}:
        result["metrics"] = of_plugins  # a report is made from this file alone, wherever it is read
    write_json(cell.result_file(folder), result)
    return result


def _kept_in_the_folder(_warning: Alert) -> None:
    """Nobody reads along in a worker: warnings.json of the run has it."""


def _identity(cell: GridCell, hashed: str) -> JsonObject:
    return {
        "benchmark": cell.benchmark,
        "task": cell.task,
        "agent": cell.agent,
        "seed": cell.seed,
        "agent_settings": cell.experiment.agent,
        "configuration": cell.configuration,
        "experiment": cell.experiment.to_toml(),
        "optimum": cell.optimum,
        "config_hash": hashed,
        "run": cell.run,
    }
