"""What is ranked, where, and at which sizes: three grids that differ by the model, its budget and its step sizes.

Settings and tasks are the same at all sizes. Rewards are checked by a rule, so gold is what is trained on, and texts
are so short that a cell of the largest model takes well under a minute of processor time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.studies.transfer.alternation import alternation
from rlhf_env.types import JsonObject, JsonView

RANKED_SETTINGS: Mapping[str, JsonView] = {
    "ppo": {"group_size": 4},
    "grpo": {"group_size": 4},
    "rloo": {"group_size": 4},
    "reinforce": {"group_size": 4},
    "dpo": {"group_size": 4},
    "kto": {"group_size": 4},
    "rejection": {"group_size": 4},
    "best_of_n": {"n": 8},
}
"""The agents that are ranked, as in examples/benchmark.toml, with the settings that are the same at all sizes."""

CONTROL = "reference"
"""Runs beside them, and is not ranked: the model as it was."""

_LETTERS = "alphabet:abcde:"  # the tokenizer of a model that has none of its own
_REWARD = f"{alternation.__module__}:{alternation.__name__}"

TASKS: Mapping[str, JsonView] = {
    "letters": {
        "task": {"name": "count", "letter": "e", "target": 4},
        "rewards": {"task": 1.0, "kl": 0.01},
    },
    "alternation": {
        "task": {"name": "prompts", "prompts": ["a:", "b:", "c:", "d:"]},
        "rewards": {"alternation": {"function": _REWARD}, "kl": 0.01},
    },
}
"""Tables of the tasks. Texts are scored by their characters, whatever the model's tokens are: four times the letter e
and nothing else, and vowels and consonants in turn."""

_BY_PAIRS = ("dpo", "kto")  # they want smaller steps of a pretrained model: examples/benchmark.toml


@dataclass(frozen=True)
class TransferSize:
    """A model, and what a run of it may spend."""

    name: str
    title: str
    parameters: str
    """In words, for tables; those that are trained where they are fewer."""
    policy: JsonView
    lr: float
    """Of the agents that learn from rewards."""
    lr_of_pairs: float
    """Of those that learn from which of two texts, or whether one, is the better."""
    texts: int
    """Of an update."""
    tokens: int
    """The budget of a run: tokens written in training."""
    asked: int
    """Prompts of the evaluation."""
    seeds: int

    def grid(self) -> Grid:
        """Settings x tasks x seeds of this model."""
        agents: dict[str, JsonObject] = {
            agent: dict(fixed) if agent == "best_of_n" else {**fixed, "lr": self.lr_of(agent)}
            for agent, fixed in RANKED_SETTINGS.items()
        }
        return Grid(
            name=f"transfer-{self.name}",
            title=f"Eight agents on two tasks: {self.title}",
            what_gold_is="the task's own score, which is also what is trained on",
            agents={**agents, CONTROL: {}},
            seeds=self.seeds,
            experiment={
                "checkpoint_every": 0,
                "policy": dict(self.policy),
                "environment": {"num_envs": self.texts, "max_new_tokens": 4, "max_prompt_tokens": 8},
                "budget": {"generated_tokens": self.tokens},
                "evaluation": {"prompts": self.asked},
            },
            tasks={name: dict(table) for name, table in TASKS.items()},
        )

    def lr_of(self, agent: str) -> float:
        """The step size of an agent that trains."""
        return self.lr_of_pairs if agent in _BY_PAIRS else self.lr


SIZES: Mapping[str, TransferSize] = {
    size.name: size
    for size in (
        TransferSize(
            name="tiny",
            title="a small random model",
            parameters="0.03 M",
            policy={"model": "tiny", "tokenizer": _LETTERS},
            lr=3e-3,
            lr_of_pairs=2e-3,
            texts=32,
            tokens=2_400,
            asked=128,
            seeds=6,
        ),
        TransferSize(
            name="base",
            title="the shipped base model",
            parameters="2 M",
            policy={"model": "rlhf-env/chitchat"},
            lr=3e-4,
            lr_of_pairs=1.2e-4,
            texts=32,
            tokens=1_600,
            asked=128,
            seeds=6,
        ),
        TransferSize(
            name="smollm2",
            title="SmolLM2-135M-Instruct with LoRA",
            parameters="135 M (LoRA of rank 16)",
            policy={"model": "smollm2", "lora": {"rank": 16, "alpha": 32}},
            lr=1e-3,
            lr_of_pairs=4e-4,
            texts=8,
            tokens=384,
            asked=64,
            seeds=3,
        ),
    )
}
"""By name, from the smallest."""

HUGE = "smollm2"
"""The size whose model does not come with the library: examples/real_model/fetch.py makes its folder."""


def with_model(size: TransferSize, folder: str) -> TransferSize:
    """The same size with the model in `folder`."""
    return replace(size, policy={**size.policy, "model": folder})
