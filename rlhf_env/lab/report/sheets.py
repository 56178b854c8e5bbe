"""The tables of a report as data: columns, lines and notes, whatever they are printed as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rlhf_env.lab.benchmark.comparison import Across, AgentRanking, Conclusions, Overview, Standing
from rlhf_env.lab.benchmark.results import CONTROLS, REFERENCE, Results
from rlhf_env.lab.benchmark.summary import Spread, SummaryRow, claim, summary_rows
from rlhf_env.lab.benchmark.tuning import what_was_tried
from rlhf_env.lab.drawing import short_count, typeset
from rlhf_env.lab.statistics import Estimate, PairedComparison


@dataclass(frozen=True)
class Column:
    """A measure in the table: its heading, what it means, where it stands in a row, how its numbers are written."""

    heading: str
    meaning: str
    measure: Callable[[SummaryRow], Spread | None]
    write: Callable[[float], str]
    is_bound: Callable[[SummaryRow], bool] = lambda row: False
    with_range: bool = True  # what was spent is equal by design: a range of it would only be noise


COLUMNS = (
    Column("Gold", "reward that no agent was trained on", lambda row: row.gold, "{:.2f}".format),
    Column("Proxy", "reward that the agents were trained on", lambda row: row.proxy, "{:.2f}".format),
    Column(
        "KL",
        "distance to the reference, nats per reply",
        lambda row: row.kl,
        "{:.2f}".format,
        lambda row: row.kl_is_bound,
    ),
    Column("Length", "tokens per reply", lambda row: row.length, "{:.1f}".format),
    Column("Distinct-2", "different word pairs over all word pairs", lambda row: row.distinct_2, "{:.2f}".format),
    Column("Train tokens", "generated in training", lambda row: row.generated_tokens, short_count, with_range=False),
    Column(
        "Reply tokens",
        "generated for each reply shown",
        lambda row: row.inference_tokens,
        short_count,
        with_range=False,
    ),
    Column("Seconds", "of training", lambda row: row.seconds, "{:.0f}".format, with_range=False),
)

REPLY_COLUMNS = (
    Column("Entropy", "of the policy, nats per token", lambda row: row.entropy, "{:.2f}".format),
    Column("Different", "share of different replies", lambda row: row.distinct_replies, "{:.1%}".format),
    Column("Cut", "share of replies cut off at the limit", lambda row: row.cut_at_limit, "{:.1%}".format),
    Column(
        "Off form",
        "share of replies without the form that the task asks for, or without an end",
        lambda row: row.format_failures,
        "{:.1%}".format,
    ),
)

SPENDING_COLUMNS = (
    Column("Tokens", "generated in training", lambda row: row.generated_tokens, short_count, with_range=False),
    Column("Reward calls", "responses scored in training", lambda row: row.reward_calls, short_count, with_range=False),
    Column(
        "Labels", "preferences between two responses", lambda row: row.preference_labels, short_count, with_range=False
    ),
    Column("Gradient steps", "of the optimizer", lambda row: row.gradient_steps, short_count, with_range=False),
    Column("Seconds", "of training", lambda row: row.seconds, "{:.0f}".format),
    Column("Reply tokens", "generated for each reply that is shown", lambda row: row.inference_tokens, short_count),
)


@dataclass(frozen=True)
class Value:
    """A place in a table: a number or word and, in small, its range. Empty: nothing was measured."""

    mean: str = "–"
    range: str = ""
    verdict: str = ""  # "better", "worse" or "inconclusive" where the place says one


@dataclass(frozen=True)
class SheetLine:
    """A row of a table as it is written everywhere. `task`: empty in a table over all of them."""

    task: str
    agent: str
    control: bool
    note: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Sheet:
    """A table in words and numbers. `headings`: each column's name and meaning; `notes`: what must stand beside it."""

    name: str
    title: str
    headings: tuple[tuple[str, str], ...]
    lines: tuple[SheetLine, ...]
    notes: tuple[str, ...]


def sheets(results: Results, conclusions: Conclusions) -> list[Sheet]:
    """The tables of a benchmark: who is better, over all tasks and by task, where seeds allow it; then all measures."""
    found = [_leaderboard(conclusions.rankings)] if conclusions.rankings else []
    if conclusions.overview is not None:
        found.insert(0, _overview(conclusions.overview))
    found.append(_measures("table", "All measures", COLUMNS, results, caption(results)))
    replies = _measures("replies", "The replies", REPLY_COLUMNS, results, [])
    if any(value != Value() for line in replies.lines for value in line.values):
        found.append(replies)
    spending = _measures("spending", "What was spent", SPENDING_COLUMNS, results, [])
    if any(value != Value() for line in spending.lines for value in line.values[1:4]):  # more than the table above has
        found.append(spending)
    return [*found, _tuning(results)] if results.trials else found


def _tuning(results: Results) -> Sheet:
    """Every configuration that was tried, in which settings it differs from the file's own, and the one taken."""
    tried = what_was_tried(results.trials)
    own = {(one.task, one.agent): one.settings for one in tried if one.configuration == 0}
    found = []
    for one in tried:
        before = own.get((one.task, one.agent), {})
        changed = [f"{name} {value}" for name, value in one.settings.items() if before.get(name) != value]
        score = Value("failed") if one.score is None else Value(typeset(f"{one.score:.3f}"))
        shown = (
            Value(", ".join(changed) if one.configuration else "as in the file"),
            score,
            Value("yes" if one.chosen else ""),
        )
        found.append(SheetLine(one.task, one.agent, False, "", shown))
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
    return Sheet("tuning", "What was tried", headings, tuple(found), (note,))


def _measures(name: str, title: str, columns: Sequence[Column], results: Results, notes: Sequence[str]) -> Sheet:
    headings = tuple((column.heading, column.meaning) for column in columns)
    return Sheet(name, title, headings, tuple(lines(results, columns)), tuple(notes))


def _leaderboard(rankings: Sequence[AgentRanking]) -> Sheet:
    measures = sorted({ranking.measure for ranking in rankings})
    named = {ranking.rival for ranking in rankings if ranking.rival != ranking.best}
    rival = named.pop() if len(named) == 1 else "best"
    headings = (
        ("/".join(measures).capitalize(), "mean over seeds and its 95 % interval"),
        ("To reference", "mean paired difference to the reference, seed by seed"),
        ("Verdict", "against the reference"),
        (f"To {rival}", "mean paired difference to the agent named best, or to the one chosen beforehand"),
        ("Verdict", "against that agent"),
    )
    found = [_standing(ranking, standing) for ranking in rankings for standing in ranking.standings]
    return Sheet("leaderboard", "Leaderboard", headings, tuple(found), tuple(_how_compared(rankings)))


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


def _estimated(found: Estimate | None, *, signed: bool = False) -> Value:
    if found is None:
        return Value()
    value, *ends = (
        typeset(f"{number:+.2f}" if signed else f"{number:.2f}")
        for number in (found.value, found.low, found.high)
        if number is not None
    )
    return Value(value, " to ".join(ends))


def _how_compared(rankings: Sequence[AgentRanking]) -> Iterator[str]:
    yield (
        "Differences are paired by seed. Small numbers are 95 % intervals (bootstrap over seeds) and p-values (sign "
        "flips), corrected by Holm for all comparisons with one agent on one task. Inconclusive is not equal."
    )
    powerless = [ranking for ranking in rankings if ranking.least_p >= 0.05]
    if powerless:
        where = ", ".join(
            f"{ranking.task}: {len(ranking.seeds)} seeds, p at least {_p(ranking.least_p)}" for ranking in powerless
        )
        yield f"So few seeds for so many comparisons cannot show a difference, however large ({where})."
    if any(ranking.rival == ranking.best for ranking in rankings):
        yield (
            "The best agent was picked on these same seeds, which flatters it: a claim against it is stronger with "
            "another's name in statistics.json, chosen beforehand."
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


def lines(results: Results, columns: Sequence[Column] = COLUMNS) -> list[SheetLine]:
    """The measures of `columns`, a line per task and agent."""
    return [
        SheetLine(row.task, row.agent, row.control, _note(row), tuple(_value(column, row) for column in columns))
        for row in summary_rows(results)
    ]


def _value(column: Column, row: SummaryRow) -> Value:
    spread = column.measure(row)
    if spread is None:
        return Value()
    bound = "≤ " if column.is_bound(row) else ""
    mean, low, high = (typeset(column.write(v)) for v in (spread.mean, spread.low, spread.high))
    return Value(bound + mean, f"{low} to {high}" if column.with_range and low != high else "")


def _note(row: SummaryRow) -> str:
    return f"{row.failed} of {row.seeds} failed" if row.failed else ""


def caption(results: Results) -> list[str]:
    """What has to be said beside the table, wherever it stands."""
    rows = summary_rows(results)
    said = [f"Mean over seeds, with the lowest and the highest seed. {claim(results)}."]
    if any(row.kl_is_bound for row in rows):
        said.append("KL with ≤ is the agent's analytic upper bound, not an estimate.")
    if results.failed:
        said.append(
            f"{results.failed} of {len(results.cells)} runs failed: in what agents are ranked by they count with the "
            "floor, the worst finished run of the task; the other columns are without them."
        )
    return said
