"""What a benchmark measured, read back from its folder, and the rows of its table.

    runs/demo/
      about.json           optional: title, what the gold reward is, the command, versions
      benchmark.toml       the grid
      statistics.json      optional: the seed of the intervals, and whom agents are compared with besides the reference
      results/*.json       one file per cell: a task, an agent and a seed
      cells/...            the run of each cell, with its metrics.jsonl
      tuning/*.json        optional: one file per trial, like a result
      reward_model.json    optional: how good the learned reward is on pairs it did not see

Every table and figure is made from `Results`, never from a run in memory: the report of an old folder is the report
it had on its first day. What is in those files is data, not trusted: each value is checked where it enters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlhf_env.errors import DataError
from rlhf_env.lab.statistics import SEEDS_FOR_A_CLAIM
from rlhf_env.learning.run_folder import read_metrics

FORMAT = 1

# Agents that learn nothing, and that an agent has to beat. They stand last, in this order.
REFERENCE, RANDOM = "reference", "random"
CONTROLS = (REFERENCE, RANDOM)

# What agents are ranked by on a task: the first of these that was measured there.
SCORES = ("gold", "proxy", "objective")

_T = TypeVar("_T")


@dataclass(frozen=True)
class CurvePoint:
    """A checkpoint as the evaluator saw it: means over the held-out prompts. A measure that was not taken is None."""

    update: int
    generated_tokens: float
    gold: float | None = None
    proxy: float | None = None
    kl: float | None = None
    length: float | None = None
    distinct_2: float | None = None


@dataclass(frozen=True)
class Sample:
    """One reply to a held-out prompt."""

    prompt: str
    response: str
    gold: float | None = None
    proxy: float | None = None
    kl: float | None = None
    finish_reason: str = ""


@dataclass(frozen=True)
class Cell:
    """One agent on one task with one seed. `evaluation` and `spending` hold numbers only; a missing one has no key.

    `weights`: of the reward's parts. `optimum`: the highest score there is on the task, where that is known.
    """

    task: str
    agent: str
    seed: int
    status: str
    reason: str = ""
    error: str | None = None
    run: str = ""
    config_hash: str = ""
    agent_settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    optimum: float | None = None
    spending: Mapping[str, float] = field(default_factory=dict)
    evaluation: Mapping[str, float] = field(default_factory=dict)
    kl_is_bound: bool = False
    curve: tuple[CurvePoint, ...] = ()
    samples: tuple[Sample, ...] = ()

    @property
    def finished(self) -> bool:
        return self.status == "finished"


@dataclass(frozen=True)
class Trial:
    """One seed of one configuration of an agent's settings, tried on a task before the reported runs.

    `objective`: what training maximises, on prompts held apart for it, at the end; None, and an `error`, if it failed.
    """

    task: str
    agent: str
    configuration: int
    seed: int
    settings: Mapping[str, Any]
    objective: float | None = None
    error: str = ""
    spending: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardModelCard:
    """Accuracy of the proxy on held-out pairs with its interval, beside the `ceiling` that the labels' noise sets."""

    accuracy: float
    low: float | None = None
    high: float | None = None
    pairs: int | None = None
    held_out_pairs: int | None = None
    ceiling: float | None = None
    annotator: str = ""


@dataclass(frozen=True)
class About:
    """The words around the numbers."""

    title: str = ""
    what_gold_is: str = ""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparing:
    """How a folder's runs are compared, so that its report comes out the same every time.

    `seed`: of all resampling. `rival`: the agent everyone is compared with besides the reference, on every task that
    it ran on; empty: the agent with the best mean on the task.
    """

    seed: int = 0
    rival: str = ""


@dataclass(frozen=True)
class Results:
    """A benchmark as measured: its cells by task, agent (controls last) and seed."""

    folder: Path
    benchmark: str
    cells: tuple[Cell, ...]
    about: About = field(default_factory=About)
    reward_model: RewardModelCard | None = None
    comparing: Comparing = field(default_factory=Comparing)
    trials: tuple[Trial, ...] = ()

    @property
    def tasks(self) -> list[str]:
        return _distinct(cell.task for cell in self.cells)

    @property
    def agents(self) -> list[str]:
        """Over all tasks, controls last: an agent's place decides its colour, so it has one colour everywhere."""
        return sorted({cell.agent for cell in self.cells}, key=_agent_order)

    @property
    def seeds(self) -> int:
        """The seeds behind every row: the smallest count of any agent on any task."""
        return min(len(self.of(task, agent)) for task in self.tasks for agent in self.agents_on(task))

    @property
    def failed(self) -> int:
        return sum(not cell.finished for cell in self.cells)

    @property
    def has_gold(self) -> bool:
        return any("gold" in cell.evaluation for cell in self.cells)

    def agents_on(self, task: str) -> list[str]:
        return _distinct(cell.agent for cell in self.cells if cell.task == task)

    def of(self, task: str, agent: str) -> list[Cell]:
        return [cell for cell in self.cells if (cell.task, cell.agent) == (task, agent)]

    def shared_seeds(self, task: str) -> list[int]:
        """The seeds that every agent on the task has run, whatever came of them."""
        seeds = [{cell.seed for cell in self.of(task, agent)} for agent in self.agents_on(task)]
        return sorted(set.intersection(*seeds))

    def measure(self, task: str) -> str | None:
        """What agents are ranked by on the task: gold, else proxy, else objective; None if no run has any of them."""
        ended = [cell.evaluation for cell in self.cells if cell.task == task and cell.finished]
        return next((name for name in SCORES if any(name in evaluation for evaluation in ended)), None)

    def floor(self, task: str) -> float | None:
        """The worst score of any finished run on the task: what a run without a score of its own is given."""
        return min(
            (s for cell in self.cells if cell.task == task and (s := self.own_score(cell)) is not None), default=None
        )

    def own_score(self, cell: Cell) -> float | None:
        """The cell's measure if it finished and has it. Failed and diverged runs have none."""
        measure = self.measure(cell.task)
        return cell.evaluation.get(measure) if cell.finished and measure else None

    def score(self, cell: Cell) -> float | None:
        """What the cell counts with: its own score or the floor; None where no run of the task finished."""
        own = self.own_score(cell)
        return self.floor(cell.task) if own is None else own

    def optimum(self, task: str) -> float | None:
        """The highest score there is on the task, if the benchmark knows it. Raises DataError where runs disagree."""
        known = {cell.optimum for cell in self.cells if cell.task == task and cell.optimum is not None}
        if len(known) > 1:
            raise DataError(f"{self.folder / 'results'}: several optima for task {task!r}: {sorted(known)}")
        return known.pop() if known else None

    def metrics(self, cell: Cell) -> list[dict[str, Any]]:
        """The rows of a cell's `metrics.jsonl`, empty without one. Raises DataError naming a file that is broken."""
        folder = self.run_folder(cell)
        if folder is None:
            return []
        try:
            rows = read_metrics(folder)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / 'metrics.jsonl'}: not a file of metrics: {error}") from error
        if not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{folder / 'metrics.jsonl'}: each line must be a JSON object")
        return rows

    def run_folder(self, cell: Cell) -> Path | None:
        """Where the cell ran, if that is still there."""
        folder = self.folder / cell.run
        return folder if cell.run and folder.is_dir() else None


@dataclass(frozen=True)
class Spread:
    """One measure over the seeds of an agent."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class SummaryRow:
    """An agent on a task: each measure over its finished seeds, None where nothing was measured.

    What agents are ranked by on the task is over all seeds, `floored` of them at the floor for want of a score.
    `kl_is_bound`: the KL is the analytic upper bound of the agent (best-of-n), not an estimate; where texts are so few
    that it is a sum over all of them, it is that. `generated_tokens` were spent in training; `inference_tokens` are
    spent for each reply that is shown. The other measures are those of `evaluation.Evaluator`.
    """

    task: str
    agent: str
    control: bool
    seeds: int
    failed: int
    floored: int
    kl_is_bound: bool
    gold: Spread | None
    proxy: Spread | None
    kl: Spread | None
    length: Spread | None
    distinct_2: Spread | None
    distinct_replies: Spread | None
    entropy: Spread | None
    cut_at_limit: Spread | None
    format_failures: Spread | None
    generated_tokens: Spread | None
    inference_tokens: Spread | None
    seconds: Spread | None
    reward_calls: Spread | None
    preference_labels: Spread | None
    gradient_steps: Spread | None


def summary_rows(results: Results) -> list[SummaryRow]:
    """The table: a row per task and agent, in the order of the results.

    Failed seeds count with the floor in what agents are ranked by; the other measures are without them.
    """
    return [_summary_row(results, task, agent) for task in results.tasks for agent in results.agents_on(task)]


def _summary_row(results: Results, task: str, agent: str) -> SummaryRow:
    cells, ranked_by = results.of(task, agent), results.measure(task)
    finished = [cell for cell in cells if cell.finished]

    def measured(name: str) -> Spread | None:
        if name == ranked_by:
            return _spread(results.score(cell) for cell in cells)
        return _spread(cell.evaluation.get(name) for cell in finished)

    def spent(name: str) -> Spread | None:
        return _spread(cell.spending.get(name) for cell in finished)

    return SummaryRow(
        task=task,
        agent=agent,
        control=agent in CONTROLS,
        seeds=len(cells),
        failed=len(cells) - len(finished),
        floored=sum(results.own_score(cell) is None for cell in cells) if ranked_by else 0,
        kl_is_bound=any(cell.kl_is_bound for cell in finished),
        gold=measured("gold"),
        proxy=measured("proxy"),
        kl=measured("kl_exact") or measured("kl"),
        length=measured("length"),
        distinct_2=measured("distinct_2"),
        distinct_replies=measured("distinct_replies"),
        entropy=measured("entropy"),
        cut_at_limit=measured("cut_at_limit"),
        format_failures=measured("format_failures"),
        generated_tokens=spent("generated_tokens"),
        inference_tokens=measured("inference_tokens"),
        seconds=spent("seconds"),
        reward_calls=spent("reward_calls"),
        preference_labels=spent("preference_labels"),
        gradient_steps=spent("gradient_steps"),
    )


def _spread(values: Iterable[float | None]) -> Spread | None:
    present = tuple(value for value in values if value is not None)
    return Spread(present) if present else None


def claim(results: Results) -> str:
    """What the number of seeds entitles a reader to conclude."""
    seeds, shared = results.seeds, min(len(results.shared_seeds(task)) for task in results.tasks)
    counted = f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"
    if shared < seeds:
        counted += f", {shared} of them shared by all agents"
    if shared < SEEDS_FOR_A_CLAIM:
        return f"{counted}: numbers, no claim"
    return f"{counted}: verdicts come from paired tests on the shared seeds"


def read_results(folder: str | Path) -> Results:
    """The benchmark in `folder`. Raises DataError naming the file that is missing, broken or contradicts another."""
    folder = Path(folder)
    files = sorted((folder / "results").glob("*.json"))
    if not files:
        raise DataError(f"{folder}: no results/*.json in it; is this the folder of a benchmark?")
    names: set[str] = set()
    cells: dict[tuple[str, str, int], Cell] = {}
    for file in files:
        record = _Record(file, _read_object(file))
        cell = _cell(record, folder)
        key = (cell.task, cell.agent, cell.seed)
        if key in cells:
            raise DataError(f"{file}: a second result for task {cell.task!r}, agent {cell.agent!r}, seed {cell.seed}")
        cells[key] = cell
        names.add(record.text("benchmark"))
    if len(names) > 1:
        raise DataError(f"{folder / 'results'}: results of several benchmarks: {', '.join(sorted(names))}")
    return Results(
        folder=folder,
        benchmark=names.pop(),
        cells=tuple(sorted(cells.values(), key=lambda cell: (cell.task, _agent_order(cell.agent), cell.seed))),
        about=_about(folder / "about.json"),
        reward_model=_reward_model(folder / "reward_model.json"),
        comparing=_comparing(folder / "statistics.json", {agent for _, agent, _ in cells}),
        trials=read_trials(folder),
    )


def read_trials(folder: Path) -> tuple[Trial, ...]:
    """The trials that a benchmark's tuning has made so far, by task, agent, configuration and seed."""
    found = []
    for file in (folder / "tuning").glob("*.json"):
        record = _Record(file, _read_object(file))
        run = _cell(record, folder)
        found.append(
            Trial(
                task=run.task,
                agent=run.agent,
                configuration=record.integer("configuration"),
                seed=run.seed,
                settings=run.agent_settings,
                objective=run.evaluation.get("objective") if run.finished else None,
                error=run.error or "",
                spending=run.spending,
            )
        )
    return tuple(sorted(found, key=lambda trial: (trial.task, trial.agent, trial.configuration, trial.seed)))


def _cell(record: _Record, folder: Path) -> Cell:
    if record.data.get("format") != FORMAT:
        raise DataError(f"{record.file}: format {record.data.get('format')!r}; this version reads format {FORMAT}")
    status = record.text("status")
    if status not in ("finished", "failed"):
        raise DataError(f"{record.file}: status must be 'finished' or 'failed', got {status!r}")
    run = record.text("run", "")
    if not (folder / run).resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{record.file}: run {run!r} lies outside of the benchmark's folder")
    evaluation = record.table("evaluation")
    measured, spending = evaluation.numbers(besides=("kl_is_bound",)), record.table("spending").numbers()
    curve = [_curve_point(point) for point in record.tables("curve")]
    trained = spending.get("generated_tokens", 0.0)
    if status == "finished" and curve and trained > curve[-1].generated_tokens:
        # Between the last checkpoint and the end there may be training: the curve ends where the table's numbers are.
        ends = {name: measured.get(name) for name in ("gold", "proxy", "kl", "length", "distinct_2")}
        curve.append(CurvePoint(int(spending.get("updates", 0)), trained, **ends))
    return Cell(
        task=record.text("task"),
        agent=record.text("agent"),
        seed=record.integer("seed"),
        status=status,
        reason=record.text("reason", ""),
        error=record.text("error", "") or None,
        run=run,
        config_hash=record.text("config_hash", ""),
        agent_settings=record.table("agent_settings").data,
        weights=record.table("weights").numbers(),
        optimum=record.number("optimum"),
        spending=spending,
        evaluation=measured,
        kl_is_bound=bool(evaluation.data.get("kl_is_bound")),
        curve=tuple(curve),
        samples=tuple(_sample(sample) for sample in record.tables("samples")),
    )


def _curve_point(record: _Record) -> CurvePoint:
    return CurvePoint(
        update=record.integer("update"),
        generated_tokens=record.number("generated_tokens") or 0.0,
        gold=record.number("gold"),
        proxy=record.number("proxy"),
        kl=record.number("kl"),
        length=record.number("length"),
        distinct_2=record.number("distinct_2"),
    )


def _sample(record: _Record) -> Sample:
    return Sample(
        prompt=record.text("prompt"),
        response=record.text("response"),
        gold=record.number("gold"),
        proxy=record.number("proxy"),
        kl=record.number("kl"),
        finish_reason=record.text("finish_reason", ""),
    )


def _about(file: Path) -> About:
    if not file.exists():
        return About()
    record = _Record(file, _read_object(file))
    versions = record.table("versions")
    return About(
        title=record.text("title", ""),
        what_gold_is=record.text("what_gold_is", ""),
        command=record.text("command", ""),
        versions={name: versions.text(name) for name in sorted(versions.data)},
    )


def _comparing(file: Path, agents: Set[str]) -> Comparing:
    if not file.exists():
        return Comparing()
    record = _Record(file, _read_object(file))
    seed, rival = record.integer("seed", 0), record.text("rival", "")
    if seed < 0:
        raise DataError(f"{file}: seed must not be negative, got {seed}")
    if rival and rival not in agents:
        raise DataError(f"{file}: rival {rival!r} is no agent of this benchmark: {', '.join(sorted(agents))}")
    return Comparing(seed, rival)


def _reward_model(file: Path) -> RewardModelCard | None:
    if not file.exists():
        return None
    record = _Record(file, _read_object(file))
    accuracy = record.number("accuracy")
    if accuracy is None:
        raise DataError(f"{file}: accuracy is missing")
    return RewardModelCard(
        accuracy=accuracy,
        low=record.number("low"),
        high=record.number("high"),
        pairs=record.integer("pairs", None),
        held_out_pairs=record.integer("held_out_pairs", None),
        ceiling=record.number("ceiling"),
        annotator=record.text("annotator", ""),
    )


_REQUIRED: Any = object()


@dataclass(frozen=True)
class _Record:
    """A JSON object, and the file and place it came from: what is wrong in it can be named."""

    file: Path
    data: Mapping[str, Any]
    at: str = ""

    def text(self, key: str, default: str = _REQUIRED) -> str:
        text: str = self._get(key, default, "a text", lambda value: isinstance(value, str))
        return text

    def integer(self, key: str, default: _T = _REQUIRED) -> int | _T:
        number: int | _T = self._get(key, default, "a whole number", lambda value: type(value) is int)
        return number

    def number(self, key: str) -> float | None:
        """Null and absent are both "not measured"."""
        value = self._get(key, None, "a number or null", _is_number)
        return None if value is None else float(value)

    def numbers(self, besides: Sequence[str] = ()) -> dict[str, float]:
        """All of this object's measures, without those that are null."""
        found = {key: self.number(key) for key in self.data if key not in besides}
        return {key: value for key, value in found.items() if value is not None}

    def table(self, key: str) -> _Record:
        value = self._get(key, {}, "an object", lambda value: isinstance(value, dict))
        return _Record(self.file, value, f"{self.at}{key}.")

    def tables(self, key: str) -> list[_Record]:
        value = self._get(
            key,
            [],
            "a list of objects",
            lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value),
        )
        return [_Record(self.file, item, f"{self.at}{key}[{i}].") for i, item in enumerate(value)]

    def _get(self, key: str, default: Any, expected: str, fits: Callable[[Any], bool]) -> Any:
        value = self.data.get(key)
        if value is None and default is not _REQUIRED:
            return default
        if not fits(value):
            found = "it is missing" if key not in self.data else f"got {str(value)[:80]!r}"
            raise DataError(f"{self.file}: {self.at}{key} must be {expected}; {found}")
        return value


def _read_object(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8", errors="surrogatepass")  # models write lone surrogates too
        data = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(data, dict):
        raise DataError(f"{file}: must hold a JSON object")
    return data


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON (write null for what was not measured)")


def _finite(literal: str) -> float:
    """1e999 is valid JSON and reads as infinity, which no axis can show."""
    value = float(literal)
    return value if math.isfinite(value) else _refuse_constant(literal)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300  # JSON has integers that no float can hold


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _agent_order(agent: str) -> tuple[int, str]:
    return (1 + CONTROLS.index(agent) if agent in CONTROLS else 0, agent)


def _distinct(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))
