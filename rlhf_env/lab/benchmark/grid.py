"""A grid: agents x tasks x seeds, as a TOML file says it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from annotated_types import Ge, Le, MinLen

from rlhf_env.errors import ConfigError, Problem, did_you_mean, under
from rlhf_env.lab.benchmark.cells import GridCell
from rlhf_env.lab.benchmark.tuning import FIRST_SEED, Tuning
from rlhf_env.lab.statistics import least_p, seeds_for_a_verdict
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.experiment_checks import check_plugins
from rlhf_env.own_code import KEY, label_of
from rlhf_env.settings import EachPartOf, PartOf, Rows, checked, fault, is_setting, settings
from rlhf_env.toml_files import naming_lines, narrowed, read_kind
from rlhf_env.types import JsonObject, JsonView

REWARD_MODEL = "$reward_model"  # in a grid's tables: the model that its own [reward_model] makes
# "--" separates the parts of a result's file name, and no part climbs out of the folder.
_NAME = re.compile(r"\w[\w.]*(-[\w.]+)*", re.ASCII)

_SHARED = ("seed", "task", "budget", "evaluation")  # by rows that are compared


@settings
class Grid:
    """A benchmark of agents x tasks x seeds, as its TOML file describes it."""

    name: str = "benchmark"
    """The benchmark's name, and its folder's."""
    title: str = ""
    """The report's title."""
    what_gold_is: str = ""
    """A sentence for the report that says what the gold reward measures."""
    agents: Annotated[dict[str, JsonObject], Rows()]
    """A table for each row of the leaderboard, its key the row's name; `name` in it is the agent plugin (default: the
    key), or `function` your own code, the rest its settings."""
    experiment: Annotated[JsonObject, PartOf(Experiment)] = field(default_factory=dict)
    """What all cells share: task, policy, environment, rewards, budget, evaluation."""
    tasks: Annotated[dict[str, JsonObject], EachPartOf(Experiment)] = field(default_factory=dict)
    """Named changes to `experiment`; without any there is one task, named as in `experiment`. A table `agents` among
    the changes holds, by row, settings for that task (a model of another size wants another `lr`); a list `rows` names
    the rows that run on it, where not all do."""
    rows: Annotated[dict[str, JsonObject], EachPartOf(Experiment)] = field(default_factory=dict)
    """By row, changes to `experiment` for that row on every task, made after the task's own: rewards that help it
    learn, a view, a smaller policy. Rows with rewards of their own are compared by [evaluation.rewards], which all
    share, as they do the task and the budget."""
    seeds: Annotated[int, Ge(1), Le(FIRST_SEED)] = 3
    """How many seeds: 0, 1, ..."""
    tuning: Tuning = field(default_factory=Tuning)
    """How each agent's settings are chosen; without it they are the file's."""
    optima: dict[str, float] = field(default_factory=dict)
    """By task, the highest score (gold, or proxy without one) that there is, where it is known: the report measures
    what is left to it."""
    reward_model: JsonObject | None = None
    """The demo's reward model, made in the benchmark's folder before anything runs, with these changes to the demo's
    settings; where a reward's table has the model "$reward_model", this one is meant."""
    folder: Path | None = field(default=None, repr=False, compare=False, metadata={"setting": False})
    """Where the file is that this was read from, for the relative paths in it; None: the working directory."""

    def problems(self) -> Iterator[Problem]:
        if not self.agents:
            yield fault("agents", "must be one or more tables, as in [agents.ppo]")
        tasks = list(self.tasks) or [_task_name(self.experiment)]
        for name, changes in self.rows.items():
            if name not in self.agents:
                said = f"rows.{name}: no row of this name{did_you_mean(name, self.agents)}; rows are [agents.NAME]"
                yield Problem(said, ("rows", name))
            for shared in (setting for setting in _SHARED if setting in changes):
                said = f"rows.{name}.{shared}: rows are compared on the same {shared}; it goes under [experiment]"
                yield Problem(said, ("rows", name, shared))
        for name in self.optima:
            if name not in tasks:
                said = f"optima.{name}: no task of this name, only {', '.join(tasks)}"
                yield Problem(said, ("optima", name))
        named: dict[tuple[str, ...], str] = {
            ("name",): self.name,
            **{("agents", name): name for name in self.agents},
            **{("tasks", name): name for name in tasks},
        }
        for keys, name in named.items():
            if not _NAME.fullmatch(name):
                said = f"{name!r} is no name for a file: letters, digits, '_', '.', single '-'"
                yield Problem(said, keys)
        for task, changes in self.tasks.items():
            keys = ("tasks", task, "agents")
            _, wrong = checked(changes.get("agents", {}), dict[str, JsonObject], keys)
            yield from wrong
            for name in () if wrong else changes.get("agents", {}):
                if name not in self.agents:
                    said = f"tasks.{task}.agents.{name}: no row of this name, only {', '.join(self.agents)}"
                    yield Problem(said, (*keys, name))
            keys = ("tasks", task, "rows")
            _, wrong = checked(changes.get("rows", [*self.agents]), Annotated[list[str], MinLen(1)], keys)
            yield from wrong
            for name in () if wrong else changes.get("rows", ()):
                if name not in self.agents:
                    said = f"tasks.{task}.rows: no row is called {name!r}{did_you_mean(name, self.agents)}"
                    yield Problem(said, keys)
        if self.reward_model is None and f"'{REWARD_MODEL}'" in str([self.experiment, self.tasks]):
            yield Problem(f"{REWARD_MODEL} is the model that a table [reward_model] makes, and there is no such table")

    @classmethod
    def load(cls, file: str | Path) -> Grid:
        """From a TOML file. Raises ConfigError with every problem found."""
        table = read_kind(file, "grid")
        with naming_lines(file):
            return replace(from_table(cls, table, str(file)), folder=Path(file).parent)

    def to_toml(self) -> str:
        unwritten = {"folder", *(() if self.rows else ("rows",))}  # as folders have it that are older than `rows`
        return tomli_w.dumps({k: v for k, v in asdict(self).items() if v is not None and k not in unwritten})

    @property
    def places(self) -> list[tuple[str, str, int]]:
        """Task, agent and seed of every cell, seeds outermost."""
        tasks = self.tasks or {_task_name(self.experiment): {}}
        return [
            (task, agent, seed)
            for seed, (task, changes), agent in product(range(self.seeds), tasks.items(), self.agents)
            if agent in changes.get("rows", self.agents)
        ]

    def cells(self, folder: Path | None = None, only: Sequence[str] = ()) -> list[GridCell]:
        """Every cell, seeds outermost, so that a run cut short has whole comparisons. Checks every experiment.

        `folder`: the benchmark's, where its reward model is. `only`: those that match one of some "task/agent/seed", of
        which the end may be left out, and "*" and "?" stand for anything. Raises ConfigError when one matches nothing.
        """
        tasks = self.tasks or {_task_name(self.experiment): {}}
        cells: list[GridCell] = []
        problems: dict[str, None] = {}
        for task, agent, seed in self.places:
            try:
                with self.blamed(task, agent):
                    cells.append(self._cell(task, tasks[task], agent, seed, folder))
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

    def _cell(self, task: str, changes: JsonView, agent: str, seed: int, folder: Path | None) -> GridCell:
        on_task = changes.get("agents", {}).get(agent, {})
        settings = {**self.agents[agent], **on_task}
        if KEY not in settings:
            settings = {"name": agent, **settings}
        shared = _merged(
            self.experiment, {key: value for key, value in changes.items() if key not in ("agents", "rows")}
        )
        shared = _merged(shared, self.rows.get(agent, {}))
        table = {**shared, "name": f"{self.name}/{task}/{agent}", "seed": seed, "agent": settings}
        where = f"{self.name}, task {task}"
        made = Experiment.from_table(table, where, folder=self.folder).located()
        if self.reward_model is not None and folder is not None:
            unwritten = {setting.name for setting in fields(made) if not is_setting(setting)}
            written = {key: value for key, value in asdict(made).items() if key not in unwritten}
            made = Experiment.from_table(_placed(written, str(reward_model_of(folder))), where)
        return GridCell(self.name, task, agent, seed, replace(made, folder=None), self.optima.get(task))

    @property
    def too_few_seeds(self) -> str:
        """A sentence where no result of this grid could say which agent is better, with the seeds that could; or ""."""
        agents = max(
            (len(changes.get("rows", self.agents)) for changes in self.tasks.values()), default=len(self.agents)
        )
        needed = seeds_for_a_verdict(agents - 1)
        if agents < 2 or self.seeds >= needed:
            return ""
        each = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        others = "1 comparison" if agents == 2 else f"{agents - 1} comparisons"
        return (
            f"{each} can give no verdict on {agents} agents, however large the difference: with {others} the least p "
            f"after Holm's correction is {least_p(self.seeds, agents - 1):.2g}. It takes seeds = {needed}; fewer give "
            "numbers"
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
                tables = {
                    ("experiment",): self.experiment,
                    ("tasks", task): changes,
                    ("rows", agent): self.rows.get(agent, {}),
                }
            found = {path: narrowed(rest, table) for path, table in tables.items()}
            path = next(iter(tables))
            for special in found:  # the last that has as much of the setting's place is the one that was read
                if found[special] and len(found[special]) >= len(found[path]):
                    path = special
            return Problem(problem, (*path, *found[path]))

        try:
            yield
        except ConfigError as error:
            error.change(placed)
            raise

    def require_plugins(self, cells: Sequence[GridCell]) -> None:
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

    def trials(self, cells: Sequence[GridCell]) -> list[GridCell]:
        """What is tried before `cells` can run with the best settings; none for an agent without a choice."""
        found = []
        for cell in {(cell.task, cell.agent): cell for cell in cells}.values():
            with self.blamed(cell.task, cell.agent), under("agent"):
                drawn = self.tuning.configurations_of(cell.experiment.agent)
            for configuration, tried in enumerate(drawn if len(drawn) > 1 else ()):
                for number in range(self.tuning.seeds):
                    experiment = self.tuning.trial(cell.experiment, tried, number)
                    found.append(
                        replace(
                            cell, seed=experiment.seed, experiment=experiment, configuration=configuration, trial=True
                        )
                    )
        return found


def reward_model_of(folder: Path) -> Path:
    """Where the model of a grid's [reward_model] is."""
    return folder.resolve() / "reward_model"


def _placed(value: object, model: str) -> Any:
    """`value` with the path of the reward model where its placeholder stands."""
    if isinstance(value, Mapping):
        return {key: _placed(item, model) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_placed(item, model) for item in value]
    return model if value == REWARD_MODEL else value


def _task_name(experiment: Mapping[str, object]) -> str:
    task = experiment.get("task", {})
    return label_of(task, "task") if isinstance(task, Mapping) else "task"


def _merged(base: JsonView, changes: JsonView) -> JsonObject:
    """`base` with `changes`, tables merged key by key (a changed task or reward table replaces the old one whole)."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if both and key not in ("task", "rewards") else value
    return merged
