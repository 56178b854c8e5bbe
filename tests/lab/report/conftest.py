"""Reports in a test are drawn coarsely and resample little."""

from __future__ import annotations

from functools import partial

import pytest

from rlhf_env.lab.benchmark import comparison
from rlhf_env.lab.report import figures


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG files of few pixels, to be quick."""
    monkeypatch.setattr(figures, "as_png", partial(figures.as_png, dpi=20))


@pytest.fixture
def rough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer resamples than in a real report."""
    monkeypatch.setattr(comparison, "_RESAMPLES", 100)
    monkeypatch.setattr(comparison, "_REPEATS", 4)
