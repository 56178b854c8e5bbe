"""GRPO: its gradient, its groups, and that it learns and resumes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rlhf_agents.grpo import GRPO, sequence_log_ratio
from rlhf_agents.random import Random
from rlhf_agents.reference import Reference

from rlhf_env.envs.rewards import Score
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import Rollout, demonstrations


def grpo(setup: Any, **settings: Any) -> GRPO:
    return GRPO(setup, GRPO.Config(**{"optimization": Optimization(lr=3e-3), **settings}))


def with_returns(rollout: Rollout, returns: list[float]) -> Rollout:
    return replace(rollout, scores=tuple(Score(raw={"task": r}, weights={"task": 1.0}) for r in returns))


@pytest.mark.parametrize("importance", ["token", "sequence"])
def test_the_first_step_is_the_policy_gradient(make_world, gradient_of, importance: str) -> None:
    """1/B sum_i 1/T_i sum_t -A_i grad log pi (eq. 3 at ratio 1), at either level of importance weights."""
    world = make_world(rows=8)
    agent = grpo(world.setup, importance=importance, scale_by_std=False)
    rollout = world.rollout(agent)
    returns = rollout.returns().reshape(2, 4)
    advantages = (returns - returns.mean(1, keepdim=True)).flatten()
    logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    loss = -(advantages * logprobs.sum(1) / rollout.actions.sum(1)).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)


def test_the_kl_part_is_paid_once_in_the_reward(make_world, gradient_of) -> None:  # N32
    """After straying from the reference, the gradient is that of returns which hold the KL part, and nothing else."""
    world = make_world(rows=8, kl=0.5)
    agent = grpo(world.setup, optimization=Optimization(lr=3e-2))
    world.learn(agent, 3)
    rollout = world.rollout(agent)
    assert float(rollout.part("kl").abs().max()) > 0.1
    summed = with_returns(rollout, rollout.returns().tolist())
    assert torch.equal(gradient_of(agent, rollout), gradient_of(agent, summed))


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_equal_rewards_teach_nothing(make_world, gradient_of, scale_by_std: bool) -> None:  # N27
    world = make_world(rows=8)
    agent = grpo(world.setup, scale_by_std=scale_by_std)
    rollout = with_returns(world.rollout(agent), [0.35] * 4 + [0.1] * 4)
    gradient = gradient_of(agent, rollout)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    metrics = agent.update(rollout)
    assert metrics["groups_without_spread"] == 1.0
    assert metrics["policy_loss"] == 0.0


def test_rows_without_a_score_teach_nothing(make_world, gradient_of) -> None:  # N30
    world = make_world(rows=8)
    agent = grpo(world.setup, aggregation="sequence-sum")
    rollout = world.rollout(agent)
    holed = replace(rollout, scores=(Score(raw={}, weights={}), *rollout.scores[1:]))
    alone = rollout.select(torch.arange(1, 8))
    torch.testing.assert_close(gradient_of(agent, holed) * 8, gradient_of(agent, alone) * 7, rtol=0, atol=1e-12)


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "sequence-sum", "dr-grpo"])
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_change_nothing(make_world, gradient_of, aggregation: str, size: int) -> None:  # N34
    world = make_world(rows=8)
    whole = grpo(world.setup, aggregation=aggregation)
    rollout = world.rollout(whole)
    split = grpo(make_world(rows=8).setup, aggregation=aggregation, optimization=Optimization(micro_batch_size=size))
    torch.testing.assert_close(gradient_of(split, rollout), gradient_of(whole, rollout), rtol=0, atol=1e-12)


def test_dr_grpo_divides_by_the_longest_answer_possible(make_world, gradient_of) -> None:  # N35
    world = make_world(rows=8)
    agent = grpo(world.setup, aggregation="dr-grpo")
    rollout = world.rollout(agent)
    summed = gradient_of(grpo(make_world(rows=8).setup, aggregation="sequence-sum"), rollout)
    torch.testing.assert_close(gradient_of(agent, rollout) * 6, summed, rtol=0, atol=1e-12)


def test_sequence_log_ratio() -> None:
    log_ratio = torch.tensor([[9.0, 1.0, 3.0, 9.0]], dtype=torch.float64)
    actions = torch.tensor([[False, True, True, False]])
    assert sequence_log_ratio(log_ratio, actions).tolist() == [[0.0, 2.0, 2.0, 0.0]]


def test_the_ratio_moves_with_epochs(make_world) -> None:
    world = make_world()
    agent = grpo(world.setup, epochs=1)
    first = agent.update(world.rollout(agent))
    assert abs(first["approx_kl"]) < 1e-12
    assert first["clip_fraction"] == 0.0
    again = grpo(make_world().setup, epochs=4, minibatches=2, optimization=Optimization(lr=3e-2))
    assert again.update(world.rollout(again))["approx_kl"] > 1e-3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(make_world, seed: int) -> None:
    """Beats both controls by 0.6 (of a reward in [-1, 1]) after 25 updates."""
    world = make_world(seed=seed)
    controls = max(world.mean_score(kind(world.setup, kind.Config())) for kind in (Random, Reference))
    agent = grpo(world.setup)
    world.learn(agent, 25)
    assert world.mean_score(agent) > controls + 0.6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_token_by_token(make_world, seed: int) -> None:
    """In the token view, 8 bold updates beat the reference by 0.4."""
    world = make_world(seed=seed, whole_responses=False)
    reference = world.mean_score(Reference(world.setup, Reference.Config()), batches=2)
    agent = grpo(world.setup, optimization=Optimization(lr=1e-2))
    world.learn(agent, 8)
    assert world.mean_score(agent, batches=2) > reference + 0.4


def test_it_resumes(assert_resumes) -> None:
    assert_resumes(lambda setup: grpo(setup, epochs=2, minibatches=2))


def test_what_compares_nothing_is_refused(make_world) -> None:  # N28
    with pytest.raises(ConfigError, match="at least 2"):
        grpo(make_world().setup, group_size=1)
    with pytest.raises(ConfigError, match="does not divide"):
        grpo(make_world().setup, group_size=5)
    with pytest.raises(ConfigError, match="aggregation must be"):
        GRPO.Config(aggregation="mean")  # type: ignore[arg-type]


def test_it_refuses_texts_without_stated_log_probabilities(make_world, make_episode) -> None:
    with pytest.raises(DataError, match="stated log-probabilities"):
        grpo(make_world().setup).update(demonstrations([make_episode([0, 2], [1, 4])], pad_id=5))
