"""The tables of two benchmarks in README, docs/laboratory.md and docs/mechanisms.md, out of what they measured:

    rlhf-env bench examples/benchmark.toml           # half an hour on two cores; results in runs/benchmark
    python docs/benchmark_table.py runs/benchmark    # docs/benchmark.json, the score of every run
    rlhf-env bench examples/mechanisms.toml          # as long; runs/mechanisms
    python docs/benchmark_table.py runs/mechanisms   # docs/mechanisms.json
    python docs/benchmark_table.py                   # the tables, of these files

A test compares the pages with the files. Intervals are computed anew, from the scores.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_env.lab.benchmark.comparison import conclude
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.results import Cell, Results, agent_order
from rlhf_env.lab.drawing import typeset
from rlhf_env.lab.report.formats import markdown_tables
from rlhf_env.lab.report.sheets import sheets
from rlhf_env.lab.statistics import Estimate

DOCS = Path(__file__).resolve().parent
GRIDS = {name: DOCS.parent / "examples" / f"{name}.toml" for name in ("benchmark", "mechanisms")}


def file_of(name: str) -> Path:
    """Where the scores of a benchmark are."""
    return DOCS / f"{name}.json"


def known_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file_of(name).read_text(encoding="utf-8"))
    return found


def of_the_grid(name: str) -> str:
    """A hash of the benchmark's file, as it is written beside the scores."""
    return hashlib.sha256(GRIDS[name].read_bytes()).hexdigest()[:16]


def read(folder: Path) -> dict[str, Any]:
    """What the file holds, from a benchmark's folder; a run without a score of its own has None. Raises DataError."""
    results = read_results(folder)

    def scores(task: str, of: Callable[[Cell], float | None]) -> dict[str, dict[str, float | None]]:
        agents = results.agents_on(task)
        return {agent: {str(cell.seed): of(cell) for cell in results.of(task, agent)} for agent in agents}

    def within(task: str, label: str) -> dict[str, dict[str, float | None]]:
        return scores(task, lambda cell: cell.evaluation.get(f"task/{label}/{results.measure(task)}"))

    tasks = {
        task: {
            "measure": results.measure(task),
            "optimum": results.optimum(task),
            "scores": scores(task, results.own_score),
            "within": {label: within(task, label) for label in results.parts_of_mixture(task)},
        }
        for task in results.tasks
    }
    name = results.benchmark
    return {"name": name, "grid": of_the_grid(name), "versions": dict(results.about.versions), "tasks": tasks}


def results_of(known: dict[str, Any]) -> Results:
    """The scores of the file as the results of a benchmark."""
    cells = [
        Cell(
            task=task,
            agent=agent,
            seed=int(seed),
            status="failed" if score is None else "finished",
            optimum=about["optimum"],
            evaluation={
                **({} if score is None else {about["measure"]: score}),
                **{
                    f"task/{label}/{about['measure']}": part[agent][seed]
                    for label, part in about["within"].items()
                    if part[agent][seed] is not None
                },
            },
        )
        for task, about in known["tasks"].items()
        for agent, scores in about["scores"].items()
        for seed, score in scores.items()
    ]
    cells.sort(key=lambda cell: (cell.task, agent_order(cell.agent), cell.seed))
    return Results(DOCS, known["name"], tuple(cells))


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
        lines.append(f"| {row.agent} | {' | '.join(typeset(_written(column[row.agent])) for column in columns)} |")
    return "\n".join(lines)


def standings(known: dict[str, Any]) -> dict[tuple[str, str], tuple[str, str, str]]:
    """Score, difference to the best row and verdict as docs/mechanisms.md writes them, by task ("rivals", "rivals: a")
    and row."""
    conclusions, found = conclude(results_of(known)), {}
    for ranking in (*conclusions.rankings, *conclusions.of_mixtures):
        for it in ranking.standings:
            against = it.against.get(ranking.best or "")
            difference, verdict = "best", ""
            if against is not None:
                difference = _written(against.difference)
                verdict = f"{against.verdict}, p {against.adjusted:.3f}"
            found[ranking.task, it.agent] = _written(it.score), difference, verdict
    return found


def _written(it: Estimate) -> str:
    """Equal scores have no interval."""
    numbers = (it.value, it.low, it.high)
    mean, *ends = (f"{0.0 if abs(number) < 0.005 else number:.2f}" for number in numbers if number is not None)
    return mean + (f" ({' to '.join(ends)})" if ends else "")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        scores = read(Path(sys.argv[1]))
        written = json.dumps(scores, separators=(",", ":")).replace("},", "},\n")
        file_of(scores["name"]).write_text(f"{written}\n", encoding="utf-8")
        sys.stdout.write(f"{file_of(scores['name'])}\n")
    else:
        sys.stdout.write(f"{over_all_tasks(known_of('benchmark'))}\n{by_task(known_of('benchmark'))}\n\n")
        for (task, row), words in standings(known_of("mechanisms")).items():
            sys.stdout.write(f"| {task} | `{row}` | {' | '.join(words)} |\n")
