"""One cell of a grid: an agent on a task with a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from rlhf_env.errors import RunFailed
from rlhf_env.lab.benchmark.results import FORMAT
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.lab.evaluation.runs import evaluation_curve, run_experiment
from rlhf_env.learning.experiment import Experiment, build
from rlhf_env.learning.loop import Row
from rlhf_env.learning.run_folder import RunFolder, read_metrics
from rlhf_env.learning.spending import Spending
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
    workplace = build(cell.experiment)
    evaluator = Evaluator.of(workplace)
    # A damaged checkpoint costs the way from the one before it, not the cell.
    with RunFolder(folder / cell.run, cell.experiment.to_toml(), resume=True, allow_partial=True) as run:
        reason, final = run_experiment(workplace, evaluator, run, resume=True, on_update=on_update)
    curve = evaluation_curve(folder / cell.run)
    diverged = [name for name, value in final.metrics.items() if not math.isfinite(value)]
    if diverged:
        raise RunFailed(f"the evaluation is not finite: {', '.join(diverged)}")
    result = {
        "format": FORMAT,
        **_identity(cell, run.config_hash),
        "status": "finished",
        "reason": reason,
        "error": None,
        "weights": dict(workplace.env.reward.weights),
        "spending": workplace.setup.spending.as_dict(),
        "evaluation": dict(final.metrics),
        "curve": curve,
        "samples": list(final.samples[:32]),
    }
    write_json(cell.result_file(folder), result)
    return result


def _identity(cell: GridCell, config_hash: str) -> JsonObject:
    return {
        "benchmark": cell.benchmark,
        "task": cell.task,
        "agent": cell.agent,
        "seed": cell.seed,
        "agent_settings": cell.experiment.agent,
        "configuration": cell.configuration,
        "experiment": cell.experiment.to_toml(),
        "optimum": cell.optimum,
        "config_hash": config_hash,
        "run": cell.run,
    }
