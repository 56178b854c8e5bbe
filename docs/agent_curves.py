"""The curves of the agents' pages, out of the benchmark that measures them:

    rlhf-env bench examples/agent_curves.toml       # minutes; results in runs/agent_curves
    python docs/agent_curves.py                     # docs/agent_curves.json, of these results
    python docs/make_pages.py                       # the pages, with their figures

The same results give the same file, and the same file the same figures.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.results import CONTROLS, Cell

sys.path.insert(0, str(Path(__file__).parent))
from curve_drawing import Curve, figure

FILE = Path(__file__).with_suffix(".json")
GRID = Path(__file__).resolve().parents[1] / "examples/agent_curves.toml"
BESIDE = ("words.py", "words.jsonl", "pairs.jsonl", "one.jsonl", "two.jsonl", "three.jsonl")
COMMAND = "rlhf-env bench examples/agent_curves.toml"
NUMBERS = {"reward": "proxy", "kl": "kl"}  # what a figure shows, and what the evaluation calls it
STEPS = 20  # of a curve: seeds are evaluated after the same updates, which are not the same numbers of tokens
UNTRAINED = (*CONTROLS, "best_of_n")
# By task of the grid: what is asked, in a sentence.
ASKED = {
    "words": 'repeat a word of one to three letters ("ab=" asks for "ab"); each letter that is right counts',
    "answers": 'the same words ("ab=" asks for "ab"), learned from their answers, not from rewards',
    "sums": 'add strokes ("11+1=" asks for "111"); only a sum that is right earns anything',
    "mixture": "a mixture of words to repeat, seven in ten of one letter, two of two, one of three",
    "segments": "three segments of two letters, each with a goal of its own, one after the other",
}


@dataclass(frozen=True)
class Drawn:
    """What a page shows of its agent."""

    svg: str
    words: str
    """What is seen, for those who do not see it."""
    caption: str
    command: str
    """What runs it again."""


def of_the_grid() -> str:
    """A hash of all that the curves come from, as it is written in the files."""
    files = [GRID, *(GRID.parent / "agent_curves" / name for name in BESIDE)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def read(folder: Path) -> dict[str, Any]:
    """What the file holds, from a benchmark's folder, of the seeds with which every row has ended.

    Raises DataError, and SystemExit where there is no such seed.
    """
    results, grid = read_results(folder), tomllib.loads(GRID.read_text(encoding="utf-8"))
    wanted = {(task, row) for task, changes in grid["tasks"].items() for row in changes["rows"]}
    ended = {(cell.seed, cell.task, cell.agent) for cell in results.cells if cell.finished}
    seeds = [seed for seed in range(grid["seeds"]) if all((seed, *place) in ended for place in wanted)]
    if not seeds:
        raise SystemExit(f"{folder}: with no seed every row has ended: {COMMAND}")
    tasks: dict[str, Any] = {}
    for task, changes in grid["tasks"].items():
        spent = {**grid["experiment"]["budget"], **changes.get("budget", {})}
        across = "gradient steps" if task == "answers" else "generated tokens"
        rows = tasks[task] = {"across": across, "budget": spent[across.replace(" ", "_")], "rows": {}}
        for row in changes["rows"]:
            cells = [cell for cell in results.of(task, row) if cell.seed in seeds]
            rows["rows"][row] = {
                "agent": grid["agents"][row].get("name", row),
                "around": grid["agents"][row].get("agent", {}).get("name", ""),
                **{number: asdict(_over_seeds(cells, name, task)) for number, name in NUMBERS.items()},
            }
    return {"command": COMMAND, "grid": of_the_grid(), "seeds": len(seeds), "tasks": tasks}


def _over_seeds(cells: Sequence[Cell], metric: str, task: str) -> Curve:
    """Mean, lowest and highest over seeds, at evenly spaced places between their checkpoints."""
    if cells[0].agent in UNTRAINED:
        ends = [cell.evaluation[metric] for cell in cells]
        return _rounded(Curve([0.0], [sum(ends) / len(ends)], [min(ends)], [max(ends)]))
    lines: list[Curve] = []
    for cell in cells:
        spent = "updates" if task == "answers" else "generated_tokens"
        x = [float(point.update) if task == "answers" else point.generated_tokens for point in cell.curve]
        y = [point.values[metric] for point in cell.curve]
        if x[-1] < cell.spending[spent]:  # the last evaluation of all, after the last update
            x, y = [*x, cell.spending[spent]], [*y, cell.evaluation[metric]]
        lines.append(Curve(x, y, y, y))
    end = max(line.x[-1] for line in lines)
    grid = [end * step / STEPS for step in range(STEPS + 1)]
    values = [[line.at(x) for line in lines] for x in grid]
    return _rounded(Curve(grid, [sum(v) / len(v) for v in values], [min(v) for v in values], [max(v) for v in values]))


def _rounded(curve: Curve) -> Curve:
    return Curve(*([float(f"{value:.4g}") for value in values] for values in asdict(curve).values()))


def drawn(agent: str, known: Mapping[str, Any]) -> Drawn | None:
    """The figure of an agent on the first task that it has a row on; None where it has none."""
    for task, about in known["tasks"].items():
        for row, it in about["rows"].items():
            if it["agent"] == agent:
                return _drawn(row, task, about, known["seeds"])
    return None


def _drawn(row: str, task: str, about: Mapping[str, Any], seeds: int) -> Drawn:
    curves = {number: {name: Curve(**it[number]) for name, it in about["rows"].items()} for number in NUMBERS}
    others = [name for name in about["rows"] if name not in (row, *UNTRAINED)]
    reward, kl = curves["reward"][row], curves["kl"][row]
    before, name = curves["reward"]["reference"].mean[-1], about["rows"][row]["agent"]
    spent = f"{about['budget']:,} {about['across']}"
    span, mean = f"{reward.mean[-1]:.2f}", "The line is of one seed"
    if seeds > 1:
        span += f" ({reward.low[-1]:.2f} to {reward.high[-1]:.2f} over {seeds} seeds)"
        mean = f"The line is the mean over {seeds} seeds, its band goes from the lowest to the highest"
    if row == "reference":
        words = f"The reward of {name}, which is not trained: {span}."
    elif len(reward.x) == 1:
        words = f"The reward of {name}, which is not trained: {span}; {before:.2f} of the model by itself."
    else:
        words = f"The reward of {name} over {spent}: {before:.2f} untrained, then {span}, at a KL of {kl.mean[-1]:.1f}."
    around = about["rows"][row]["around"]
    inside = f", with `{around}` inside" if around else ""
    band = (
        f"grey is `{about['rows'][others[0]]['agent']}` on the same task"
        if len(others) == 1
        else f"grey is the range in which the means of the {len(others)} other agents that train lie"
    )
    caption = (
        f"The task: {ASKED[task]}. A small random model{inside}; {spent}. {mean}; dashed is the model "
        f"before training; {band}. All are measured on the prompts of training."
    )
    if name == "best_of_n":
        caption += " Its KL is what it is at most."
    command = " --only ".join([COMMAND, *dict.fromkeys([f"{task}/{row}", f"{task}/reference"])])
    return Drawn(figure(row, curves, others, words, about["across"]), words, caption, command)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/agent_curves")
    FILE.write_text(json.dumps(read(folder), separators=(",", ":")).replace('},"', '},\n"') + "\n", encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")
