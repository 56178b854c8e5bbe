"""Result files read back and checked field by field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from rlhf_env.errors import DataError, PluginError
from rlhf_env.lab.benchmark.results import (
    FORMAT,
    About,
    Cell,
    Comparing,
    CurvePoint,
    Results,
    RewardModelCard,
    Sample,
    Trial,
    agent_order,
    label_in,
)
from rlhf_env.lab.evaluation.metric import Metric
from rlhf_env.lab.evaluation.metrics import METRICS
from rlhf_env.settings import fits
from rlhf_env.types import JsonObject, JsonView


def read_results(folder: str | Path) -> Results:
    """The benchmark in `folder`. Raises DataError naming the file that is missing, broken or contradicts another."""
    folder = Path(folder)
    files = sorted((folder / "results").glob("*.json"))
    if not files:
        raise DataError(f"{folder}: no results/*.json in it; is this the folder of a benchmark?")
    records = [_Record(file, _read_object(file)) for file in files]
    metrics = _metrics(records)
    names: set[str] = set()
    cells: dict[tuple[str, str, int], Cell] = {}
    for record in records:
        cell = _cell(record, folder, metrics)
        key = (cell.task, cell.agent, cell.seed)
        if key in cells:
            raise DataError(
                f"{record.file}: a second result for task {cell.task!r}, agent {cell.agent!r}, seed {cell.seed}"
            )
        cells[key] = cell
        names.add(record.text("benchmark"))
    if len(names) > 1:
        raise DataError(f"{folder / 'results'}: results of several benchmarks: {', '.join(sorted(names))}")
    return Results(
        folder=folder,
        benchmark=names.pop(),
        cells=tuple(sorted(cells.values(), key=lambda cell: (cell.task, agent_order(cell.agent), cell.seed))),
        metrics=metrics,
        about=_about(folder / "about.json"),
        reward_model=_reward_model(folder / "reward_model.json"),
        comparing=_comparing(folder / "statistics.json", {agent for _, agent, _ in cells}),
        trials=read_trials(folder),
    )


def read_trials(folder: Path) -> tuple[Trial, ...]:
    """The trials that a benchmark's tuning has made so far, by task, agent, configuration and seed."""
    trials = []
    for file in (folder / "tuning").glob("*.json"):
        record = _Record(file, _read_object(file))
        run = _cell(record, folder, METRICS)
        trials.append(
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
    return tuple(sorted(trials, key=lambda trial: (trial.task, trial.agent, trial.configuration, trial.seed)))


def _metrics(records: Sequence[_Record]) -> tuple[Metric, ...]:
    """The table, and below it what the files say of metrics that plugins measured; the first file's words count."""
    metrics = {metric.name: metric for metric in METRICS}
    for record in records:
        described = record.table("metrics")
        for name in described.data:
            if name not in metrics:
                metrics[name] = _metric(name, described.table(name))
    return tuple(metrics.values())


def _metric(name: str, words: _Record) -> Metric:
    """As `Metric.words` wrote it."""
    fields = get_type_hints(Metric)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in words.data.items()}
    for key, value in given.items():
        if key not in fields or key == "measure" or not fits(value, fields[key]):
            raise DataError(f"{words.file}: {words.at}{key} is no word about a metric: {str(value)[:80]!r}")
    if given.get("name") != name or "title" not in given:
        raise DataError(f"{words.file}: {words.at.removesuffix('.')} must have a title, and {name!r} as its name")
    make: Callable[..., Metric] = Metric
    try:
        return make(**given)
    except PluginError as error:
        raise DataError(f"{words.file}: {error}") from error


def _cell(record: _Record, folder: Path, metrics: Sequence[Metric]) -> Cell:
    if record.data.get("format") != FORMAT:
        raise DataError(f"{record.file}: format {record.data.get('format')!r}; this version reads format {FORMAT}")
    status = record.text("status")
    if status not in ("finished", "failed"):
        raise DataError(f"{record.file}: status must be 'finished' or 'failed', got {status!r}")
    run = record.text("run", "")
    if not (folder / run).resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{record.file}: run {run!r} lies outside of the benchmark's folder")
    flags = {metric.bound for metric in metrics if metric.bound}
    measured, spending = record.table("evaluation").numbers(flags), record.table("spending").numbers()
    curve = [_curve_point(point, metrics) for point in record.tables("curve")]
    trained = spending.get("generated_tokens", 0.0)
    if status == "finished" and curve and trained > curve[-1].generated_tokens:
        # Between the last checkpoint and the end there may be training: the curve ends where the table's numbers are.
        curve.append(CurvePoint(int(spending.get("updates", 0)), trained, measured))
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
        curve=tuple(curve),
        samples=tuple(_sample(sample) for sample in record.tables("samples")),
    )


def _curve_point(record: _Record, metrics: Sequence[Metric]) -> CurvePoint:
    measured = [metric for metric in metrics if not metric.spent]
    flags = {metric.bound for metric in metrics if metric.bound}
    return CurvePoint(
        update=record.integer("update"),
        generated_tokens=record.number("generated_tokens") or 0.0,
        values=record.numbers(
            flags, only=[*(metric.name for metric in measured), *(name for name in record.data if label_in(name))]
        ),
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


_T = TypeVar("_T")
_REQUIRED: Any = object()


@dataclass(frozen=True)
class _Record:
    """A JSON object, and the file and place it came from: what is wrong in it can be named."""

    file: Path
    data: JsonView
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

    def numbers(self, flags: Set[str] = frozenset(), only: Sequence[str] | None = None) -> dict[str, float]:
        """All of this object's numbers, without those that are null; `flags` may also be true or false."""
        keys = self.data if only is None else [key for key in only if key in self.data]
        numbers = {key: self._flag(key) if key in flags else self.number(key) for key in keys}
        return {key: value for key, value in numbers.items() if value is not None}

    def _flag(self, key: str) -> float | None:
        value = self.data.get(key)
        return float(value) if isinstance(value, bool) else self.number(key)

    def table(self, key: str) -> _Record:
        value = self._get(key, {}, "an object", lambda value: isinstance(value, dict))
        return _Record(self.file, value, f"{self.at}{key}.")

    def tables(self, key: str) -> list[_Record]:
        value = self._get(
            key,
            [],
            "a list of objects",
            lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value),
        )
        return [_Record(self.file, item, f"{self.at}{key}[{i}].") for i, item in enumerate(value)]

    def _get(self, key: str, default: object, expected: str, fits: Callable[[object], bool]) -> Any:
        value = self.data.get(key)
        if value is None and default is not _REQUIRED:
            return default
        if not fits(value):
            got = "it is missing" if key not in self.data else f"got {str(value)[:80]!r}"
            raise DataError(f"{self.file}: {self.at}{key} must be {expected}; {got}")
        return value


def _read_object(file: Path) -> JsonObject:
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
