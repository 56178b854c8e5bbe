"""Agents x tasks x seeds under equal conditions: one result file a cell, and a second call completes them."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import tomli_w

from rlhf_env.errors import ConfigError, RlhfEnvError, RunFailed
from rlhf_env.feedback.offline import load_preferences, pair_source
from rlhf_env.lab.evaluation import Evaluation, Evaluator
from rlhf_env.lab.health import WARNINGS_FILE, Alert, Watch
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.engine import set_threads
from rlhf_env.learning.experiment import Experiment, Workplace, build, read_toml
from rlhf_env.learning.loop import Interrupted, Row, Source, train
from rlhf_env.learning.run_folder import RunFolder, read_metrics
from rlhf_env.learning.spending import Spending, Stopping

RESULT_FORMAT = 1
# "--" separates the parts of a result's file name, and no part climbs out of the folder.
_NAME = re.compile(r"\w[\w.]*(-[\w.]+)*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A benchmark: what its TOML file says.

    `agents`: a table per row of the leaderboard, its key the row's name; `name` inside it is the agent plugin (default:
    the key), the rest its settings. `experiment`: what all cells share (task, policy, environment, rewards, budget,
    evaluation). `tasks`: named changes to `experiment`; without any there is one task, named as in `experiment`.
    `seeds`: how many (0, 1, ...). `optima`: by task, the highest score (gold, or proxy without one) that there is,
    where it is known: the report measures what is left to it.
    """

    name: str = "benchmark"
    agents: dict[str, Any]
    experiment: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3
    optima: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems = []
        if not self.agents:
            problems.append("agents: name at least one, as in [agents.ppo]")
        if self.seeds < 1:
            problems.append(f"seeds must be at least 1, got {self.seeds}")
        tasks = list(self.tasks) or [_task_name(self.experiment)]
        for name, optimum in self.optima.items():
            if name not in tasks:
                problems.append(f"optima.{name}: no task of this name, only {', '.join(tasks)}")
            if not math.isfinite(optimum):
                problems.append(f"optima.{name} must be finite, got {optimum}")
        for name in (self.name, *self.agents, *tasks):
            if not _NAME.fullmatch(name):
                problems.append(f"{name!r} is no name for a file: letters, digits, '_', '.', single '-'")
        for kind, tables in (("agents", self.agents), ("tasks", self.tasks)):
            problems += [
                f"{kind}.{name}: {table!r} is not a table"
                for name, table in tables.items()
                if not isinstance(table, Mapping)
            ]
        if problems:
            raise ConfigError(*problems)

    @classmethod
    def load(cls, file: str | Path) -> Grid:
        """From a TOML file. Raises ConfigError with every problem found."""
        return from_table(cls, read_toml(file), str(file))

    def to_toml(self) -> str:
        return tomli_w.dumps(asdict(self))

    def cells(self) -> list[Cell]:
        """Every cell, seeds outermost, so that a run cut short has whole comparisons. Checks every experiment."""
        tasks = self.tasks or {_task_name(self.experiment): {}}
        return [
            self._cell(task, changes, agent, seed)
            for seed in range(self.seeds)
            for task, changes in tasks.items()
            for agent in self.agents
        ]

    def _cell(self, task: str, changes: Mapping[str, Any], agent: str, seed: int) -> Cell:
        settings = {"name": agent, **self.agents[agent]}
        table = {**_merged(self.experiment, changes), "name": f"{self.name}/{task}/{agent}", "seed": seed}
        experiment = Experiment.from_table({**table, "agent": settings}, f"{self.name}, task {task}")
        return Cell(self.name, task, agent, seed, experiment, self.optima.get(task))


@dataclass(frozen=True)
class Cell:
    """One agent on one task with one seed."""

    benchmark: str
    task: str
    agent: str
    seed: int
    experiment: Experiment
    optimum: float | None = None

    @property
    def key(self) -> str:
        return f"{self.task}--{self.agent}--seed-{self.seed}"

    @property
    def run(self) -> str:
        """The run folder, relative to the benchmark's."""
        return f"cells/{self.task}/{self.agent}/seed-{self.seed}"

    def result_file(self, folder: Path) -> Path:
        return folder / "results" / f"{self.key}.json"


@dataclass(frozen=True)
class Progress:
    """How far a cell is: `fraction` of its budget, `ended` None, "finished" or "failed"."""

    cell: Cell
    fraction: float
    ended: str | None = None
    row: Row = field(default_factory=dict)


def run_benchmark(
    grid: Grid, folder: str | Path, *, jobs: int = 2, on_progress: Callable[[Progress], None] | None = None
) -> list[Path]:
    """Run what is missing, in `jobs` processes; the result files of all cells.

    A failed cell is written down as such and the others go on; a killed worker costs its cell alone, which the next
    call resumes from its checkpoint.
    """
    folder = Path(folder)
    cells = grid.cells()
    _describe(grid, folder)
    missing = [cell for cell in cells if not cell.result_file(folder).exists()]
    tell = on_progress or (lambda _progress: None)
    for cell in cells:
        if cell not in missing:
            tell(Progress(cell, 1.0, "finished"))
    for progress in _run_in_processes(missing, folder, max(1, min(jobs, len(missing)))):
        tell(progress)
    return [cell.result_file(folder) for cell in cells]


def run_cell(cell: Cell, folder: Path, on_update: Callable[[Row, float], None] | None = None) -> dict[str, Any]:
    """Build, train, evaluate; the result that was written to `cell.result_file(folder)`.

    Raises what the run raises, and RunFailed for an evaluation that is not finite: then no result is written.
    """
    workplace = build(cell.experiment)
    evaluator = Evaluator.of(workplace)
    with RunFolder(folder / cell.run, cell.experiment.to_toml(), resume=True) as run:
        reason, final = run_experiment(workplace, evaluator, run, resume=True, on_update=on_update)
    curve = evaluation_curve(folder / cell.run)
    diverged = [name for name, value in final.metrics.items() if not math.isfinite(value)]
    if diverged:
        raise RunFailed(f"the evaluation is not finite: {', '.join(diverged)}")
    result = {
        "format": RESULT_FORMAT,
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


def run_experiment(
    workplace: Workplace,
    evaluator: Callable[[], Evaluation],
    run: RunFolder,
    *,
    resume: bool = False,
    on_update: Callable[[Row, float], None] | None = None,
    on_alert: Callable[[Alert], None] | None = None,
) -> tuple[str, Evaluation]:
    """Train as the experiment says, evaluating before, on the way and after: why it ended, and the last evaluation.

    What goes wrong on the way is told to `on_alert`, each kind once a run, and kept in the run's warnings.json.
    Agents that do not train are evaluated once.
    """
    experiment = workplace.experiment
    trains = getattr(workplace.agent, "trains", True)
    source: Source = workplace.source
    if experiment.preferences is not None:
        pairs = max(1, experiment.environment.num_envs // 2)
        stored = load_preferences(experiment.preferences)
        source = pair_source(stored, workplace.setup.tokenizer, pairs=pairs, seed=experiment.seed)
    first = None if resume and read_metrics(run.path) else evaluator()
    if first is not None:
        run.log({"update": 0, "spent/generated_tokens": 0, **_eval_row(first)})
    if not trains:
        return "does not train", first or evaluator()

    stopping = Stopping(max_kl=experiment.max_kl, patience=experiment.patience, min_delta=experiment.min_delta)
    stopping(read_metrics(run.path)[0])  # what was there before training is there to be improved on

    watch = Watch.of(run.path)

    def follow(row: Row, fraction: float) -> None:
        if alerts := watch(row):
            write_json(run.path / WARNINGS_FILE, [asdict(alert) for alert in watch.found])
            if on_alert is not None:
                for alert in alerts:
                    on_alert(alert)
        if on_update is not None:
            on_update(row, fraction)

    training = train(
        workplace.agent,
        source,
        experiment.budget,
        spending=workplace.setup.spending,
        engine=workplace.setup.engine,
        run=run,
        resume=resume,
        checkpoint_every=experiment.checkpoint_every,
        evaluate=lambda: dict(evaluator().metrics),
        evaluate_every=experiment.evaluation.every,
        stop_when=stopping,
        on_update=follow,
    )
    return training.reason, evaluator()


def evaluation_curve(run: Path) -> list[dict[str, float]]:
    """The evaluations logged on the way: update, generated tokens, and the evaluator's metrics."""
    curve = []
    for row in read_metrics(run):
        point = {key.removeprefix("eval/"): value for key, value in row.items() if key.startswith("eval/")}
        if point:
            tokens = row.get("spent/generated_tokens", 0)
            curve.append({"update": row["update"], "generated_tokens": tokens, **point})
    return curve


def write_json(file: Path, content: Any) -> None:
    """All of it or nothing: written beside and renamed. A number that is not finite becomes null: JSON has no NaN."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    text = json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False)
    partial.write_text(text, encoding="utf-8", errors="surrogatepass")
    partial.replace(file)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


# -------------------------------------------------------------------- worker processes


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    cell: Cell | None = None


def _run_in_processes(cells: Sequence[Cell], folder: Path, jobs: int) -> Iterator[Progress]:
    """Hand cells to `jobs` workers that stay (loading torch once each); replace one that dies."""
    waiting = list(cells)
    workers = [_start_worker() for _ in range(min(jobs, len(waiting)))]
    try:
        for worker in workers:
            _hand_over(worker, waiting, folder)
        while any(worker.cell for worker in workers):
            ready = wait([worker.pipe for worker in workers if worker.cell])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                cell = worker.cell
                assert cell is not None
                try:
                    fraction, ended, row = worker.pipe.recv()
                    if ended is not None and ended != "finished":
                        _write_failure(cell, folder, ended)
                except (EOFError, OSError):  # at its end, or before it had read what it was sent
                    worker.process.join()
                    # No result is written: the next call goes on from the cell's last checkpoint.
                    fraction, ended, row = 0.0, _died(worker.process.exitcode), {}
                    if waiting:
                        fresh = _start_worker()
                        worker.process, worker.pipe = fresh.process, fresh.pipe
                yield Progress(cell, fraction, None if ended is None else _outcome(ended), row)
                if ended is not None:
                    _hand_over(worker, waiting, folder)
    finally:
        for worker in workers:
            with suppress(OSError):
                worker.pipe.send(None)
            if worker.cell is not None:  # we were interrupted: the worker saves its run and ends
                worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _died(exit_code: int | None) -> str:
    return f"its process died (exit code {exit_code}): call again to go on from its last checkpoint"


def _outcome(ended: str) -> str:
    return "finished" if ended == "finished" else "failed"


def _hand_over(worker: _Worker, waiting: list[Cell], folder: Path) -> None:
    worker.cell = waiting.pop(0) if waiting else None
    if worker.cell is not None:
        worker.pipe.send((worker.cell, folder))


def _start_worker() -> _Worker:
    context = multiprocessing.get_context("spawn")  # forking a process that has used torch's threads can deadlock
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _work(pipe: Connection) -> None:
    """A worker's life: cells in, progress out. Ctrl-C reaches it too; the run under way is saved by `train`."""
    set_threads()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if job is None:
            return
        cell, folder = job
        last = 0.0

        def report(row: Row, fraction: float) -> None:
            nonlocal last
            if time.monotonic() - last > 0.2:
                last = time.monotonic()
                pipe.send((fraction, None, row))

        try:
            run_cell(cell, folder, report)
            pipe.send((1.0, "finished", {}))
        except (Interrupted, KeyboardInterrupt):
            return
        except RlhfEnvError as error:
            pipe.send((1.0, str(error), {}))
        except Exception as error:  # a plugin may raise anything; the other cells go on
            pipe.send((1.0, f"{type(error).__name__}: {error}", {}))


def _write_failure(cell: Cell, folder: Path, why: str) -> None:
    """A failed cell stays in the results, with the curve it got to."""
    rows = read_metrics(folder / cell.run)
    spent = {key.removeprefix("spent/"): value for key, value in (rows[-1] if rows else {}).items() if "spent/" in key}
    result = {
        "format": RESULT_FORMAT,
        **_identity(cell, ""),
        "status": "failed",
        "reason": "error",
        "error": why.splitlines()[0] if why else "unknown",
        "spending": {**Spending().as_dict(), **spent},
        "evaluation": {},
        "curve": evaluation_curve(folder / cell.run),
        "samples": [],
    }
    write_json(cell.result_file(folder), result)


def _identity(cell: Cell, config_hash: str) -> dict[str, Any]:
    return {
        "benchmark": cell.benchmark,
        "task": cell.task,
        "agent": cell.agent,
        "seed": cell.seed,
        "agent_settings": cell.experiment.agent,
        "optimum": cell.optimum,
        "config_hash": config_hash,
        "run": cell.run,
    }


def _describe(grid: Grid, folder: Path) -> None:
    """Keep the grid beside its results, and refuse to mix two grids in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file, text = folder / "benchmark.toml", grid.to_toml()
    if file.exists() and file.read_text(encoding="utf-8") != text and any((folder / "results").glob("*.json")):
        raise ConfigError(f"{folder} holds results of another grid ({file} differs): choose another folder")
    file.write_text(text, encoding="utf-8")


def _task_name(experiment: Mapping[str, Any]) -> str:
    task = experiment.get("task", {})
    return str(task.get("name", "task")) if isinstance(task, Mapping) else "task"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, tables merged key by key (a changed task or reward table replaces the old one whole)."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if both and key not in ("task", "rewards") else value
    return merged


def _eval_row(evaluation: Evaluation) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in evaluation.metrics.items()}
