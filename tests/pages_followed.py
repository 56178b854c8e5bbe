"""Pages of Markdown as a reader would follow them: their blocks, run in processes forked from the test's."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from faults.processes import FORKING, Running, started

from rlhf_env.lab import processes

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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

    def enter() -> None:
        os.chdir(folder)
        processes.multiprocessing = FORKING  # type: ignore[assignment]

    return started(*words, before=enter)
