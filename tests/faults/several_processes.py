"""More than one process: the ranks of a run that a launcher started, and a benchmark's workers.

A rank that is killed ends all, and the run goes on in any number of them. A worker of `rlhf-env bench` that dies is
named, and the next call goes on with what it was at. What needs no launcher is in `tests/learning/processes`.
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


TOY = """
budget = { updates = 200 }
checkpoint_every = 5
policy = { tokenizer = "alphabet:ab" }
environment = { num_envs = 4, max_new_tokens = 2, max_prompt_tokens = 4 }
evaluation = { prompts = 4 }
task = { name = "prompts", prompts = ["a", "b"] }
rewards = { length = { target = 1 }, kl = 0.1 }
agent = { name = "reinforce" }
"""


@fault("F34", "a command that is no run, started twice: exit 2 that says so, in one process of the two", quick=True)
def two_of_another_command(folder: Path) -> None:
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    first, second = (
        rlhf_env("bench", "toy.toml", before=lambda rank=rank: os.environ.update(place, RANK=rank))  # type: ignore[misc]
        for rank in "01"
    )
    assert first.status == second.status == 2 and first.stderr.count("\n") == 1 and not second.stderr, (first, second)
    assert first.stderr.startswith("rlhf-env: WORLD_SIZE is 2, and only `rlhf-env train` is one run"), first.stderr


@fault("F34", "a rank of two under torchrun killed -9: all gone within 30 s, one line, no orphan, gone on with by one")
def a_rank_dies(folder: Path) -> str:
    script = f"import os; open(f'rank-{{os.environ[\"RANK\"]}}-{{os.getpid()}}', 'w').close(); {MAIN}"
    (folder / "rank.py").write_text(script, encoding="utf-8")
    (folder / "toy.toml").write_text(TOY, encoding="utf-8")
    launched = subprocess.Popen(
        [*LAUNCH, "rank.py", "train", "toy.toml", "--out", "run"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("run/checkpoints/step-*/manifest.json")):
        assert launched.poll() is None and time.monotonic() < deadline, launched.communicate()
        time.sleep(0.002)
    pids = {file.name[5]: int(file.name[7:]) for file in folder.glob("rank-*")}
    os.kill(pids["1"], 9)
    killed = time.monotonic()
    _, complaints = launched.communicate(timeout=60)
    took = time.monotonic() - killed
    assert launched.returncode != 0 and took < 30.0, (launched.returncode, took)
    ours = [line for line in complaints.splitlines() if line.startswith("rlhf-env: ")]
    assert len(ours) == 1 and f"process 1 (pid {pids['1']} on " in ours[0], complaints
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()], "a rank is still there"
    alone = rlhf_env("train", str(folder / "toy.toml"), "--out", str(folder / "run"), "--resume")
    assert alone.status == 0, alone
    return f"gone {took:.1f} s after the kill"


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
