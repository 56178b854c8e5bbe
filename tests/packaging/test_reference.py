"""docs/settings.md is what `rlhf-env plugins --markdown` writes: no setting is missing, no meaning is out of date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_env.cli.checking import kinds_of_file
from rlhf_env.plugins import OWN, host
from rlhf_env.reference import settings_page

FILE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def sections(text: str) -> dict[str, str]:
    """By title. What needs a library that is not installed here cannot be compared."""
    found = re.split(r"^(?=##+ )", text, flags=re.MULTILINE)
    return {part.partition("\n")[0]: part for part in found if "Needs the extra" not in part}


@pytest.mark.packaging
def test_the_page_is_what_the_declarations_say() -> None:
    written, made = (
        sections(FILE.read_text()),
        sections(settings_page(kinds_of_file(), [e for e in host() if e.origin == OWN])),
    )
    both = written.keys() & made.keys()
    assert {"## An experiment (`rlhf-env train`)", "### ppo", "### bradley_terry", "### file"} <= both
    stale = [title for title in sorted(both) if written[title].rstrip() != made[title].rstrip()]
    assert not stale, "rlhf-env --no-plugins plugins --markdown > docs/settings.md"
    assert made.keys() <= written.keys(), made.keys() - written.keys()


def test_a_setting_is_a_row_with_its_type_limits_default_and_meaning() -> None:
    told = settings_page(kinds_of_file(), [entry for entry in host() if (entry.kind, entry.name) == ("agent", "ppo")])
    assert "| `seed` | a whole number, from 0 to 1,099,511,627,775 | `0` | What every random stream of the run" in told
    assert re.search(r"^\| `clip(_range)?` \|.*$", told, re.MULTILINE), told
    cells = {line.replace(r"\|", "").count("|") for line in told.splitlines() if line.startswith("|")}
    assert cells == {5}
