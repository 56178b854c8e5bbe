"""The scorecard of a reward model to look at: a page that needs nothing else, and a section of a benchmark's report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from markupsafe import Markup

from rlhf_env.errors import RunFailed
from rlhf_env.feedback.reward_models.calibration import Bin
from rlhf_env.feedback.reward_models.card import Point, Scorecard, measures
from rlhf_env.feedback.reward_models.scorecard import MOST_POINTS
from rlhf_env.lab.drawing import INK, MUTED, PALETTE, AgentStyle, Picture, as_inline_svg, mark, panel
from rlhf_env.lab.report import html as page

# Names under which a scorecard lies in a benchmark's or demo's folder; the second is what `rlhf-env scorecard` calls
# that of the model in it.
FILES = ("scorecard.json", "reward_model.scorecard.json")

_SLICES = 8
_DOT = AgentStyle(PALETTE[0], "o", "")


def write_page(card: Scorecard, file: str | Path, *, name: str) -> None:
    """The scorecard of the model `name` as one HTML file without script or network. MissingExtra without matplotlib."""
    text = _rendered(card, alone=True, name=name, style=page.style())
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFailed(f"scorecard page {file}: cannot be written: {error}") from error


def section_of(folder: str | Path) -> Markup:
    """The section about the reward model of a run or benchmark folder; empty where there is no scorecard.

    Raises DataError for a scorecard that cannot be read.
    """
    found = next((Path(folder) / name for name in FILES if (Path(folder) / name).is_file()), None)
    return Markup() if found is None else _rendered(Scorecard.load(found), alone=False)


def _rendered(card: Scorecard, **told: object) -> Markup:
    template = page.environment().get_template("scorecard.html.jinja")
    rendered = template.render(
        card=card,
        measures=list(measures(card)),
        slices=sorted(card.slices, key=lambda it: it.accuracy.value)[:_SLICES],
        figures={
            picture.name.removeprefix("scorecard-"): as_inline_svg(picture) for picture in scorecard_pictures(card)
        },
        most_points=MOST_POINTS,
        signed="{:+.2f}".format,
        **told,
    )
    return Markup(rendered)  # escaped by the template


def scorecard_pictures(card: Scorecard) -> list[Picture]:
    """The reliability diagram, and the score against length and against repetition."""
    told = "How often the model is right against the confidence it states, with intervals."
    diagram = partial(_paint_reliability, bins=card.reliability)
    drawn = [Picture("scorecard-reliability", "", "", told, 430, 330, diagram)]
    for name, what, rho in (
        ("length", "characters", card.length_correlation),
        ("repetition", "share of words and word pairs that are repeats", card.repetition_correlation),
    ):
        said = "does not vary" if rho is None else f"Spearman {rho:.2f}"
        ends = card.intervals.get(f"{name}_correlation")
        said += "" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]"
        told = f"Score against {name} of the response: {said}."
        paint = partial(_paint_scatter, points=card.points, by=name, said=said, unit=what)
        drawn.append(Picture(f"scorecard-{name}", "", "", told, 430, 330, paint))
    return drawn


def _paint_reliability(figure: object, *, bins: Sequence[Bin]) -> None:
    sizes = sorted({it.pairs for it in bins})
    each = f"{sizes[0]} to {sizes[-1]} pairs" if len(sizes) > 1 else f"{sizes[0]} pairs"
    axes = panel(figure, "Right against stated", f"share of pairs; each dot is {each}")
    axes.plot([0.5, 1.0], [0.5, 1.0], color=MUTED, linewidth=1.2, linestyle="--")
    for it in bins:
        axes.plot([it.stated] * 2, [it.low, it.high], color=_DOT.colour, linewidth=4, alpha=0.3, solid_capstyle="round")
    mark(axes, [it.stated for it in bins], [it.observed for it in bins], _DOT, size=7, zorder=3)
    axes.set_xlim(0.49, 1.01)
    axes.set_ylim(min(0.45, *(it.low - 0.02 for it in bins)), 1.02)
    axes.set_xlabel("stated confidence", color=MUTED, fontsize=10, labelpad=5)
    axes.xaxis.get_major_locator().set_params(nbins=6)


def _paint_scatter(figure: object, *, points: Sequence[Point], by: str, said: str, unit: str) -> None:
    axes = panel(figure, f"Score against {by}", said)
    x, y = np.array([getattr(it, by) for it in points], dtype=np.float64), np.array([it.score for it in points])
    mark(axes, x, y, _DOT, size=4, alpha=0.35, markeredgewidth=0)
    edges = np.unique(np.quantile(x, np.linspace(0, 1, 6)[1:-1]))  # fifths; equal values stay together
    part = np.searchsorted(edges, x)
    along = [(x[part == i].mean(), y[part == i].mean()) for i in np.unique(part)]
    axes.plot(*zip(*along, strict=True), color=INK, linewidth=1.6)
    axes.set_xlabel(unit, color=MUTED, fontsize=10, labelpad=5)
    axes.xaxis.get_major_locator().set_params(nbins=6)
