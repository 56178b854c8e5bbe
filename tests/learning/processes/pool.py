"""Several processes of one run, made in an instant: forked from this one, which has imported everything.

What a launcher would say is in their environment, so they meet as launched processes do: by accelerate, over gloo.
"""

from __future__ import annotations

import copy
import json
import os
import socket
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from faults.processes import Ended, Running, started
from faults.resume_matrix import ADAPTIVE, Novelty, after, experiment_of

from rlhf_env import plugins
from rlhf_env.envs.asked_part import AskedPart
from rlhf_env.lab.evaluation.runs import Run, run
from rlhf_env.learning import checkpoints
from rlhf_env.learning.experiment import Budget, EngineSettings
from rlhf_env.learning.models import load_tokenizer_of
from rlhf_env.learning.processes import current, join
from rlhf_env.learning.sources import DataSource, EnvSource
from rlhf_env.learning.workplace import Workplace, build
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.lora import add_adapter
from rlhf_env.policies.tiny import tiny_language_model
from rlhf_env.types import Episode, Float

# Every agent has learned from its own texts, and from what it kept of them, by the third.
UPDATES = 3


def several(size: int, work: Callable[[], object]) -> list[Ended]:
    """`work()` in each of `size` processes, to its end. `work` runs in one process where `size` is 1."""
    return [one.wait(240) for one in begun(size, work)]


def begun(size: int, work: Callable[[], object]) -> list[Running]:
    port = free_port()

    def of(rank: int) -> Callable[[], object]:
        def launched() -> object:
            if size > 1:
                os.environ.update(said_to(rank, size, port))
            join()
            result = work()
            current().leave()
            return result

        return launched

    return [Running(of(rank)) for rank in range(size)]


def said_to(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun says to a process."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


# Cases beside those of the matrix: which one of it, and with which rewards.
BESIDE: dict[str, tuple[str, Mapping[str, Any]]] = {
    "grpo, asks a server": ("grpo", {"outside": 1.0, "task": 1.0, "kl": ADAPTIVE}),
    "rloo, a function of the whole batch": ("rloo", {"of_batch": 1.0, "kl": 0.1}),
    "ppo, adapters": ("ppo", {"task": 1.0, "kl": 0.1}),
}


def workplace_of(case: str, folder: Path, *, shard: bool = False) -> Workplace:
    """The case of the resume matrix in float64, with a model that computes in float64 (Llama's norms do not)."""
    of_matrix, rewards = BESIDE.get(case, (case, None))
    wanted = experiment_of(of_matrix, folder)
    # Before training and at the end; a checkpoint on the way.
    measured = replace(wanted.evaluation, prompts=4, every=UPDATES)
    # Texts of a group differ in what they earn by more than rounding: what is learned from rounding differs anyway.
    rewards = {**(rewards or wanted.rewards), "varied": 0.5}
    engine = EngineSettings(shard=shard)
    budget = Budget(updates=UPDATES)
    experiment = replace(wanted, budget=budget, evaluation=measured, checkpoint_every=2, rewards=rewards, engine=engine)
    tokenizer = load_tokenizer_of(experiment.policy)
    policy = copy.deepcopy(_new_model(tokenizer.vocab_size, tokenizer.end_id, tokenizer.pad_id))
    if "adapters" in case:
        add_adapter(policy.model, Lora(rank=2), seed=0)
    return build(experiment, policy=policy)


@cache  # making one is checking it, which takes longer than a run's update
def _new_model(vocab_size: int, end_id: int, pad_id: int) -> LanguageModel:
    sizes: dict[str, Any] = {"vocab_size": vocab_size, "hidden_size": 16, "heads": 2, "layers": 1}
    return tiny_language_model("gpt2", **sizes, end_id=end_id, pad_id=pad_id, dtype=torch.float64, init_std=0.2)


class Varied:
    """A number from 0 to 1 by the text alone: others earn other numbers."""

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.array([zlib.crc32(episode.ids.tobytes()) / 2**32 for episode in episodes])


class Outside(Varied):
    """A reward that another process computes: asked in threads, while others write."""

    connections = 2

    def hang_up(self) -> None:
        """There is no line."""


class OfBatch:
    """How much longer a text is than the batch's mean."""

    needs_batch = True

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        lengths = np.array([float(len(episode.response_ids)) for episode in episodes])
        return lengths - lengths.mean()


class Notes:
    """What this process learned from, and which rewards it was asked, in one file for each run."""

    def __init__(self) -> None:
        for name, reward in {"varied": Varied, "novelty": Novelty, "outside": Outside, "of_batch": OfBatch}.items():
            plugins.register_reward(name, reward)
        self.texts: list[Any] = []
        self.asked: Counter[str] = Counter()
        after(EnvSource, "next", self._learned_from)
        after(DataSource, "next", self._learned_from)
        after(AskedPart, "_distinct", self._asked)

    def _learned_from(self, rollout: Any, *_: Any) -> None:
        self.texts.append(
            {
                "prompts": [episode.prompt.text for episode in rollout.episodes],
                "ids": [episode.ids.tolist() for episode in rollout.episodes],
                "group": rollout.group.tolist(),
                "returns": rollout.returns().tolist() if rollout.scores else [],
            }
        )

    def _asked(self, answer: Any, part: AskedPart, *_: Any) -> None:
        self.asked[part.name] += len(answer[0])

    def write(self, folder: Path) -> None:
        noted = {"texts": self.texts, "asked": dict(self.asked)}
        (folder / f"notes-{rank()}.json").write_text(json.dumps(noted), encoding="utf-8")
        self.texts, self.asked = [], Counter()


def trained(case: str, folder: Path, notes: Notes, *, shard: bool = False, **settings: Any) -> Run:
    """The run of a case in `folder`, by this process among the others."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"files-{rank()}"  # what the experiment reads; each process may write it
    beside.mkdir(exist_ok=True)
    os.chdir(beside)
    try:
        return run(workplace_of(case, Path(), shard=shard), folder / "run", **settings)
    finally:
        notes.write(folder)


def noted(folder: Path) -> list[Mapping[str, Any]]:
    """By process."""
    files = sorted(folder.glob("notes-*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Those of the agent in the last checkpoint, by path."""
    newest = checkpoints.latest(folder / "run" / "checkpoints")
    assert newest is not None
    state, _ = checkpoints.load(newest)
    return dict(_flat(state["agent"], ""))


def _flat(value: Any, path: str) -> Any:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}/{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for place, item in enumerate(value):
            yield from _flat(item, f"{path}/{place}")


# ---------------------------------------------------------------- commands, as a launcher starts them

TOY = """
budget = { updates = 100_000 }
checkpoint_every = 1
policy = { tokenizer = "alphabet:ab" }
environment = { num_envs = 4, max_new_tokens = 2, max_prompt_tokens = 4 }
evaluation = { prompts = 2 }
task = { name = "prompts", prompts = ["a", "b"] }
agent = { name = "reinforce" }
"""
REWARDS = "rewards = { length = { target = 1 } }\n"


def commands(*of_ranks: str, before: Callable[[], object] = lambda: None) -> list[Running]:
    """`rlhf-env ...` in a process for each of `of_ranks`, as torchrun would start them."""
    port = free_port()

    def said(number: int) -> Callable[[], None]:
        def to_process() -> None:
            os.environ.update(said_to(number, len(of_ranks), port))
            before()

        return to_process

    return [started(*words.split(), before=said(number)) for number, words in enumerate(of_ranks)]


def assert_one_line(ended: list[Ended], status: int, *words: str) -> None:
    assert [one.status for one in ended] == [status] * len(ended), ended
    lines = [line for one in ended for line in one.stderr.splitlines()]
    assert len(lines) == 1 and all(word in lines[0] for word in ("rlhf-env: ", *words)), lines
