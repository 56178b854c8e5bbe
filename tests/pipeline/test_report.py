"""The table of a pipeline's stages in a terminal."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from rlhf_env.pipeline.report import _COLUMNS, PipelineCell, PipelineLine, _table


@pytest.mark.parametrize(("width", "kept"), [(80, "Tokens"), (120, "Time")])
def test_nothing_is_cut_at_the_edge(width: int, kept: str) -> None:
    """What has no room is named below, and a name of a stage stays on its line."""
    columns = [column for column in _COLUMNS if column.name != "Won"]
    cells = [PipelineCell("0.618", "0.450 to 0.761" if column.name == "Accuracy" else "") for column in columns]
    line = PipelineLine("preferences", "judge", "finished", cells, "", "")
    console = Console(file=StringIO(), width=width)
    console.print(_table(columns, [line], ["Gold: " + "small talk " * 20], width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    heading, first = shown.splitlines()[:2]
    assert heading.split()[-1] == kept and first.startswith("preferences ")
    assert max(map(len, shown.splitlines())) <= width and "…" not in shown
    said = "Left out, this terminal has 80 columns: Time. report.html has them."
    assert (said in " ".join(shown.split())) == (width == 80)
