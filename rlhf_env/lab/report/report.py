"""The report of a benchmark: one HTML page that needs nothing else, its tables as Markdown and LaTeX, figures as files.

A table is made once, as a `Sheet`, for the page, Markdown, LaTeX and the terminal: the same formatted numbers in all.
The page has no script and loads nothing. What models wrote enters it through the template, which escapes every value;
a policy in its head forbids whatever would get past that.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_env.lab.benchmark.comparison import Conclusions, conclude
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.results import Cell, Results
from rlhf_env.lab.benchmark.summary import asked_words, claim
from rlhf_env.lab.drawing import Picture, as_inline_svg, as_png, as_svg
from rlhf_env.lab.report import figures
from rlhf_env.lab.report import html as page
from rlhf_env.lab.report.formats import latex_tables, markdown_tables
from rlhf_env.lab.report.samples import before_and_after, samples_side_by_side
from rlhf_env.lab.report.scorecard_page import section_of
from rlhf_env.lab.report.sheets import Sheet, legend, sheets
from rlhf_env.plain_data import strict_json
from rlhf_env.whole_files import write_whole

# Prompts shown at once on the page; the rest unfolds.
_OPEN_PROMPTS = 6

Drawn = tuple[Picture, str]  # and its SVG


def write_report(folder: str | Path) -> Path:
    """Make `report.html`, `table.md`, `table.tex` and `figures/` of the benchmark in `folder`; the page's path.

    The same results give the same bytes: the seed of all resampling is kept in `statistics.json`. Raises DataError
    naming a file that cannot be read, MissingExtra without matplotlib.
    """
    results = read_results(folder)
    conclusions = conclude(results)
    tables, tasks = sheets(results, conclusions), len(results.tasks) > 1
    drawn = [(picture, as_svg(picture)) for picture in figures.pictures(results, conclusions)]
    html = _page(results, conclusions, tables, drawn)
    place = results.folder / "figures"
    place.mkdir(exist_ok=True)
    for picture, svg in drawn:
        write_whole(place / f"{picture.name}.svg", svg)
        write_whole(place / f"{picture.name}.png", as_png(picture))
    write_whole(results.folder / "statistics.json", strict_json(results.comparing) + "\n")
    write_whole(results.folder / "table.md", markdown_tables(tables, tasks))
    write_whole(results.folder / "table.tex", latex_tables(tables, tasks))
    write_whole(results.folder / "report.html", html)
    return results.folder / "report.html"


def _page(results: Results, conclusions: Conclusions, tables: Sequence[Sheet], drawn: Sequence[Drawn]) -> str:
    template = page.environment().get_template("report.html.jinja")
    return template.render(
        results=results,
        title=results.about.title or results.benchmark,
        sheets={
            "overview": None,
            "leaderboard": None,
            "within": None,
            "replies": None,
            "spending": None,
            "tuning": None,
        }
        | {sheet.name: sheet for sheet in tables},
        checks=conclusions.checks,
        claim=claim(results),
        asked=asked_words(results),
        styles=figures.agent_styles(results.agents),
        sections=_figures_by_section(results, drawn),
        chart_rows=figures.chart_rows(),
        legend=legend(results),
        changes={task: before_and_after(results, task) for task in results.tasks},
        samples={task: samples_side_by_side(results, task) for task in results.tasks},
        open_prompts=_OPEN_PROMPTS,
        scorecard=section_of(results.folder),
        runs=list(_runs(results)),
    )


def _figures_by_section(results: Results, drawn: Sequence[Drawn]) -> Mapping[str, list[tuple[str, list[str]]]]:
    """By section, each task with its figures as SVG, which enters the page as it is: matplotlib escapes names."""
    by_place: dict[tuple[str, str], list[str]] = {}
    for picture, svg in drawn:
        by_place.setdefault((picture.section, picture.task), []).append(as_inline_svg(picture, svg))
    return {
        section: [(task, by_place[section, task]) for task in ("", *results.tasks) if (section, task) in by_place]
        for section in (chart.name for chart in figures.CHARTS)
    }


@dataclass(frozen=True)
class RunOnPage:
    """One cell as listed under "how to reproduce"."""

    cell: Cell
    settings: str
    command: str


def _runs(results: Results) -> Iterator[RunOnPage]:
    for cell in results.cells:
        settings = json.dumps(cell.agent_settings, sort_keys=True, ensure_ascii=False) if cell.agent_settings else ""
        folder = results.run_folder(cell)
        has_file = folder is not None and (folder / "experiment.toml").is_file()
        command = f"rlhf-env train {shlex.quote(f'{cell.run}/experiment.toml')}" if has_file else results.about.command
        if (results.folder / "benchmark.toml").is_file():
            command = f"rlhf-env bench benchmark.toml --only {cell.task}/{cell.agent}/{cell.seed} --out again"
        yield RunOnPage(cell, settings, command)
