"""The figures of a benchmark, each one drawn once for the page, for a paper (SVG) and for everywhere else (PNG).

The same results give the same bytes. Each agent has one colour and one marker in every figure, from the Okabe-Ito
palette, which stays distinct for colour-blind readers; names stand beside the lines, not in a legend to look up.

On the page a figure is inline SVG with real text: its neutral colours are the page's own, so that it follows light and
dark. Small panels instead of wide ones: a phone shows them one below the other, at a size that can still be read.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env.errors import DataError
from rlhf_env.lab.benchmark.comparison import AgentRanking, Conclusions, Overview
from rlhf_env.lab.benchmark.results import CONTROLS, REFERENCE, Cell, Results
from rlhf_env.lab.benchmark.summary import SummaryRow, summary_rows
from rlhf_env.lab.drawing import (
    INK,
    MARKERS,
    MUTED,
    PALETTE,
    PAPER,
    AgentStyle,
    Axes,
    Picture,
    as_png,
    axes_height,
    axes_width,
    mark,
    name_ends,
    panel,
    short_count,
    shortened,
    typeset,
    write,
)
from rlhf_env.lab.statistics import Estimate, performance_profile
from rlhf_env.shown_text import for_page
from rlhf_env.types import Float

CONTROL_COLOURS = {"reference": "#7b818a", "random": "#a3a8b0"}

# Neutral colours as drawn, and what each becomes on the page, where the style sheet decides.


MEASURES = {
    "gold": ("Gold reward", "mean over held-out prompts"),
    "proxy": ("Proxy reward", "mean over held-out prompts"),
    "kl": ("KL to the reference", "nats per reply"),
    "length": ("Length", "tokens per reply"),
    "distinct_2": ("Diversity", "different word pairs over all word pairs"),
}

_PARTS_POINTS = 40


def agent_styles(agents: Sequence[str]) -> dict[str, AgentStyle]:
    """Colour, marker and dash of each agent, by its place; the controls are grey."""
    learners = [agent for agent in agents if agent not in CONTROLS]
    styles = {
        agent: AgentStyle(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], "-" if i < len(PALETTE) else "--")
        for i, agent in enumerate(learners)
    }
    return styles | {agent: AgentStyle(CONTROL_COLOURS[agent], "o", "--") for agent in agents if agent in CONTROLS}


@dataclass(frozen=True)
class Series:
    """One measure of one agent along training, over its finished seeds.

    A `level` is the value of an agent that does not train: a line across, not a curve. `broken`: the curves of failed
    seeds, as far as they came.
    """

    agent: str
    x: Float
    mean: Float
    low: Float
    high: Float
    level: bool = False
    broken: tuple[tuple[Float, Float], ...] = ()


def pictures(results: Results, conclusions: Conclusions | None = None) -> list[Picture]:
    """Every figure that these results have the data for, by task and section; comparisons only of `conclusions`."""
    styles = agent_styles(results.agents)
    drawn = [picture for task, slug in _slugs(results.tasks).items() for picture in _pictures_of(results, task, slug)]
    if conclusions is None:
        return drawn
    slugs = _slugs(results.tasks)
    compared = [_ranking_picture(ranking, slugs[ranking.task], styles) for ranking in conclusions.rankings]
    drawn += [picture for picture in compared if picture is not None]
    if conclusions.overview is not None:
        drawn += _overview_pictures(conclusions.overview, styles)
    return drawn


def _ranking_picture(ranking: AgentRanking, slug: str, styles: Mapping[str, AgentStyle]) -> Picture | None:
    rows = [
        (standing.agent, standing.against[REFERENCE].difference, standing.against[REFERENCE].verdict)
        for standing in ranking.standings
        if REFERENCE in standing.against
    ]
    if not rows:
        return None
    ends = ", ".join(f"{agent} {difference.value:.2f} ({verdict})" for agent, difference, verdict in rows)
    told = for_page(f"Difference to the reference in {ranking.measure} reward, with 95 % interval: {ends}.")
    title, subtitle = f"{ranking.measure.capitalize()} against the reference", "paired difference, 95 % interval"
    paint = partial(_paint_estimates, rows=rows, styles=styles, title=title, subtitle=subtitle)
    return Picture(f"{slug}--against-reference", "leaderboard", ranking.task, told, 430, 100 + 32 * len(rows), paint)


def _overview_pictures(overview: Overview, styles: Mapping[str, AgentStyle]) -> Iterator[Picture]:
    rows = [(row.agent, row.average, typeset(f"{row.average.value:.2f}")) for row in overview.agents]
    ends = ", ".join(f"{agent} {value}" for agent, _, value in rows)
    told = for_page(f"Interquartile mean of normalised scores with 95 % interval: {ends}.")
    title, subtitle = "Interquartile mean", "normalised score over all tasks, 95 % interval"
    paint = partial(_paint_estimates, rows=rows, styles=styles, title=title, subtitle=subtitle)
    yield Picture("all-tasks--interquartile-mean", "overview", "", told, 430, 300, paint)
    told = "Performance profile: the share of an agent's runs above each normalised score, a line per agent."
    paint = partial(_paint_profile, overview=overview, styles=styles)
    yield Picture("all-tasks--performance-profile", "overview", "", told, 430, 300, paint)


def _pictures_of(results: Results, task: str, slug: str) -> Iterator[Picture]:
    styles = agent_styles(results.agents)
    for measure, section in (("gold", "curves"), ("proxy", "curves"), ("length", "drift"), ("distinct_2", "drift")):
        if series := evaluation_curves(results, task, measure):
            title, unit = MEASURES[measure]
            told = f"{title} against generated tokens in training, a line per agent. {_ends(series)}"
            paint = partial(_paint_curves, series=series, styles=styles, title=title, subtitle=unit)
            yield Picture(f"{slug}--{measure}-curve", section, task, told, 430, 300, paint)
    if paths := trade_offs(results, task, "proxy", "gold"):
        told = "Gold reward against proxy reward at every checkpoint of every seed, one path per seed."
        paint = partial(_paint_trade_off, paths=paths, styles=styles, x="proxy", y="gold")
        yield Picture(f"{slug}--gold-against-proxy", "trade", task, told, 430, 330, paint)
    for measure in ("gold", "proxy"):
        if paths := trade_offs(results, task, "kl", measure):
            told = f"{MEASURES[measure][0]} against KL to the reference at every checkpoint, one path per seed."
            paint = partial(_paint_trade_off, paths=paths, styles=styles, x="kl", y=measure)
            yield Picture(f"{slug}--{measure}-against-kl", "frontier", task, told, 430, 330, paint)
    rows = [row for row in summary_rows(results) if row.task == task and row.kl is not None]
    if rows:
        ends = ", ".join(f"{row.agent} {row.kl.mean:.2f}" for row in rows if row.kl)
        told = for_page(f"KL to the reference, in nats per reply: {ends}.")
        paint = partial(_paint_kl, rows=rows, styles=styles)
        yield Picture(f"{slug}--kl", "kl", task, told, 430, 100 + 32 * len(rows), paint)
    for part, part_slug in _slugs(reward_parts(results, task)).items():
        told = for_page(f"Reward part {part} along training, a line per agent.")
        parts = part_curves(results, task, part)
        paint = partial(_paint_curves, series=parts, styles=styles, title=part, subtitle="mean over the rollout")
        yield Picture(f"{slug}--part-{part_slug}", "parts", task, told, 350, 250, paint)


# --- From results to lines ---------------------------------------------------------------------------------------


def evaluation_curves(results: Results, task: str, measure: str) -> list[Series]:
    """`measure` at every checkpoint, as the evaluator saw it, for each agent that has it."""

    def curve(cell: Cell) -> tuple[Float, Float]:
        return _xy([(p.generated_tokens, getattr(p, measure)) for p in cell.curve])

    found = [_series(agent, results.of(task, agent), curve) for agent in results.agents_on(task)]
    return [series for series in found if series is not None]


def part_curves(results: Results, task: str, part: str) -> list[Series]:
    """A reward part along training, from each run's own metrics; noisy updates are averaged to a few points."""

    def curve(cell: Cell) -> tuple[Float, Float]:
        rows = results.metrics(cell)
        return _thinned(*_xy([(row.get("spent/generated_tokens"), row.get(f"rollout/part/{part}")) for row in rows]))

    found = [_series(agent, results.of(task, agent), curve) for agent in results.agents_on(task)]
    return [series for series in found if series is not None]


def reward_parts(results: Results, task: str) -> list[str]:
    """The parts that some run on the task has logged."""
    prefix = "rollout/part/"
    cells = [cell for cell in results.cells if cell.task == task]
    keys = {key for cell in cells for row in results.metrics(cell) for key in row if key.startswith(prefix)}
    # "a_std" is the spread of the part "a"; unless it has a spread itself, for then it is a part that is called so.
    spreads = {key for key in keys if key.removesuffix("_std") in keys - {key} and f"{key}_std" not in keys}
    return sorted(key.removeprefix(prefix) for key in keys - spreads)


def trade_offs(results: Results, task: str, x: str, y: str) -> dict[str, list[Float]]:
    """By agent, the path of each seed: float64[checkpoints, 2], measures `x` and `y` where both were taken."""
    paths: dict[str, list[Float]] = {}
    for cell in results.cells:
        points = [(getattr(p, x), getattr(p, y)) for p in cell.curve]
        taken = [point for point in points if None not in point]
        if cell.task == task and taken:
            paths.setdefault(cell.agent, []).append(np.array(taken, dtype=np.float64))
    return paths


def _series(agent: str, cells: Sequence[Cell], curve: Callable[[Cell], tuple[Float, Float]]) -> Series | None:
    finished = [xy for cell in cells if cell.finished and (xy := curve(cell))[0].size]
    broken = tuple(xy for cell in cells if not cell.finished and (xy := curve(cell))[0].size)
    if not finished and not broken:
        return None
    if not finished:
        nothing = np.empty(0)
        return Series(agent, nothing, nothing, nothing, nothing, broken=broken)
    level = all(x[-1] <= 0 for x, _ in finished)
    if level:
        grid, lines = np.zeros(1), np.array([[y[-1]] for _, y in finished])
    else:
        # Seeds do not spend the same number of tokens per update. Before its first and after its last checkpoint a
        # seed counts with that checkpoint: the policy it would hand over at this budget.
        grid = np.unique(np.concatenate([x for x, _ in finished]))
        lines = np.array([np.interp(grid, x, y) for x, y in finished])
    return Series(agent, grid, lines.mean(axis=0), lines.min(axis=0), lines.max(axis=0), level, broken)


def _xy(pairs: Sequence[tuple[Any, Any]]) -> tuple[Float, Float]:
    """The pairs with two finite numbers, by x."""
    kept = sorted((float(x), float(y)) for x, y in pairs if _is_finite(x) and _is_finite(y))
    array = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _thinned(x: Float, y: Float) -> tuple[Float, Float]:
    """At most a few dozen points, each the mean of neighbouring ones."""
    if x.size <= _PARTS_POINTS:
        return x, y
    bins = np.array_split(np.arange(x.size), _PARTS_POINTS)
    return np.array([x[b].mean() for b in bins]), np.array([y[b].mean() for b in bins])


# --- From lines to ink -------------------------------------------------------------------------------------------


def _paint_curves(
    figure: object,
    *,
    series: Sequence[Series],
    styles: Mapping[str, AgentStyle],
    title: str,
    subtitle: str,
    left: float = 0.0,
    width: float = 1.0,
) -> None:
    """Lines with bands in a part of the figure (`left`, `width`: fractions of it), names at their ends."""
    low, high = focus({line.agent: [*line.low, *line.high, *(v for _, y in line.broken for v in y)] for line in series})
    names = {line.agent: _curve_name(line, low, high) for line in series}
    room = 24 + 6.6 * max(map(len, names.values()))
    axes = panel(figure, title, subtitle, left=left, width=width, margin_right=room)
    end = max([1.0, *(float(x[-1]) for line in series for x in (line.x, *(x for x, _ in line.broken)) if x.size)])
    name_at: dict[str, tuple[float, float]] = {}
    for line in sorted(series, key=lambda line: not line.level):  # levels lie below curves
        colour, dash = styles[line.agent].colour, styles[line.agent].dash
        for x, y in line.broken:
            axes.plot(x, y, color=colour, linewidth=1.0, linestyle=":")
            mark(axes, x[-1:], y[-1:], AgentStyle(colour, "x", ""), size=6, markeredgewidth=1.6)
            name_at[line.agent] = (float(x[-1]), float(y[-1]))
        if not line.x.size:
            continue
        x, points = (np.array([0.0, end]), [0, 0]) if line.level else (line.x, slice(None))
        axes.fill_between(x, line.low[points], line.high[points], color=colour, alpha=0.16, linewidth=0)
        axes.plot(x, line.mean[points], color=colour, linewidth=1.4 if line.level else 2.0, linestyle=dash)
        name_at[line.agent] = (float(x[-1]), float(line.mean[-1]))
    axes.set_xlim(0, end)
    axes.set_ylim(low, high)
    axes.set_xlabel("generated tokens in training", color=MUTED, fontsize=10, labelpad=5)
    axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    axes.xaxis.get_major_locator().set_params(nbins=5)
    name_ends(axes, name_at, names, styles)


def _curve_name(line: Series, low: float, high: float) -> str:
    """The agent's name; with its value if the line lies outside of the figure."""
    end = float(line.mean[-1]) if line.x.size else low
    if low <= end <= high:
        return shortened(line.agent)
    return f"{shortened(line.agent)} {'↓' if end < low else '↑'} {typeset(f'{end:.2f}')}"


def _paint_trade_off(
    figure: object, *, paths: Mapping[str, Sequence[Float]], styles: Mapping[str, AgentStyle], x: str, y: str
) -> None:
    (x_low, x_high), (y_low, y_high) = (
        focus({agent: [float(v) for points in seeds for v in points[:, axis]] for agent, seeds in paths.items()})
        for axis in (0, 1)
    )

    def final(agent: str) -> tuple[float, float]:
        across, up = np.array([points[-1] for points in paths[agent]]).mean(axis=0)
        return float(across), float(up)

    names = {}
    for agent in paths:
        across, up = final(agent)
        inside = x_low <= across <= x_high and y_low <= up <= y_high
        names[agent] = shortened(agent) if inside else f"{shortened(agent)} (off scale)"
    against = MEASURES[x][0] if x == "kl" else MEASURES[x][0].lower()
    subtitle = f"against {against}; large: a seed's last checkpoint"
    axes = panel(figure, MEASURES[y][0], subtitle, margin_right=30 + 6.2 * max(map(len, names.values())))
    for agent, seeds in paths.items():
        style = styles[agent]
        for points in seeds:
            across, up = points.T
            axes.plot(across, up, color=style.colour, linewidth=1.0, alpha=0.45)
            mark(axes, across[:-1], up[:-1], style, size=3.4, alpha=0.7)
            mark(axes, across[-1:], up[-1:], style, size=8, markeredgecolor=PAPER, zorder=4)
    axes.set_xlim(x_low, x_high)
    axes.set_ylim(y_low, y_high)
    axes.xaxis.get_major_locator().set_params(nbins=6)
    axes.set_xlabel(f"{against}, nats per reply" if x == "kl" else against, color=MUTED, fontsize=10, labelpad=5)
    _write_key(axes, {agent: names[agent] for agent in sorted(paths, key=lambda agent: -final(agent)[1])}, styles)


def _paint_kl(figure: object, *, rows: Sequence[SummaryRow], styles: Mapping[str, AgentStyle]) -> None:
    """A row per agent: a dot per seed, a bar at the mean, its value in words; hollow where it is a bound."""
    names = max(len(shortened(row.agent)) for row in rows)
    subtitle = "nats per reply; a dot per seed, a bar at the mean"
    axes = panel(figure, "KL to the reference", subtitle, margin_left=22 + 6.8 * names, margin_right=74)
    low, high = focus({row.agent: [0.0, *row.kl.values] for row in rows if row.kl})
    for i, row in enumerate(rows):
        if row.kl is None:
            continue
        value = f"{'≤ ' if row.kl_is_bound else ''}{typeset(f'{row.kl.mean:.2f}')}"
        if row.kl.mean > high:
            write(axes, f"→ {value}", (1, i), 0, xycoords=("axes fraction", "data"))
            continue
        style = AgentStyle(styles[row.agent].colour, "o", "")
        face = PAPER if row.kl_is_bound else style.colour
        more = {"markerfacecolor": face, "markeredgecolor": style.colour, "clip_on": False, "zorder": 3}
        mark(axes, row.kl.values, [i] * len(row.kl.values), style, size=7.5, **more)
        axes.plot([row.kl.mean] * 2, [i - 0.3, i + 0.3], color=INK, linewidth=1.6, zorder=4)
        write(axes, value, (1, i), 14, xycoords=("axes fraction", "data"))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [shortened(row.agent) for row in rows], color=INK, fontsize=11)
    axes.set_xlim(low, high)


def _paint_estimates(
    figure: object,
    *,
    rows: Sequence[tuple[str, Estimate, str]],
    styles: Mapping[str, AgentStyle],
    title: str,
    subtitle: str,
) -> None:
    """A row per agent: a dot at the value on a line over its interval, words beside it, and a rule at zero."""
    names, words = max(len(shortened(agent)) for agent, _, _ in rows), max(len(text) for _, _, text in rows)
    axes = panel(figure, title, subtitle, margin_left=22 + 6.8 * names, margin_right=30 + 6.2 * words)
    low, high = focus({agent: [0.0, found.low, found.high, found.value] for agent, found, _ in rows})
    axes.axvline(0.0, color=MUTED, linewidth=1.0, zorder=1)
    for i, (agent, found, text) in enumerate(rows):
        write(axes, text, (1, i), 14, xycoords=("axes fraction", "data"))
        if not low <= found.value <= high:
            below = found.value < low
            write(axes, "←" if below else "→", (0 if below else 1, i), 0, xycoords=("axes fraction", "data"))
            continue
        colour = styles[agent].colour
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [i, i], color=colour, linewidth=5, alpha=0.32, solid_capstyle="round")
        mark(axes, [found.value], [i], AgentStyle(colour, "o", ""), size=8, zorder=3)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [shortened(agent) for agent, _, _ in rows], color=INK, fontsize=11)
    axes.set_xlim(low, high)
    axes.xaxis.get_major_locator().set_params(nbins=5)


def _paint_profile(figure: object, *, overview: Overview, styles: Mapping[str, AgentStyle]) -> None:
    low, high = focus({row.agent: [float(score) for score in row.scores.flat] for row in overview.agents})
    names = {row.agent: shortened(row.agent) for row in overview.agents}
    subtitle = "share of runs above a normalised score"
    axes = panel(figure, "Performance profile", subtitle, margin_right=30 + 6.2 * max(map(len, names.values())))
    thresholds = np.linspace(low, high, 201)
    for row in overview.agents:
        style = styles[row.agent]
        shares = performance_profile(row.scores, thresholds)
        axes.plot(thresholds, shares, color=style.colour, linewidth=2.0, linestyle=style.dash, drawstyle="steps-post")
    axes.set_xlim(low, high)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("normalised score (0: reference, 1: top)", color=MUTED, fontsize=10, labelpad=5)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    _write_key(axes, names, styles)


def _write_key(axes: Axes, names: Mapping[str, str], styles: Mapping[str, AgentStyle]) -> None:
    """Marks and names at the right, from the top, in the order given: that of the marks or lines beside them."""
    for i, (agent, name) in enumerate(names.items()):
        x_key, y_key = 1 + 16 / axes_width(axes), 1 - (8 + 18 * i) / axes_height(axes)
        mark(axes, [x_key], [y_key], styles[agent], size=7, transform=axes.transAxes, clip_on=False)
        write(axes, name, (x_key, y_key), 9)


def focus(values: Mapping[str, Sequence[float | None]]) -> tuple[float, float]:
    """The range of an axis: all agents, except controls so far off that everything else would be flat beside them."""
    measured = {agent: [v for v in found if v is not None] for agent, found in values.items()}
    shown = [v for agent, found in measured.items() if agent not in CONTROLS or agent == "reference" for v in found]
    others = [v for found in measured.values() for v in found] or [0.0]
    low, high = (min(shown), max(shown)) if shown else (min(others), max(others))
    if max(high - min(others), max(others) - low) <= 2 * (high - low):
        low, high = min(low, *others), max(high, *others)
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room


def _ends(series: Sequence[Series]) -> str:
    told = ", ".join(f"{line.agent} {line.mean[-1]:.2f}" for line in series if line.x.size)
    return for_page(f"At the end: {told}." if told else "No seed finished.")


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """A distinct, harmless file name for each name."""
    slugs: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60] or "unnamed"
        numbered = (plain if number == 0 else f"{plain}-{number}" for number in itertools.count())
        slugs[name] = next(slug for slug in numbered if slug not in slugs.values())
    return slugs


# --- From ink to files -------------------------------------------------------------------------------------------


def demo_picture(results: Results, path: str | Path) -> Path:
    """One wide PNG for a README: gold and proxy reward along training, side by side, for the first task."""
    task, styles = results.tasks[0], agent_styles(results.agents)
    curves = {measure: evaluation_curves(results, task, measure) for measure in ("gold", "proxy")}
    panels = [(measure, series) for measure, series in curves.items() if series]
    if not panels:
        raise DataError(f"{results.folder}: no learning curves in these results")

    def paint(figure: object) -> None:
        for i, (measure, series) in enumerate(panels):
            title, subtitle = MEASURES[measure]
            place = {"left": i / len(panels), "width": 1 / len(panels)}
            _paint_curves(figure, series=series, styles=styles, title=title, subtitle=subtitle, **place)

    path = Path(path)
    path.write_bytes(as_png(Picture("demo", "", task, "", 400 * len(panels), 310, paint), dpi=144))
    return path
