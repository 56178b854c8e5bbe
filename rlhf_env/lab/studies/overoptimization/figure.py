"""The figure of a study of over-optimisation: gold and proxy reward against distance, in four panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rlhf_env.lab.drawing import INK, LINE, MUTED, PALETTE, Axes, Figure, Picture, as_png, as_svg
from rlhf_env.lab.studies.overoptimization.findings import BEST_OF_N, Findings, ProxyLine
from rlhf_env.whole_files import write_whole

_KEY = "A point is a checkpoint of a seed; a line is the fitted law, a diamond its peak; dotted: means of the proxy."
_LOWEST = -1.5  # a policy gone to pieces would flatten everything else


def picture(findings: Findings) -> Picture:
    """Agents on one proxy; what labels, size and noise do; ensembles under noise; best-of-n by itself."""
    comparer = findings.study.comparer
    agents, _ = _names(findings)
    panels = [
        (
            "Agents on one proxy",
            "gold: line and points, proxy: dotted",
            {name: ("base", name) for name in agents},
            True,
        ),
        (
            "Labels, size and noise of the proxy",
            f"gold, {comparer}",
            {name: (name, comparer) for name in ("base", "few-labels", "large", "noisy")},
            False,
        ),
        (
            "Ensembles under label noise",
            f"gold, {comparer}",
            {name: (name, comparer) for name in ("noisy", "worst-case", "uncertainty")},
            False,
        ),
        (
            "Best-of-n by itself",
            "gold: line and points, proxy: dotted",
            {name: (name, BEST_OF_N) for name in ("base", "few-labels", "noisy", "worst-case")},
            True,
        ),
    ]
    told = "; ".join(
        f"{line.name} is highest, {line.fit.highest.value:.2f}, at d = {line.fit.peak.value:.2f}"
        for line in findings.lines
        if line.fit is not None
    )
    description = f"Gold and proxy reward against the square root of the KL to the reference. Gold: {told}."
    return Picture("overoptimization", "", "", description, 860, 620, partial(_paint, findings=findings, panels=panels))


def save_picture(findings: Findings, folder: str | Path) -> list[Path]:
    """overoptimization.png and .svg in `folder`. Raises MissingExtra without matplotlib."""
    drawn = picture(findings)
    files = [Path(folder) / f"{drawn.name}.png", Path(folder) / f"{drawn.name}.svg"]
    write_whole(files[0], as_png(drawn, dpi=144))
    write_whole(files[1], as_svg(drawn))
    return files


def _paint(
    figure: Figure,
    *,
    findings: Findings,
    panels: Sequence[tuple[str, str, Mapping[str, tuple[str, str]], bool]],
) -> None:
    # A proxy has one colour in all panels; so has an agent, in the one where they are compared.
    colours = {name: PALETTE[i % len(PALETTE)] for names in _names(findings) for i, name in enumerate(names)}
    figure.text(0.055, 0.982, _KEY, color=MUTED, fontsize=10, va="center")
    for place, (title, subtitle, wanted, with_proxy) in enumerate(panels):
        row, column = divmod(place, 2)
        axes = figure.add_axes((0.055 + 0.5 * column, 0.575 - 0.5 * row, 0.425, 0.325))
        lines = {name: findings.line(*where) for name, where in wanted.items()}
        shown = [(name, colours[name], line) for name, line in lines.items() if line is not None]
        _panel(axes, title, subtitle, shown, with_proxy)


def _names(findings: Findings) -> tuple[list[str], list[str]]:
    return [*findings.study.climbs, BEST_OF_N], list(findings.study.proxies)


def _panel(
    axes: Axes, title: str, subtitle: str, lines: Sequence[tuple[str, str, ProxyLine]], with_proxy: bool
) -> None:
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=10, length=0, pad=5)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.axhline(0.0, color=MUTED, linewidth=0.8)
    for name, colour, line in lines:
        distance, gold, proxy = (
            np.concatenate([getattr(it, what) for it in line.points]) for what in ("distance", "gold", "proxy")
        )
        axes.plot([], [], color=colour, linewidth=2.0, label=name)  # in the legend with or without a fit
        axes.plot(distance, gold, "o", color=colour, markersize=2.2, alpha=0.35, markeredgewidth=0)
        if line.fit is not None:
            along = np.linspace(0.0, line.fit.end, 200)
            axes.plot(along, line.fit.law(along), color=colour, linewidth=2.0)
            if line.fit.law.peak is not None and line.fit.law.peak <= line.fit.end:
                axes.plot([line.fit.peak.value], [line.fit.highest.value], "D", color=colour, markersize=5)
        if with_proxy:
            order = np.argsort(distance)
            bins = [some for some in np.array_split(order, min(9, len(order))) if len(some)]
            means = [(distance[some].mean(), proxy[some].mean()) for some in bins]
            axes.plot(*np.array(means).T, color=colour, linewidth=1.4, linestyle=":")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, _LOWEST), high)
    axes.set_xlim(left=0.0)
    axes.yaxis.get_major_locator().set_params(nbins=5)
    axes.set_xlabel("d = √KL to the reference", color=MUTED, fontsize=10, labelpad=4)
    axes.legend(frameon=False, fontsize=10, labelcolor=INK, loc="best", handlelength=1.4, borderpad=0.2)
    axes.text(0.0, 1.14, title, transform=axes.transAxes, color=INK, fontsize=12.5, fontweight="bold")
    axes.text(0.0, 1.05, f"{subtitle}; in the reference's SD", transform=axes.transAxes, color=MUTED)
