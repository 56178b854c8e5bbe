"""Agents x tasks x seeds under equal conditions: one result file a cell, and a second call completes them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import tomli_w

from rlhf_env.errors import ConfigError, Problem, RunFailed, under
from rlhf_env.feedback.offline import load_preferences, pair_source
from rlhf_env.lab.evaluation import Evaluation, Evaluator
from rlhf_env.lab.health import WARNINGS_FILE, Alert, Watch
from rlhf_env.lab.processes import Progress, run_jobs
from rlhf_env.lab.results import FORMAT, SCORES, read_trials
from rlhf_env.lab.tuning import FIRST_SEED, Tuning, what_was_tried
from rlhf_env.learning.checkpoints import fingerprint
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.experiment import Experiment, Workplace, build, check_plugins
from rlhf_env.learning.folder_lock import hold
from rlhf_env.learning.loop import Row, Source, train
from rlhf_env.learning.run_folder import RunFolder, read_metrics, versions
from rlhf_env.learning.spending import Spending, Stopping
from rlhf_env.plain_data import refuse_misfits
from rlhf_env.toml_files import naming_lines, narrowed, read_toml
from rlhf_env.whole_files import write_whole

REWARD_MODEL = "$reward_model"  # in a grid's tables: the model that its own [reward_model] makes
# "--" separates the parts of a result's file name, and no part climbs out of the folder.
_NAME = re.compile(r"\w[\w.]*(-[\w.]+)*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A benchmark: what its TOML file says.

    `agents`: a table per row of the leaderboard, its key the row's name; `name` inside it is the agent plugin (default:
    the key), the rest its settings. `experiment`: what all cells share (task, policy, environment, rewards, budget,
    evaluation). `tasks`: named changes to `experiment`; without any there is one task, named as in `experiment`. A
    table `agents` among the changes holds, by row, settings for that task (a model of another size wants another `lr`).
    `seeds`: how many (0, 1, ...). `tuning`: how each agent's settings are chosen; without it they are the file's.
    `optima`: by task, the highest score (gold, or proxy without one) that there is, where it is known: the report
    measures what is left to it.
    `reward_model`: the demo's reward model, made in the benchmark's folder before anything runs, with these changes to
    the demo's settings; where a reward's table has the model "$reward_model", it is meant.
    `title`, `what_gold_is`: words for the report.
    """

    name: str = "benchmark"
    title: str = ""
    what_gold_is: str = ""
    agents: dict[str, Any]
    experiment: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3
    tuning: Tuning = field(default_factory=Tuning)
    optima: dict[str, float] = field(default_factory=dict)
    reward_model: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        refuse_misfits(self)
        problems: list[str] = []
        if not self.agents:
            problems.append("agents: name at least one, as in [agents.ppo]")
        if not 1 <= self.seeds <= FIRST_SEED:
            problems.append(f"seeds must be at least 1 and at most {FIRST_SEED}, got {self.seeds}")
        tasks = list(self.tasks) or [_task_name(self.experiment)]
        for name in self.optima:
            if name not in tasks:
                problems.append(f"optima.{name}: no task of this name, only {', '.join(tasks)}")
        named: dict[tuple[str, ...], str] = {
            ("name",): self.name,
            **{("agents", name): name for name in self.agents},
            **{("tasks", name): name for name in tasks},
        }
        for keys, name in named.items():
            if not _NAME.fullmatch(name):
                said = f"{name!r} is no name for a file: letters, digits, '_', '.', single '-'"
                problems.append(Problem(said, keys, ""))
        on_tasks = {
            f"tasks.{task}.agents": changes.get("agents", {})
            for task, changes in self.tasks.items()
            if isinstance(changes, Mapping)
        }
        for kind, tables in (("agents", self.agents), ("tasks", self.tasks), *on_tasks.items()):
            problems += [
                f"{kind}.{name}: {table!r} is not a table"
                for name, table in (tables.items() if isinstance(tables, Mapping) else [("", tables)])
                if not isinstance(table, Mapping)
            ]
        problems += [
            f"{where}.{name}: no row of this name, only {', '.join(self.agents)}"
            for where, tables in on_tasks.items()
            for name in (tables if isinstance(tables, Mapping) else ())
            if name not in self.agents
        ]
        if self.reward_model is None and f"'{REWARD_MODEL}'" in str([self.experiment, self.tasks]):
            problems.append(
                f"{REWARD_MODEL} is the model that a table [reward_model] makes, and there is no such table"
            )
        if problems:
            raise ConfigError(*problems)

    @classmethod
    def load(cls, file: str | Path) -> Grid:
        """From a TOML file. Raises ConfigError with every problem found."""
        table = read_toml(file)
        with naming_lines(file):
            return from_table(cls, table, str(file))

    def to_toml(self) -> str:
        return tomli_w.dumps({key: value for key, value in asdict(self).items() if value is not None})

    def cells(self, folder: Path | None = None, only: Sequence[str] = ()) -> list[Cell]:
        """Every cell, seeds outermost, so that a run cut short has whole comparisons. Checks every experiment.

        `folder`: the benchmark's, where its reward model is. `only`: those that match one of some "task/agent/seed", of
        which the end may be left out, and "*" and "?" stand for anything. Raises ConfigError when one matches nothing.
        """
        tasks = self.tasks or {_task_name(self.experiment): {}}
        cells: list[Cell] = []
        problems: dict[str, None] = {}
        for seed, (task, changes), agent in product(range(self.seeds), tasks.items(), self.agents):
            try:
                with self.blamed(task, agent):
                    cells.append(self._cell(task, changes, agent, seed, folder))
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
        if problems:
            raise ConfigError(*problems)
        unmatched = [pattern for pattern in only if not any(cell.matches(pattern) for cell in cells)]
        if unmatched:
            raise ConfigError(
                *(
                    f"--only {pattern}: no such task/agent/seed; tasks are {', '.join(tasks)}; agents "
                    f"{', '.join(self.agents)}; seeds 0 to {self.seeds - 1}"
                    for pattern in unmatched
                )
            )
        return [cell for cell in cells if not only or any(cell.matches(pattern) for pattern in only)]

    def _cell(self, task: str, changes: Mapping[str, Any], agent: str, seed: int, folder: Path | None) -> Cell:
        on_task = changes.get("agents", {}).get(agent, {})
        settings = {"name": agent, **self.agents[agent], **on_task}
        shared = _merged(self.experiment, {key: value for key, value in changes.items() if key != "agents"})
        table = {**shared, "name": f"{self.name}/{task}/{agent}", "seed": seed, "agent": settings}
        if self.reward_model is not None and folder is not None:
            table = _placed(table, str(reward_model_of(folder)))
        return Cell(
            self.name,
            task,
            agent,
            seed,
            Experiment.from_table(table, f"{self.name}, task {task}"),
            self.optima.get(task),
        )

    @contextmanager
    def blamed(self, task: str, agent: str) -> Iterator[None]:
        """What is wrong with the experiment of a cell is wrong in the tables of this grid that it was made of."""
        changes = self.tasks.get(task, {})

        def placed(problem: Problem) -> Problem:
            if problem.keys[:1] == ("agent",):
                rest = problem.keys[1:]
                own = changes.get("agents", {}).get(agent, {})
                tables = {("agents", agent): self.agents[agent], ("tasks", task, "agents", agent): own}
            else:
                rest = problem.keys
                tables = {("experiment",): self.experiment, ("tasks", task): changes}
            found = {path: narrowed(Problem(problem, rest, problem.said), table) for path, table in tables.items()}
            shared, special = found
            path = special if found[special] and len(found[special]) >= len(found[shared]) else shared
            return Problem(problem, (*path, *found[path]), problem.said)

        try:
            yield
        except ConfigError as error:
            error.change(placed)
            raise

    def require_plugins(self, cells: Sequence[Cell]) -> None:
        """Raises ConfigError for names and settings that no plugin has, as far as no model is needed to find them."""
        problems: dict[str, None] = {}
        for cell in {(cell.task, cell.agent): cell for cell in cells}.values():
            try:
                with self.blamed(cell.task, cell.agent):
                    check_plugins(cell.experiment)
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
        if problems:
            raise ConfigError(*problems)

    def trials(self, cells: Sequence[Cell]) -> list[Cell]:
        """What is tried before `cells` can run with the best settings; none for an agent without a choice."""
        found = []
        for cell in {(cell.task, cell.agent): cell for cell in cells}.values():
            with self.blamed(cell.task, cell.agent), under("agent"):
                drawn = self.tuning.configurations_of(cell.experiment.agent)
            for configuration, settings in enumerate(drawn if len(drawn) > 1 else ()):
                for number in range(self.tuning.seeds):
                    experiment = self.tuning.trial(cell.experiment, settings, number)
                    found.append(
                        replace(
                            cell, seed=experiment.seed, experiment=experiment, configuration=configuration, trial=True
                        )
                    )
        return found


@dataclass(frozen=True)
class Cell:
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

    def work(self, folder: Path, on_update: Callable[[Row, float], None]) -> dict[str, Any]:
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


def reward_model_of(folder: Path) -> Path:
    """Where the model of a grid's [reward_model] is."""
    return folder.resolve() / "reward_model"


def run_benchmark(
    grid: Grid,
    folder: str | Path,
    *,
    jobs: int = 2,
    only: Sequence[str] = (),
    prepare: Callable[[], object] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Path]:
    """Tune, then run what is missing, in `jobs` processes; the result files of all cells.

    A failed cell is written down as such and the others go on; a killed worker costs its cell alone, which the next
    call resumes from its checkpoint. `only`: see `Grid.cells`. `prepare` is called first if a cell that is missing
    needs the grid's reward model, and makes it (`rlhf_env.pipeline.learn_reward_model`).

    Raises ConfigError when another process is at work in `folder`, or when it holds results of another grid.
    """
    folder = Path(folder)
    cells = grid.cells(folder, only)
    grid.trials(cells)  # refuses settings that no agent has before anything is written
    with hold(folder):
        _describe(grid, folder)
        missing = [cell for cell in cells if not cell.result_file(folder).exists()]
        _prepare(missing, folder, prepare)

        def tell(progress: Progress) -> None:
            if on_progress is not None:
                on_progress(_with_outcome(progress, folder))

        trials = grid.trials(missing)
        run_jobs(trials, folder, jobs=jobs, on_progress=tell)
        unfinished = [trial for trial in trials if not trial.result_file(folder).exists()]
        return run_jobs(list(_tuned(cells, unfinished, folder, tell)), folder, jobs=jobs, on_progress=tell)


def _prepare(missing: Sequence[Cell], folder: Path, prepare: Callable[[], object] | None) -> None:
    model = reward_model_of(folder)
    if any(str(model) in cell.experiment.to_toml() for cell in missing):
        if prepare is not None:
            prepare()
        if not model.is_dir():
            raise ConfigError(f"{model} is not there: `rlhf-env bench` makes it, as pipeline.learn_reward_model does")


def _with_outcome(progress: Progress, folder: Path) -> Progress:
    """How a job ended and what it scored, from its result: also of one that had ended before."""
    if progress.ended in (None, "died"):
        return progress
    result = json.loads(progress.job.result_file(folder).read_text(encoding="utf-8", errors="surrogatepass"))
    measures = ("objective",) if getattr(progress.job, "trial", False) else SCORES  # what it is chosen or ranked by
    score = next((result["evaluation"][name] for name in measures if name in result["evaluation"]), None)
    return replace(progress, ended=result["status"], why=result["error"] or "", score=score)


def _tuned(
    cells: Sequence[Cell], unfinished: Sequence[Cell], folder: Path, tell: Callable[[Progress], None]
) -> Iterator[Cell]:
    """`cells` with the settings that came out best; without those whose tuning is not complete, trials `unfinished`."""
    chosen = {(tried.task, tried.agent): tried for tried in what_was_tried(read_trials(folder)) if tried.chosen}
    waiting = {(trial.task, trial.agent) for trial in unfinished}
    for cell in cells:
        best = chosen.get((cell.task, cell.agent))
        if (cell.task, cell.agent) in waiting:
            tell(Progress(cell, 0.0, "died", why="its tuning was cut short: the next call goes on"))
        elif best is None or cell.result_file(folder).exists():
            yield cell
        else:
            tuned = replace(cell.experiment, agent=dict(best.settings))
            yield replace(cell, experiment=tuned, configuration=best.configuration)


def run_cell(cell: Cell, folder: Path, on_update: Callable[[Row, float], None] | None = None) -> dict[str, Any]:
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
        lent = workplace.setup
        source = pair_source(stored, lent.tokenizer, pairs=pairs, seed=experiment.seed, reference=lent.reference)
    run.began_with("initial weights", fingerprint(workplace.setup.reference.state_dict()))
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
    """All of it or nothing. A number that is not finite becomes null: JSON has no NaN."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False))


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _identity(cell: Cell, config_hash: str) -> dict[str, Any]:
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


def _describe(grid: Grid, folder: Path) -> None:
    """Keep the grid beside its results, and refuse to mix two grids in one folder."""
    file, about = folder / "benchmark.toml", folder / "about.json"
    begun = [*folder.glob("results/*.json"), *folder.glob("tuning/*.json")]
    if grid.reward_model is not None:
        begun += folder.glob("preferences.sqlite")
    if begun and file.exists() and Grid.load(file) != grid:
        raise ConfigError(f"{folder} holds results of another grid ({file} differs): choose another folder")
    write_whole(file, grid.to_toml())
    if not about.exists():
        command = f"rlhf-env bench {file.name}"
        words = {"title": grid.title, "what_gold_is": grid.what_gold_is, "command": command, "versions": versions()}
        write_json(about, words)


def _placed(value: Any, model: str) -> Any:
    """`value` with the path of the reward model where its placeholder stands."""
    if isinstance(value, Mapping):
        return {key: _placed(item, model) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_placed(item, model) for item in value]
    return model if value == REWARD_MODEL else value


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
