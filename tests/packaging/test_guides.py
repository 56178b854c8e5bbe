"""The guides are run as they are read: their files written, their commands and their Python executed, page by page."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.processes import warm_up
from pages_followed import blocks, command, python

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
_FILE = re.compile(r"# ([\w./-]+\.(?:toml|py|jsonl|csv|txt))\b")


@pytest.fixture(scope="module", autouse=True)
def _imports_are_done() -> None:
    """The processes below are forked from this one."""
    warm_up()


@pytest.mark.parametrize("page", sorted(GUIDES.glob("*.md")), ids=lambda page: page.stem)
def test_a_guide_does_what_it_says(page: Path, tmp_path: Path) -> None:
    for language, text in blocks(page):
        if named := _FILE.match(text):
            file = tmp_path / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                text.split("\n", 1)[1] if file.suffix in (".csv", ".jsonl", ".txt") else text, encoding="utf-8"
            )
            continue
        assert language in ("python", "sh"), f"{page.name}: who would run a block of {language!r}?"
        lines = [text] if language == "python" else [line for line in text.splitlines() if line.split("#")[0].strip()]
        for line in lines:
            ended = (python if language == "python" else command)(line, tmp_path).wait(300)
            assert ended.status == 0, f"{line}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
