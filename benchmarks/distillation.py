"""How much of what a model was trained for smaller ones keep that learn from it, beside their sizes.

    python benchmarks/distillation.py                              # 2.2 million parameters into 1.3 and 0.3
    python benchmarks/distillation.py --tokens 600_000 --seeds 3
    python benchmarks/distillation.py --experiment examples/real_model/train.toml --student 1 --train 2_000

The model is first trained by rloo on the rewards in [evaluation], which are what all answers are measured by. Students
are some of its layers, evenly spread ("2"), or narrower models with random weights ("1:96": one layer, 96 wide), as
`rlhf-env shrink` makes them. They learn by the agent `distill`, at equal numbers of generated tokens.

`kept` is the share of the way from the model's reward before it was trained (0) to after (1); `before` is the student
as it was made. `nats` is KL(student || model) of an answer to a prompt that training did not see, over its tokens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import rlhf_env
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.smaller_models import write_smaller
from rlhf_env.toml_files import read_toml

SMALL_TALK: dict[str, Any] = {
    "policy": {"model": "rlhf-env/chitchat"},
    "task": {"name": "chitchat"},
    "environment": {"num_envs": 64, "max_new_tokens": 12, "max_prompt_tokens": 48},
    "evaluation": {"prompts": 128, "rewards": {"upbeat": 1.0}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, help="a TOML file of your own")
    parser.add_argument("--student", action="append", metavar="LAYERS[:WIDTH]", help="default: 2 and 1:96")
    parser.add_argument(
        "--train", type=int, default=20_000, help="tokens of the model's training (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=40_000, help="generated for each student (default: %(default)s)")
    parser.add_argument("--divergence", default="jsd", help="of distill (default: %(default)s)")
    parser.add_argument("--on-policy", type=float, default=0.5, help="of distill (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="the highest one (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table, folder = SMALL_TALK, Path()
    if given.experiment is not None:
        own = read_toml(given.experiment)
        table = {key: own[key] for key in ("policy", "task", "environment", "evaluation")}
        folder = given.experiment.parent
    with tempfile.TemporaryDirectory() as scratch:
        compare(Trials(table, folder, Path(scratch)), given)


class Trials:
    """Runs that differ in who writes and who learns."""

    def __init__(self, table: Mapping[str, Any], folder: Path, scratch: Path) -> None:
        self.table, self.folder, self.scratch = table, folder, scratch
        self.runs = 0
        located = Experiment.from_table({"policy": dict(table["policy"])}, folder=folder).located()
        self.model = located.policy.model
        """What students learn from: another one, once it was trained."""

    def run(
        self, model: str, agent: Mapping[str, Any], rewards: Mapping[str, Any], tokens: int = 1, seed: int = 0
    ) -> Any:
        self.runs += 1
        policy = {key: value for key, value in self.table["policy"].items() if key not in ("model", "lora")}
        table = {
            **self.table,
            "seed": seed,
            "policy": {**policy, "model": str(Path(model).absolute()) if Path(model).exists() else model},
            "rewards": dict(rewards),
            "agent": dict(agent),
            "budget": {"generated_tokens": tokens},
            "evaluation": {**self.table["evaluation"], "every": 0},
        }
        experiment = Experiment.from_table(table, folder=self.folder)
        return rlhf_env.run(experiment, self.scratch / f"run-{self.runs}")

    def train(self, tokens: int) -> None:
        """The model, on the rewards that answers are measured by."""
        rewards = {**self.table["evaluation"]["rewards"], "kl": 0.02}
        self.run(self.model, {"name": "rloo", "group_size": 8, "lr": 5e-4}, rewards, tokens)
        self.model = str((self.scratch / f"run-{self.runs}").absolute())

    def measure(self, model: str, agent: Mapping[str, Any], tokens: int = 1, seed: int = 0) -> dict[str, float]:
        """Reward, nats a token and seconds of an agent that begins with `model`."""
        start = time.perf_counter()
        rewards = {"teacher": {"teacher": self.model}}
        found = self.run(model, agent, rewards, tokens, seed).evaluation.metrics
        nats = -found["part/teacher"] / found["length"]
        return {"reward": found["gold"], "nats": nats, "seconds": time.perf_counter() - start}


def compare(trials: Trials, given: argparse.Namespace) -> None:
    untrained = trials.measure(trials.model, {"name": "reference"})["reward"]
    trials.train(given.train)
    trained = trials.measure(trials.model, {"name": "reference"})["reward"]
    learning = {
        "name": "distill",
        "teacher": trials.model,
        "divergence": given.divergence,
        "epochs": 2,
        "minibatches": 4,
        "lr": given.lr,
        "schedule": "cosine",
        "warmup": 0.05,
        **({} if given.divergence == "sequence" else {"on_policy": given.on_policy}),
    }

    def kept(reward: float) -> float:
        return (reward - untrained) / (trained - untrained)

    print(f"{'':16} {'parameters':>12} {'reward':>8} {'kept':>6} {'before':>7} {'nats':>6} {'seconds':>8}", flush=True)
    for number, wanted in enumerate(given.student or ["2", "1:96"]):
        layers, _, width = wanted.partition(":")
        student = trials.scratch / f"student-{number}"
        made = write_smaller(trials.model, student, layers=int(layers), hidden_size=int(width) if width else None)
        if number == 0:
            print(f"{'untrained':16} {made.of:12,} {untrained:8.2f} {0.0:6.2f}", flush=True)
            print(f"{'trained':16} {made.of:12,} {trained:8.2f} {1.0:6.2f}", flush=True)
        before = trials.measure(str(student), {"name": "reference"})
        after = [trials.measure(str(student), learning, given.tokens, seed) for seed in range(given.seeds)]
        reward, nats, seconds = (fmean(it[name] for it in after) for name in ("reward", "nats", "seconds"))
        print(
            f"{'layers ' + wanted:16} {made.parameters:12,} {reward:8.2f} {kept(reward):6.2f} "
            f"{kept(before['reward']):7.2f} {nats:6.2f} {seconds:8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
