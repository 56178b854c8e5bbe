"""The report of a benchmark: one HTML page that needs nothing else, the table as Markdown, the figures as files.

The table for the terminal, the page and the Markdown file is one table: the same columns, the same formatted numbers.
The page has no script and loads nothing. What models wrote enters it through the template, which escapes every value;
a policy in its head forbids whatever would get past that.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf_env.lab import figures
from rlhf_env.lab.figures import short_count
from rlhf_env.lab.results import Cell, Results, Sample, Spread, SummaryRow, claim, read_results, summary_rows
from rlhf_env.shown_text import for_page, for_terminal

__all__ = ["markdown_table", "read_results", "rich_samples", "rich_table", "summary_rows", "write_report"]

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


@dataclass(frozen=True)
class Value:
    """A place in the table: the mean over seeds and, where they differ, the range. Empty: nothing was measured."""

    mean: str = "–"
    range: str = ""


@dataclass(frozen=True)
class Line:
    """A row of the table as it is written everywhere."""

    task: str
    agent: str
    control: bool
    note: str
    values: tuple[Value, ...]


def lines(results: Results) -> list[Line]:
    """The table in words and numbers, a line per task and agent."""
    return [
        Line(row.task, row.agent, row.control, _note(row), tuple(_value(column, row) for column in COLUMNS))
        for row in summary_rows(results)
    ]


def _value(column: Column, row: SummaryRow) -> Value:
    spread = column.measure(row)
    if spread is None:
        return Value()
    bound = "≤ " if column.is_bound(row) else ""
    mean, low, high = (_typeset(column.write(v)) for v in (spread.mean, spread.low, spread.high))
    return Value(bound + mean, f"{low} to {high}" if column.with_range and low != high else "")


def _typeset(number: str) -> str:
    """With a true minus sign, and none before a number that rounds to zero."""
    return number.replace("-", "−" if any(digit in number for digit in "123456789") else "")


def _note(row: SummaryRow) -> str:
    return f"{row.failed} of {row.seeds} failed" if row.failed else ""


def caption(results: Results) -> list[str]:
    """What has to be said beside the table, wherever it stands."""
    rows = summary_rows(results)
    said = [f"Mean over seeds, with the lowest and the highest seed. {claim(results)}."]
    if any(row.kl_is_bound for row in rows):
        said.append("KL with ≤ is the agent's analytic upper bound, not an estimate.")
    if results.failed:
        said.append(f"{results.failed} of {len(results.cells)} runs failed; they are counted, not averaged in.")
    return said


def markdown_table(results: Results) -> str:
    """The table for a README or an issue, with its caption."""
    tasks = len(results.tasks) > 1
    headings = (["Task"] if tasks else []) + ["Agent", *(column.heading for column in COLUMNS)]
    ruler = ["---"] * (len(headings) - len(COLUMNS)) + ["---:"] * len(COLUMNS)
    table = [headings, ruler]
    for line in lines(results):
        names = ([_markdown(line.task)] if tasks else []) + [
            _markdown(line.agent) + (f" ({line.note})" if line.note else "")
        ]
        table.append(names + [f"{v.mean} ({v.range})" if v.range else v.mean for v in line.values])
    rows = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join(rows) + "\n\n" + " ".join(caption(results)) + "\n"


def rich_table(results: Results) -> Table:
    """The table for a terminal of 110 columns; the range stands below the mean."""
    table = Table(caption=" ".join(caption(results)), caption_justify="left", pad_edge=False, box=None, padding=(0, 1))
    tasks = len(results.tasks) > 1
    if tasks:
        table.add_column("Task", overflow="fold", max_width=12)
    table.add_column("Agent", overflow="fold", min_width=9, max_width=16 if not tasks else 12)
    for column in COLUMNS:
        table.add_column(column.heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for line in lines(results):
        agent = Text(for_terminal(line.agent), style="dim" if line.control else "bold")
        if line.note:
            agent.append(f"\n{line.note}", style="red")
        cells = [Text(v.mean).append(f"\n{_tight(v.range)}", style="dim") for v in line.values]
        table.add_row(*([Text(for_terminal(line.task))] if tasks else []), agent, *cells)
    return table


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
        return " · ".join(f"{name} {_typeset(f'{value:.2f}')}" for name, value in measured if value is not None)


def samples_side_by_side(results: Results, task: str) -> list[tuple[str, list[Reply]]]:
    """Each held-out prompt with every agent's reply, the reference first; from its first seed that has samples."""
    agents = sorted(results.agents_on(task), key=lambda agent: agent != "reference")
    cells = {agent: next((cell for cell in results.of(task, agent) if cell.samples), None) for agent in agents}
    longest = max((cell.samples for cell in cells.values() if cell), key=len, default=())
    return [
        (prompt.prompt, [_reply(agent, cells[agent], i, prompt.prompt) for agent in agents])
        for i, prompt in enumerate(longest)
    ]


def _reply(agent: str, cell: Cell | None, index: int, prompt: str) -> Reply:
    """Same place and same prompt: a run that was asked something else has no reply here."""
    if cell is None or index >= len(cell.samples) or cell.samples[index].prompt != prompt:
        return Reply(agent, None, None)
    return Reply(agent, cell.seed, cell.samples[index])


def write_report(folder: str | Path) -> Path:
    """Make `report.html`, `table.md` and `figures/` of the benchmark in `folder`; the page's path.

    The same results give the same bytes. Raises DataError naming a file that cannot be read, MissingExtra without
    matplotlib.
    """
    results = read_results(folder)
    pictures = figures.pictures(results)
    page = _page(results, pictures)
    drawn = results.folder / "figures"
    drawn.mkdir(exist_ok=True)
    for picture in pictures:
        _replace(drawn / f"{picture.name}.svg", figures.as_svg(picture).encode())
        _replace(drawn / f"{picture.name}.png", figures.as_png(picture))
    _replace(results.folder / "table.md", markdown_table(results).encode())
    _replace(results.folder / "report.html", page.encode())
    return results.folder / "report.html"


def _page(results: Results, pictures: Sequence[figures.Picture]) -> str:
    environment = jinja2.Environment(
        autoescape=True, finalize=_shown, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(
        resources.files("rlhf_env.lab").joinpath("report.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        results=results,
        title=results.about.title or results.benchmark,
        columns=COLUMNS,
        lines=lines(results),
        caption=caption(results),
        claim=claim(results),
        styles=figures.agent_styles(results.agents),
        sections=_figures_by_section(results, pictures),
        samples={task: samples_side_by_side(results, task) for task in results.tasks},
        open_prompts=_OPEN_PROMPTS,
        runs=list(_runs(results)),
    )


def _shown(value: Any) -> Any:
    """Every text on the page goes through here, before it is escaped; what is HTML already has gone through."""
    return for_page(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _figures_by_section(
    results: Results, pictures: Sequence[figures.Picture]
) -> Mapping[str, list[tuple[str, list[str]]]]:
    """By section, each task with its figures as SVG, which enters the page as it is: matplotlib escapes names."""
    by_place: dict[tuple[str, str], list[str]] = {}
    for picture in pictures:
        by_place.setdefault((picture.section, picture.task), []).append(figures.as_inline_svg(picture))
    return {
        section: [(task, by_place[section, task]) for task in results.tasks if (section, task) in by_place]
        for section in ("curves", "trade", "kl", "parts")
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
        yield Run(cell, settings, command)


def _markdown(text: str) -> str:
    """`text` in a Markdown cell, as text."""
    return re.sub(r"([\\`*\[\]|~#])", r"\\\1", for_terminal(text)).replace("&", "&amp;").replace("<", "&lt;")


def _replace(file: Path, content: bytes) -> None:
    """Whoever looks at the file meanwhile sees the old one or the new one, never half of it."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    partial.write_bytes(content)
    partial.replace(file)
