"""The drawing kit: colours, marks, panels, SVG and PNG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from rlhf_env.errors import MissingExtra
from rlhf_env.shown_text import for_page
from rlhf_env.types import JsonObject

# Okabe and Ito, "Color Universal Design" (2008), the darker ones first; their yellow is too pale for a line on white.
# Of matplotlib, which is an extra and whose types are left out.
Axes = Any
Figure = Any

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
INK, MUTED, LINE, PAPER = "#1d2430", "#5f6875", "#dfe3e8", "#fefefe"
_PAGE_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)", PAPER: "var(--panel)"}

_WHITE = "#ffffff"  # of the ground alone, which a page has of its own

_STYLE: JsonObject = {
    "font.size": 11,
    "svg.fonttype": "none",  # text stays text: selectable, and in the reader's own font
    "text.parse_math": False,  # names come from files: a `$` in one is a `$`
    "axes.linewidth": 0.8,
}

_LONGEST_NAME = 15


@dataclass(frozen=True)
class AgentStyle:
    """How an agent looks in every figure and on the page."""

    colour: str
    marker: str
    dash: str


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn."""

    name: str
    """Its file name without the ending."""
    section: str
    """The section of the page that it stands in."""
    task: str
    """Empty where the figure is about all tasks."""
    description: str
    """For readers who cannot see it."""
    width: int
    height: int
    paint: Callable[[Figure], None]


def panel(
    figure: Figure,
    title: str,
    subtitle: str,
    *,
    left: float = 0.0,
    width: float = 1.0,
    margin_left: float = 46,
    margin_right: float = 20,
) -> Axes:
    """Axes with a title above their left edge, light horizontal rules and no box. Margins are in points."""
    full_width, full_height = figure.get_size_inches() * 72
    bottom, top = 42, 50
    axes_width = width - (margin_left + margin_right) / full_width
    axes_height = 1 - (bottom + top) / full_height
    axes = figure.add_axes((left + margin_left / full_width, bottom / full_height, axes_width, axes_height))
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=10, length=0, pad=5)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.get_major_locator().set_params(nbins=5)
    at = left + 10 / full_width
    figure.text(at, 1 - 20 / full_height, shortened(title, 60), color=INK, fontsize=12.5, fontweight="bold")
    figure.text(at, 1 - 36 / full_height, subtitle, color=MUTED, fontsize=10)
    return axes


def name_ends(
    axes: Axes, ends: Mapping[str, tuple[float, float]], names: Mapping[str, str], styles: Mapping[str, AgentStyle]
) -> None:
    """Each name right of the end of its line, moved apart where they would overlap, with a leader to its line."""
    height, right = axes_height(axes), axes.get_xlim()[1]
    low, high = axes.get_ylim()
    by_height = sorted(((y - low) / (high - low) * height, x / right, agent) for agent, (x, y) in ends.items())
    heights = spaced([min(max(y, 6.0), height) for y, _, _ in by_height], gap=14, top=height)
    for (y, x, agent), shown in zip(by_height, heights, strict=True):
        x_name, y_name = 1 + 12 / axes_width(axes), shown / height
        if 0 <= y <= height:
            leader = {"color": styles[agent].colour, "linewidth": 0.9, "transform": axes.transAxes, "clip_on": False}
            axes.plot([x, x_name], [y / height, y_name], **leader)
        write(axes, names[agent], (x_name, y_name), 4)


def mark(axes: Axes, x: npt.ArrayLike, y: npt.ArrayLike, style: AgentStyle, *, size: float, **more: object) -> None:
    """Dots in an agent's colour and shape, without a line."""
    axes.plot(x, y, color=style.colour, marker=style.marker, markersize=size, linestyle="", **more)


def write(
    axes: Axes, text: str, at: tuple[float, float], right: float, xycoords: str | tuple[str, str] = "axes fraction"
) -> None:
    """`text`, this many points to the right of a place."""
    axes.annotate(text, at, (right, 0), xycoords=xycoords, textcoords="offset points", va="center", color=INK)


def spaced(positions: Sequence[float], *, gap: float, top: float) -> list[float]:
    """Sorted positions moved as little as one pass up and one down allow, until neighbours are `gap` apart."""
    placed: list[float] = []
    for position in positions:
        placed.append(max(position, placed[-1] + gap) if placed else position)
    ceiling = top
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def axes_width(axes: Axes) -> float:
    return float(axes.get_position().width * axes.figure.get_size_inches()[0] * 72)


def axes_height(axes: Axes) -> float:
    return float(axes.get_position().height * axes.figure.get_size_inches()[1] * 72)


def short_count(value: float) -> str:
    """1500 as 1.5k, 2000000 as 2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def typeset(number: str) -> str:
    """With a true minus sign, and none before a number that rounds to zero."""
    return number.replace("-", "−" if any(digit in number for digit in "123456789") else "")


def shortened(name: str, longest: int = _LONGEST_NAME) -> str:
    name = for_page(name).replace("\n", " ")
    return name if len(name) <= longest else name[: longest - 1] + "…"


def as_svg(picture: Picture) -> str:
    """A file of its own, on white."""
    return _rendered(picture, "svg").decode()


def as_inline_svg(picture: Picture, drawn: str | None = None) -> str:
    """An `<svg>` element for the page: no ids that another figure has too, the page's colours, no fixed size.

    `drawn`: what `as_svg` gives, where it is there already.
    """
    svg = drawn or as_svg(picture)
    svg = svg[svg.index("<svg") :].replace(f"fill: {_WHITE}", "fill: none", 1)  # the ground comes first
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    opening, rest = svg.split(">", 1)
    opening = re.sub(r'\s(?:width|height|version)="[^"]*"', "", opening)
    rest = re.sub(r'\bid="', f'id="{picture.name}-', rest)
    rest = re.sub(r'(url\(#|href="#)', rf"\g<1>{picture.name}-", rest)
    rest = re.sub(r"#[0-9a-f]{6}", lambda match: _PAGE_COLOURS.get(match[0], match[0]), rest)
    label = picture.description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'{opening} role="img" aria-label="{label}">{rest}'


def as_png(picture: Picture, dpi: int = 200) -> bytes:
    return _rendered(picture, "png", dpi=dpi)


def _rendered(picture: Picture, kind: str, *, dpi: int = 72) -> bytes:
    with _drawing(salt=picture.name) as new_figure:
        size = (picture.width / 72, picture.height / 72)
        figure = new_figure(figsize=size, facecolor=_WHITE)
        picture.paint(figure)
        buffer = io.BytesIO()
        # Without a date and a version in the file, the same results give the same bytes.
        unsaid = ("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",)
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=dict.fromkeys(unsaid))
        return buffer.getvalue()


@contextmanager
def _drawing(salt: str) -> Iterator[Callable[..., Any]]:
    """matplotlib's Figure under our settings alone, whatever the user's matplotlibrc says. No window, no pyplot."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "demo") from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # an agent may have a name in any script
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": salt})
        yield Figure
