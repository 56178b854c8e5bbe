"""The guides are run as they are read: their files written, their commands and their Python executed, page by page."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.processes import Running, started, warm_up

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.(?:toml|py|jsonl|csv|txt))\b")


@pytest.fixture(scope="module", autouse=True)
def _imports_are_done() -> None:
    """The processes below are forked from this one."""
    warm_up()


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every code block; "text" is what a reader sees and nobody runs."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(language, text) for language, text in found if language != "text"]


def python(text: str, folder: Path) -> Running:
    def work() -> None:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        exec(compile(text, "the guide", "exec"), {"__name__": "__main__"})

    return Running(work)


def command(line: str, folder: Path) -> Running:
    program, *words = shlex.split(line, comments=True)
    if program == "python":
        return python((folder / words[0]).read_text(encoding="utf-8"), folder)
    assert program == "rlhf-env", line
    enter: Callable[[], object] = lambda: os.chdir(folder)  # noqa: E731 - called in the forked process
    return started(*words, before=enter)


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
