"""A small world for agents: four symbols, a two-layer model in float64, the task `count`, a KL part."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_rewards.kl import KL

from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.learning import checkpoints
from rlhf_env.learning.agent import Agent, Setup
from rlhf_env.learning.engine import Engine
from rlhf_env.learning.loop import collect
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.spending import Spending
from rlhf_env.policies import tiny_language_model
from rlhf_env.types import Episode, Prompt

torch.set_num_threads(1)


@dataclass
class World:
    """An environment, and what a run lends to an agent that lives in it."""

    env: TextVectorEnv
    setup: Setup

    def rollout(self, agent: Agent, seed: int | None = None) -> Rollout:
        return collect(self.env, agent, seed=seed)

    def learn(self, agent: Agent, updates: int) -> None:
        for _ in range(updates):
            agent.update(self.rollout(agent))

    def mean_score(self, agent: Agent, batches: int = 8) -> float:
        """The agent's mean reward without the KL part, over `batches` rollouts."""
        return float(np.mean([self.rollout(agent).returns(without=("kl",)).mean() for _ in range(batches)]))


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world() -> MakeWorld:
    return build_world


def build_world(
    *,
    seed: int = 0,
    rows: int = 32,
    length: int = 6,
    whole_responses: bool = True,
    kl: float = 0.05,
    dtype: torch.dtype = torch.float64,
    task: Any = "count",
    max_episode_steps: int | None = None,
    **model: Any,
) -> World:
    symbols = "ab:="
    policy = tiny_language_model(
        vocab_size=len(symbols) + 2,
        end_id=len(symbols),
        pad_id=len(symbols) + 1,
        context=32,
        dtype=dtype,
        seed=seed,
        # GPT-2: transformers' Llama normalises in float32 whatever it is given, which hides what happens at 1e-12.
        **{"family": "gpt2", "hidden_size": 16, "layers": 1, "heads": 2, "init_std": 0.2, **model},
    ).eval()
    reference = policy.frozen_copy()
    reward: dict[str, Any] = {"task": 1.0}
    if kl:
        reward["kl"] = (kl, KL(reference))
    env = TextVectorEnv(
        rows,
        task={"name": "count", "target": length} if task == "count" else task,
        reward=reward,
        tokenizer=f"alphabet:{symbols}",
        max_new_tokens=length,
        max_prompt_tokens=8,
        action_length=None if whole_responses else 1,
        autoreset_mode="Disabled",
        max_episode_steps=max_episode_steps,
    )
    env.reset(seed=seed)
    spending = Spending()
    setup = Setup(
        policy=policy,
        reference=reference,
        tokenizer=env.tokenizer,
        reward=env.reward,
        batch_size=rows,
        action_length=env.action_length,
        max_new_tokens=env.max_new_tokens,
        seed=seed,
        engine=Engine(spending=spending),
        spending=spending,
    )
    return World(env, setup)


def flat_gradient(agent: Any) -> torch.Tensor:
    """The gradient left on the policy when its optimizer does not step."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in agent.policy.parameters()])


@pytest.fixture
def gradient_of() -> Callable[[Any, Rollout], torch.Tensor]:
    """The gradient of an agent's first step on a rollout; the agent is not changed."""

    def gradient(agent: Any, rollout: Rollout) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        before = copy.deepcopy(agent.state_dict())
        step = agent.optimizer.step

        def look() -> float:
            if not seen:
                seen.append(flat_gradient(agent))
            return float(step())

        agent.optimizer.step = look
        try:
            agent.update(rollout)
        finally:
            agent.optimizer.step = step
            agent.load_state_dict(before)
        return seen[0]

    return gradient


@pytest.fixture
def assert_resumes(make_world: MakeWorld, tmp_path: Path) -> Callable[..., None]:
    """Two updates, the state through a checkpoint into a fresh agent, and both go on in the same bits."""

    def check(make_agent: Callable[[Setup], Any], **world: Any) -> None:
        first = make_world(**world)
        agent = make_agent(first.setup)
        first.learn(agent, 2)
        state, _ = checkpoints.load(checkpoints.save(tmp_path, 2, agent.state_dict(), {}))

        second = make_world(**world)
        fresh = make_agent(second.setup)
        if fresh.trains:
            with torch.no_grad():
                for parameter in fresh.policy.parameters():
                    parameter.add_(1.0)  # so that a weight which the state forgot shows
        fresh.load_state_dict(state)
        rollout, again = first.rollout(agent, seed=9), second.rollout(fresh, seed=9)
        assert torch.equal(rollout.tokens, again.tokens)
        assert torch.equal(rollout.logprobs, again.logprobs)
        for _ in range(2):
            assert agent.update(rollout) == fresh.update(again)
            assert torch.equal(weights_of_setup(agent), weights_of_setup(fresh))
        again, rollout = second.rollout(fresh), first.rollout(agent)
        assert torch.equal(rollout.tokens, again.tokens)

    return check


def weights_of_setup(agent: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in agent.setup.policy.parameters()])


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    """`make_episode([0, 2], [0, 4])`: ids of prompt and response in the world's alphabet (4 is the end)."""

    def make(prompt: list[int], response: list[int], logprobs: list[float] | None = None) -> Episode:
        return Episode(
            prompt=Prompt("p", ""),
            prompt_ids=np.array(prompt, dtype=np.int64),
            response="",
            response_ids=np.array(response, dtype=np.int64),
            finish_reason="stop",
            actions=np.ones(len(response), dtype=np.bool_),
            logprobs=None if logprobs is None else np.array(logprobs),
        )

    return make
