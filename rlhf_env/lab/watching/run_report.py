"""The report of one run: `report.html` in its folder, one page that needs nothing else, with the look of a benchmark's.

It has no script and loads nothing; what models wrote enters it through the template, which escapes every value. The
same run gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape

from rlhf_env.errors import ConfigError
from rlhf_env.lab.evaluation.likelihood import MEASURES
from rlhf_env.lab.evaluation.metrics import METRICS, meaning_of
from rlhf_env.lab.report import html
from rlhf_env.lab.watching.curves import Line, Panel
from rlhf_env.lab.watching.run_view import RunView
from rlhf_env.lab.watching.texts import Query
from rlhf_env.runs_on_disk import DESCRIBED
from rlhf_env.types import Float, JsonObject
from rlhf_env.whole_files import write_whole

REPORT_FILE = "report.html"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 182, 50, 10, 10, 36
_COLOURS = {"training": "var(--accent)", "evaluation": "var(--second)"}
_SHOWN = 4  # texts of each choice
_MOST_DOTS = 40  # evaluations of which each has a dot


def write_run_report(folder: str | Path) -> Path:
    """Make `report.html` of the run in `folder`, ended or not; its path. Raises ConfigError where there is no run."""
    folder = Path(folder)
    if not (folder / DESCRIBED).is_file():
        raise ConfigError(f"{folder} holds no run: it has no {DESCRIBED}")
    view = RunView(folder)
    view.refresh()
    while view.left > 0:
        view.refresh()
    about = view.about()
    updates = [int(alert["update"]) for alert in about["warnings"] if alert["update"] is not None]
    names = {"main": "Curves", "parts": "Parts of the reward", "agent": "What the agent logs"}
    drawn = {
        title: [
            (panel, panel_as_svg(panel, updates))
            for panel in view.panels(("main", "parts", "agent"))
            if panel.section == name
        ]
        for name, title in names.items()
    }
    measured = (*MEASURES, *METRICS) if "answers" in view.evaluation else METRICS
    page = html.environment("rlhf_env.lab.watching").get_template("run_report.html.jinja")
    write_whole(
        folder / REPORT_FILE,
        page.render(
            style=Markup(html.style()),
            about=about,
            three_digits=three_digits,
            has_band=any(line.has_band for panels in drawn.values() for panel, _ in panels for line in panel.lines),
            facts=_facts(about),
            sections={title: panels for title, panels in drawn.items() if panels},
            evaluation=[
                (key, three_digits(value), meaning_of(key, measured)) for key, value in sorted(view.evaluation.items())
            ],
            texts=_texts(view),
        ),
    )
    return folder / REPORT_FILE


def _facts(about: JsonObject) -> list[tuple[str, str]]:
    facts = [("updates", about["update"]), ("texts", about["episodes"]), ("tokens written", about["tokens"])]
    seconds = about["seconds"]
    spent = "" if not seconds else f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
    return [(name, f"{value:,.0f}") for name, value in facts if value] + ([("of training", spent)] if spent else [])


def _texts(view: RunView) -> list[tuple[str, list[JsonObject]]]:
    """The texts of the last evaluation that are worth a look, by why."""
    about = view.texts.about()
    sorts, updates = about["sorts"], about["updates"]
    measure = next((name for name in ("gold", "reward", "proxy") if name in sorts), None)
    if not about["count"] or measure is None:
        return []
    last = max(updates) if updates else None
    wanted = {"Highest reward": (measure, True), "Lowest reward": (measure, False)}
    if "rewritten" in sorts:
        wanted["Most changed since the first evaluation"] = ("rewritten", True)
    found = []
    for why, (sort, descending) in wanted.items():
        query = Query(sort=sort, descending=descending, source="evaluation" if updates else "", update=last)
        rows = view.texts.find(query)["texts"][:_SHOWN]
        for row in rows:
            row["facts"] = ", ".join(
                f"{name} {three_digits(row[name])}"
                for name in ("reward", "gold", "proxy", "kl")
                if row.get(name) is not None
            )
        found.append((why, rows))
    return [(why, rows) for why, rows in found if rows]


def panel_as_svg(panel: Panel, warned: Sequence[int] = ()) -> Markup:
    """The panel as inline SVG; a dashed line across where a warning was first seen."""
    xs = [float(x) for line in panel.lines for x in (line.x[0], line.x[-1])]
    ys = [float(y) for line in panel.lines for y in (np.nanmin(line.low), np.nanmax(line.high))]
    x0, x1 = min(xs), max(max(xs), min(xs) + 1.0)
    y0, y1 = min(ys), max(ys)
    if y1 - y0 <= 1e-9 * max(abs(y0), abs(y1), 1e-9):
        y0, y1 = y0 - (abs(y0) / 2 or 0.5), y1 + (abs(y1) / 2 or 0.5)
    y0, y1 = y0 - 0.06 * (y1 - y0), y1 + 0.06 * (y1 - y0)

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        return f"{across:.1f} {_HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    def path(xs: Float, ys: Float) -> str:
        return "M" + "L".join(place(float(x), float(y)) for x, y in zip(xs, ys, strict=True))

    said = ", ".join(f"{line.name} {line.said or f'{three_digits(line.last)} at the end'}" for line in panel.lines)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(panel.title)}: {said}">']
    for y in _ticks(y0, y1):
        across, down = place(x0, y).split()
        parts.append(f'<path d="M{across} {down}H{_WIDTH - _RIGHT}" stroke="var(--line)"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{float(down) + 3.5:.1f}" text-anchor="end">{three_digits(y)}</text>')
    for x, anchor in ((x0, "start"), (x1, "end")):
        parts.append(f'<text x="{place(x, y0).split()[0]}" y="{_HEIGHT - 20}" text-anchor="{anchor}">{x:,.0f}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 5}" text-anchor="middle">update</text>')
    for update in warned:
        if x0 <= update <= x1:
            parts.append(
                f'<path d="M{place(update, y0)}L{place(update, y1)}" stroke="var(--bad)" stroke-dasharray="2 3"/>'
            )
    parts += [drawn for line in panel.lines for drawn in _drawn(line, path)]
    return Markup("".join([*parts, "</svg>"]))


def _drawn(line: Line, path: Callable[[Float, Float], str]) -> list[str]:
    colour = _COLOURS[line.name]
    style = f'fill="none" stroke="{colour}"'
    is_evaluation = line.name == "evaluation"
    dashed = ' stroke-dasharray="5 3"' if is_evaluation else ""
    parts = []
    for piece in line.pieces():
        x, mean = line.x[piece], line.mean[piece]
        if line.has_band:
            around = f"{path(x, line.high[piece])}L{path(x[::-1], line.low[piece][::-1])[1:]}Z"
            parts.append(f'<path d="{around}" fill="{colour}" opacity=".2"/>')
        if x.size > 1:
            parts.append(f'<path d="{path(x, mean)}" {style} stroke-width="1.8"{dashed}/>')
        if x.size == 1 or (is_evaluation and line.x.size <= _MOST_DOTS):  # paths without length are dots
            dots = "".join(f"{path(x[i : i + 1], mean[i : i + 1])}h0" for i in range(x.size))
            parts.append(f'<path d="{dots}" {style} stroke-width="6" stroke-linecap="round"/>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Three to five round numbers between these."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def three_digits(value: float) -> str:
    """To three digits, with a real minus sign."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", "−")
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}".replace("-", "−")
