"""Reports in a test are drawn coarsely and resample little."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from rlhf_env.lab import drawing
from rlhf_env.lab.benchmark import comparison
from rlhf_env.lab.report import figures, report


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG files of few pixels, to be quick."""
    for module in (figures, report):
        monkeypatch.setattr(module, "as_png", partial(drawing.as_png, dpi=20))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report without its figures, for tests of what else stands in it: most of its time is drawing."""
    empty = tuple(replace(chart, draw=lambda _subject: iter(())) for chart in figures.CHARTS)
    monkeypatch.setattr(figures, "CHARTS", empty)


@pytest.fixture
def rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer resamples than in a real report."""
    monkeypatch.setattr(comparison, "_RESAMPLES", 100)
    monkeypatch.setattr(comparison, "_REPEATS", 4)
