"""The figures of a benchmark, each one drawn once for the page, for a paper (SVG) and for everywhere else (PNG).

The same results give the same bytes. Each agent has one colour and one marker in every figure, from the Okabe-Ito
palette, which stays distinct for colour-blind readers; names stand beside the lines, not in a legend to look up.

On the page a figure is inline SVG with real text: its neutral colours are the page's own, so that it follows light and
dark. Small panels instead of wide ones: a phone shows them one below the other, at a size that can still be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rlhf_env.errors import DataError
from rlhf_env.lab.benchmark.comparison import Conclusions, Overview
from rlhf_env.lab.benchmark.results import CONTROLS, REFERENCE, Results
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
from rlhf_env.lab.evaluation.metric import Metric
from rlhf_env.lab.report.chart import Chart, Subject, slugs
from rlhf_env.lab.report.choices import CHOICES
from rlhf_env.lab.report.series import Series, evaluation_curves, part_curves, reward_parts, trade_offs
from rlhf_env.lab.report.sheets import written_value
from rlhf_env.lab.statistics import Estimate, performance_profile
from rlhf_env.types import Float

CONTROL_COLOURS = {"reference": "#7b818a", "random": "#a3a8b0"}


def agent_styles(agents: Sequence[str]) -> dict[str, AgentStyle]:
    """Colour, marker and dash of each agent, by its place; the controls are grey."""
    learners = [agent for agent in agents if agent not in CONTROLS]
    styles = {
        agent: AgentStyle(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], "-" if i < len(PALETTE) else "--")
        for i, agent in enumerate(learners)
    }
    return styles | {agent: AgentStyle(CONTROL_COLOURS[agent], "o", "--") for agent in agents if agent in CONTROLS}


def pictures(results: Results, conclusions: Conclusions | None = None) -> list[Picture]:
    """Every figure that these results have the data for; comparisons only of `conclusions`."""
    drawn: list[Picture] = []
    styles = agent_styles(results.agents)
    concluded = Conclusions((), None, ()) if conclusions is None else conclusions
    for chart in CHARTS:
        for task in [""] if chart.all_tasks else results.tasks:
            drawn += chart.draw(Subject(results, concluded, task, styles, chart.name))
    return drawn


def chart_rows() -> list[list[Chart]]:
    """The sections of charts on the page; those that stand side by side together."""
    rows: list[list[Chart]] = []
    for chart in CHARTS:
        if chart.half and rows and rows[-1][-1].half:
            rows[-1].append(chart)
        elif not chart.within:
            rows.append([chart])
    return rows


# --- The charts --------------------------------------------------------------------------------------------------


def _draw_overview(subject: Subject) -> Iterator[Picture]:
    overview = subject.conclusions.overview
    if overview is None:
        return
    rows = [(row.agent, row.average, typeset(f"{row.average.value:.2f}")) for row in overview.agents]
    ends = ", ".join(f"{agent} {value}" for agent, _, value in rows)
    words = f"Interquartile mean of normalised scores with 95 % interval: {ends}."
    title, subtitle = "Interquartile mean", "normalised score over all tasks, 95 % interval"
    paint = partial(_paint_estimates, rows=rows, styles=subject.styles, title=title, subtitle=subtitle)
    yield subject.picture("interquartile-mean", words, paint, height=300)
    words = "Performance profile: the share of an agent's runs above each normalised score, a line per agent."
    paint = partial(_paint_profile, overview=overview, styles=subject.styles)
    yield subject.picture("performance-profile", words, paint, height=300)


def _draw_leaderboard(subject: Subject) -> Iterator[Picture]:
    ranking = subject.conclusions.ranking(subject.task)
    rows = [
        (standing.agent, standing.against[REFERENCE].difference, standing.against[REFERENCE].verdict)
        for standing in (ranking.standings if ranking else ())
        if REFERENCE in standing.against
    ]
    if ranking is None or not rows:
        return
    ends = ", ".join(f"{agent} {difference.value:.2f} ({verdict})" for agent, difference, verdict in rows)
    words = f"Difference to the reference in {ranking.measure} reward, with 95 % interval: {ends}."
    title, subtitle = f"{ranking.measure.capitalize()} against the reference", "paired difference, 95 % interval"
    paint = partial(_paint_estimates, rows=rows, styles=subject.styles, title=title, subtitle=subtitle)
    yield subject.picture("against-reference", words, paint, height=100 + 32 * len(rows))


def _draw_curves(subject: Subject) -> Iterator[Picture]:
    """Of every metric whose curve stands in this section."""
    for metric in subject.results.metrics:
        if metric.curve == subject.section and (
            series := evaluation_curves(subject.results, subject.task, metric.name)
        ):
            words = f"{metric.title} against generated tokens in training, a line per agent. {_ends(series)}"
            paint = partial(
                _paint_curves, series=series, styles=subject.styles, title=metric.title, subtitle=_subtitle(metric)
            )
            yield subject.picture(f"{metric.name}-curve", words, paint, height=300)


def _subtitle(metric: Metric) -> str:
    return metric.unit or "mean over the evaluation's prompts"


def _draw_within(subject: Subject) -> Iterator[Picture]:
    """Learning curves on each task of a mixture."""
    measure = subject.results.measure(subject.task)
    for label, slug in slugs(subject.results.parts_of_mixture(subject.task)).items():
        series = evaluation_curves(subject.results, subject.task, f"task/{label}/{measure}")
        if series and measure:
            metric = subject.results.metric(measure)
            words = f"{metric.title} on the task {label} of the mixture, a line per agent. {_ends(series)}"
            paint = partial(
                _paint_curves, series=series, styles=subject.styles, title=label, subtitle=f"{metric.title}, this task"
            )
            yield subject.picture(f"within-{slug}", words, paint, width=350, height=250)


def _draw_trade(subject: Subject) -> Iterator[Picture]:
    words = "Gold reward against proxy reward at every checkpoint of every seed, one path per seed."
    yield from _trade_off(subject, "gold-against-proxy", "proxy", "gold", words)


def _draw_frontier(subject: Subject) -> Iterator[Picture]:
    for reward in ("gold", "proxy"):
        title = subject.results.metric(reward).title
        words = f"{title} against KL to the reference at every checkpoint, one path per seed."
        yield from _trade_off(subject, f"{reward}-against-kl", "kl", reward, words)


def _trade_off(subject: Subject, name: str, x: str, y: str, words: str) -> Iterator[Picture]:
    if paths := trade_offs(subject.results, subject.task, x, y):
        across, up = subject.results.metric(x), subject.results.metric(y)
        paint = partial(_paint_trade_off, paths=paths, styles=subject.styles, x=across, y=up)
        yield subject.picture(name, words, paint, height=330)


def _draw_kl(subject: Subject) -> Iterator[Picture]:
    rows = [row for row in summary_rows(subject.results) if row.task == subject.task and "kl" in row.spreads]
    if rows:
        metric = subject.results.metric("kl")
        ends = ", ".join(f"{row.agent} {row.spreads['kl'].mean:.2f}" for row in rows)
        words = f"KL to the reference, in nats per reply: {ends}."
        paint = partial(_paint_seeds, metric=metric, rows=rows, styles=subject.styles)
        yield subject.picture("kl", words, paint, height=100 + 32 * len(rows))


def _draw_parts(subject: Subject) -> Iterator[Picture]:
    for part, slug in slugs(reward_parts(subject.results, subject.task)).items():
        words = f"Reward part {part} along training, a line per agent."
        series = part_curves(subject.results, subject.task, part)
        paint = partial(
            _paint_curves, series=series, styles=subject.styles, title=part, subtitle="mean over the rollout"
        )
        yield subject.picture(f"part-{slug}", words, paint, width=350, height=250)


CHARTS: tuple[Chart, ...] = (
    Chart(name="overview", title="All tasks together", draw=_draw_overview, all_tasks=True, within=True),
    Chart(name="leaderboard", title="Leaderboard", draw=_draw_leaderboard, within=True),
    Chart(name="within", title="Tasks within a mixture", draw=_draw_within, within=True, small=True),
    Chart(
        name="curves",
        title="Learning curves",
        caption="Measured on the evaluation's prompts at checkpoints along the way. A line is the mean over seeds, its "
        "band goes from the lowest seed to the highest; agents that are not trained are lines across. A run that ended "
        "early keeps its last value; a dotted line that ends in a cross is a run that failed.",
        draw=_draw_curves,
    ),
    Chart(
        name="trade",
        title="Gold against proxy",
        caption="Up and to the right, both rewards rise together. A path that goes right without going up has found "
        "something the proxy likes and gold does not.",
        draw=_draw_trade,
        half=True,
    ),
    Chart(
        name="kl",
        title="Distance from the reference",
        link="KL",
        caption="What each agent has paid in KL for its reward. Hollow dots with ≤ are analytic upper bounds.",
        draw=_draw_kl,
        half=True,
    ),
    Chart(
        name="frontier",
        title="Reward against KL",
        caption="What a nat of distance has bought: of two paths, the higher one at the same KL got more for it. Where "
        "gold turns down while proxy goes on, the proxy is over-optimised.",
        draw=_draw_frontier,
    ),
    Chart(
        name="drift",
        title="How the replies change",
        link="Length, diversity",
        caption="How the replies themselves drift along training. Rewards that pay for length show here, and policies "
        "that come to say one thing.",
        draw=_draw_curves,
    ),
    Chart(
        name="parts",
        title="Reward parts over time",
        link="Reward parts",
        caption="The parts of the training reward before their weights, as each run logged them; updates are averaged "
        "to at most 40 points.",
        draw=_draw_parts,
        small=True,
    ),
    *CHOICES,
)


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
    figure: object, *, paths: Mapping[str, Sequence[Float]], styles: Mapping[str, AgentStyle], x: Metric, y: Metric
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
    against = x.title if x.unit else x.title.lower()
    subtitle = f"against {against}; large: a seed's last checkpoint"
    axes = panel(figure, y.title, subtitle, margin_right=30 + 6.2 * max(map(len, names.values())))
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
    axes.set_xlabel(f"{against}, {x.unit}" if x.unit else against, color=MUTED, fontsize=10, labelpad=5)
    _write_key(axes, {agent: names[agent] for agent in sorted(paths, key=lambda agent: -final(agent)[1])}, styles)


def _paint_seeds(
    figure: object, *, metric: Metric, rows: Sequence[SummaryRow], styles: Mapping[str, AgentStyle]
) -> None:
    """A row per agent: a dot per seed, a bar at the mean, its value in words; hollow where it is a bound."""
    names = max(len(shortened(row.agent)) for row in rows)
    subtitle = f"{metric.unit}; a dot per seed, a bar at the mean"
    axes = panel(figure, metric.title, subtitle, margin_left=22 + 6.8 * names, margin_right=74)
    spreads = [row.spreads[metric.name] for row in rows]
    low, high = focus({row.agent: [0.0, *spread.values] for row, spread in zip(rows, spreads, strict=True)})
    for i, (row, spread) in enumerate(zip(rows, spreads, strict=True)):
        is_bound = metric.name in row.bounds
        value = f"{'≤ ' if is_bound else ''}{written_value(metric, spread.mean)}"
        if spread.mean > high:
            write(axes, f"→ {value}", (1, i), 0, xycoords=("axes fraction", "data"))
            continue
        style = AgentStyle(styles[row.agent].colour, "o", "")
        face = PAPER if is_bound else style.colour
        more = {"markerfacecolor": face, "markeredgecolor": style.colour, "clip_on": False, "zorder": 3}
        mark(axes, spread.values, [i] * len(spread.values), style, size=7.5, **more)
        axes.plot([spread.mean] * 2, [i - 0.3, i + 0.3], color=INK, linewidth=1.6, zorder=4)
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
    low, high = focus({agent: [0.0, estimate.low, estimate.high, estimate.value] for agent, estimate, _ in rows})
    axes.axvline(0.0, color=MUTED, linewidth=1.0, zorder=1)
    for i, (agent, estimate, text) in enumerate(rows):
        write(axes, text, (1, i), 14, xycoords=("axes fraction", "data"))
        if not low <= estimate.value <= high:
            below = estimate.value < low
            write(axes, "←" if below else "→", (0 if below else 1, i), 0, xycoords=("axes fraction", "data"))
            continue
        colour = styles[agent].colour
        if estimate.low is not None and estimate.high is not None:
            axes.plot(
                [estimate.low, estimate.high], [i, i], color=colour, linewidth=5, alpha=0.32, solid_capstyle="round"
            )
        mark(axes, [estimate.value], [i], AgentStyle(colour, "o", ""), size=8, zorder=3)
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
    measured = {agent: [v for v in numbers if v is not None] for agent, numbers in values.items()}
    shown = [v for agent, numbers in measured.items() if agent not in CONTROLS or agent == "reference" for v in numbers]
    others = [v for numbers in measured.values() for v in numbers] or [0.0]
    low, high = (min(shown), max(shown)) if shown else (min(others), max(others))
    if max(high - min(others), max(others) - low) <= 2 * (high - low):
        low, high = min(low, *others), max(high, *others)
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room


def _ends(series: Sequence[Series]) -> str:
    values = ", ".join(f"{line.agent} {line.mean[-1]:.2f}" for line in series if line.x.size)
    return f"At the end: {values}." if values else "No seed finished."


# --- From ink to files -------------------------------------------------------------------------------------------


def demo_picture(results: Results, path: str | Path) -> Path:
    """One wide PNG for a README: gold and proxy reward along training, side by side, for the first task."""
    task, styles = results.tasks[0], agent_styles(results.agents)
    curves = [(results.metric(name), evaluation_curves(results, task, name)) for name in ("gold", "proxy")]
    panels = [(metric, series) for metric, series in curves if series]
    if not panels:
        raise DataError(f"{results.folder}: no learning curves in these results")

    def paint(figure: object) -> None:
        for i, (metric, series) in enumerate(panels):
            _paint_curves(
                figure,
                series=series,
                styles=styles,
                title=metric.title,
                subtitle=_subtitle(metric),
                left=i / len(panels),
                width=1 / len(panels),
            )

    path = Path(path)
    path.write_bytes(as_png(Picture("demo", "", task, "", 400 * len(panels), 310, paint), dpi=144))
    return path
