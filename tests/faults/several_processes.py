"""More than one process: a launcher of ranks, which there are none of here, and a benchmark's workers, which there are.

Of the table's F34 (a rank of several is killed) and F35 (an actor of a cluster dies) this is what applies here. A run
is one process: nobody who launches several is to believe anything else. And work is spread over processes by
`rlhf-env bench` alone: a worker that dies is named, and the next call goes on with what it was at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faults.catalogue import fault
from faults.processes import rlhf_env

from rlhf_env.cli import benchmarks
from rlhf_env.lab.benchmark import run as benchmark

MAIN = "from rlhf_env.cli.main import main; main()"
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@fault("F34", "a rank of two, started by hand: exit 2 that says a run is one process", quick=True)
def one_rank(folder: Path) -> None:
    ended = rlhf_env("train", "toy.toml", before=lambda: os.environ.update(WORLD_SIZE="2", RANK="1"))
    assert ended.status == 2 and ended.stderr.count("\n") == 1, ended
    assert ended.stderr.startswith("rlhf-env: WORLD_SIZE is 2: a run is one process"), ended.stderr


@fault("F34", "two ranks under torchrun: both gone within 10 s with a named exit, nothing written, no orphan")
def two_ranks(folder: Path) -> str:
    script = f"import os; open(f'rank-{{os.getpid()}}', 'w').close(); {MAIN}"
    (folder / "rank.py").write_text(script, encoding="utf-8")
    (folder / "toy.toml").write_text('agent = { name = "reinforce" }\n', encoding="utf-8")
    launched = subprocess.run(
        [*LAUNCH, "rank.py", "train", "toy.toml", "--out", "run"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    ended = time.time()
    ranks = {int(file.name[5:]): file.stat().st_mtime for file in folder.glob("rank-*")}
    assert launched.returncode != 0 and len(ranks) == 2, launched
    assert "rlhf-env: WORLD_SIZE is 2: a run is one process" in launched.stderr, launched.stderr
    assert "exitcode  : 2 " in launched.stderr, launched.stderr  # of the first; the launcher may end the other itself
    took = ended - min(ranks.values())
    assert took < 10.0, f"{took:.1f} s"
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()], "a rank is still there"
    assert not (folder / "run").exists()
    return f"gone {took:.1f} s after the first began"


GRID = """
name = "small"
seeds = 2
[experiment]
budget = { updates = 60 }
checkpoint_every = 5
policy = { tokenizer = "alphabet:ab" }
environment = { num_envs = 4, max_new_tokens = 2, max_prompt_tokens = 4 }
evaluation = { prompts = 4 }
task = { name = "prompts", prompts = ["a", "b"] }
rewards = { length = { target = 1 }, kl = 0.1 }
[agents.reinforce]
"""


def in_one_process() -> None:
    """In a process that runs a benchmark: no others, and no report."""
    run_jobs = benchmark.run_jobs
    benchmark.run_jobs = lambda *arguments, **settings: run_jobs(*arguments, **{**settings, "jobs": 0})
    benchmarks._show_report = lambda *_: None  # type: ignore[assignment]


def results(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Of each cell, but for the clock."""
    read = {file.name: json.loads(file.read_text(encoding="utf-8")) for file in (folder / "results").glob("*.json")}
    for result in read.values():
        del result["spending"]["seconds"]
    return read


@fault("F35", "a worker of a benchmark killed -9: its cell named, exit 3, and the next call goes on inside it")
def a_worker_dies(folder: Path) -> str:
    grid, out = folder / "grid.toml", folder / "out"
    grid.write_text(GRID.replace("seeds = 2", "seeds = 1"), encoding="utf-8")
    bench = subprocess.Popen(
        [sys.executable, "-c", MAIN, "bench", str(grid), "--out", str(out), "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    cell = out / "cells" / "prompts" / "reinforce" / "seed-0"
    deadline = time.monotonic() + 120
    while not list(cell.glob("checkpoints/step-*/manifest.json")):
        assert bench.poll() is None and time.monotonic() < deadline, bench.communicate()
        time.sleep(0.002)
    os.kill(int((cell / "lock").read_text().removeprefix("pid ")), 9)
    said, complaints = bench.communicate(timeout=120)
    assert bench.returncode == 3 and "1 of 1 cells are not done" in complaints, (bench.returncode, complaints)
    assert "exit code -9" in said and "the next call resumes it" in said, (said, complaints)
    assert results(out) == {}
    again = rlhf_env("bench", str(grid), "--out", str(out), before=in_one_process)
    assert again.status == 0, again
    resumed = json.loads((cell / "record.json").read_text(encoding="utf-8"))["resumed"]
    assert len(resumed) == 1 and resumed[0]["update"] >= 5 and resumed[0]["not_exact"] == [], resumed
    assert rlhf_env("bench", str(grid), "--out", str(folder / "untouched"), before=in_one_process).status == 0
    assert results(out) == results(folder / "untouched")
    return f"gone on with from update {resumed[0]['update']}, exact"
