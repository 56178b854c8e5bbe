"""The catalogue of bugs still fits the code it would break."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from mutants import MUTANTS, NUMERIC, Mutant  # noqa: E402

pytestmark = pytest.mark.packaging


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.number}: {mutant.bug}")
def test_each_bug_can_be_put_back(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.right) == 1
    assert mutant.wrong != mutant.right
    assert (ROOT / mutant.seen_by.split("::")[0]).exists()


def test_the_numeric_suite_is_there() -> None:
    assert [part for part in NUMERIC if not (ROOT / part.split("::")[0]).exists()] == []
