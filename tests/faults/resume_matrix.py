"""Every agent, killed at every kind of moment and gone on with: does the run end in the same bits?

    make resume-matrix                                   # all agents x all cuts: `N of N exact`
    python tests/faults/resume_matrix.py ppo --cut save  # those with these words in their names

Each cell is two processes. The first runs `rlhf-env train` and is killed with -9 from inside, at the cut; the second is
`rlhf-env train --resume`. What is left is compared with a run that nobody touched: parameters and optimizer, every
random stream and counter (seconds aside), the rows of metrics, the final evaluation, and the prompts and tokens of
every update, those of the killed process too. A checkpoint is saved after every second update, so most cuts cost one or
two updates that have to be done again.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.processes import rlhf_env, warm_up

from rlhf_env import plugins
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.lab.evaluation import runs
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.learning import checkpoints
from rlhf_env.learning.experiment import EnvironmentSettings, EvaluationSettings, Experiment
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.sources import DataSource, EnvSource, PackedSource, Shuffled
from rlhf_env.learning.spending import Budget
from rlhf_env.types import Episode, Float

UPDATES = 5

# ---------------------------------------------------------------- the agents


@dataclass
class Novelty:
    """A reward with a memory: 1 / (1 + how often these words were said before this rollout)."""

    said: Counter[str] = field(default_factory=Counter)
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.array([1.0 / (1.0 + self.said[episode.response]) for episode in episodes])

    def observe(self, episodes: Sequence[Episode], /) -> None:
        self.said.update(episode.response for episode in episodes)

    def state_dict(self) -> dict[str, Any]:
        return {"said": dict(self.said)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.said = Counter(state["said"])


# Two letters are to be repeated; the KL penalty steers its own coefficient; four tokens in two segments; the learning
# rate moves; a gradient step is of two micro-batches.
STEPS = {"lr": 1e-2, "schedule": "cosine", "micro_batch_size": 2}
MINIBATCHES = {**STEPS, "minibatches": 2}
GROUPS = {**MINIBATCHES, "group_size": 4}
ADAPTIVE = {"weight": 0.1, "target": 0.01, "horizon": 16}

Changes = Mapping[str, Any]
CASES: dict[str, Changes] = {
    "ppo": {"agent": {"name": "ppo", **MINIBATCHES, "epochs": 2}},
    "ppo, token by token": {"agent": {"name": "ppo", **MINIBATCHES}, "view": "token"},
    "ppo, separate value model": {"agent": {"name": "ppo", **MINIBATCHES, "value_model": "separate"}},
    "ppo, a conversation": {"agent": {"name": "ppo", **MINIBATCHES}, "task": {"name": "guess"}},
    "reinforce": {"agent": {"name": "reinforce", **STEPS}},
    "rloo": {"agent": {"name": "rloo", **GROUPS}},
    "grpo": {"agent": {"name": "grpo", **GROUPS}},
    "grpo, novelty": {"agent": {"name": "grpo", **GROUPS}, "rewards": {"novelty": 1.0, "kl": ADAPTIVE}},
    "grpo, clip-cov": {
        "agent": {"name": "grpo", **GROUPS, "loss": {"name": "clip-cov", "lowest": 0.01, "share": 0.2}},
    },
    "reinforce, ++": {"agent": {"name": "reinforce", **STEPS, "loss": "reinforce++", "mask_overlong": True}},
    "ppo, sapo": {"agent": {"name": "ppo", **MINIBATCHES, "loss": "sapo"}},
    "rejection": {"agent": {"name": "rejection", **GROUPS}},
    "distill, the best of two": {
        "agent": {"name": "distill", **MINIBATCHES, "divergence": "sequence", "best_of": 2},
        "environment": {"action_length": 4},
    },
    "distill, two write": {
        "agent": {"name": "distill", **MINIBATCHES, "teacher": "rlhf-env/chitchat", "on_policy": 0.5, "group_size": 2},
        "policy": "rlhf-env/chitchat-judge",
    },
    "rloo, a teacher's reward": {
        "agent": {"name": "rloo", **GROUPS},
        "rewards": {"teacher": {"teacher": "rlhf-env/chitchat"}, "kl": ADAPTIVE},
        "policy": "rlhf-env/chitchat-judge",
    },
    "sft": {"agent": {"name": "sft", **STEPS}, "answers": "answers.jsonl"},
    "sft+rm": {
        "agent": {"name": "sft+rm", **STEPS, "preferences": "pairs.jsonl", "way": "separate", "step_tokens": 40},
        "answers": "answers.jsonl",
    },
    "dpo": {"agent": {"name": "dpo", **GROUPS}},
    "dpo, stored pairs": {"agent": {"name": "dpo", **MINIBATCHES}, "preferences": "pairs.jsonl"},
    "dpo, simpo": {"agent": {"name": "dpo", **GROUPS, "loss": {"name": "simpo", "gamma": 0.5}}},
    "kto": {"agent": {"name": "kto", **GROUPS}},
    "kto, stored pairs": {"agent": {"name": "kto", **MINIBATCHES}, "preferences": "pairs.jsonl"},
    "options": {"agent": {"name": "options", **MINIBATCHES}},
    "options, kept apart": {"agent": {"name": "options", **MINIBATCHES, "diversity_coefficient": 0.5}},
    "sb3": {"agent": {"name": "sb3", "batch_size": 8, "n_epochs": 2}},
    "sb3, a2c": {"agent": {"name": "sb3", "algorithm": "a2c"}},
    "curriculum around ppo": {
        "agent": {
            "name": "curriculum",
            "levels": [1, 2],
            "threshold": 0.0,
            "window": 12,
            "agent": {"name": "ppo", **MINIBATCHES},
        }
    },
    "grpo, with a pretraining mix": {
        "agent": {
            "name": "grpo",
            **GROUPS,
            "ptx_coefficient": 0.5,
            "ptx_rows": 2,
            "ptx_data": {"name": "prompts", "prompts": ["a=a", "b=b", "ab=ba"]},
        },
    },
    "curriculum by progress around rloo": {
        "agent": {
            "name": "curriculum",
            "levels": [1, 2],
            "by": "progress",
            "explore": 0.5,
            "agent": {"name": "rloo", **GROUPS},
        }
    },
    "replay around grpo": {
        "agent": {"name": "replay", "priority": "advantage", "agent": {"name": "grpo", **GROUPS}},
    },
    "prompt_sampling around dynamic_sampling around grpo": {
        "agent": {
            "name": "prompt_sampling",
            "prompts": 8,
            "agent": {"name": "dynamic_sampling", "draws": 2, "agent": {"name": "grpo", **GROUPS}},
        },
    },
    "task_sampling around rloo": {
        "agent": {"name": "task_sampling", "agent": {"name": "rloo", **GROUPS}},
        "task": {"name": "mixture", "tasks": [{"name": "echo", "length": 1}, {"name": "echo", "length": 2}]},
    },
    "backward_curriculum around temperature around grpo": {
        "agent": {
            "name": "backward_curriculum",
            "column": "answer",
            "stages": 2,
            "threshold": 0.0,
            "window": 12,
            "earlier": 0.3,
            "whole": 0.3,
            "agent": {
                "name": "temperature",
                "agent": {"name": "grpo", **GROUPS, "entropy_coefficient": 0.05, "entropy_floor": 1.3},
            },
        },
    },
    "ppo, novelty by counts, distance and distillation": {
        "agent": {"name": "ppo", **MINIBATCHES, "group_size": 2},
        "rewards": {
            "task": 1.0,
            "novelty_ngrams": 0.2,
            "novelty_embedding": {"weight": 0.2, "memory": 12},
            "novelty_rnd": 0.2,
            "shaping": {"weight": 0.5, "potential": {"name": "length", "target": 3}},
            "kl": ADAPTIVE,
        },
    },
    "curriculum around replay around ppo": {
        "agent": {
            "name": "curriculum",
            "levels": [1, 2],
            "by": "updates",
            "starts": [0, 3],
            "agent": {"name": "replay", "max_age": 2, "agent": {"name": "ppo", **MINIBATCHES}},
        },
    },
    "curriculum around grpo, novelty": {
        "agent": {
            "name": "curriculum",
            "levels": [1, 2],
            "by": "updates",
            "starts": [0, 3],
            "agent": {"name": "grpo", **GROUPS},
        },
        "rewards": {"task": 1.0, "novelty": 0.5, "kl": ADAPTIVE},
    },
}


def experiment_of(case: str, folder: Path) -> Experiment:
    """The experiment of a case; what it reads is written into `folder`."""
    changes = CASES[case]
    preferences = None
    agent = dict(changes["agent"])
    if "preferences" in {**changes, **agent}:  # of the run, or of its agent
        preferences = str(folder / {**changes, **agent}["preferences"])
        pairs = [
            {"prompt": p, "chosen": p[:-1], "rejected": r}
            for p, r in (("a=", "b"), ("b=", "aa"), ("ab=", "ba"), ("ba=", ""), ("bb=", "a"))
        ]
        Path(preferences).write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    if "preferences" in agent:
        agent["preferences"], preferences = preferences, None
    token = changes.get("view") == "token"
    task = {"name": "echo", "length": 2} if "task" not in changes else dict(changes["task"])
    rewards = dict(changes.get("rewards", {"task": 1.0, "kl": ADAPTIVE}))
    if "answers" in changes:  # to learn, and a reward to be measured by
        path = folder / changes["answers"]
        given = [{"prompt": p, "completion": p[-2::-1]} for p in ("a=", "b=", "ab=", "ba=", "bb=")]
        path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
        task, rewards = {"name": "file", "path": str(path)}, {"length": {"target": 2}, "kl": ADAPTIVE}
    return Experiment(
        name="matrix",
        task=task,
        policy=PolicySettings(model=changes["policy"])
        if "policy" in changes
        else PolicySettings(tokenizer="alphabet:ab=" if "task" not in changes else "bytes"),
        environment=EnvironmentSettings(
            num_envs=8,
            max_new_tokens=4 if "task" not in changes else 12,
            max_prompt_tokens=96 if "task" in changes else 8 if "policy" in changes else 3,
            view="token" if token else "response",
            action_length=None if token else changes.get("environment", {}).get("action_length", 2),
        ),
        rewards=rewards,
        agent=agent,
        preferences=preferences,
        budget=Budget(updates=UPDATES),
        evaluation=EvaluationSettings(prompts=6, every=2),
        checkpoint_every=2,
    )


# ---------------------------------------------------------------- the cuts


@dataclass(frozen=True)
class Cut:
    """The `nth` time that `event` happens while `done` updates are logged."""

    event: str
    done: int
    nth: int = 1


POINT = "point of a save"  # before and after each call of it that changes the disk
ANYTHING = "anything"  # an event that is each of the others: the nth of all, however many updates are logged

CUTS = {
    "in the evaluation before training": Cut("evaluation step", 0),
    "in the first rollout, mid-episode": Cut("step", 0),
    "in the first update, between gradient steps": Cut("gradient step", 0),
    "in an evaluation on the way": Cut("evaluation step", 1),
    "in the middle of a row of metrics": Cut("half a row", 1),
    "in a save, its tensors written": Cut("fsync", 2, 2),
    "in a save, before its rename": Cut("rename", 2),
    "in a save, after its rename": Cut("fsync", 2, 5),
    "right after a save": Cut("saved", 2),
    "after a row, before its checkpoint": Cut("row", 3),
    "in a later rollout, its prompts drawn": Cut("prompts", 3),
    "in a later rollout, mid-episode": Cut("step", 3),
    "in a later rollout, its rewards given": Cut("scores", 3),
    "in gradient accumulation": Cut("backward", 3),
    "between gradient steps": Cut("gradient step", 3),
    "in the last update": Cut("gradient step", 4),
    "in the last save": Cut("rename", 5),
    "before the result is written": Cut("result", 5),
}


class Watch:
    """Inside a process: notes what each update learned from, counts what happens, and kills it at a cut.

    `number`: with which signal.
    """

    def __init__(self, seen: Path, *cuts: Cut, number: int = signal.SIGKILL) -> None:
        self.seen, self.cuts, self.number = seen, cuts, number
        self.done = 0
        self.evaluating = self.saving = False
        self.counts: Counter[tuple[str, int]] = Counter()
        self.draws: Counter[int] = Counter()

    def happened(self, event: str) -> None:
        for what in ((event, self.done), (ANYTHING, 0)):
            self.counts[what] += 1
            if Cut(*what, self.counts[what]) in self.cuts:
                os.kill(os.getpid(), self.number)

    def _in_a_save(self) -> None:
        if self.saving:
            self.happened(POINT)

    def training(self, event: str) -> None:
        if not self.evaluating:
            self.happened(event)

    def __call__(self) -> None:
        """Look at the seams of the product, in this process, which also gets to know the reward with a memory."""
        plugins.register_reward("novelty", Novelty)
        after(TextVectorEnv, "step", lambda *_: self.happened("evaluation step" if self.evaluating else "step"))
        after(RewardMix, "score", lambda *_: self.training("scores"))
        after(torch.Tensor, "backward", lambda *_: self.happened("backward"))
        register_optimizer_step_post_hook(lambda *_: self.happened("gradient step"))
        after(RunFolder, "log", self._logged)
        after(RunFolder, "restore", self._restored)
        for owner, name in ((Path, "mkdir"), (checkpoints, "save_file"), (Path, "write_text"), (shutil, "rmtree")):
            before(owner, name, lambda *_: self._in_a_save())
            after(owner, name, lambda *_: self._in_a_save())
        before(checkpoints, "save", lambda *_: setattr(self, "saving", True))
        after(checkpoints, "save", lambda *_: setattr(self, "saving", False))
        after(checkpoints, "save", lambda *_: self.happened("saved"))
        for owner, name in ((os, "fsync"), (Path, "rename")):
            before(owner, name, lambda *_, name=name: self.happened(name))
            before(owner, name, lambda *_: self._in_a_save())
            after(owner, name, lambda *_: self._in_a_save())
        before(runs, "write_json", lambda file, *_: file.name == "evaluation.json" and self.happened("result"))
        before(RunFolder, "log", self._half_a_row)
        before(Evaluator, "texts", lambda *_: setattr(self, "evaluating", True))
        after(Evaluator, "texts", lambda *_: setattr(self, "evaluating", False))
        for source in (EnvSource, DataSource, PackedSource):
            after(source, "next", self._learned_from)
        after(Shuffled, "take", lambda *_: self.happened("prompts"))

    def _logged(self, _result: Any, _run: RunFolder, row: Mapping[str, Any]) -> None:
        self.done = int(row["update"])
        self.happened("row")

    def _restored(self, result: Any, *_: Any) -> None:
        self.done = 0 if result is None else int(result[1]["step"])

    def _half_a_row(self, run: RunFolder, row: Mapping[str, Any]) -> None:
        """Killed while the row is written: the disk has half of it."""
        if Cut("half a row", int(row["update"]) - 1) in self.cuts:
            with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(f'{{"update": {row["update"]}, "rollout/rew')
            os.kill(os.getpid(), signal.SIGKILL)
        self.happened("half a row")

    def _learned_from(self, rollout: Any, *_: Any) -> None:
        self.draws[self.done] += 1
        prompts = json.dumps([episode.prompt.id for episode in rollout.episodes]).encode()
        tokens = b"".join(episode.ids.tobytes() for episode in rollout.episodes)
        with self.seen.open("a", encoding="utf-8") as file:
            file.write(
                f"{self.done + 1} {self.draws[self.done]} {hashlib.sha256(prompts + b'|' + tokens).hexdigest()}\n"
            )


def after(owner: Any, name: str, look: Callable[..., object]) -> None:
    """Call `look(result, *arguments)` after each call."""
    call = getattr(owner, name)

    @wraps(call)
    def instead(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        look(result, *args)
        return result

    setattr(owner, name, instead)


def before(owner: Any, name: str, look: Callable[..., object]) -> None:
    """Call `look(*arguments)` before each call."""
    call = getattr(owner, name)

    @wraps(call)
    def instead(*args: Any, **kwargs: Any) -> Any:
        look(*args)
        return call(*args, **kwargs)

    setattr(owner, name, instead)


# ---------------------------------------------------------------- what is left, compared


@dataclass(frozen=True)
class Left:
    """What a run left, but for the clock: comparable, each under its name."""

    tensors: str
    state: Any
    rows: Any
    result: str
    seen: Mapping[tuple[int, int], str]
    """What was learned from, by update and draw: sft+rm draws demonstrations, and then pairs."""

    @classmethod
    def of(cls, folder: Path, seen: Path) -> Left:
        newest = checkpoints.latest(folder / "checkpoints")
        assert newest is not None, "no checkpoint is left"
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        del state["spending"]["seconds"]
        assert seen.exists(), "nothing was seen that an update learned from: is its source one of those watched?"
        lines = [line.split() for line in seen.read_text(encoding="utf-8").splitlines()]
        said: dict[tuple[int, int], str] = {}
        for update, draw, digest in lines:
            drawn = said.setdefault((int(update), int(draw)), digest)
            assert drawn == digest, f"update {update} was done again with other tokens"
        return cls(
            tensors=checkpoints.manifest_of(newest)["files"]["tensors.safetensors"]["sha256"],
            state={"step": newest.name, **state},
            rows=[timeless(row) for row in read_metrics(folder)],
            result=(folder / "evaluation.json").read_text(encoding="utf-8"),
            seen=said,
        )


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("time/") and name != "spent/seconds"}


@dataclass(frozen=True)
class Untouched:
    """A run that was left alone: its experiment file, its folder, what it left, and how often what happened in it."""

    file: Path
    run: Path
    left: Left
    counts: Counter[tuple[str, int]]


@cache
def untouched(case: str) -> Untouched:
    """The run of a case: once in this process, for all that are forked from it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="untouched-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file, run, seen, told = (folder / name for name in ("experiment.toml", "run", "seen", "counts"))
    file.write_text(experiment_of(case, folder).to_toml(), encoding="utf-8")
    watch = Watch(seen)

    def tell(*_: Any) -> None:
        told.write_text(json.dumps([[*what, times] for what, times in watch.counts.items()]), encoding="utf-8")

    def look() -> None:
        watch()
        after(runs, "write_json", tell)

    ended = rlhf_env("train", str(file), "--out", str(run), before=look)
    assert (ended.status, ended.stderr) == (0, ""), ended.stderr
    left = Left.of(run, seen)
    assert len({update for update, _ in left.seen}) == UPDATES
    counts = Counter({(event, done): n for event, done, n in json.loads(told.read_text(encoding="utf-8"))})
    return Untouched(file, run, left, counts)


def cut_and_resume(case: str, cut: Cut) -> None:
    """AssertionError unless the run of a case, killed at `cut` and resumed, ends like the one that was left alone."""
    expected = untouched(case)
    with tempfile.TemporaryDirectory(prefix="cut-") as place:
        run, seen = Path(place) / "run", Path(place) / "seen"
        command = ["train", str(expected.file), "--out", str(run)]
        killed = rlhf_env(*command, before=Watch(seen, cut))
        assert killed.status == -signal.SIGKILL, f"it was not killed: {killed}"
        resumed = rlhf_env(*command, "--resume", before=Watch(seen))
        assert (resumed.status, resumed.stderr) == (0, ""), resumed.stderr
        assert_same(Left.of(run, seen), expected.left)
        stray = [file.name for file in (run / "checkpoints").iterdir() if not file.name[5:].isdecimal()]
        assert not stray, f"left behind: {stray}"


def assert_same(left: Left, expected: Left) -> None:
    differ = [name for name in vars(expected) if getattr(left, name) != getattr(expected, name)]
    assert not differ, f"not the same: {', '.join(differ)}"


def applicable(case: str, *words: str) -> dict[str, Cut]:
    """The cuts that this agent comes by: one that learns from stored pairs writes nothing in a rollout."""
    counts = untouched(case).counts
    return {
        name: cut
        for name, cut in CUTS.items()
        if counts[cut.event, cut.done] >= cut.nth and all(word in name for word in words)
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("agents", nargs="*", help="words of agents' names (default: all)")
    options.add_argument("--cut", nargs="*", default=[], help="words of cuts' names (default: all)")
    given = options.parse_args()
    warm_up()
    start, exact, cells, kinds = time.monotonic(), 0, 0, set()
    selected = [case for case in CASES if not given.agents or any(word in case for word in given.agents)]
    for case in selected:
        began, lost = time.monotonic(), []
        try:
            cuts = applicable(case, *given.cut)
        except AssertionError as wrong:  # the others are still to be asked
            cells += 1
            print(f"      NOT EXACT {case}, left alone: {wrong}", flush=True)
            continue
        for name, cut in cuts.items():
            try:
                cut_and_resume(case, cut)
            except AssertionError as wrong:
                lost.append(f"{name}: {wrong}")
        cells, exact, kinds = cells + len(cuts), exact + len(cuts) - len(lost), kinds | cuts.keys()
        print(
            f"{len(cuts) - len(lost):3} of {len(cuts):2} exact  {time.monotonic() - began:5.1f} s  {case}", flush=True
        )
        for line in lost:
            print(f"      NOT EXACT {line}", flush=True)
    took = time.monotonic() - start
    print(f"{exact} of {cells} exact: {len(selected)} agents x {len(kinds)} cuts, those that apply; {took:.0f} s")
    sys.exit(exact != cells)
