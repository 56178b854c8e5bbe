"""The picture of the labels study: accuracy against labels bought, and what each strategy saves against random."""

from __future__ import annotations

from pathlib import Path

from rlhf_env.lab.drawing import (
    INK,
    MUTED,
    PALETTE,
    AgentStyle,
    Picture,
    as_png,
    as_svg,
    mark,
    name_ends,
    panel,
    short_count,
    write,
)
from rlhf_env.lab.studies.labels import Found
from rlhf_env.whole_files import write_whole

STYLES = {
    "random": AgentStyle("#7b818a", "o", "--"),
    "uncertainty": AgentStyle(PALETTE[0], "o", "-"),
    "disagreement": AgentStyle(PALETTE[1], "s", "-"),
}


def labels_picture(found: Found) -> Picture:
    """Two panels side by side."""
    return Picture("labels", "", "", found.sentence, 860, 320, lambda figure: _paint(figure, found))


def write_pictures(found: Found, folder: Path) -> list[Path]:
    """labels.svg and labels.png. Raises MissingExtra without matplotlib."""
    picture = labels_picture(found)
    write_whole(folder / "labels.svg", as_svg(picture))
    write_whole(folder / "labels.png", as_png(picture, dpi=144))
    return [folder / "labels.svg", folder / "labels.png"]


def _paint(figure: object, found: Found) -> None:
    _paint_curves(figure, found)
    _paint_saved(figure, found)


def _paint_curves(figure: object, found: Found) -> None:
    subtitle = "agreement with gold on held-out pairs; bands: 95 % intervals over seeds"
    axes = panel(figure, "Accuracy", subtitle, width=0.5, margin_right=100)
    labels = found.study.labels
    ends = {}
    for name, curve in found.curves.items():
        style = STYLES[name]
        values = [it.value for it in curve]
        low, high = ([getattr(it, end) if it.low is not None else it.value for it in curve] for end in ("low", "high"))
        axes.fill_between(labels, low, high, color=style.colour, alpha=0.16, linewidth=0)
        axes.plot(labels, values, color=style.colour, linewidth=2.0, linestyle=style.dash)
        ends[name] = (float(labels[-1]), values[-1])
    for target in found.study.targets:
        axes.axhline(target, color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, labels[-1])
    axes.set_xlabel("labels bought", color=MUTED, fontsize=10, labelpad=5)
    axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    axes.xaxis.get_major_locator().set_params(nbins=5)
    name_ends(axes, ends, {name: name for name in ends}, STYLES)


def _paint_saved(figure: object, found: Found) -> None:
    """A row per accuracy and strategy: a dot on a line over its interval, a rule at zero, the verdict beside it."""
    axes = panel(
        figure,
        "Labels saved against random",
        "paired by seed, 95 % intervals",
        left=0.5,
        width=0.5,
        margin_left=70,
        margin_right=96,
    )
    rows = [
        (f"at {need.target:.2f}", name, need.saved)
        for place in range(len(found.study.targets))
        for name, needs in found.needs.items()
        if (need := needs[place]).saved is not None
    ]
    rows += [("over all", name, it) for name, it in found.overall.items()]
    axes.axvline(0.0, color=MUTED, linewidth=1.0, zorder=1)
    for i, (_, name, saved) in enumerate(rows):
        assert saved is not None
        it, style = saved.difference, STYLES[name]
        if it.low is not None and it.high is not None:
            line = {"linewidth": 5, "alpha": 0.32, "solid_capstyle": "round"}
            axes.plot([it.low, it.high], [i, i], color=style.colour, **line)
        mark(axes, [it.value], [i], style, size=7, zorder=3)
        write(axes, saved.verdict, (1, i), 12, xycoords=("axes fraction", "data"))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    each = len(found.overall)
    middles = [first + (each - 1) / 2 for first in range(0, len(rows), each)]
    axes.set_yticks(middles, [rows[first][0] for first in range(0, len(rows), each)], color=INK, fontsize=11)
    for first in range(each, len(rows), each):
        axes.axhline(first - 0.5, color=MUTED, linewidth=0.4)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("labels", color=MUTED, fontsize=10, labelpad=5)
    axes.xaxis.get_major_locator().set_params(nbins=5)
