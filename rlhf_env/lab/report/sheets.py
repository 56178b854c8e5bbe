"""The tables of a report as data: columns, lines and notes, whatever they are printed as."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rlhf_env.lab.benchmark.comparison import Across, AgentRanking, Conclusions, Overview, Standing
from rlhf_env.lab.benchmark.results import CONTROLS, REFERENCE, Results
from rlhf_env.lab.benchmark.summary import SummaryRow, claim, summary_rows
from rlhf_env.lab.benchmark.tuning import what_was_tried
from rlhf_env.lab.drawing import short_count, typeset
from rlhf_env.lab.evaluation.metric import Metric
from rlhf_env.lab.evaluation.metrics import METRICS
from rlhf_env.lab.statistics import Estimate, PairedComparison


@dataclass(frozen=True)
class Value:
    """A place in a table. Empty: nothing was measured."""

    mean: str = "–"
    """A number or a word."""
    range: str = ""
    """Beside it in small."""
    verdict: str = ""
    """One of "better", "worse" or "inconclusive", where the place states one."""


@dataclass(frozen=True)
class SheetLine:
    """A row of a table as it is written everywhere."""

    task: str
    """Empty in a table over all tasks."""
    agent: str
    control: bool
    note: str
    """Beside the agent's name: how many of its runs failed."""
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Sheet:
    """A table in words and numbers."""

    name: str
    title: str
    headings: tuple[tuple[str, str], ...]
    """Each column's name and meaning."""
    lines: tuple[SheetLine, ...]
    notes: tuple[str, ...]
    """Sentences that must stand beside the table."""
    by_task: bool = False
    """Whether its lines are of several tasks even where the benchmark has one: those within a mixture."""


def sheets(results: Results, conclusions: Conclusions) -> list[Sheet]:
    """The tables of a benchmark: who is better, over all tasks and by task, where seeds allow it; then all measures."""
    tables = [_leaderboard(conclusions.rankings)] if conclusions.rankings else []
    if conclusions.overview is not None:
        tables.insert(0, _overview(conclusions.overview))
    if conclusions.of_mixtures:
        within = _leaderboard(conclusions.of_mixtures)
        tables.append(replace(within, name="within", title="Tasks within a mixture", by_task=True))
    tables.append(_measures("table", "All measures", results, caption(results)))
    for name, title in (("replies", "The replies"), ("spending", "What was spent")):
        more = {metric.name for metric in columns(results, name) if "table" not in metric.tables}
        if any(more & row.spreads.keys() for row in summary_rows(results)):  # than the table above has
            tables.append(_measures(name, title, results, []))
    return [*tables, _tuning(results)] if results.trials else tables


def columns(results: Results, table: str) -> list[Metric]:
    """The metrics with a column in a table; those of plugins only where they were measured."""
    measured = {name for row in summary_rows(results) for name in row.spreads}
    return [
        metric
        for metric in results.metrics
        if table in metric.tables and (metric in METRICS or metric.name in measured)
    ]


def legend(results: Results) -> list[Metric]:
    """The metrics that the tables have a number of: what each means stands beside them."""
    measured = {name for row in summary_rows(results) for name in row.spreads}
    return [metric for metric in results.metrics if metric.tables and metric.name in measured]


def written_value(metric: Metric, value: float) -> str:
    """A value of the metric as it stands in every table and figure."""
    if metric.form == "count":
        return typeset(short_count(value))
    return typeset(f"{value:.{metric.digits}{'%' if metric.form == 'share' else 'f'}}")


def _tuning(results: Results) -> Sheet:
    """Every configuration that was tried, in which settings it differs from the file's own, and the one taken."""
    tried = what_was_tried(results.trials)
    own = {(one.task, one.agent): one.settings for one in tried if one.configuration == 0}
    rows = []
    for one in tried:
        before = own.get((one.task, one.agent), {})
        changed = [f"{name} {value}" for name, value in one.settings.items() if before.get(name) != value]
        score = Value("failed") if one.score is None else Value(typeset(f"{one.score:.3f}"))
        shown = (
            Value(", ".join(changed) if one.configuration else "as in the file"),
            score,
            Value("yes" if one.best else ""),
        )
        rows.append(SheetLine(one.task, one.agent, False, "", shown))
    tokens = sum(trial.spending.get("generated_tokens", 0.0) for trial in results.trials)
    seconds = sum(trial.spending.get("seconds", 0.0) for trial in results.trials)
    headings = (
        ("Settings", "the file's own, or what was drawn for it from the ranges that the agent declares"),
        ("Objective", "mean at the end of the trials, on training prompts held apart for them"),
        ("Taken", "the highest objective; a configuration with a failed trial is out"),
    )
    note = (
        f"{len(results.trials)} trials, with seeds and prompts that no number above is of: {short_count(tokens)} "
        f"tokens and {short_count(seconds)} seconds in all, beside the budgets."
    )
    return Sheet("tuning", "What was tried", headings, tuple(rows), (note,))


def _measures(name: str, title: str, results: Results, notes: Sequence[str]) -> Sheet:
    headings = tuple((metric.heading or metric.title, _meaning(metric)) for metric in columns(results, name))
    return Sheet(name, title, headings, tuple(lines(results, name)), tuple(notes))


def _meaning(metric: Metric) -> str:
    return f"{metric.meaning} ({metric.unit})" if metric.meaning and metric.unit else metric.meaning or metric.unit


def _leaderboard(rankings: Sequence[AgentRanking]) -> Sheet:
    measures = sorted({ranking.measure for ranking in rankings})
    named = {ranking.rival for ranking in rankings if ranking.rival != ranking.best}
    rival = named.pop() if len(named) == 1 else "best"
    headings = (
        ("/".join(measures).capitalize(), "mean over seeds and its 95 % interval"),
        ("To reference", "mean paired difference to the reference, seed by seed"),
        ("Verdict", "against the reference"),
        (f"To {rival}", "mean paired difference to the agent named best, or to the one named beforehand"),
        ("Verdict", "against that agent"),
    )
    rows = [_standing(ranking, standing) for ranking in rankings for standing in ranking.standings]
    return Sheet("leaderboard", "Leaderboard", headings, tuple(rows), tuple(_how_compared(rankings)))


def _standing(ranking: AgentRanking, standing: Standing) -> SheetLine:
    rival = ranking.rival or ""
    to_reference, to_rival = standing.against.get(REFERENCE), standing.against.get(rival)
    values = (
        _estimated(standing.score),
        *_compared(to_reference),
        *(
            (Value("best" if rival == ranking.best else "rival"), Value())
            if standing.agent == rival
            else _compared(to_rival)
        ),
    )
    note = f"{standing.floored} of {len(ranking.seeds)} at the floor" if standing.floored else ""
    return SheetLine(ranking.task, standing.agent, standing.agent in CONTROLS, note, values)


def _compared(comparison: PairedComparison | None) -> tuple[Value, Value]:
    if comparison is None:
        return Value(), Value()
    verdict = Value(comparison.verdict, f"p {_p(comparison.adjusted)}", comparison.verdict)
    return _estimated(comparison.difference, signed=True), verdict


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _estimated(estimate: Estimate | None, *, signed: bool = False) -> Value:
    if estimate is None:
        return Value()
    value, *ends = (
        typeset(f"{number:+.2f}" if signed else f"{number:.2f}")
        for number in (estimate.value, estimate.low, estimate.high)
        if number is not None
    )
    return Value(value, " to ".join(ends))


def _how_compared(rankings: Sequence[AgentRanking]) -> Iterator[str]:
    yield (
        "Differences are paired by seed. Small numbers are 95 % intervals over seeds (Student's and Hall's) and "
        "p-values (sign flips), corrected by Holm for all comparisons with one agent on one task. Inconclusive is not "
        "equal."
    )
    powerless = [ranking for ranking in rankings if ranking.least_p >= 0.05]
    if powerless:
        where = ", ".join(
            f"{ranking.task}: {len(ranking.seeds)} seeds, p at least {_p(ranking.least_p)}" for ranking in powerless
        )
        yield f"With so few seeds and so many comparisons no difference can be shown, however large ({where})."
    if any(ranking.rival == ranking.best for ranking in rankings):
        yield (
            "The best agent was picked on these same seeds, which flatters it: a claim against it is stronger with "
            "another agent's name in statistics.json, set beforehand."
        )
    if any(standing.floored for ranking in rankings for standing in ranking.standings):
        floors = ", ".join(f"{ranking.task} {typeset(f'{ranking.floor:.2f}')}" for ranking in rankings)
        yield f"A run without a score counts with the floor, the worst finished run of its task ({floors})."


def _overview(overview: Overview) -> Sheet:
    headings = (
        ("Interquartile mean", "mean of the middle half of all normalised scores"),
        ("Optimality gap", "how far below 1 the scores lie on average; lower is better"),
        ("P(improvement)", "how likely a run of the agent beats one of the reference"),
        ("To reference", "mean paired difference of normalised scores"),
        ("Verdict", "against the reference, over all tasks"),
    )
    tops = ", ".join(
        f"{task} {typeset(f'{top:.2f}')} ({f'mean of {agent}' if agent else 'known optimum'})"
        for task, (top, agent) in overview.tops.items()
    )
    notes = (
        f"Normalised by task: 0 is the mean of the reference, 1 the top: {tops}.",
        f"{len(overview.seeds)} seeds on {len(overview.tops)} tasks; 95 % intervals resample seeds within tasks.",
        *(f"Left out: {why}." for why in overview.left_out),
    )
    return Sheet("overview", "All tasks together", headings, tuple(map(_across, overview.agents)), notes)


def _across(row: Across) -> SheetLine:
    values = (
        _estimated(row.average),
        _estimated(row.gap),
        _estimated(row.improvement),
        *_compared(row.against_reference),
    )
    return SheetLine("", row.agent, row.agent in CONTROLS, "", values)


def lines(results: Results, table: str = "table") -> list[SheetLine]:
    """The metrics of a table, a line per task and agent."""
    shown = columns(results, table)
    return [
        SheetLine(row.task, row.agent, row.control, _note(row), tuple(_value(metric, row, table) for metric in shown))
        for row in summary_rows(results)
    ]


def _value(metric: Metric, row: SummaryRow, table: str) -> Value:
    spread = row.spreads.get(metric.name)
    if spread is None:
        return Value()
    bound = "≤ " if metric.name in row.bounds else ""
    mean, low, high = (written_value(metric, value) for value in (spread.mean, spread.low, spread.high))
    # The range of a cost stands in the table of costs alone, and of what is equal by design it would be only noise.
    ranged = metric.spread and (table == "spending" or "spending" not in metric.tables)
    return Value(bound + mean, f"{low} to {high}" if ranged and low != high else "")


def _note(row: SummaryRow) -> str:
    return f"{row.failed} of {row.seeds} failed" if row.failed else ""


def caption(results: Results) -> list[str]:
    """The notes that must stand beside the table wherever it is shown."""
    rows = summary_rows(results)
    notes = [f"Mean over seeds, with the lowest and the highest seed. {claim(results)}."]
    if any("kl" in row.bounds for row in rows):
        notes.append("KL with ≤ is the agent's analytic upper bound, not an estimate.")
    if results.failed:
        notes.append(
            f"{results.failed} of {len(results.cells)} runs failed: in what agents are ranked by they count with the "
            "floor, the worst finished run of the task; the other columns are without them."
        )
    return notes
