"""Agents that write what they are told to, and the environment in which they do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.learning import loop
from rlhf_env.learning.agent import Decision
from rlhf_env.learning.engine import Engine, Optimization
from rlhf_env.learning.loop import train
from rlhf_env.learning.rollout import Rollout, demonstrations
from rlhf_env.learning.spending import Budget, Spending
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode, Float, Observation

# ---------------------------------------------------------------- collect

# Alphabet "ab=": a is 0, b is 1, = is 2, the end token 3, pad 4; 5 in an action means "nothing here".
END, VOCABULARY, LIMIT = 3, 5, 5
TEXTS = [[0, 1, END], [END], [1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, END]]  # the third runs into the limit


class Scripted:
    """Writes the given texts `k` tokens at a time; every token's log-probability and value tell its row and place."""

    def __init__(self, texts: Sequence[Sequence[int]], k: int) -> None:
        self.texts, self.k = texts, k
        self.begun: dict[str, Any] = {}

    def begin(self) -> dict[str, Any]:
        return self.begun

    def act(self, observation: Observation, /) -> Decision:
        lengths = observation["attention_mask"].sum(axis=1)
        prompts = (observation["input_ids"] == 2).argmax(axis=1) + 1  # a prompt ends with its only "="
        places = (lengths - prompts)[:, None] + np.arange(self.k)
        tokens = np.array(
            [
                [text[place] if place < len(text) else VOCABULARY for place in row]
                for text, row in zip(self.texts, places, strict=True)
            ]
        )
        told = np.arange(len(self.texts))[:, None] + places / 10
        if self.k == 1:
            tokens, told = tokens[:, 0], told[:, 0]
        return Decision(tokens, -1.0 - told, {"value": 100.0 + told})

    def update(self, _rollout: Rollout, /) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, _state: Any, /) -> None: ...


@dataclass
class StatedLogprobs:
    """A token reward that reads what the agent stated: a wrong place would show in the reward."""

    needs_logprobs = True

    def token_rewards(self, episodes: Sequence[Episode], /) -> list[Float]:
        return [np.asarray(episode.logprobs) * (1 + np.arange(len(episode.response_ids))) for episode in episodes]


def echo_env(k: int, rows: int = 4, *, stated: bool = True, task: Any = 1.0, **settings: Any) -> TextVectorEnv:
    reward: dict[str, Any] = {"task": task, **({"stated": (0.5, StatedLogprobs())} if stated else {})}
    defaults: dict[str, Any] = {"autoreset_mode": "Disabled", "max_new_tokens": LIMIT, "max_prompt_tokens": 4}
    return TextVectorEnv(
        rows,
        task={"name": "echo", "length": 2},
        reward=reward,
        tokenizer="alphabet:ab=",
        action_length=k,
        **{**defaults, **settings},
    )


# ---------------------------------------------------------------- train


class Spends:
    """A source and an agent in one that spend known amounts, and one parameter that is trained."""

    def __init__(self, optimization: Optimization = Optimization()) -> None:  # noqa: B008 - frozen
        self.spending = Spending()
        self.engine = Engine(self.spending)
        self.parameter = torch.nn.Parameter(torch.zeros(1))
        self.optimizer = self.engine.optimizer([self.parameter], optimization)
        self.rollout = demonstrations([make_episode()], pad_id=256)

    def next(self, _agent: Any, /) -> Rollout:
        self.spending.add(episodes=4, generated_tokens=10, reward_calls=8)
        return self.rollout

    def begin(self) -> dict[str, Any]:
        return {}

    def act(self, _observation: Observation, /) -> Decision:
        raise AssertionError("nobody asks")

    def update(self, _rollout: Rollout, /) -> dict[str, float]:
        self.spending.add(preference_labels=3)
        for _ in range(2):
            self.optimizer.backward(self.parameter.sum())
            self.optimizer.step()
        return {"lr": self.optimizer.lr, "other/number": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, _state: Any, /) -> None: ...

    def train(self, budget: Budget, **how: Any) -> loop.Training:
        return train(self, self, budget, spending=self.spending, engine=self.engine, **how)
