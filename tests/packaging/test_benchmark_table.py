"""The numbers of the README's benchmark are those of the file of results, and its first script's those of its print."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MAKES = "rlhf-env bench examples/benchmark.toml; python docs/benchmark_table.py runs/benchmark"

pytestmark = pytest.mark.skipif(not (DOCS / "benchmark.json").exists(), reason="docs/ is not here")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "benchmark_table.py"))


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "benchmark.json").read_text(encoding="utf-8"))
    return found


def test_the_scores_are_of_the_grid_as_it_is(script: dict[str, Any], known: dict[str, Any]) -> None:
    assert known["grid"] == script["of_the_grid"](), MAKES


def test_readme_and_the_page_have_the_tables_of_these_scores(script: dict[str, Any], known: dict[str, Any]) -> None:
    table = script["over_all_tasks"](known)
    assert table.strip() in (ROOT / "README.md").read_text(encoding="utf-8"), "python docs/benchmark_table.py"
    assert script["by_task"](known) in (DOCS / "laboratory.md").read_text(encoding="utf-8")


def test_another_score_makes_another_table(script: dict[str, Any], known: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(known))
    scores = changed["tasks"]["arithmetic"]["scores"]["dpo"]
    scores.update(dict.fromkeys(scores, 1.0))
    assert script["by_task"](changed) != script["by_task"](known)


def test_a_run_without_a_score_counts_with_the_floor(script: dict[str, Any], known: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(known))
    changed["tasks"]["sparse"]["scores"]["ppo"]["3"] = None
    results = script["results_of"](changed)
    (cell,) = [it for it in results.of("sparse", "ppo") if it.seed == 3]
    assert not cell.finished
    assert results.score(cell) == results.floor("sparse")


def test_the_first_table_is_what_its_script_printed() -> None:
    """All but the columns that README leaves out."""
    printed = _rows((ROOT / "benchmarks" / "results" / "first.md").read_text(encoding="utf-8"))
    shown = _rows((ROOT / "README.md").read_text(encoding="utf-8"))
    columns = shown[0].keys()
    assert shown == [{name: row[name] for name in columns} for row in printed]
    assert len(shown) == 4


def _rows(text: str) -> list[dict[str, str]]:
    """The rows of the first table that begins with agents and has a column Proxy."""
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if re.match(r"\| Agent \|.* Proxy \|", line))
    heads, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines[start : next(at for at in range(start, len(lines)) if not lines[at].startswith("|"))]
    )
    return [dict(zip(heads, row, strict=True)) for row in rows]
