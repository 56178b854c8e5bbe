"""How much of what a model was trained for smaller ones keep that learn from it, beside their sizes.

    python benchmarks/distillation.py                              # 2.2 million parameters into 1.3 and 0.3
    python benchmarks/distillation.py --tokens 600_000 --seeds 3
    python benchmarks/distillation.py --experiment train.toml --teacher trained --student 1 --student 10

The model is first trained as the experiment says; `--teacher` is a run of it that is there already (the last line is
for a copy of examples/real_model, after `rlhf-env train train.toml --out trained`). Students are some of its layers,
evenly spread ("2"), or narrower models with random weights ("1:96": one layer, 96 wide), as `rlhf-env shrink` makes
them; adapters are merged. They learn by the agent `distill`, with all of their weights, at equal numbers of generated
tokens; with `--alone` also by the experiment's own agent and rewards, without a teacher.

`reward` is that of [evaluation], on prompts that training did not see; `seen` the same on those it did. `kept` is the
share of the way from the model's reward before it was trained (0) to after (1), and `kept/M` that over millions of
parameters; `before` is what the student kept as it was made. `nats` is KL(student || model) of an unseen prompt's
answer, over its tokens.
"""

from __future__ import annotations

import argparse
import gc
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console

import rlhf_env
from rlhf_env.lab.evaluation.runs import Run
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.smaller_models import write_smaller
from rlhf_env.toml_files import read_toml

SMALL_TALK: dict[str, Any] = {
    "policy": {"model": "rlhf-env/chitchat"},
    "task": {"name": "chitchat"},
    "environment": {"num_envs": 64, "max_new_tokens": 12, "max_prompt_tokens": 48},
    "rewards": {"upbeat": 1.0, "kl": 0.02},
    "agent": {"name": "rloo", "group_size": 8, "lr": 5e-4},
    "budget": {"generated_tokens": 20_000},
    "evaluation": {"prompts": 128, "rewards": {"upbeat": 1.0}},
}
SHARED = ("task", "environment", "evaluation")  # by all that learn and are measured
SEEN_ROLLOUTS = 2  # asked for `seen`
LINE = "{:16} {:>12} {:>8} {:>8} {:>6} {:>8} {:>7} {:>6} {:>8}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, help="a TOML file of your own")
    parser.add_argument("--teacher", type=Path, help="a run of the experiment that is there already")
    parser.add_argument("--student", action="append", metavar="LAYERS[:WIDTH]", help="default: 2 and 1:96")
    parser.add_argument("--train", type=int, help="tokens of the model's training (default: the experiment's budget)")
    parser.add_argument("--tokens", type=int, default=40_000, help="generated for each student (default: %(default)s)")
    parser.add_argument("--divergence", default="jsd", help="of distill (default: %(default)s)")
    parser.add_argument("--on-policy", type=float, default=0.5, help="of distill (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="of distill (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3, help="the highest one (default: %(default)s)")
    parser.add_argument("--alone", action="store_true", help="students also learn without the model")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table, folder = SMALL_TALK, Path()
    if given.experiment is not None:
        table, folder = read_toml(given.experiment), given.experiment.parent
    with tempfile.TemporaryDirectory() as scratch:
        compare(Trials(table, folder, Path(scratch)), given)
    print(f"the most memory held: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB")


class Trials:
    """Runs that differ in who writes and who learns."""

    def __init__(self, table: Mapping[str, Any], folder: Path, scratch: Path) -> None:
        self.table, self.folder, self.scratch = table, folder, scratch
        self.runs = 0
        located = Experiment.from_table({"policy": dict(table["policy"])}, folder=folder).located()
        self.untrained = located.policy.model
        self.teacher = self.untrained
        """What students learn from, once it was trained."""

    def run(self, table: Mapping[str, Any]) -> tuple[Run, str]:
        """What a run measured, and its folder: a model."""
        gc.collect()  # the models of the run before, which refer to each other, would be held beside this one's
        self.runs += 1
        out = self.scratch / f"run-{self.runs}"
        experiment = Experiment.from_table(dict(table), folder=self.folder)
        console = Console(stderr=True)
        begins = Path(experiment.policy.model).name
        console.print(f"Run {self.runs}: {experiment.agent_label}, from {begins}", markup=False, highlight=False)
        return rlhf_env.run(experiment, out, threads=1, console=console), str(out.absolute())

    def train(self, tokens: int | None) -> None:
        """The model, as the experiment says."""
        budget = self.table["budget"] if tokens is None else {"generated_tokens": tokens}
        _, self.teacher = self.run({**self.table, "budget": budget})

    def of(self, model: str, **sections: Any) -> dict[str, Any]:
        """An experiment in which `model` learns, or is measured: all of its weights."""
        policy = {key: value for key, value in self.table["policy"].items() if key not in ("model", "lora")}
        shared = {name: self.table[name] for name in SHARED}
        evaluation = {**self.table["evaluation"], "every": 0}
        return {**shared, "policy": {**policy, "model": model}, "evaluation": evaluation, **sections}

    def learned(
        self, model: str, agent: Mapping[str, Any], tokens: int, seed: int, rewarded: bool
    ) -> tuple[str, float]:
        """The model that `model` becomes, and the seconds it took."""
        start = time.perf_counter()
        rewards = self.table["rewards"] if rewarded else self.table["evaluation"]["rewards"]
        _, out = self.run(
            self.of(model, agent=dict(agent), rewards=rewards, budget={"generated_tokens": tokens}, seed=seed)
        )
        return out, time.perf_counter() - start

    def measure(self, model: str) -> dict[str, float]:
        """Reward on prompts that training did not see and on those it did, and nats a token."""
        rewards = {**self.table["evaluation"]["rewards"], "teacher": {"teacher": self.teacher, "weight": 0.0}}
        run, _ = self.run(self.of(model, agent={"name": "reference"}, rewards=rewards, budget={"updates": 1}))
        found = run.evaluation.metrics
        asked = [rlhf_env.collect(run.workplace.env, run.agent, seed=seed) for seed in range(SEEN_ROLLOUTS)]
        seen = fmean(float(rollout.returns().mean()) for rollout in asked)
        return {"reward": found["gold"], "seen": seen, "nats": -found["part/teacher"] / found["length"]}


def compare(trials: Trials, given: argparse.Namespace) -> None:
    if given.teacher is None:
        trials.train(given.train)
    else:
        trials.teacher = str(given.teacher.absolute())
    untrained, trained = trials.measure(trials.untrained), trials.measure(trials.teacher)
    if trained["reward"] == untrained["reward"]:
        raise SystemExit(f"the model's reward is {trained['reward']:.2f} before and after: train it for longer")
    distilling = {
        "name": "distill",
        "teacher": trials.teacher,
        "divergence": given.divergence,
        "epochs": given.epochs,
        "minibatches": 4,
        "lr": given.lr,
        "schedule": "cosine",
        "warmup": 0.05,
        **({} if given.divergence == "sequence" else {"on_policy": given.on_policy}),
    }

    def kept(reward: float) -> float:
        return (reward - untrained["reward"]) / (trained["reward"] - untrained["reward"]) + 0.0  # no -0.00

    def show(name: str, parameters: int, found: Mapping[str, float], before: str = "-", seconds: str = "-") -> None:
        share = kept(found["reward"])
        numbers = f"{found['reward']:.2f}", f"{found['seen']:.2f}", f"{share:.2f}", f"{share / parameters * 1e6:.4f}"
        print(LINE.format(name, f"{parameters:,}", *numbers, before, f"{found['nats']:.2f}", seconds), flush=True)

    print(LINE.format("", "parameters", "reward", "seen", "kept", "kept/M", "before", "nats", "seconds"), flush=True)
    for number, wanted in enumerate(given.student or ["2", "1:96"]):
        layers, _, width = wanted.partition(":")
        student = str((trials.scratch / f"student-{number}").absolute())
        made = write_smaller(trials.teacher, student, layers=int(layers), hidden_size=int(width) if width else None)
        if number == 0:
            show("untrained", made.of, untrained)
            show("trained", made.of, trained)
        before = f"{kept(trials.measure(student)['reward']):.2f}"
        ways = {f"layers {wanted}": distilling, **({"  alone": trials.table["agent"]} if given.alone else {})}
        for name, agent in ways.items():
            found, seconds = [], 0.0
            for seed in range(given.seeds):
                model, took = trials.learned(student, agent, given.tokens, seed, rewarded=agent is not distilling)
                found.append(trials.measure(model))
                seconds += took / given.seeds
            means = {key: fmean(it[key] for it in found) for key in found[0]}
            show(name, made.parameters, means, before, f"{seconds:.0f}")


if __name__ == "__main__":
    main()
