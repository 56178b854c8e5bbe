"""The page of a board in a browser: nothing sticks out of it on a desk or on a phone, and axe finds nothing wrong.

`make axe` fetches axe-core into build/; without it only the width is looked at, and without Chromium nothing.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_env.lab.board.board_page import in_short, write_board
from rlhf_env.lab.board.entry import BoardEntry, EntrySource, text_sha256
from rlhf_env.lab.board.tracks import load_track
from rlhf_env.lab.board.verdicts import EntryVerdict, here, ranked

sys.path.insert(0, str(Path(__file__).parents[3] / "examples/closed_loop"))
from browser import CHROMIUM, Tab

AXE = Path(__file__).parents[3] / "build/axe/axe.min.js"
WIDTHS = (1280, 420)


def verdicts() -> list[EntryVerdict]:
    """Each standing that there is, with a long name, a long reason and a long line of code."""
    track = load_track("least-tokens")
    code = "class Mine:\n    " + "a_long_line = 1; " * 40
    entry = BoardEntry(
        name="quick",
        track=track.name,
        track_sha256=track.sha256,
        experiment=track.to_begin_with(),
        sources={"mine.py": EntrySource(text_sha256(code), code)},
        made_with=here(),
        runs=(),
    )
    about = EntryVerdict("quick.entry.json", "quick", track.name, "bit for bit", entry=entry, reached=10)
    costs = np.linspace(1500.0, 2000.0, 10)
    return ranked(
        [
            replace(about, costs=costs),
            replace(about, file="b.entry.json", name="b" * 64, standing="same verdict", costs=4.0 * costs),
            replace(about, file="c.entry.json", name="claims", standing="not run again", costs=costs),
            replace(
                about,
                file="d.entry.json",
                name="dishonest",
                standing="refused",
                faults=("seed 0: besides 3,900 tokens it wrote 3,900 that are not counted: a budget spent elsewhere",),
            ),
            EntryVerdict("junk.entry.json", "junk", "", "refused", ("no entry of a board: " + "x" * 200,)),
        ]
    )


@pytest.fixture(params=["light", "dark"])
def tab(request: pytest.FixtureRequest) -> Iterator[Tab]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        opened = Tab(Path(profile))
        scheme = {"name": "prefers-color-scheme", "value": request.param}
        opened.call("Emulation.setEmulatedMedia", features=[scheme])
        yield opened
        opened.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_the_page_in_a_browser(tab: Tab, tmp_path: Path) -> None:
    page = write_board(verdicts(), {"least-tokens": load_track("least-tokens")}, tmp_path)
    tab.call("Page.navigate", url=page.as_uri())
    tab.sees("dishonest: refused")
    tab.value("document.querySelectorAll('details').forEach((it) => (it.open = true))")
    found = []
    for width in WIDTHS:
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        if (wide := tab.value("document.documentElement.scrollWidth")) > width:
            found.append(f"{width}: the page is {wide} wide")
        # Rank, name and what was spent can be read without scrolling the table.
        shown = tab.value("document.querySelector('tbody td:nth-child(3)').getBoundingClientRect().right")
        if shown > width:
            found.append(f"{width}: what was spent ends at {shown}")
        if AXE.is_file():
            tab.value(AXE.read_text(encoding="utf-8") + "; null")
            for one in tab.value("axe.run().then((said) => said.violations)"):
                found += [f"{width}: {one['id']}: {it['html'][:200]}" for it in one["nodes"]]
    assert not found, "\n".join(found)


def test_what_the_board_says_in_short() -> None:
    assert in_short(verdicts()) == "5 entries: 2 run again and ranked, 1 not run again (no rank), 2 refused."
