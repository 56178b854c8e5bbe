"""A small world for agents: four symbols, a two-layer model in float64, the task `count`, a KL part."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product
from math import factorial, prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_rewards.kl import KL

from rlhf_env import plugins
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.learning import checkpoints
from rlhf_env.learning.agent import Agent, Setup
from rlhf_env.learning.collect import collect
from rlhf_env.learning.engine import Engine, Optimization
from rlhf_env.learning.pretraining_mix import mixing
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.spending import Spending
from rlhf_env.policies import tiny_language_model
from rlhf_env.types import Episode, Prompt, Score

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
    action_length: int | None = None,
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
        action_length=action_length if whole_responses else 1,
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
        task=env.task,
    )
    return World(env, mixing(setup))


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


@pytest.fixture
def with_returns() -> Callable[[Rollout, list[float | None]], Rollout]:
    """The rollout with other rewards, one a row; None for a row that was never scored."""

    def scored(rollout: Rollout, returns: list[float | None]) -> Rollout:
        nothing = Score(raw={}, weights={})
        scores = (nothing if r is None else Score(raw={"task": r}, weights={"task": 1.0}) for r in returns)
        return replace(rollout, scores=tuple(scores))

    return scored


@pytest.fixture
def assert_layout_changes_nothing(make_world: MakeWorld, gradient_of: Any) -> Callable[..., None]:
    """N3, N4, N8, N34: the gradient knows neither padding, nor the order of rows, nor the size of micro-batches."""

    def check(make_agent: Callable[..., Any], returns: Callable[[Rollout], Rollout] = lambda rollout: rollout) -> None:
        world = make_world(rows=8)
        agent = make_agent(world.setup)
        rollout = returns(world.rollout(agent, seed=3))
        whole = gradient_of(agent, rollout)
        assert not rollout.mask.all()
        assert whole.abs().max() > 1e-4
        noise = torch.randint(0, 6, rollout.tokens.shape, generator=torch.Generator().manual_seed(0))
        for tail in (noise, torch.full_like(noise, agent.policy.end_id)):
            dirty = replace(
                rollout,
                tokens=torch.where(rollout.mask, rollout.tokens, tail),
                logprobs=rollout.logprobs.masked_fill(~rollout.actions, float("nan")),
            )
            assert torch.equal(gradient_of(agent, dirty), whole)
        shuffled = rollout.select(torch.tensor([5, 2, 7, 0, 1, 4, 3, 6]))
        torch.testing.assert_close(gradient_of(agent, shuffled), whole, rtol=0, atol=1e-12)
        limits: list[dict[str, int]] = [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"micro_batch_tokens": 17}]
        for limit in limits:
            split = make_agent(make_world(rows=8).setup, optimization=Optimization(**limit))
            torch.testing.assert_close(gradient_of(split, rollout), whole, rtol=0, atol=1e-12)

    return check


@pytest.fixture
def assert_learns(make_world: MakeWorld) -> Callable[..., None]:
    """Beats both controls by 0.6 (of a reward in [-1, 1]) after `updates`; in the token view, the reference by 0.4."""

    def check(make_agent: Callable[..., Any], seed: int, updates: int = 25) -> None:
        def control(world: World, name: str, batches: int) -> float:
            kind = plugins.host().load("agent", name)
            return world.mean_score(kind(world.setup, kind.Config()), batches)

        world = make_world(seed=seed)
        controls = max(control(world, name, 8) for name in ("random", "reference"))
        agent = make_agent(world.setup)
        world.learn(agent, updates)
        assert world.mean_score(agent) > controls + 0.6

        world = make_world(seed=seed, whole_responses=False)
        reference = control(world, "reference", 2)
        agent = make_agent(world.setup, optimization=Optimization(lr=1e-2))
        world.learn(agent, 8)
        assert world.mean_score(agent, batches=2) > reference + 0.4

    return check


@dataclass(frozen=True)
class Enumerated:
    """A world whose answers can all be listed: what is an average over samples elsewhere is a sum here.

    `answers`: every answer to one prompt, as a rollout that `setup.policy` wrote, scored by the environment's reward.
    """

    world: World
    answers: Rollout

    @classmethod
    def of(cls, world: World) -> Enumerated:
        policy, tokenizer, length = world.setup.policy, world.setup.tokenizer, world.setup.max_new_tokens
        prompt = world.env.task.prompt(0, {})
        symbols = [i for i in range(policy.vocab_size) if i != tokenizer.end_id]
        shorter = [[*said, tokenizer.end_id] for size in range(length) for said in product(symbols, repeat=size)]
        unstated = [
            Episode(
                prompt=prompt,
                prompt_ids=np.array(tokenizer.encode(prompt.text), dtype=np.int64),
                response=tokenizer.decode(response),  # the end token has no text
                response_ids=np.array(response, dtype=np.int64),
                finish_reason="stop" if response[-1] == tokenizer.end_id else "length",
                actions=np.ones(len(response), dtype=np.bool_),
            )
            for response in [*shorter, *product(symbols, repeat=length)]
        ]
        stated = policy.response_logprobs(unstated)
        episodes = [replace(episode, logprobs=logprobs) for episode, logprobs in zip(unstated, stated, strict=True)]
        answers = Rollout.from_episodes(episodes, world.env.reward.score(episodes), pad_id=tokenizer.pad_id)
        assert abs(float(answers.logprobs.sum(dim=1).exp().sum()) - 1.0) < 1e-12
        return cls(world, answers)

    @property
    def logprobs(self) -> torch.Tensor:
        """float64[N]: log pi(answer), with gradient."""
        return self._of(self.world.setup.policy)

    @property
    def probabilities(self) -> torch.Tensor:
        return self.logprobs.detach().exp()

    def exact_gradient(self) -> torch.Tensor:
        """Of -(E[reward] - beta KL(pi || reference)), by autograd through the sum over all answers."""
        setup, logprobs = self.world.setup, self.logprobs
        worth = self.answers.returns(without=("kl",)) - setup.beta * (logprobs - self._of(setup.reference).detach())
        loss = -(logprobs.exp() * worth).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(setup.policy.parameters()))])

    def expected_gradient(self, gradient: Callable[[Rollout], torch.Tensor], rows: int = 1) -> torch.Tensor:
        """The mean of `gradient` over groups of `rows` independent answers, drawn from who wrote them.

        Which row holds which answer makes no difference, so each set of answers is taken once, for all its orders.
        """
        likely = self.answers.logprobs.sum(dim=1).exp().tolist()
        total = torch.zeros(())
        for indices in combinations_with_replacement(range(len(likely)), rows):
            orders = factorial(rows) / prod(factorial(indices.count(i)) for i in set(indices))
            rollout = replace(self.answers.select(list(indices)), group=torch.zeros(rows, dtype=torch.int64))
            total = total + orders * prod(likely[i] for i in indices) * gradient(rollout)
        return total

    def _of(self, policy: Any) -> torch.Tensor:
        logprobs = policy.evaluate(self.answers.tokens, self.answers.mask, self.answers.actions).logprobs
        return logprobs.double().sum(dim=1)


@pytest.fixture
def enumerate_world(make_world: MakeWorld) -> Callable[..., Enumerated]:
    """`enumerate_world(length=2, rows=1)`: all answers of up to 2 tokens, of a policy that has left its reference.

    `moved_on`: the policy has changed since it wrote them.
    """

    def build(*, moved_on: bool = False, **world: Any) -> Enumerated:
        made = make_world(**world)
        stir(made.setup.policy, seed=1)
        enumerated = Enumerated.of(made)
        if moved_on:
            stir(made.setup.policy, seed=2)
        return enumerated

    return build


def stir(policy: Any, seed: int) -> None:
    """Move every parameter a little, the same way for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.2 * drawn.to(parameter.device))
