"""RLOO: exactly the policy gradient, its groups and clips, and that it learns and resumes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rlhf_agents.rloo import RLOO

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import demonstrations


def rloo(setup: Any, **settings: Any) -> RLOO:
    return RLOO(setup, RLOO.Config(**{"optimization": Optimization(lr=3e-3), **settings}))


def test_the_first_step_is_the_policy_gradient(make_world, gradient_of) -> None:  # N32
    """-1/B sum_i A_i grad log pi(y_i), where the mean of A_i's baseline is taken over the others, one by one."""
    world = make_world(rows=8, kl=0.3)
    agent = rloo(world.setup, optimization=Optimization(lr=3e-2))
    world.learn(agent, 3)  # so that the KL part has something to say
    rollout = world.rollout(agent)
    returns = rollout.rewards().sum(dim=1).tolist()
    advantages = [
        r - sum(returns[j] for j in range(8) if j // 4 == i // 4 and j != i) / 3 for i, r in enumerate(returns)
    ]
    logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs.sum(dim=1)
    loss = -(torch.tensor(advantages, dtype=torch.float64) * logprobs).sum() / 8
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_it_is_unbiased(enumerate_world, gradient_of, size: int) -> None:  # N32, N20
    """Averaged over all groups of answers, it is the gradient of E[reward] - beta KL: KL counts once."""
    world = enumerate_world(length=1, rows=size, kl=0.3)
    agent = rloo(world.world.setup, group_size=size)
    mean = world.expected_gradient(lambda rollout: gradient_of(agent, rollout), rows=size)
    torch.testing.assert_close(mean, world.exact_gradient(), rtol=0, atol=1e-12)


def test_the_layout_of_a_batch_changes_nothing(assert_layout_changes_nothing) -> None:
    assert_layout_changes_nothing(rloo)


def test_equal_rewards_teach_nothing(make_world, gradient_of, with_returns) -> None:  # N27
    world = make_world(rows=14)
    agent = rloo(world.setup, group_size=7)
    rollout = with_returns(world.rollout(agent), [0.35] * 7 + [0.1] * 7)
    gradient = gradient_of(agent, rollout)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    metrics = agent.update(rollout)
    assert metrics["groups_without_spread"] == 1.0
    assert metrics["policy_loss"] == 0.0


def test_rows_without_a_score_are_as_if_absent(make_world, gradient_of, with_returns) -> None:  # N30
    world = make_world(rows=8)
    agent = rloo(world.setup)
    written = world.rollout(agent)
    rollout = with_returns(written, [None, 1.0, 2.0, 6.0, 0.5, 0.0, 0.1, None])
    alone = rollout.select([1, 2, 3, 4, 5, 6])
    assert torch.equal(gradient_of(agent, rollout), gradient_of(agent, alone))
    assert agent.update(rollout)["rows_without_score"] == 2.0
    before = [p.clone() for p in agent.policy.parameters()]
    assert agent.update(with_returns(written, [None] * 8)) == {
        "rows_without_score": 8.0,
        "steps_without_signal": 1.0,
    }
    assert all(torch.equal(a, b) for a, b in zip(agent.policy.parameters(), before, strict=True))


def test_the_ratio_is_that_of_whole_answers_clipped_and_cut_off(enumerate_world, gradient_of, with_returns) -> None:
    """N15: on texts of another policy, autograd of -1/B sum_i ratio_i A_i over the answers that no bound holds back."""
    world = enumerate_world(length=2, rows=32, kl=0.0, moved_on=True)
    agent = rloo(world.world.setup, group_size=2, clip=0.2, importance_cap=1.5)
    returns = torch.rand(15, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantages = (returns - returns.flip(1)).flatten()
    rollout = with_returns(world.answers.select(slice(30)), returns.flatten().tolist())
    rollout = replace(rollout, group=torch.arange(15).repeat_interleave(2))
    ratio = world.logprobs[:30].exp() / rollout.logprobs.sum(dim=1).exp()
    for above in (ratio.detach() > 1.2, ratio.detach() > 1.5, ratio.detach() < 0.8):
        assert {bool(up) for up in advantages[above] > 0} == {True, False}, "each bound meets either sign"
    free = torch.where(advantages > 0, ratio < 1.2, (ratio > 0.8) & (ratio < 1.5)).detach()
    loss = -(ratio * advantages)[free].sum() / 30
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)


def test_old_texts_are_corrected(enumerate_world, gradient_of) -> None:  # N15
    """Texts of another policy, weighted by their ratio, still give the exact gradient of this one."""
    world = enumerate_world(length=1, rows=2, kl=0.0, moved_on=True)
    agent = rloo(world.world.setup, group_size=2, clip=0.0, importance_cap=1e9)
    mean = world.expected_gradient(lambda rollout: gradient_of(agent, rollout), rows=2)
    torch.testing.assert_close(mean, world.exact_gradient(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_the_first_ratio_is_one(make_world, temperature: float) -> None:  # N10, N12
    from rlhf_env.policies import Sampling

    world = make_world(sampling=Sampling(temperature=temperature), dropout=0.2)
    agent = rloo(world.setup)
    agent.policy.train()  # dropout, if an agent left it on, would show
    metrics = agent.update(world.rollout(agent))
    assert metrics["clip_fraction"] == 0.0
    assert abs(metrics["approx_kl"]) < 1e-12


def test_the_clip_binds_from_the_second_step_on(make_world) -> None:
    bold = {"epochs": 4, "minibatches": 2, "optimization": Optimization(lr=3e-2)}
    strayed = {}
    for clip in (0.0, 0.01):
        world = make_world()
        agent = rloo(world.setup, clip=clip, **bold)
        strayed[clip] = agent.update(world.rollout(agent, seed=0))
    assert strayed[0.0]["clip_fraction"] == 0.0
    assert strayed[0.01]["clip_fraction"] > 0.3
    assert 0 < strayed[0.01]["approx_kl"] < 0.8 * strayed[0.0]["approx_kl"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(assert_learns, seed: int) -> None:
    assert_learns(rloo, seed)


def test_it_resumes(assert_resumes) -> None:
    assert_resumes(lambda setup: rloo(setup, epochs=2, minibatches=2))


def test_what_it_cannot_do_is_refused(make_world, make_episode) -> None:  # N11, N28
    from rlhf_env.policies import Sampling

    with pytest.raises(ConfigError, match="at least 2"):
        rloo(make_world().setup, group_size=1)
    with pytest.raises(ConfigError, match="does not divide"):
        rloo(make_world().setup, group_size=5)
    with pytest.raises(ConfigError, match="top_k"):
        rloo(make_world(sampling=Sampling(top_k=3)).setup)
    with pytest.raises(DataError, match="needs the log-probabilities of the policy that wrote"):
        rloo(make_world().setup).update(demonstrations([make_episode([0, 2], [1, 4])], pad_id=5))
    with pytest.raises(ConfigError) as caught:
        RLOO.Config(epochs=0, minibatches=0, clip=0.5, importance_cap=1.2)
    assert len(caught.value.problems) == 3
