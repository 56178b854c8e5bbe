"""The numbers of the README's benchmark are those of the file of results, and its first script's those of its print."""

from __future__ import annotations

import itertools
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

pytestmark = pytest.mark.skipif(not (DOCS / "benchmark.json").exists(), reason="docs/ is not here")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "benchmark_table.py"))


@pytest.fixture(scope="module")
def known(script: dict[str, Any]) -> Any:
    return script["known_of"]("benchmark")


@pytest.mark.parametrize("name", ["benchmark", "mechanisms"])
def test_the_scores_are_of_the_grid_as_it_is(name: str, script: dict[str, Any]) -> None:
    said = f"rlhf-env bench examples/{name}.toml; python docs/benchmark_table.py runs/{name}"
    assert script["known_of"](name)["grid"] == script["of_the_grid"](name), said


def test_readme_and_the_page_have_the_tables_of_these_scores(script: dict[str, Any], known: Any) -> None:
    table = script["over_all_tasks"](known)
    assert table.strip() in (ROOT / "README.md").read_text(encoding="utf-8"), "python docs/benchmark_table.py"
    assert script["by_task"](known) in (DOCS / "laboratory.md").read_text(encoding="utf-8")


def test_what_mechanisms_bought_is_what_was_measured(script: dict[str, Any]) -> None:
    """Every row of every table of docs/mechanisms.md that compares with the best: score, difference, verdict, p."""
    standings = script["standings"](script["known_of"]("mechanisms"))
    page, seen = (DOCS / "mechanisms.md").read_text(encoding="utf-8"), 0
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        head, _, *lines = (_cells(line) for line in table.splitlines())
        if "To the best" not in head:
            continue
        task = ""
        for line in lines:
            row = dict(zip(head, line, strict=True))
            task = row.get("Task", "").replace(", both tasks", "") or task
            name = re.findall("`([^`]+)`", row["Row"])[0]
            found = [words for (of, agent), words in standings.items() if agent == name and task in ("", of)]
            said = row.get("Score", row.get("Gold")), row["To the best"].split(", to ")[0], _verdict(row["Verdict"])
            assert said in [(score, far, _verdict(verdict)) for score, far, verdict in found], (task, name, found)
            seen += 1
    assert seen > 50


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _verdict(words: str) -> str:
    """With p to two places, as both can be read."""
    verdict, comma, p = words.partition(", p ")
    return f"{verdict} {float(p):.2f}" if comma else verdict


def test_another_score_makes_another_table(script: dict[str, Any], known: Any) -> None:
    changed = json.loads(json.dumps(known))
    scores = changed["tasks"]["arithmetic"]["scores"]["dpo"]
    scores.update(dict.fromkeys(scores, 1.0))
    assert script["by_task"](changed) != script["by_task"](known)


def test_a_run_without_a_score_counts_with_the_floor(script: dict[str, Any], known: Any) -> None:
    changed = json.loads(json.dumps(known))
    changed["tasks"]["sparse"]["scores"]["ppo"]["3"] = None
    results = script["results_of"](changed)
    (cell,) = [it for it in results.of("sparse", "ppo") if it.seed == 3]
    assert not cell.finished
    assert results.score(cell) == results.floor("sparse")


def test_the_first_table_is_what_its_script_printed() -> None:
    """All but the columns that README leaves out."""
    prints = ROOT / "benchmarks" / "results" / "first.md"
    if not prints.exists():
        pytest.skip("a source distribution has no benchmarks")
    printed = _rows(prints.read_text(encoding="utf-8"))
    shown = _rows((ROOT / "README.md").read_text(encoding="utf-8"))
    columns = shown[0].keys()
    assert shown == [{name: row[name] for name in columns} for row in printed]
    assert len(shown) == 4


def _rows(text: str) -> list[dict[str, str]]:
    """The rows of the first table that begins with agents and has a column Proxy."""
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if re.match(r"\| Agent \|.* Proxy \|", line))
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    heads, _, *rows = map(_cells, table)
    return [dict(zip(heads, row, strict=True)) for row in rows]
