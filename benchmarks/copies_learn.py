"""What a policy learns from texts that its copy in 8 bits wrote, beside what it learns from its own: seed by seed.

    python benchmarks/copies_learn.py                                  # ten seeds each, half an hour
    python benchmarks/copies_learn.py --seeds 3 --agent rloo --tokens 8000
    python benchmarks/copies_learn.py --experiment DIR/train.toml --seeds 3 --updates 10   # a file of yours

The demo's small talk, with the gold reward paid and the demo's KL penalty, or the experiment of a file (that of
examples/real_model trains a model of 135 million weights): runs that differ in `[policy] writer_dtype` alone, and
share seeds. Evaluations are written by the policy itself in both. At every evaluation, the mean of the difference over
the seeds with its 95 % interval, and the spread over the seeds of writing in float32 beside it; last, what the runs say
of the importance weights. A run that is in the folder `--work` is not trained again; one that was interrupted resumes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env import Budget, Experiment, run
from rlhf_env.lab.evaluation.runs import EVALUATION_FILE
from rlhf_env.lab.statistics import Estimate, mean_of_seeds
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.policies.low_precision import fallback


def small_talk(agent: str, tokens: int, model: str) -> Experiment:
    table: dict[str, Any] = {
        "task": {"name": "chitchat"},
        "policy": {"model": model},
        "environment": {"num_envs": 64, "max_new_tokens": 28, "max_prompt_tokens": 48},
        "rewards": {"upbeat": 1.0, "kl": 0.08},
        "agent": {"name": agent, "lr": 3e-4, **({"group_size": 4} if agent in ("grpo", "rloo") else {})},
        "budget": {"generated_tokens": tokens},
        "evaluation": {"prompts": 128},
    }
    return Experiment.from_table(table)


def rows_of(wanted: Experiment, folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics of a run."""
    if not (folder / EVALUATION_FILE).is_file():  # it has not ended
        run(wanted, folder, resume=True, threads=1)
    return read_metrics(folder)


def interval(it: Estimate, sign: str = "") -> str:
    return "-" if it.low is None or it.high is None else f"[{it.low:{sign}.4f}, {it.high:{sign}.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--experiment", type=Path, help="a TOML file instead of the demo's small talk")
    parser.add_argument("--agent", default="grpo", help="of small talk (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16_000, help="budget of a run of small talk")
    parser.add_argument("--model", default="rlhf-env/chitchat", help="of small talk")
    parser.add_argument("--updates", type=int, help="budget of each run instead")
    parser.add_argument("--every", type=int, default=2, help="updates between evaluations (default: %(default)s)")
    parser.add_argument("--prompts", type=int, help="of an evaluation")
    parser.add_argument("--writer", default="int8", choices=["int8", "bfloat16"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--work", type=Path, default=Path("runs/copies_learn"))
    given = parser.parse_args()
    if said := fallback(given.writer, "cpu"):
        sys.exit(said)
    if given.experiment:
        wanted, name = Experiment.load(given.experiment), given.experiment.stem
    else:
        wanted, name = small_talk(given.agent, given.tokens, given.model), f"{given.agent}-{given.tokens}"
    if given.updates:
        wanted, name = replace(wanted, budget=Budget(updates=given.updates)), f"{name}-{given.updates}-updates"
    measured = replace(wanted.evaluation, every=given.every, prompts=given.prompts or wanted.evaluation.prompts)
    wanted = replace(wanted, evaluation=measured)
    curves: dict[str | None, list[dict[int, float]]] = {None: [], given.writer: []}
    copied: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for writer, found in curves.items():
            policy = replace(wanted.policy, writer_dtype=writer)
            rows = rows_of(replace(wanted, policy=policy, seed=seed), given.work / f"{name}-{writer or 'own'}-{seed}")
            found.append({row["update"]: row["eval/objective"] for row in rows if "eval/objective" in row})
            copied += rows if writer else []
        own, copy = (list(curves[writer][-1].values())[-1] for writer in curves)
        print(f"seed {seed}: {own:.4f} own, {copy:.4f} copy", flush=True)
    report(curves[None], curves[given.writer], copied)


def report(own: Sequence[dict[int, float]], copy: Sequence[dict[int, float]], rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'updates':>8} {'own':>8} {'copy':>8} {'difference, 95 %':>26} {'own, 95 %':>20}")
    for update in sorted(set.intersection(*map(set, [*own, *copy]))):
        ours, theirs = (np.array([[values[update]] for values in it]) for it in (copy, own))
        apart, spread = mean_of_seeds(ours - theirs, paired=True), mean_of_seeds(theirs)
        outside = spread.low is not None and not spread.low <= ours.mean() <= (spread.high or 0.0)
        print(
            f"{update:8} {theirs.mean():8.4f} {ours.mean():8.4f} {apart.value:+9.4f} "
            f"{interval(apart, '+')} {interval(spread)}{' outside' if outside else ''}"
        )
    for name in ("ess", "ratio_p05", "ratio_p50", "ratio_p95"):
        values = [row[f"rollout/{name}"] for row in rows if f"rollout/{name}" in row]
        print(f"rollout/{name}: median {statistics.median(values):.4f}, from {min(values):.4f} to {max(values):.4f}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
