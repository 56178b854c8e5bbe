"""The public API as typed code of others uses it. mypy --strict reads this file (test_typed_use.py); nobody runs it.

What `assert_type` says is promised: a wider type, `Any` above all, is an error here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

from rlhf_env import Episode, Observation, Prompt, RewardMix, Score, Task, TextEnv, TextVectorEnv, from_function
from rlhf_env.envs.infos import Info, VectorInfo
from rlhf_env.envs.rewards import KLPart
from rlhf_env.learning.agent import Agent, Decision, Metrics, Setup, Traits, traits
from rlhf_env.learning.collect import collect
from rlhf_env.learning.rollout import Rollout, finished
from rlhf_env.types import Bool, FinishReason, Float, Int, KLPenalty, Replies, ResetOptions, State, Tokenizer


@dataclass(frozen=True)
class Vowels:
    """A reward."""

    worth: float = 1.0

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.array([self.worth * sum(letter in "aeiou" for letter in it.response) for it in episodes])


class Questions:
    """A task with a conversation."""

    size = 3

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        return Prompt(id=f"questions/{index}", text="why?" * (index + 1))

    def reply(self, episode: Episode, /) -> str | None:
        return None if episode.turns else "go on"


class Silent:
    """An agent."""

    trains = False

    def __init__(self, setup: Setup) -> None:
        self.setup = setup

    def begin(self) -> ResetOptions:
        return {"group_size": 2}

    def act(self, observation: Observation, /) -> Decision:
        tokens = np.full(len(observation["input_ids"]), self.setup.tokenizer.end_id)
        return Decision(tokens, np.zeros(len(tokens)))

    def update(self, rollout: Rollout, /) -> Metrics:
        return {"reward": float(rollout.returns().mean())}

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State, /) -> None: ...


def one_text() -> Score:
    env = TextEnv(task=Questions(), reward={"vowels": (1.0, Vowels())}, max_new_tokens=8)
    assert_type(env.task, Task)
    assert_type(env.reward, RewardMix)
    assert_type(env.tokenizer, Tokenizer)
    assert_type(env.render(), str | NDArray[np.uint8] | None)
    observation, info = env.reset(seed=0, options={"indices": [1]})
    assert_type(observation, Observation)
    assert_type(observation["input_ids"], Int)
    assert_type(info, Info)
    assert_type(info["prompt"], str)
    _, reward, terminated, truncated, info = env.step(7)
    assert_type(reward, float)
    assert_type(terminated, bool)
    assert_type(truncated, bool)
    assert_type(info["text_episode"], Episode)
    assert_type(info["finish_reason"], FinishReason)
    assert_type(info["reward_parts"], dict[str, float])
    assert_type(info["token_rewards"], dict[str, Float])
    score = info["score"]
    assert_type(score, Score)
    assert_type(score.raw, Mapping[str, float])
    assert_type(score.total, float)
    return score


def many_texts(agent: Agent) -> Rollout:
    envs = TextVectorEnv(4, task="count", reward=from_function(lambda completions: [0.0 for _ in completions]))
    observation, infos = envs.reset(seed=0)
    assert_type(observation, Observation)
    observation, rewards, terminated, truncated, infos = envs.step(np.zeros(4, dtype=np.int64))
    assert_type(rewards, Float)
    assert_type(terminated, Bool)
    assert_type(truncated, Bool)
    assert_type(infos, VectorInfo)
    assert_type(infos["reward_parts"], dict[str, Float])
    assert_type(finished(infos), list[tuple[int, Episode, Score]])
    assert_type(envs.prompts, tuple[Prompt, ...])
    assert_type(envs.action_masks(), Bool)
    rollout = collect(envs, agent)
    assert_type(rollout, Rollout)
    assert_type(rollout.scores, Sequence[Score])
    return rollout


def objective(mix: RewardMix, episodes: Sequence[Episode]) -> float:
    assert_type(mix.score(episodes), list[Score])
    assert_type(mix.kl, KLPart | None)
    if mix.kl is None:
        return 0.0
    assert_type(mix.kl.penalty, KLPenalty)
    return assert_type(mix.kl.beta, float)


def capabilities(task: Task, setup: Setup) -> tuple[Agent, Traits]:
    if isinstance(task, Replies):
        assert_type(task.reply(episode()), str | Sequence[Mapping[str, Any]] | None)
    agent: Agent = Silent(setup)
    assert_type(traits(agent).kl_bound, float | None)
    assert_type(agent.state_dict(), State)
    return agent, traits(agent)


def episode() -> Episode:
    ids = np.array([1, 2], dtype=np.int64)
    prompt = Prompt(id="one", text="a", meta={"answer": 3})
    return Episode(prompt, ids[:1], "b", ids[1:], "length", np.array([True]))
