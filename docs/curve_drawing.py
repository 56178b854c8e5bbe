"""A learning curve as a small SVG file: written by hand, so that the same numbers give the same bytes everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rlhf_env.lab.drawing import INK, LINE, MUTED, PALETTE, PAPER, short_count, spaced, typeset

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 490, 46, 132, 30, 40  # readable at the width of a phone, too
_HEIGHTS = {"reward": 210, "kl": 160}
_TITLES = {"reward": "Reward (mean over prompts, without KL)", "kl": "KL to the reference, nats per text"}


@dataclass(frozen=True)
class Curve:
    """A number of an agent along training, over its seeds; one point is a line across: nothing is trained."""

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    def across(self, end: float) -> Curve:
        """From 0 to `end`, where it is one point."""
        if len(self.x) > 1:
            return self
        return Curve([0.0, end], *([values[-1]] * 2 for values in (self.mean, self.low, self.high)))

    def at(self, x: float) -> float:
        """The mean there, by the line between its neighbours; before the first and after the last as these are."""
        if x <= self.x[0] or len(self.x) == 1:
            return self.mean[0]
        for place in range(1, len(self.x)):
            if x <= self.x[place]:
                share = (x - self.x[place - 1]) / (self.x[place] - self.x[place - 1])
                return self.mean[place - 1] + share * (self.mean[place] - self.mean[place - 1])
        return self.mean[-1]


def figure(name: str, of: Mapping[str, Mapping[str, Curve]], trained: Sequence[str], words: str, x_title: str) -> str:
    """The file: reward above, KL below. `of`: by number ("reward", "kl"), then by row of the grid.

    `trained`: the other rows whose range is shown, faint; the row `reference` is the dashed line.
    """
    parts, top = [], 0.0
    for number, height in _HEIGHTS.items():
        parts += _panel(name, of[number], trained, number, top, height, x_title if number == "kl" else "")
        top += height + (10 if number == "reward" else 0)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top:g}" viewBox="0 0 {WIDTH} {top:g}" '
        f'role="img" font-family="sans-serif" font-size="12"><title>{escape(words)}</title>'
        f'<rect width="{WIDTH}" height="{top:g}" fill="{PAPER}"/>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _panel(
    name: str, curves: Mapping[str, Curve], trained: Sequence[str], number: str, top: float, height: float, x_title: str
) -> list[str]:
    end = max(curve.x[-1] for curve in curves.values())
    own, start = curves[name].across(end), curves["reference"].across(end)
    others = {row: curves[row].across(end) for row in trained}
    seen = [*own.low, *own.high, *start.mean, *(value for curve in others.values() for value in curve.mean)]
    least = 0.0 if number == "kl" and min(seen) > -0.05 * max(seen) else min(seen)  # an estimate near 0 may be below it
    ticks = _ticks(least, max(seen))
    low, high = ticks[0], ticks[-1]
    bottom = top + height - (BOTTOM if x_title else 22)

    def x(value: float) -> str:
        return f"{LEFT + value / end * (WIDTH - LEFT - RIGHT):.1f}"

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top - TOP)

    def line(values: Curve) -> str:
        return " ".join(f"{x(a)},{y(b):.1f}" for a, b in zip(values.x, values.mean, strict=True))

    def band(at: Sequence[float], lowest: Sequence[float], highest: Sequence[float], colour: str, opacity: str) -> str:
        there = [f"{x(a)},{y(b):.1f}" for a, b in zip(at, highest, strict=True)]
        back = [f"{x(a)},{y(b):.1f}" for a, b in zip(reversed(at), reversed(lowest), strict=True)]
        return f'<polygon points="{" ".join([*there, *back])}" fill="{colour}" fill-opacity="{opacity}"/>'

    parts = [f'<text x="6" y="{top + 18:g}" fill="{INK}" font-weight="bold">{_TITLES[number]}</text>']
    for tick in ticks:
        at = f"{y(tick):.1f}"
        parts.append(f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" stroke="{LINE}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" fill="{MUTED}" text-anchor="end">{_said(tick)}</text>'
        )
    for tick in [tick for tick in _ticks(0.0, end) if tick <= end]:
        parts.append(
            f'<text x="{x(tick)}" y="{bottom + 16:g}" fill="{MUTED}" text-anchor="middle">{short_count(tick)}</text>'
        )
    if x_title:
        middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
        parts.append(f'<text x="{middle:g}" y="{bottom + 33:g}" fill="{MUTED}" text-anchor="middle">{x_title}</text>')
    ends = []
    if len(others) == 1:
        ((row, curve),) = others.items()
        parts.append(f'<polyline points="{line(curve)}" fill="none" stroke="{MUTED}" stroke-opacity=".5"/>')
        ends.append((y(curve.mean[-1]), row, MUTED))
    elif others:
        grid = [end * step / 20 for step in range(21)]
        spread = [[curve.at(value) for curve in others.values()] for value in grid]
        lowest, highest = [min(values) for values in spread], [max(values) for values in spread]
        parts.append(band(grid, lowest, highest, MUTED, ".16"))
        ends.append((y((lowest[-1] + highest[-1]) / 2), f"{len(others)} others", MUTED))
    if name != "reference":
        parts.append(f'<polyline points="{line(start)}" fill="none" stroke="{INK}" stroke-dasharray="5 4"/>')
        ends.append((y(start.mean[-1]), "untrained", INK))
    parts.append(band(own.x, own.low, own.high, PALETTE[0], ".25"))
    parts.append(f'<polyline points="{line(own)}" fill="none" stroke="{PALETTE[0]}" stroke-width="2"/>')
    ends.append((y(own.mean[-1]), name, PALETTE[0]))
    ends.sort()
    floor = bottom + 4
    heights = spaced([floor - at for at, *_ in reversed(ends)], gap=14, top=floor - top - TOP + 8)
    for (_, text, colour), above in zip(reversed(ends), heights, strict=True):
        parts.append(
            f'<text x="{WIDTH - RIGHT + 6}" y="{floor - above + 4:.1f}" fill="{colour}">{escape(_short(text))}</text>'
        )
    return parts


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


def _said(value: float) -> str:
    return typeset(f"{value:.4g}")


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that hold both."""
    room = (high - low) or 1.0
    unit = 10 ** math.floor(math.log10(room / 4))
    step = next(step for step in (unit, 2 * unit, 2.5 * unit, 5 * unit, 10 * unit) if room / step <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * place, 10) for place in range(first, last + 1)]
