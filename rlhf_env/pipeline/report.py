"""The report over all stages of a pipeline: what each bought and what it cost, as a page and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_env.errors import DataError, MissingExtra
from rlhf_env.lab.drawing import MUTED, PALETTE, AgentStyle, Picture, as_inline_svg, mark, panel, short_count, typeset
from rlhf_env.lab.progress import spoken_time
from rlhf_env.lab.report import html as page
from rlhf_env.learning.run_record import versions
from rlhf_env.pipeline.records import Record
from rlhf_env.shown_text import for_terminal
from rlhf_env.whole_files import write_whole

PAGE, ABOUT = "report.html", "pipeline.json"
_LONGEST_STAGE = 18  # characters of a name on one line
_FIGURES = ("gold", "proxy", "kl", "perplexity")


@dataclass(frozen=True)
class _Column:
    """One measure of the stages."""

    name: str
    key: str
    meaning: str
    digits: int = 2
    changes: bool = False
    """Whether it has a value from before the stage."""


_COLUMNS = (
    _Column("Gold", "gold", "What is really wanted, and no agent sees: before the stage, and after it", 2, True),
    _Column("Proxy", "proxy", "The reward that the stage trains on: before the stage, and after it", 2, True),
    _Column("Won", "win_rate", "The share of prompts on which it is preferred, with its 95 % interval"),
    _Column("Accuracy", "accuracy", "Of a reward model, on prompts held out, with its 95 % interval", 3),
    _Column("Perplexity", "perplexity", "Of held-out answers: before the stage, and after it", 2, True),
    _Column("KL", "kl", "To the model that the stage began with, in nats per reply"),
    _Column("Labels", "labels", "Judgements that were asked for", 0),
    _Column("Tokens", "tokens", "Tokens that the stage wrote", 0),
    _Column("Time", "seconds", "What it took here", 0),
)


@dataclass(frozen=True)
class PipelineCell:
    """A number of a stage, and what stands below it."""

    value: str
    note: str = ""


@dataclass(frozen=True)
class PipelineLine:
    """A stage in the table."""

    name: str
    kind: str
    status: str
    cells: Sequence[PipelineCell]
    words: str
    page: str
    """Its own page, relative to the report."""


@dataclass(frozen=True)
class _Fact:
    name: str
    value: str


@dataclass(frozen=True)
class AboutPipeline:
    """What a pipeline's folder says of the file that it was made of."""

    name: str
    title: str = ""
    what_gold_is: str = ""
    stages: Sequence[str] = ()
    command: str = ""
    file: str = ""
    folder: str = ""
    """Where it lay when the pipeline last ran in it."""


def about_pipeline(folder: Path) -> AboutPipeline:
    """Raises DataError where the folder is no pipeline's."""
    file = folder / ABOUT
    try:
        return AboutPipeline(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: not what a pipeline leaves in its folder: {error}") from error


def write_pipeline_report(folder: Path, console: Console) -> Path | None:
    """Make OUT/report.html of what the stages left, and show its table; the page's path, None where nothing has run.

    Without matplotlib the page has no figures.
    """
    about = about_pipeline(folder)
    records = [record for stage in about.stages if (record := Record.read(folder, stage)) is not None]
    if not records:
        return None
    columns = [column for column in _COLUMNS if any(_value(record, column) is not None for record in records)]
    lines = [_line(record, columns, folder) for record in records]
    notes = [f"Gold: {about.what_gold_is}."] if about.what_gold_is else []
    begun = {record.name for record in records}
    if later := [name for name in about.stages if name not in begun]:
        notes.append(f"Not run yet: {', '.join(later)}.")
    try:
        figures = [as_inline_svg(picture) for picture in pictures_of(records)]
    except MissingExtra as missing:  # pictures are an extra; the numbers are not
        figures, notes = [], [*notes, f"No figures: {missing}"]
    template = page.environment("rlhf_env.pipeline").get_template("report.html.jinja")
    facts = [_Fact("stages", str(len(records)))]
    facts += [_Fact(what, value) for what, value in _totals(records).items()]
    shown = template.render(
        style=page.style(),
        name=about.name,
        title=about.title or about.name,
        lede="Every stage, what it changed, and what that cost.",
        facts=facts,
        headings=columns,
        lines=lines,
        notes=notes,
        figures=figures,
        command=about.command,
        versions=versions(),
    )
    write_whole(folder / PAGE, shown)
    console.print(_table(columns, lines, notes, console.width))
    console.print(f"Report: {folder / PAGE}", highlight=False, soft_wrap=True)
    return folder / PAGE


def _value(record: Record, column: _Column) -> float | None:
    if column.key == "seconds":
        return record.seconds
    value = record.numbers.get(column.key)
    return None if value is None else float(value)


def _line(record: Record, columns: Sequence[_Column], folder: Path) -> PipelineLine:
    words = record.texts.get("ended", "")
    pages = (f"{record.name}/{file}" for file in ("report.html", "scorecard.html"))
    own = next((file for file in pages if (folder / file).is_file()), "")
    cells = [_cell(record, column) for column in columns]
    return PipelineLine(record.name, record.kind, record.status, cells, words, own)


def _cell(record: Record, column: _Column) -> PipelineCell:
    value = _value(record, column)
    if value is None:
        return PipelineCell("")
    if column.key == "seconds":
        return PipelineCell(spoken_time(value))
    if column.digits == 0:
        return PipelineCell(short_count(value))
    written = typeset(f"{value:.{column.digits}f}")
    numbers = record.numbers
    before = numbers.get(f"{column.key}_before") if column.changes else None
    if before is not None:
        return PipelineCell(written, f"from {typeset(f'{before:.{column.digits}f}')}")
    prefix = {"win_rate": "win", "accuracy": "accuracy"}.get(column.key)
    if prefix and f"{prefix}_low" in numbers:
        low, high = numbers[f"{prefix}_low"], numbers[f"{prefix}_high"]
        note = f"{low:.{column.digits}f} to {high:.{column.digits}f}"
        return PipelineCell(written, note)
    return PipelineCell(written)


def _totals(records: Sequence[Record]) -> dict[str, str]:
    sums = {key: sum(float(record.numbers.get(key, 0.0)) for record in records) for key in ("labels", "tokens")}
    counted = {"labels": sums["labels"], "tokens written": sums["tokens"]}
    found = {name: short_count(value) for name, value in counted.items() if value}
    return {**found, "in all": spoken_time(sum(record.seconds for record in records))}


def _table(columns: Sequence[_Column], lines: Sequence[PipelineLine], notes: Sequence[str], width: int) -> Table:
    """Of `width` columns: measures that would be cut at its edge are left out, from the right, and named below."""
    named = min(max(len(text) for line in lines for text in ("Stage", line.name, line.kind)), _LONGEST_STAGE)
    kept = len(columns)
    while kept > 1 and named + 2 + sum(_taken(columns, lines, place) for place in range(kept)) > width:
        kept -= 1
    if gone := [column.name for column in columns[kept:]]:
        notes = [*notes, f"Left out, this terminal has {width} columns: {', '.join(gone)}. {PAGE} has them."]
    table = Table(caption=" ".join(notes) or None, caption_justify="left", pad_edge=False, box=None, padding=(0, 1))
    table.add_column("Stage", overflow="fold", min_width=named, max_width=_LONGEST_STAGE)
    for column in columns[:kept]:
        table.add_column(column.name, justify="right", no_wrap=True)
    for line in lines:
        stage = Text(for_terminal(line.name), style="bold").append(f"\n{line.kind}", style="not bold dim")
        if line.status != "finished":
            stage.append(f", {line.status}", style="red")
        cells = [
            Text(cell.value).append(f"\n{cell.note}" if cell.note else "", style="dim") for cell in line.cells[:kept]
        ]
        table.add_row(stage, *cells)
    return table


def _taken(columns: Sequence[_Column], lines: Sequence[PipelineLine], place: int) -> int:
    """Columns of a terminal that a measure takes."""
    cells = [text for line in lines for text in (line.cells[place].value, line.cells[place].note)]
    return 2 + max(map(len, [columns[place].name, *cells]))


def pictures_of(records: Sequence[Record]) -> list[Picture]:
    """A picture for each measure that some stage followed while it trained."""
    drawn = []
    for name in _FIGURES:
        curves = {
            record.name: [(float(point["update"]), float(point[name])) for point in record.curve if _has(point, name)]
            for record in records
        }
        curves = {stage: points for stage, points in curves.items() if len(points) > 1}
        if curves:
            words = f"{name} along the updates of {', '.join(curves)}."
            paint = partial(_paint, title=name.capitalize() if name != "kl" else "KL", curves=curves)
            drawn.append(Picture(f"pipeline-{name}", "", "", words, 430, 330, paint))
    return drawn


def _has(point: Mapping[str, object], name: str) -> bool:
    return isinstance(point.get(name), (int, float))


def _paint(figure: object, *, title: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    axes = panel(figure, title, "updates, one stage after the other")
    begun = 0.0
    for number, (stage, points) in enumerate(curves.items()):
        style = AgentStyle(PALETTE[number % len(PALETTE)], "o", "-")
        x, y = [begun + update for update, _ in points], [value for _, value in points]
        axes.plot(x, y, color=style.colour, linewidth=1.8)
        mark(axes, x, y, style, size=4)
        axes.annotate(stage, (x[0], 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                      va="top", color=style.colour, fontsize=10)  # fmt: skip
        if number:
            axes.axvline(begun, color=MUTED, linewidth=0.8, linestyle=":")
        begun = x[-1]
    axes.margins(y=0.15)
    axes.xaxis.get_major_locator().set_params(nbins=6)
