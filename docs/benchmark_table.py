"""The tables of `rlhf-env bench examples/benchmark.toml` in README and docs/laboratory.md, out of what it measured:

    rlhf-env bench examples/benchmark.toml          # half an hour on two cores; results in runs/benchmark
    python docs/benchmark_table.py runs/benchmark   # docs/benchmark.json, the score of every run
    python docs/benchmark_table.py                  # the tables, of that file

A test compares the pages with the file. Intervals are computed anew, from the scores.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from rlhf_env.lab.benchmark.comparison import conclude
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.results import Cell, Results, agent_order
from rlhf_env.lab.drawing import typeset
from rlhf_env.lab.report.formats import markdown_tables
from rlhf_env.lab.report.sheets import sheets

FILE = Path(__file__).with_suffix("").with_name("benchmark.json")
GRID = Path(__file__).resolve().parents[1] / "examples" / "benchmark.toml"
COMMAND = "rlhf-env bench examples/benchmark.toml"


def of_the_grid() -> str:
    """A hash of the benchmark's file, as it is written beside the scores."""
    return hashlib.sha256(GRID.read_bytes()).hexdigest()[:16]


def read(folder: Path) -> dict[str, Any]:
    """What the file holds, from a benchmark's folder; a run without a score of its own has None. Raises DataError."""
    results = read_results(folder)
    tasks = {
        task: {
            "measure": results.measure(task),
            "optimum": results.optimum(task),
            "scores": {
                agent: {str(cell.seed): results.own_score(cell) for cell in results.of(task, agent)}
                for agent in results.agents_on(task)
            },
        }
        for task in results.tasks
    }
    return {"command": COMMAND, "grid": of_the_grid(), "versions": dict(results.about.versions), "tasks": tasks}


def results_of(known: dict[str, Any]) -> Results:
    """The scores of the file as the results of a benchmark."""
    cells = [
        Cell(
            task=task,
            agent=agent,
            seed=int(seed),
            status="failed" if score is None else "finished",
            optimum=about["optimum"],
            evaluation={} if score is None else {about["measure"]: score},
        )
        for task, about in known["tasks"].items()
        for agent, scores in about["scores"].items()
        for seed, score in scores.items()
    ]
    cells.sort(key=lambda cell: (cell.task, agent_order(cell.agent), cell.seed))
    return Results(FILE.parent, "benchmark", tuple(cells))


def over_all_tasks(known: dict[str, Any]) -> str:
    """The table in README, with the notes below it."""
    results = results_of(known)
    (overview,) = [sheet for sheet in sheets(results, conclude(results)) if sheet.name == "overview"]
    return markdown_tables([overview], tasks=True)


def by_task(known: dict[str, Any]) -> str:
    """The table in docs/laboratory.md: means with 95 % intervals, agents in the order of the table over all tasks."""
    results = results_of(known)
    conclusions = conclude(results)
    assert conclusions.overview is not None
    headings, columns = [], []
    for task in known["tasks"]:  # as the grid has them
        ranking, optimum = conclusions.ranking(task), known["tasks"][task]["optimum"]
        assert ranking is not None
        beside = "gold" if ranking.measure == "gold" else f"of {optimum:.2f}" if optimum not in (None, 1.0) else ""
        headings.append(f"{task} ({beside})" if beside else task)
        columns.append({it.agent: it.score for it in ranking.standings})
    lines = [f"| Agent | {' | '.join(headings)} |", "|---|" + "---:|" * len(headings)]
    for row in conclusions.overview.agents:
        found = [column[row.agent] for column in columns]
        cells = [f"{it.value:.2f} ({it.low:.2f} to {it.high:.2f})" for it in found]
        lines.append(f"| {row.agent} | {' | '.join(map(typeset, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        written = (
            json.dumps(read(Path(sys.argv[1])), separators=(",", ":")).replace(',"', ',\n"', 3).replace("},", "},\n")
        )
        FILE.write_text(f"{written}\n", encoding="utf-8")
        sys.stdout.write(f"{FILE}\n")
    else:
        found = json.loads(FILE.read_text(encoding="utf-8"))
        sys.stdout.write(f"{over_all_tasks(found)}\n{by_task(found)}\n")
