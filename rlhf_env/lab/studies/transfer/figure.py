"""The picture of a study of transfer: the place of each setting at each size, a panel a task."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rlhf_env.lab.drawing import MARKERS, MUTED, PALETTE, AgentStyle, Figure, Picture, as_png, as_svg, name_ends, panel
from rlhf_env.lab.studies.transfer.sizes import RANKED_SETTINGS, TASKS
from rlhf_env.lab.studies.transfer.study import TransferFindings
from rlhf_env.whole_files import write_whole

_STYLES = {
    agent: AgentStyle(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], "-" if i < len(PALETTE) else "--")
    for i, agent in enumerate(RANKED_SETTINGS)
}


def transfer_picture(findings: TransferFindings) -> Picture:
    """A line a setting from size to size: lines that cross are places that change."""
    told = "; ".join(
        f"{task}, {size.name}: {', '.join(sorted(RANKED_SETTINGS, key=size.places(task).__getitem__))}"
        for task in TASKS
        for size in findings.sizes
        if task in size.scores
    )
    return Picture(
        "transfer", "", "", f"Settings from the best to the worst. {told}.", 860, 320, partial(_paint, findings)
    )


def save_transfer_picture(findings: TransferFindings, folder: Path) -> list[Path]:
    """transfer.png and .svg in `folder`. Raises MissingExtra without matplotlib."""
    picture = transfer_picture(findings)
    files = [folder / "transfer.png", folder / "transfer.svg"]
    write_whole(files[0], as_png(picture, dpi=144))
    write_whole(files[1], as_svg(picture))
    return files


def _paint(findings: TransferFindings, figure: Figure) -> None:
    width = 1.0 / len(TASKS)
    for number, task in enumerate(TASKS):
        sizes = [size for size in findings.sizes if task in size.scores]
        axes = panel(
            figure, task, "place by mean score, 1 is the best", left=number * width, width=width, margin_right=76
        )
        places = {agent: [size.places(task)[agent] for size in sizes] for agent in RANKED_SETTINGS}
        for agent, style in _STYLES.items():
            marks = {
                "marker": style.marker,
                "markersize": 6,
                "linewidth": 1.8,
                "linestyle": style.dash,
                "clip_on": False,
            }
            axes.plot(range(len(sizes)), places[agent], color=style.colour, **marks)
        axes.set_ylim(len(RANKED_SETTINGS) + 0.5, 0.5)
        axes.set_yticks([1, 4, 8], ["1", "4", "8"])
        axes.set_xlim(-0.15, max(len(sizes) - 1, 1))
        labels = [f"{size.name}\n{size.parameters.split(' (')[0]}" for size in sizes]
        axes.set_xticks(range(len(sizes)), labels, color=MUTED, fontsize=10)
        if sizes:
            ends = {agent: (float(len(sizes) - 1), of[-1]) for agent, of in places.items()}
            name_ends(axes, ends, {agent: agent for agent in RANKED_SETTINGS}, _STYLES)
