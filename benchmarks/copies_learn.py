"""What a policy learns from texts that its copy in 8 bits wrote, beside what it learns from its own: seed by seed.

    python benchmarks/copies_learn.py                                  # ten seeds each, half an hour
    python benchmarks/copies_learn.py --seeds 3 --agent rloo --tokens 8000

The demo's small talk, with the gold reward paid and the demo's KL penalty: runs that differ in `[policy] writer_dtype`
alone, and share seeds. Evaluations are written by the policy itself in both. At every evaluation, the mean of the
difference over the seeds with its 95 % interval, and the spread over the seeds of writing in float32 beside it; last,
what the runs say of the importance weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_env import Experiment, run
from rlhf_env.lab.statistics import Estimate, mean_of_seeds
from rlhf_env.learning.run_folder import read_metrics
from rlhf_env.policies.low_precision import fallback

EVERY = 2  # updates between evaluations


def experiment(agent: str, writer: str | None, seed: int, tokens: int, model: str) -> Experiment:
    table: dict[str, Any] = {
        "seed": seed,
        "task": {"name": "chitchat"},
        "policy": {"model": model, **({} if writer is None else {"writer_dtype": writer})},
        "environment": {"num_envs": 64, "max_new_tokens": 28, "max_prompt_tokens": 48},
        "rewards": {"upbeat": 1.0, "kl": 0.08},
        "agent": {"name": agent, "lr": 3e-4, **({"group_size": 4} if agent in ("grpo", "rloo") else {})},
        "budget": {"generated_tokens": tokens},
        "evaluation": {"prompts": 128, "every": EVERY},
    }
    return Experiment.from_table(table)


def curve(folder: Path, wanted: Experiment) -> tuple[list[float], list[dict[str, Any]]]:
    """The objective's value at every evaluation, and all rows."""
    if not (folder / "metrics.jsonl").is_file():
        run(wanted, folder)
    rows = read_metrics(folder)
    return [row["eval/objective"] for row in rows if "eval/objective" in row], rows


def interval(it: Estimate, sign: str = "") -> str:
    return "-" if it.low is None or it.high is None else f"[{it.low:{sign}.4f}, {it.high:{sign}.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agent", default="grpo")
    parser.add_argument("--writer", default="int8", choices=["int8", "bfloat16"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=16_000, help="budget of a run (default: %(default)s)")
    parser.add_argument("--model", default="rlhf-env/chitchat")
    parser.add_argument("--work", type=Path, default=Path("runs/copies_learn"))
    given = parser.parse_args()
    if said := fallback(given.writer, "cpu"):
        sys.exit(said)
    torch.set_num_threads(1)
    curves: dict[str | None, list[list[float]]] = {None: [], given.writer: []}
    copied: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for writer, found in curves.items():
            folder = given.work / f"{given.agent}-{given.tokens}-{writer or 'own'}-{seed}"
            values, rows = curve(folder, experiment(given.agent, writer, seed, given.tokens, given.model))
            found.append(values)
            copied += rows if writer else []
        print(f"seed {seed}: {curves[None][-1][-1]:.4f} own, {curves[given.writer][-1][-1]:.4f} copy", flush=True)
    report(curves[None], curves[given.writer], copied)


def report(own: Sequence[Sequence[float]], copy: Sequence[Sequence[float]], rows: Sequence[dict[str, Any]]) -> None:
    length = min(map(len, [*own, *copy]))
    ours, theirs = (np.array([values[:length] for values in it]) for it in (copy, own))
    print(f"{'updates':>8} {'own':>8} {'copy':>8} {'difference, 95 %':>26} {'own, 95 %':>20}")
    for at in range(length):
        apart = mean_of_seeds(ours[:, [at]] - theirs[:, [at]], paired=True)
        spread = mean_of_seeds(theirs[:, [at]])
        outside = spread.low is not None and not spread.low <= ours[:, at].mean() <= (spread.high or 0.0)
        print(
            f"{EVERY * (at + 1):8} {theirs[:, at].mean():8.4f} {ours[:, at].mean():8.4f} {apart.value:+9.4f} "
            f"{interval(apart, '+')} {interval(spread)}{' outside' if outside else ''}"
        )
    for name in ("ess", "ratio_p05", "ratio_p50", "ratio_p95"):
        values = [row[f"rollout/{name}"] for row in rows if f"rollout/{name}" in row]
        print(f"rollout/{name}: median {statistics.median(values):.4f}, from {min(values):.4f} to {max(values):.4f}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
