"""What a mutant is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`right` stands exactly once in `file`; the bug is to have `wrong` there. `seen_by`: where to look first."""

    number: str
    bug: str
    file: str
    right: str
    wrong: str
    seen_by: str = "tests/learning/test_functional.py"
