"""The proof on a real model: SmolLM2-135M-Instruct before and after, on held-out questions; by GRPO for three seeds.

    make real-model                                     # in runs/real_model
    python examples/real_model/run.py --seeds 1         # one seed, and no interval

What is run is what a user types: the commands are in `commands.txt` in the folder, what they printed in `log.txt`;
the numbers are in `results.json`, which docs/example_tables.py puts into the READMEs. A second call does what is
missing, and its file says nothing of time and memory. Ends with 1 where the interval of the rise, over the seeds, does
not lie above 0.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env.lab.statistics import Estimate, mean_of_seeds

HERE = Path(__file__).resolve().parent
COMMAND = [sys.executable, "-m", "rlhf_env"]
FILES = ("answers.py", "bench.toml", "dpo.toml", "judge.toml", "questions.jsonl", "sft.toml", "train.toml")
MEASURES = {"overlap": "proxy", "exact": "gold", "KL": "kl", "tokens": "length"}
"""The columns of the table, and what the evaluator calls them."""


@dataclass(frozen=True)
class Sizes:
    """What is set otherwise than in the files, by file, and to how many questions responses are judged."""

    settings: Mapping[str, Mapping[str, int]]
    asked: int = 128


WHOLE = Sizes({})
_FEW = {"prompts": 4, "max_prompt_tokens": 160}  # room for a tokenizer that spells
SMALL = Sizes(
    {
        "bench.toml": {**_FEW, "updates": 1, "every": 1, "num_envs": 8, "group_size": 4},
        "sft.toml": {**_FEW, "epochs": 1},
        "dpo.toml": {**_FEW, "epochs": 1, "num_envs": 4},
    },
    asked=8,
)

Measured = Mapping[str, float]


class Desk:
    """A folder with copies of the files of this one: commands run there, and what they print is kept."""

    def __init__(self, folder: Path, sizes: Sizes, seeds: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            content = (HERE / name).read_text(encoding="utf-8")
            changed = {**sizes.settings.get(name, {}), **({"seeds": seeds} if name == "bench.toml" else {})}
            for setting, value in changed.items():
                content = re.sub(rf"^{setting} = [^#\n]*", f"{setting} = {value} ", content, flags=re.MULTILINE)
            (folder / name).write_text(content, encoding="utf-8")

    def command(self, *words: str, makes: str = "") -> None:
        """Run `rlhf-env WORDS`, unless what it `makes` is there."""
        if makes and (self.folder / makes).exists():
            return
        with (self.folder / "commands.txt").open("a", encoding="utf-8") as file:
            file.write(shlex.join(("rlhf-env", *words)) + "\n")
        print(f"$ rlhf-env {shlex.join(words)}", flush=True)
        settings = {"COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
        running = subprocess.Popen(
            [*COMMAND, *words],
            cwd=self.folder,
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        assert running.stdout is not None
        with running, (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"$ rlhf-env {shlex.join(words)}\n")
            for line in running.stdout:  # as it is printed: the first command takes most of the time
                log.write(line)
                log.flush()
                print(line, end="", flush=True)
        if running.returncode:
            raise SystemExit(f"{self.folder}: rlhf-env {shlex.join(words)}: ended with {running.returncode}")

    def measured(self, run: str) -> Measured:
        """What the evaluator said of a run's agent."""
        file = self.folder / run / "evaluation.json"
        said = json.loads(file.read_text(encoding="utf-8"))["metrics"]
        return {name: float(said[key]) for name, key in MEASURES.items()}

    def cells(self, agent: str) -> list[Measured]:
        """The same of an agent's cells of the benchmark, by seed."""
        results = [json.loads(file.read_text(encoding="utf-8")) for file in self.folder.glob("proof/results/*.json")]
        of_agent = sorted((it for it in results if it["agent"] == agent), key=lambda it: int(it["seed"]))
        return [self.measured(f"proof/{it['run']}") for it in of_agent]


def follow_the_readme(desk: Desk, sizes: Sizes, jobs: int) -> None:
    """Every command that README.md shows, in its order."""
    desk.command("bench", "bench.toml", "--out", "proof", "--jobs", str(jobs))
    desk.command("train", "sft.toml", "--out", "fine-tuned", makes="fine-tuned/evaluation.json")
    some = ("--prompts", "questions.jsonl", "--held-out", "0.25", "--limit", str(sizes.asked))
    drawn = ("--temperatures", "0.5,0.8,1.1", "--max-new-tokens", "12")
    desk.command("preferences", "responses", "pairs.sqlite", "--model", "smollm2", *some, *drawn)
    desk.command("preferences", "ask", "pairs.sqlite")
    desk.command("preferences", "simulate", "pairs.sqlite", "judge.toml")
    desk.command("train", "dpo.toml", "--out", "preferring", makes="preferring/evaluation.json")


def rise(before: Sequence[Measured], after: Sequence[Measured], name: str) -> Estimate:
    """By how much a measure rose, seed by seed, with its 95 % interval over the seeds."""
    pairs = zip(before[: len(after)], after, strict=True)
    return mean_of_seeds(np.array([[b[name] - a[name]] for a, b in pairs]), paired=True)


def table(ways: Mapping[str, Sequence[Measured]]) -> str:
    """Means over the seeds, and the rise over the first of the `ways`."""
    heads = ("", *MEASURES, "overlap rose by", "exact rose by")
    rows = [heads]
    before = next(iter(ways.values()))
    for name, seeds in ways.items():
        means = [f"{_nearest(np.mean([it[measure] for it in seeds])):.2f}" for measure in MEASURES]
        rises = ["-", "-"] if seeds is before else [_said(rise(before, seeds, it)) for it in ("overlap", "exact")]
        rows.append((name, *means, *rises))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _nearest(mean: float) -> float:
    """Without the sign of what is told as 0."""
    return 0.0 if abs(mean) < 0.005 else float(mean)


def cost(results: Mapping[str, Any]) -> str:
    """What it took, by the file of results."""
    return (
        f"{results['minutes']:.1f} minutes, {results['processor_minutes']:.1f} of processor time; "
        f"the largest process held {results['gigabytes']:.1f} GB"
    )


def _said(it: Estimate) -> str:
    return f"{it.value:.2f}" if it.low is None else f"{it.value:.2f} ({it.low:.2f} to {it.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/real_model"))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side; each holds the model once")
    parser.add_argument("--model", type=Path, help="another model's folder (default: fetch.py makes SmolLM2's)")
    parser.add_argument("--small", action="store_true", help="one update of everything: that it runs, and no more")
    given = parser.parse_args()
    sizes = SMALL if given.small else WHOLE
    start = time.monotonic()

    resumed = (given.out / "commands.txt").exists()
    desk = Desk(given.out, sizes, given.seeds)
    model = given.out / "smollm2"
    if given.model is None:
        subprocess.run([sys.executable, HERE / "fetch.py"], cwd=given.out, check=True)
    elif not model.exists():
        shutil.copytree(given.model, model)
    print(f"The first command takes most of the time; to look at it: rlhf-env watch {given.out / 'proof'}", flush=True)
    follow_the_readme(desk, sizes, given.jobs)

    ways = {
        "before": desk.cells("reference"),
        "grpo": desk.cells("grpo"),
        "sft, seed 0": [desk.measured("fine-tuned")],
        "dpo, seed 0": [desk.measured("preferring")],
    }
    print(f"\n{table(ways)}\n")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = {
        "minutes": (time.monotonic() - start) / 60,
        "processor_minutes": (used.ru_utime + used.ru_stime) / 60,
        "gigabytes": used.ru_maxrss / 2**20,
    }
    print(cost(took))
    results = {**(dict.fromkeys(took) if resumed else took), "ways": ways}
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"These numbers: {given.out / 'results.json'}; samples before and after: {given.out / 'proof/report.html'}")
    rose = rise(ways["before"], ways["grpo"], "overlap")
    if not given.small and (rose.low is None or rose.low <= 0):
        raise SystemExit("grpo: the interval of the rise does not lie above 0")


if __name__ == "__main__":
    main()
