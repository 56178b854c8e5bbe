"""axe-core (4.14, MPL 2.0) on a page in Chromium: what it finds wrong, on a desk and at 420 pixels, by light and dark.

`make axe` fetches it into build/ and calls the tests that need it; without it they are skipped.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples/closed_loop"))
from browser import CHROMIUM, Tab

__all__ = ["NEEDED", "Tab", "complaints", "opened"]

AXE = Path(__file__).parents[1] / "build/axe/axe.min.js"
NEEDED = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
    pytest.mark.skipif(not AXE.is_file(), reason="no axe-core in build/: `make axe` fetches it"),
]
WIDTHS = {"desk": 1100, "phone": 420}


def opened(request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A fixture with the parameter "light" or "dark": a tab that prefers it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        tab = Tab(Path(profile))
        scheme = {"name": "prefers-color-scheme", "value": request.param}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        yield tab
        tab.close()


def complaints(tab: Tab, view: str) -> list[str]:
    """What axe finds wrong with the view, at each width; and what is wider than the window."""
    tab.value(AXE.read_text(encoding="utf-8") + "; null")
    found = []
    for name, width in WIDTHS.items():
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        for one in tab.value("axe.run().then((said) => said.violations)"):
            found += [f"{view}, {name}: {one['id']}: {it['html'][:200]}" for it in one["nodes"]]
        if tab.value("document.documentElement.scrollWidth") > width:
            found.append(f"{view}, {name}: scrolls sideways")
    return found
