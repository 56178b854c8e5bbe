"""What agents chose along training: the level of a curriculum, and the option that wrote each segment of a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from rlhf_env.lab.benchmark.results import Cell, Results
from rlhf_env.lab.drawing import (
    INK,
    MUTED,
    PALETTE,
    PAPER,
    AgentStyle,
    Axes,
    Picture,
    axes_height,
    axes_width,
    mark,
    panel,
    short_count,
    shortened,
    write,
)
from rlhf_env.lab.report.chart import Chart, Subject, slugs
from rlhf_env.types import Float, JsonObject

_PARTS = 30  # of equal length, of a run's generated tokens
_MOST_SEEDS = 2  # whose options have a picture each: option 1 of one seed is not option 1 of another
_TOKENS, _LEVEL = "spent/generated_tokens", "curriculum/level"
_OPTION = re.compile(r"options/segment_(\d+)/option_(\d+)")
_PALE, _DARK = (0xC9, 0xDF, 0xF0), (0x00, 0x38, 0x5E)  # of the first level, and of the last


def levels_chosen(results: Results, task: str, agent: str) -> dict[int, Float]:
    """By level, float64[parts]: the share of the agent's rollouts that had it, in each part of training, over all
    seeds; NaN where there was no rollout. Empty for an agent without levels."""
    rows = [row for cell in results.of(task, agent) for row in _rows(results, cell) if _is_number(row.get(_LEVEL))]
    levels = sorted({int(row[_LEVEL]) for row in rows})
    counts = np.zeros((len(levels), _PARTS))
    for part, row in _by_part(rows):
        counts[levels.index(int(row[_LEVEL])), part] += 1
    return dict(zip(levels, _as_shares(counts), strict=True))


def options_chosen(results: Results, cell: Cell) -> list[Float]:
    """For each segment, float64[options, parts]: how often each option wrote it, in each part of training; NaN where
    no text came that far. Empty for a run without options."""
    rows = _rows(results, cell)
    places = {name: (int(it[1]), int(it[2])) for row in rows for name in row if (it := _OPTION.fullmatch(name))}
    if not places:
        return []
    sums = np.zeros([max(numbers) for numbers in zip(*places.values(), strict=True)] + [_PARTS])
    for part, row in _by_part(rows):
        for name, (segment, option) in places.items():
            if _is_number(row.get(name)):
                sums[segment - 1, option - 1, part] += row[name]
    return [_as_shares(of_segment) for of_segment in sums]


def _rows(results: Results, cell: Cell) -> list[JsonObject]:
    return [row for row in results.log(cell) if _is_number(row.get(_TOKENS))]


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _by_part(rows: Sequence[JsonObject]) -> Iterator[tuple[int, JsonObject]]:
    """Each row with the part of training that it is in."""
    end = max((float(row[_TOKENS]) for row in rows), default=0.0)
    for row in rows:
        yield min(int(_PARTS * float(row[_TOKENS]) / end), _PARTS - 1) if end else 0, row


def _as_shares(counts: Float) -> Float:
    """Columns over their sums. A part without a row is like the one before it; NaN before the first."""
    sums = counts.sum(axis=0)
    shares = np.divide(counts, sums, out=np.full(counts.shape, np.nan), where=sums > 0)
    for part in np.flatnonzero(sums == 0):
        if part:
            shares[:, part] = shares[:, part - 1]
    return np.asarray(shares, dtype=np.float64)


def _draw_levels(subject: Subject) -> Iterator[Picture]:
    agents = subject.results.agents_on(subject.task)
    for agent, slug in slugs(agents).items():
        if shares := levels_chosen(subject.results, subject.task, agent):
            last = ", ".join(f"level {level} {of[-1]:.0%}" for level, of in shares.items())
            words = f"Levels of {agent}'s rollouts along training, as shares of all seeds. At the end: {last}."
            colours = dict(zip(shares, _ramp(len(shares)), strict=True))
            paint = partial(
                _paint_shares,
                bands={"": np.array(list(shares.values()))},
                names=[f"level {level}" for level in shares],
                colours=list(colours.values()),
                end=_end(subject.results, subject.task, agent),
                title=agent,
                subtitle="share of rollouts of each level, all seeds",
            )
            yield subject.picture(f"levels-{slug}", words, paint, height=250)


def _draw_options(subject: Subject) -> Iterator[Picture]:
    results, agents = subject.results, subject.results.agents_on(subject.task)
    for agent, slug in slugs(agents).items():
        finished = [cell for cell in results.of(subject.task, agent) if cell.finished]
        for cell in finished[:_MOST_SEEDS]:
            segments = options_chosen(results, cell)
            if not segments:
                continue
            number = segments[0].shape[0]
            last = "; ".join(
                f"segment {place + 1} " + ", ".join(f"{share:.0%}" for share in of[:, -1])
                for place, of in enumerate(segments)
            )
            words = (
                f"Which option of {agent}, seed {cell.seed}, wrote each segment along training. Shares of options 1 to "
                f"{number} at the end: {last}."
            )
            paint = partial(
                _paint_shares,
                bands={f"segment {place + 1}": of for place, of in enumerate(segments)},
                names=[f"option {option + 1}" for option in range(number)],
                colours=[PALETTE[option % len(PALETTE)] for option in range(number)],
                end=_end(results, subject.task, agent),
                title=f"{shortened(agent, 40)}, seed {cell.seed}",
                subtitle="share of texts in which an option wrote the segment",
            )
            yield subject.picture(f"options-{slug}-{cell.seed}", words, paint, height=130 + 46 * len(segments))


def _end(results: Results, task: str, agent: str) -> float:
    rows = [row for cell in results.of(task, agent) for row in _rows(results, cell)]
    return max(float(row[_TOKENS]) for row in rows)


def _ramp(count: int) -> list[str]:
    """`count` colours from pale to dark."""
    places = np.linspace(0.0, 1.0, count) if count > 1 else np.array([1.0])
    mixed = [[round(a + (b - a) * place) for a, b in zip(_PALE, _DARK, strict=True)] for place in places.tolist()]
    return ["#" + "".join(f"{channel:02x}" for channel in colour) for colour in mixed]


def _paint_shares(
    figure: object,
    *,
    bands: Mapping[str, Float],
    names: Sequence[str],
    colours: Sequence[str],
    end: float,
    title: str,
    subtitle: str,
) -> None:
    """A band for each of `bands`, from the top, in which shares float64[things, parts] lie on each other; a key."""
    left = 22 + 6.4 * max(map(len, bands))
    axes = panel(figure, title, subtitle, margin_left=max(left, 46), margin_right=34 + 6.4 * max(map(len, names)))
    axes.grid(visible=False)
    several = len(bands) > 1
    height = 0.86 if several else 1.0
    for place, shares in enumerate(bands.values()):
        bottom = len(bands) - 1 - place + (1 - height) / 2
        floor = np.full(shares.shape[1], bottom)
        edges = np.linspace(0.0, end, shares.shape[1] + 1)
        for share, colour in zip(shares, colours, strict=True):
            top = floor + height * share
            axes.stairs(top, edges, baseline=floor, fill=True, color=colour, linewidth=0)
            axes.stairs(top, edges, baseline=None, color=PAPER, linewidth=0.8)
            floor = top
    axes.set_xlim(0, end)
    axes.set_ylim(0, len(bands))
    if several:
        axes.set_yticks(
            [len(bands) - 0.5 - place for place in range(len(bands))], list(bands), color=INK, fontsize=10.5
        )
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("generated tokens in training", color=MUTED, fontsize=10, labelpad=5)
    axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    axes.xaxis.get_major_locator().set_params(nbins=5)
    _write_colours(axes, list(zip(names, colours, strict=True))[::-1])


def _write_colours(axes: Axes, key: Sequence[tuple[str, str]]) -> None:
    """A square and a name for each, from the top, right of the axes: in the order in which they lie on each other."""
    for place, (name, colour) in enumerate(key):
        x, y = 1 + 16 / axes_width(axes), 1 - (8 + 18 * place) / axes_height(axes)
        mark(axes, [x], [y], AgentStyle(colour, "s", ""), size=8, transform=axes.transAxes, clip_on=False)
        write(axes, name, (x, y), 9)


CHOICES: tuple[Chart, ...] = (
    Chart(
        name="levels",
        title="Levels along training",
        link="Levels",
        caption="Which level of the task a curriculum's rollouts had. By progress, a level that swells is one whose "
        "scores are changing. Evaluations are at the task's own level throughout.",
        draw=_draw_levels,
        small=True,
    ),
    Chart(
        name="options",
        title="Options by place and time",
        link="Options",
        caption="Which option wrote the first segment of a text, the second, and so on. A band of one colour is an "
        "option that has that place to itself; where all bands look alike, the manager does not tell places apart. "
        "Numbers of options mean nothing across seeds: the first two have a picture each.",
        draw=_draw_options,
        small=True,
    ),
)
