"""docs/reference/ is what the plugins and commands say of themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
LISTED = """
import json, runpy, sys
print(json.dumps(dict(runpy.run_path(sys.argv[1])["pages"]())))
"""


@pytest.mark.skipif(not DOCS.exists(), reason="docs/ is not here")
def test_the_reference_is_what_they_say() -> None:
    words = [
        sys.executable,
        "-c",
        LISTED,
        str(DOCS / "make_pages.py"),
    ]  # by itself: it leaves other people's plugins out
    made = json.loads(subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout)
    there = {
        str(file.relative_to(DOCS / "reference")): file.read_text("utf-8")
        for file in DOCS.rglob("reference/**/*")
        if file.is_file()
    }
    assert made.keys() == there.keys(), "python docs/make_pages.py"
    stale = [name for name in made if made[name] != there[name]]
    assert not stale, "python docs/make_pages.py"
    agents = [name for name in made if name.startswith("agents/") and name.endswith(".md") and "index" not in name]
    assert [name for name in agents if f"({Path(name).stem}.svg)" not in made[name]] == [], "an agent without a curve"
    assert sum(len(text) for name, text in made.items() if name.endswith(".svg")) < 300_000
