"""The curves of the agents' pages: of the grid that is shipped, and drawn where the numbers are."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.skipif(not (DOCS / "agent_curves.json").exists(), reason="docs/ is not here")


@pytest.fixture(scope="module")
def drawing() -> dict[str, Any]:
    """What is in docs/curve_drawing.py and docs/agent_curves.py, which are no modules of a package."""
    before = sys.path.copy()
    made = runpy.run_path(str(DOCS / "agent_curves.py"))
    sys.path[:] = before
    sys.modules.pop("curve_drawing", None)
    return made


def test_they_are_of_the_grid_as_it_is(drawing: dict[str, Any]) -> None:
    known = json.loads((DOCS / "agent_curves.json").read_text(encoding="utf-8"))
    said = "rlhf-env bench examples/agent_curves.toml; python docs/agent_curves.py; python docs/make_pages.py"
    assert known["grid"] == drawing["of_the_grid"](), said


def test_a_line_goes_through_its_numbers(drawing: dict[str, Any]) -> None:
    curve = drawing["Curve"]
    flat = curve([0.0], [0.2], [0.1], [0.3])
    rising = curve([0.0, 500.0, 1000.0], [0.2, 0.6, 1.0], [0.1, 0.5, 0.9], [0.3, 0.7, 1.0])
    rows = {"reference": flat, "a<b": rising, "c": curve([0.0, 1000.0], [0.2, 0.4], [0.2, 0.4], [0.2, 0.4])}
    svg = drawing["figure"]("a<b", {"reward": rows, "kl": rows}, ["c"], "words", "generated tokens")
    root = ElementTree.fromstring(svg)
    of = "{http://www.w3.org/2000/svg}"
    ticks = {}  # of the reward's panel: what is written, and where its rule is
    rules = [float(path.attrib["d"].split("H")[0].split()[1]) for path in root.iter(f"{of}path")]
    for text in root.iter(f"{of}text"):
        if text.get("text-anchor") == "end" and float(text.attrib["y"]) < 220:
            ticks[float(text.text or "")] = min(rules, key=lambda y, at=float(text.attrib["y"]): abs(y - at))
    (low, bottom), (high, top) = min(ticks.items()), max(ticks.items())
    line = next(it for it in root.iter(f"{of}polyline") if it.get("stroke-width") == "2")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    values = [low + (bottom - y) / (bottom - top) * (high - low) for _, y in points]
    assert values == pytest.approx([0.2, 0.6, 1.0], abs=0.005)
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.1)
    written = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"a&lt;b", "c", "untrained", "generated tokens"} <= set(written)
