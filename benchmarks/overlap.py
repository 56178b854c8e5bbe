"""Texts written one update ahead in another process ([engine] ahead = 1) beside the same run one after the other.

    python benchmarks/overlap.py                     # both halves: time per update, then learning curves of five seeds
    python benchmarks/overlap.py --only time         # two idle cores, a minute or two
    python benchmarks/overlap.py --only curves --seeds 5
    python benchmarks/overlap.py --only time --experiment FILE.toml   # a file of yours

Time: the same experiment with `ahead = 0` and `ahead = 1`, one thread in each process, in turns so that a machine which
grows slower does so for both. The epochs of learning are chosen first, so that learning takes about as long as writing.
Beside what is measured stands the least that any overlap could give, from the shares of the two halves. Texts are
scored in the process that learns: with a KL penalty (`--timed-kl 0.08`), the reference reads them there, and that is
not overlapped with learning. Curves are with that penalty.

Curves: runs that differ in `ahead` alone and share seeds, with the same budget. At every evaluation, the mean over
seeds of either, the 95 % interval of that without, whether the other lies in it, and the paired difference.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env import Budget, Experiment, run
from rlhf_env.lab.evaluation.runs import EVALUATION_FILE
from rlhf_env.lab.statistics import Estimate, mean_of_seeds
from rlhf_env.learning.run_record import read_metrics

WARM = 2  # updates at the beginning of each run that are not timed: the other process starts, rollouts are not ahead


def small_talk(agent: str, num_envs: int, kl: float, epochs: int = 1) -> Experiment:
    """The demo's task and model, with the gold reward paid, and a KL penalty of this weight (0: none)."""
    return Experiment.from_table(
        {
            "task": {"name": "chitchat"},
            "policy": {"model": "rlhf-env/chitchat"},
            "environment": {"num_envs": num_envs, "max_new_tokens": 28, "max_prompt_tokens": 48},
            "rewards": {"upbeat": 1.0, **({"kl": kl} if kl else {})},
            "agent": {"name": agent, "lr": 3e-4, "group_size": 4, "epochs": epochs},
            "budget": {"updates": 20},
            "evaluation": {"prompts": 128},
        }
    )


def of_ahead(wanted: Experiment, ahead: int) -> Experiment:
    return replace(wanted, engine=replace(wanted.engine, ahead=ahead))


def rows_of(wanted: Experiment, folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics of a run, which is not trained again if it is there."""
    if not (folder / EVALUATION_FILE).is_file():
        run(wanted, folder, resume=True, threads=1)
    return read_metrics(folder)


# ---------------------------------------------------------------- time


def seconds_of(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float, float]]:
    """Of each update but the first: seconds, and of those the seconds of collecting."""
    updates = [row for row in rows if row["update"] > 0]
    for before, row in pairwise(updates):
        if row["update"] > WARM:
            took = row["spent/seconds"] - before["spent/seconds"]
            yield took, took * row["time/collect_share"]


def timed(wanted: Experiment, ahead: int, updates: int) -> list[tuple[float, float]]:
    with tempfile.TemporaryDirectory() as folder:
        short = replace(of_ahead(wanted, ahead), budget=Budget(updates=updates), checkpoint_every=0)
        run(short, Path(folder) / "run", threads=1)
        return list(seconds_of(read_metrics(Path(folder) / "run")))


def balanced(agent: str, num_envs: int, kl: float) -> Experiment:
    """As many epochs as make learning take about as long as writing."""
    one = timed(small_talk(agent, num_envs, kl), 0, WARM + 4)
    writing = statistics.median(collecting for _, collecting in one)
    learning = statistics.median(took - collecting for took, collecting in one)
    epochs = max(1, round(writing / learning))
    print(f"one epoch: {writing:.3f} s of writing, {learning:.3f} s of learning; so {epochs} epochs", flush=True)
    return small_talk(agent, num_envs, kl, epochs)


def time_updates(wanted: Experiment, updates: int, rounds: int) -> None:
    taken: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    for number in range(rounds):
        for ahead in (0, 1) if number % 2 == 0 else (1, 0):
            taken[ahead] += timed(wanted, ahead, WARM + updates)
    medians = {}
    for ahead, values in taken.items():
        medians[ahead] = statistics.median(took for took, _ in values)
        collecting = statistics.median(collecting for _, collecting in values)
        low, high = np.quantile([took for took, _ in values], [0.25, 0.75])
        print(
            f"ahead = {ahead}: {medians[ahead]:.3f} s an update (middle half {low:.3f} to {high:.3f}, {len(values)} "
            f"updates), {collecting:.3f} s of them until the rollout is there"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    writing = statistics.median(collecting / took for took, collecting in taken[0])
    least, ratio = max(writing, 1.0 - writing), medians[1] / medians[0]
    print(f"of an update one after the other, {writing:.0%} are writing: ahead takes at least {least:.3f} of its time")
    print(f"ahead over one after the other: {ratio:.3f} (on {cores} cores; load {os.getloadavg()[0]:.1f})")


# ---------------------------------------------------------------- curves


def interval(it: Estimate, sign: str = "") -> str:
    return "-" if it.low is None or it.high is None else f"[{it.low:{sign}.4f}, {it.high:{sign}.4f}]"


def compare_curves(wanted: Experiment, name: str, seeds: int, first: int, work: Path) -> None:
    curves: dict[int, list[dict[int, float]]] = {0: [], 1: []}
    stale: list[dict[str, Any]] = []
    for seed in range(first, first + seeds):
        for ahead, found in curves.items():
            rows = rows_of(replace(of_ahead(wanted, ahead), seed=seed), work / f"{name}-ahead{ahead}-{seed}")
            found.append({row["update"]: row["eval/objective"] for row in rows if "eval/objective" in row})
            stale += rows if ahead else []
        print(f"seed {seed}: " + ", ".join(f"ahead = {a}: {list(c[-1].values())[-1]:.4f}" for a, c in curves.items()))
    print(f"{'updates':>8} {'one after the other, 95 %':>28} {'ahead':>8} {'difference, 95 %':>28}")
    outside = 0
    for update in sorted(set.intersection(*(set(curve) for found in curves.values() for curve in found))):
        plain, ahead_of = (np.array([[values[update]] for values in curves[ahead]]) for ahead in (0, 1))
        spread, apart = mean_of_seeds(plain), mean_of_seeds(ahead_of - plain, paired=True)
        inside = spread.low is None or spread.high is None or spread.low <= ahead_of.mean() <= spread.high
        outside += not inside
        print(
            f"{update:8} {plain.mean():8.4f} {interval(spread):>19} {ahead_of.mean():8.4f} "
            f"{apart.value:+9.4f} {interval(apart, '+')}{'' if inside else ' outside'}"
        )
    print(f"evaluations at which ahead is outside the interval: {outside}")
    for measure in ("staleness", "written_ahead", "kl", "ess", "ratio_p05", "ratio_p95"):
        values = [row[f"writer/{measure}"] for row in stale if f"writer/{measure}" in row]
        print(f"writer/{measure}: median {statistics.median(values):.4f}, from {min(values):.4f} to {max(values):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=["time", "curves"])
    parser.add_argument("--experiment", type=Path, help="a TOML file instead of the demo's small talk")
    parser.add_argument("--agent", default="grpo", help="of small talk: grpo or rloo (default: %(default)s)")
    parser.add_argument("--num-envs", type=int, default=64, help="texts of a rollout of small talk")
    parser.add_argument("--timed-kl", type=float, default=0.0, help="KL penalty of small talk, when it is timed")
    parser.add_argument("--timed", type=int, default=12, help="updates of a run that are timed")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each that are timed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=20, help="of a run whose curve is compared")
    parser.add_argument("--every", type=int, default=4, help="updates between evaluations")
    parser.add_argument("--work", type=Path, default=Path("runs/overlap"), help="where runs with curves are kept")
    given = parser.parse_args()
    own = None if given.experiment is None else Experiment.load(given.experiment)
    if given.only != "curves":
        time_updates(own or balanced(given.agent, given.num_envs, given.timed_kl), given.timed, given.rounds)
    if given.only != "time":
        wanted = own or small_talk(given.agent, given.num_envs, 0.08)
        wanted = replace(
            wanted,
            budget=Budget(updates=given.updates),
            evaluation=replace(wanted.evaluation, every=given.every),
        )
        name = f"{given.agent if own is None else given.experiment.stem}-{given.updates}"
        compare_curves(wanted, name, given.seeds, given.first_seed, given.work)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
