"""The form of CHANGELOG.md: one line a change, found by what a user sees, without the same entry twice."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

HOUSE = Path(__file__).parents[2]
TEXT = (HOUSE / "CHANGELOG.md").read_text(encoding="utf-8")
VERSIONS = TEXT.split("\n## ")[1:]
REFERENCES = dict(re.findall(r"^\[([\w-]+)\]: (\S+)$", TEXT, re.MULTILINE))
GROUPS = ["New", "Changed", "Mended", "Moved"]


def entries(version: str) -> list[str]:
    return [line for line in version.splitlines() if line.startswith("- ")]


def test_an_entry_is_one_line_of_at_most_120_columns() -> None:
    lines = TEXT.splitlines()
    assert [line for line in lines if len(line) > 120] == []
    assert [line for line in lines if line.startswith((" ", "\t"))] == [], "an entry has no second line"
    assert [line for line in lines if line.startswith("- ") and not line.endswith(".")] == []
    assert len(VERSIONS) > 1 and all(entries(version) for version in VERSIONS)


def test_a_line_after_an_entry_begins_another_one_or_is_empty() -> None:
    lines = TEXT.splitlines()
    after = [second for first, second in pairwise(lines) if first.startswith("- ")]
    assert [line for line in after if line and not line.startswith("- ")] == []


def test_no_entry_stands_twice() -> None:
    twice = [
        line for line, times in Counter(line for version in VERSIONS for line in entries(version)).items() if times > 1
    ]
    assert twice == []


def test_the_groups_of_a_version_come_in_their_order() -> None:
    for version in VERSIONS:
        groups = re.findall(r"^### (.+)$", version, re.MULTILINE)
        assert groups and groups == [group for group in GROUPS if group in groups], groups


def test_what_an_entry_refers_to_is_there() -> None:
    named = {
        name for version in VERSIONS for line in entries(version) for name in re.findall(r"\[([\w-]+)\]", prose(line))
    }
    assert named == REFERENCES.keys()
    assert [place for place in REFERENCES.values() if not (HOUSE / place).exists()] == []


def prose(line: str) -> str:
    """The line without what stands in backquotes: settings' tables look like references."""
    return re.sub(r"`[^`]*`", "", line)
