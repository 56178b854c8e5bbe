"""The report of a benchmark: one HTML page that needs nothing else, its tables as Markdown and LaTeX, figures as files.

A table is made once, as a `Sheet`, for the page, Markdown, LaTeX and the terminal: the same formatted numbers in all.
The page has no script and loads nothing. What models wrote enters it through the template, which escapes every value;
a policy in its head forbids whatever would get past that.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf_env.lab import figures, page
from rlhf_env.lab.comparison import Across, Conclusions, Overview, Ranking, Standing, conclude
from rlhf_env.lab.figures import short_count, typeset
from rlhf_env.lab.results import (
    CONTROLS,
    REFERENCE,
    Cell,
    Results,
    Sample,
    Spread,
    SummaryRow,
    claim,
    read_results,
    summary_rows,
)
from rlhf_env.lab.scorecard_page import section_of
from rlhf_env.lab.statistics import Comparison, Estimate
from rlhf_env.lab.tuning import what_was_tried
from rlhf_env.shown_text import for_terminal
from rlhf_env.whole_files import write_whole

__all__ = [
    "latex_table",
    "markdown_table",
    "read_results",
    "rich_samples",
    "rich_table",
    "summary_rows",
    "write_report",
]

# Prompts shown at once on the page; the rest unfolds.
_OPEN_PROMPTS = 6


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
class Line:
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
    lines: tuple[Line, ...]
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
        found.append(Line(one.task, one.agent, False, "", shown))
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


def _leaderboard(rankings: Sequence[Ranking]) -> Sheet:
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


def _standing(ranking: Ranking, standing: Standing) -> Line:
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
    return Line(ranking.task, standing.agent, standing.agent in CONTROLS, note, values)


def _compared(comparison: Comparison | None) -> tuple[Value, Value]:
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


def _how_compared(rankings: Sequence[Ranking]) -> Iterator[str]:
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


def _across(row: Across) -> Line:
    values = (
        _estimated(row.average),
        _estimated(row.gap),
        _estimated(row.improvement),
        *_compared(row.against_reference),
    )
    return Line("", row.agent, row.agent in CONTROLS, "", values)


def lines(results: Results, columns: Sequence[Column] = COLUMNS) -> list[Line]:
    """The measures of `columns`, a line per task and agent."""
    return [
        Line(row.task, row.agent, row.control, _note(row), tuple(_value(column, row) for column in columns))
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


def markdown_table(results: Results) -> str:
    """The tables for a README or an issue, with their captions."""
    return _markdown_tables(sheets(results, conclude(results)), len(results.tasks) > 1)


def _markdown_tables(tables: Sequence[Sheet], tasks: bool) -> str:
    titles = [f"**{sheet.title}**\n\n" if len(tables) > 1 else "" for sheet in tables]
    return "\n".join(title + _markdown_sheet(sheet, tasks) for title, sheet in zip(titles, tables, strict=True))


def _markdown_sheet(sheet: Sheet, tasks: bool) -> str:
    table = _plain(sheet, tasks, _markdown, "{} ({})".format)
    names = len(table[0]) - len(sheet.headings)
    table.insert(1, ["---"] * names + ["---:"] * len(sheet.headings))
    rows = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join(rows) + "\n\n" + _markdown(" ".join(sheet.notes)) + "\n"


def latex_table(results: Results) -> str:
    """The tables for a paper: `tabular` environments with the rules of the booktabs package."""
    return _latex_tables(sheets(results, conclude(results)), len(results.tasks) > 1)


def _latex_tables(tables: Sequence[Sheet], tasks: bool) -> str:
    return "% \\usepackage{booktabs}\n" + "\n".join(_latex_sheet(sheet, tasks) for sheet in tables)


def _latex_sheet(sheet: Sheet, tasks: bool) -> str:
    table = _plain(sheet, tasks, _latex, r"{} {{\footnotesize ({})}}".format)
    names = len(table[0]) - len(sheet.headings)
    head, *body = (" & ".join(cells) + r" \\" for cells in table)
    return "\n".join(
        [
            f"% {sheet.title}",
            rf"\begin{{tabular}}{{{'l' * names}{'r' * len(sheet.headings)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(f"% {_latex(note)}" for note in sheet.notes),
            "",
        ]
    )


def _plain(
    sheet: Sheet, tasks: bool, escape: Callable[[str], str], with_range: Callable[[str, str], str]
) -> list[list[str]]:
    """The headings and the rows of a sheet as escaped texts, the range beside its number."""
    by_task = tasks and any(line.task for line in sheet.lines)
    table = [(["Task"] if by_task else []) + ["Agent", *(escape(heading) for heading, _ in sheet.headings)]]
    for line in sheet.lines:
        agent = escape(line.agent) + (f" ({line.note})" if line.note else "")
        values = [with_range(escape(v.mean), escape(v.range)) if v.range else escape(v.mean) for v in line.values]
        table.append(([escape(line.task)] if by_task else []) + [agent, *values])
    return table


def rich_table(results: Results) -> Table:
    """All measures for a terminal of 110 columns; the range stands below the mean, the verdict below the agent."""
    said, verdicts = caption(results), _verdicts(conclude(results))
    if verdicts:
        said.append("Better, worse, inconclusive: against the reference.")
    table = Table(caption=" ".join(said), caption_justify="left", pad_edge=False, box=None, padding=(0, 1))
    tasks = len(results.tasks) > 1
    if tasks:
        table.add_column("Task", overflow="fold", max_width=12)
    table.add_column("Agent", overflow="fold", min_width=9, max_width=16 if not tasks else 12)
    for column in COLUMNS:
        table.add_column(column.heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for line in lines(results):
        agent = Text(for_terminal(line.agent), style="dim" if line.control else "bold")
        if (line.task, line.agent) in verdicts:
            agent.append(f"\n{verdicts[line.task, line.agent]}", style="not bold dim")
        if line.note:
            agent.append(f"\n{line.note}", style="red")
        cells = [Text(v.mean).append(f"\n{_tight(v.range)}", style="dim") for v in line.values]
        table.add_row(*([Text(for_terminal(line.task))] if tasks else []), agent, *cells)
    return table


def _verdicts(conclusions: Conclusions) -> dict[tuple[str, str], str]:
    """By task and agent, the verdict against the reference."""
    return {
        (ranking.task, standing.agent): standing.against[REFERENCE].verdict
        for ranking in conclusions.rankings
        for standing in ranking.standings
        if REFERENCE in standing.against
    }


def _tight(range_: str) -> str:
    return range_.replace(" to ", "…")


def rich_samples(results: Results, count: int = 3) -> RenderableType:
    """Replies to the first `count` held-out prompts of each task, one block per prompt, for a terminal.

    Nothing that a model wrote reaches the terminal as a control: see `for_terminal`.
    """
    blocks: list[RenderableType] = []
    for task in results.tasks:
        for prompt, replies in samples_side_by_side(results, task)[:count]:
            table = Table(box=None, pad_edge=False, padding=(0, 1), title_justify="left", show_header=False)
            table.title = Text.assemble(("» ", "dim"), (for_terminal(prompt) or "(empty prompt)", "bold"))
            table.add_column(overflow="fold", max_width=16)
            table.add_column(overflow="fold", ratio=1)
            table.add_column(justify="right", no_wrap=True)
            for reply in replies:
                text = for_terminal(reply.sample.response) if reply.sample else "(no reply)"
                shown = Text(text) if text else Text("(empty reply)", style="dim italic")
                table.add_row(Text(for_terminal(reply.agent), style="cyan"), shown, Text(reply.scores, style="dim"))
            blocks += [table, Text("")]
    return Group(*blocks)


@dataclass(frozen=True)
class Reply:
    """What one agent answered to a prompt, or None if its runs have no sample for it."""

    agent: str
    seed: int | None
    sample: Sample | None

    @property
    def scores(self) -> str:
        if self.sample is None:
            return ""
        measured = (("gold", self.sample.gold), ("proxy", self.sample.proxy))
        return " · ".join(f"{name} {typeset(f'{value:.2f}')}" for name, value in measured if value is not None)


def samples_side_by_side(results: Results, task: str) -> list[tuple[str, list[Reply]]]:
    """Each held-out prompt with every agent's reply, the reference first; from its first seed that has samples."""
    agents = sorted(results.agents_on(task), key=lambda agent: agent != "reference")
    cells = {agent: next((cell for cell in results.of(task, agent) if cell.samples), None) for agent in agents}
    longest = max((cell.samples for cell in cells.values() if cell), key=len, default=())
    return [
        (prompt.prompt, [_reply(agent, cells[agent], i, prompt.prompt) for agent in agents])
        for i, prompt in enumerate(longest)
    ]


@dataclass(frozen=True)
class Change:
    """A held-out prompt answered by the reference, as the policy was before training, and after it; `why` this one."""

    why: str
    prompt: str
    before: Reply
    after: Reply


def before_and_after(results: Results, task: str) -> dict[str, list[Change]]:
    """By agent: its best, median and worst reply, and the two that changed most, in reward and in words.

    Of the first seed with samples, by gold reward (without one, proxy). Words: 1 - `difflib`'s ratio of common ones.
    """
    found: dict[str, list[Change]] = {}
    for agent in [agent for agent in results.agents_on(task) if agent not in CONTROLS]:
        cell = next((cell for cell in results.of(task, agent) if cell.samples), None)
        if cell is None:
            continue
        started = next((it for it in results.of(task, REFERENCE) if it.seed == cell.seed and it.samples), None)
        pairs = [
            (_reply(REFERENCE, started, i, said.prompt), Reply(agent, cell.seed, said))
            for i, said in enumerate(cell.samples)
        ]
        picked: dict[int, list[str]] = {}
        for why, place in _worth_showing(
            [(before.sample, said) for (before, _), said in zip(pairs, cell.samples, strict=True)]
        ):
            picked.setdefault(place, []).append(why)
        found[agent] = [
            Change(", ".join(whys), cell.samples[place].prompt, *pairs[place]) for place, whys in picked.items()
        ]
    return found


def _worth_showing(pairs: Sequence[tuple[Sample | None, Sample]]) -> Iterator[tuple[str, int]]:
    """Which of (before, after) to show, and why. Of equals the first."""
    measure = next((name for name in ("gold", "proxy") if all(getattr(s, name) is not None for _, s in pairs)), None)
    if measure is not None:
        scores = [float(getattr(after, measure)) for _, after in pairs]
        ranked = sorted(range(len(pairs)), key=lambda i: -scores[i])
        yield from (("best", ranked[0]), ("median", ranked[len(ranked) // 2]), ("worst", ranked[-1]))
        moved = {
            i: abs(scores[i] - float(getattr(before, measure)))
            for i, (before, _) in enumerate(pairs)
            if before is not None and getattr(before, measure) is not None
        }
        if moved:
            yield f"most changed in {measure}", max(moved, key=lambda i: moved[i])
    rewritten = {i: _distance(before.response, after.response) for i, (before, after) in enumerate(pairs) if before}
    if rewritten:
        yield "most changed in words", max(rewritten, key=lambda i: rewritten[i])


def _distance(text: str, other: str) -> float:
    return 1.0 - SequenceMatcher(None, text.split(), other.split(), autojunk=False).ratio()


def _reply(agent: str, cell: Cell | None, index: int, prompt: str) -> Reply:
    """Same place and same prompt: a run that was asked something else has no reply here."""
    if cell is None or index >= len(cell.samples) or cell.samples[index].prompt != prompt:
        return Reply(agent, None, None)
    return Reply(agent, cell.seed, cell.samples[index])


def write_report(folder: str | Path) -> Path:
    """Make `report.html`, `table.md`, `table.tex` and `figures/` of the benchmark in `folder`; the page's path.

    The same results give the same bytes: the seed of all resampling is kept in `statistics.json`. Raises DataError
    naming a file that cannot be read, MissingExtra without matplotlib.
    """
    results = read_results(folder)
    conclusions = conclude(results)
    tables, tasks = sheets(results, conclusions), len(results.tasks) > 1
    pictures = figures.pictures(results, conclusions)
    html = _page(results, conclusions, tables, pictures)
    drawn = results.folder / "figures"
    drawn.mkdir(exist_ok=True)
    for picture in pictures:
        write_whole(drawn / f"{picture.name}.svg", figures.as_svg(picture))
        write_whole(drawn / f"{picture.name}.png", figures.as_png(picture))
    write_whole(results.folder / "statistics.json", json.dumps(asdict(results.comparing), indent=1) + "\n")
    write_whole(results.folder / "table.md", _markdown_tables(tables, tasks))
    write_whole(results.folder / "table.tex", _latex_tables(tables, tasks))
    write_whole(results.folder / "report.html", html)
    return results.folder / "report.html"


def _page(
    results: Results, conclusions: Conclusions, tables: Sequence[Sheet], pictures: Sequence[figures.Picture]
) -> str:
    template = page.environment().get_template("report.html.jinja")
    return template.render(
        results=results,
        title=results.about.title or results.benchmark,
        sheets={"overview": None, "leaderboard": None, "replies": None, "spending": None, "tuning": None}
        | {sheet.name: sheet for sheet in tables},
        checks=conclusions.checks,
        claim=claim(results),
        styles=figures.agent_styles(results.agents),
        sections=_figures_by_section(results, pictures),
        changes={task: before_and_after(results, task) for task in results.tasks},
        samples={task: samples_side_by_side(results, task) for task in results.tasks},
        open_prompts=_OPEN_PROMPTS,
        scorecard=section_of(results.folder),
        runs=list(_runs(results)),
    )


def _figures_by_section(
    results: Results, pictures: Sequence[figures.Picture]
) -> Mapping[str, list[tuple[str, list[str]]]]:
    """By section, each task with its figures as SVG, which enters the page as it is: matplotlib escapes names."""
    by_place: dict[tuple[str, str], list[str]] = {}
    for picture in pictures:
        by_place.setdefault((picture.section, picture.task), []).append(figures.as_inline_svg(picture))
    return {
        section: [(task, by_place[section, task]) for task in ("", *results.tasks) if (section, task) in by_place]
        for section in ("overview", "leaderboard", "curves", "trade", "frontier", "kl", "drift", "parts")
    }


@dataclass(frozen=True)
class Run:
    """One cell as listed under "how to reproduce"."""

    cell: Cell
    settings: str
    command: str


def _runs(results: Results) -> Iterator[Run]:
    for cell in results.cells:
        settings = json.dumps(cell.agent_settings, sort_keys=True, ensure_ascii=False) if cell.agent_settings else ""
        folder = results.run_folder(cell)
        has_file = folder is not None and (folder / "experiment.toml").is_file()
        command = f"rlhf-env train {shlex.quote(f'{cell.run}/experiment.toml')}" if has_file else results.about.command
        if (results.folder / "benchmark.toml").is_file():
            command = f"rlhf-env bench benchmark.toml --only {cell.task}/{cell.agent}/{cell.seed} --out again"
        yield Run(cell, settings, command)


def _markdown(text: str) -> str:
    """`text` in a Markdown cell, as text."""
    return re.sub(r"([\\`*\[\]|~#])", r"\\\1", for_terminal(text)).replace("&", "&amp;").replace("<", "&lt;")


def _latex(text: str) -> str:
    """`text` as text of LaTeX; signs that its classic engines do not know as the commands for them."""
    return "".join(_LATEX.get(character, character) for character in for_terminal(text))


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "≤": r"$\le$",
    "–": "--",
}
