"""REINFORCE: unbiased with each baseline, corrected off-policy, and that it learns and resumes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rlhf_agents.reinforce import Reinforce

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import demonstrations


def reinforce(setup: Any, **settings: Any) -> Reinforce:
    return Reinforce(setup, Reinforce.Config(**{"optimization": Optimization(lr=3e-3), **settings}))


@pytest.mark.parametrize("baseline", ["none", "running", "batch"])
@pytest.mark.parametrize("reward_to_go", [False, True])
def test_the_step_is_the_policy_gradient(make_world, gradient_of, baseline: Any, reward_to_go: bool) -> None:
    """-1/B sum_i sum_t (R_i - b) grad log pi, R whole or from t on, and b by hand."""
    world = make_world(rows=8, kl=0.3)
    agent = reinforce(world.setup, baseline=baseline, reward_to_go=reward_to_go, optimization=Optimization(lr=3e-2))
    means = []
    for _ in range(3):  # so that the KL part, and the running mean, have something to say
        rollout = world.rollout(agent)
        means.append(float(rollout.returns().mean()))
        agent.update(rollout)
    rollout = world.rollout(agent)
    rewards = rollout.rewards()
    credit = rewards.flip(1).cumsum(1).flip(1) if reward_to_go else rewards.sum(1, keepdim=True).expand_as(rewards)
    b = {
        "none": 0.0,
        "running": (0.81 * means[0] + 0.9 * means[1] + means[2]) / (0.81 + 0.9 + 1.0),
        "batch": float(rewards.sum()) / 8,
    }[baseline]
    logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    loss = -((credit - b) * logprobs)[rollout.actions].sum() / 8
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)
    assert abs(agent.update(rollout)["baseline"] - b) < 1e-12


@pytest.mark.parametrize("baseline", ["none", "running"])
@pytest.mark.parametrize("reward_to_go", [False, True])
def test_it_is_unbiased(enumerate_world, gradient_of, baseline: Any, reward_to_go: bool) -> None:  # N20
    """Averaged over all answers of up to two tokens, it is the gradient of E[reward] - beta KL."""
    world = enumerate_world(length=2, rows=1, kl=0.3)
    agent = reinforce(world.world.setup, baseline=baseline, reward_to_go=reward_to_go)
    agent.update(world.answers)  # the running mean is no longer 0
    world = type(world).of(world.world)
    mean = world.expected_gradient(lambda rollout: gradient_of(agent, rollout))
    torch.testing.assert_close(mean, world.exact_gradient(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [2, 3])
def test_a_batch_mean_shortens_the_gradient_and_nothing_else(enumerate_world, gradient_of, rows: int) -> None:
    """A row's own part in the mean costs (B - 1) / B, as the configuration says."""
    world = enumerate_world(length=1, rows=rows, kl=0.3)
    agent = reinforce(world.world.setup, baseline="batch")
    mean = world.expected_gradient(lambda rollout: gradient_of(agent, rollout), rows=rows)
    torch.testing.assert_close(mean, (rows - 1) / rows * world.exact_gradient(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("reward_to_go", [False, True])
def test_old_texts_are_corrected(enumerate_world, gradient_of, reward_to_go: bool) -> None:  # N15
    """Texts of another policy, weighted by their ratio, still give the exact gradient of this one."""
    world = enumerate_world(length=2, rows=1, kl=0.0, moved_on=True)
    agent = reinforce(world.world.setup, reward_to_go=reward_to_go, importance_cap=1e9)
    mean = world.expected_gradient(lambda rollout: gradient_of(agent, rollout))
    torch.testing.assert_close(mean, world.exact_gradient(), rtol=0, atol=1e-12)


def test_the_weight_of_old_texts_is_cut_off(enumerate_world) -> None:  # N15
    world = enumerate_world(length=1, rows=6, kl=0.0, moved_on=True)
    ratio = world.probabilities / world.answers.logprobs.sum(dim=1).exp()
    assert 0.3 < float((ratio > 1.1).double().mean()) < 0.7
    metrics = reinforce(world.world.setup, importance_cap=1.1).update(world.answers)
    assert abs(metrics["importance_weight"] - float(ratio.clamp(max=1.1).mean())) < 1e-12


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_its_own_texts_weigh_one(make_world, temperature: float) -> None:  # N10, N12, N15
    from rlhf_env.policies import Sampling

    world = make_world(sampling=Sampling(temperature=temperature), dropout=0.2)
    agent = reinforce(world.setup)
    agent.policy.train()  # dropout, if an agent left it on, would show
    assert abs(agent.update(world.rollout(agent))["importance_weight"] - 1.0) < 1e-12


def test_the_layout_of_a_batch_changes_nothing(assert_layout_changes_nothing) -> None:
    assert_layout_changes_nothing(lambda setup, **how: reinforce(setup, baseline="batch", reward_to_go=True, **how))


def test_equal_rewards_teach_nothing(make_world, gradient_of, with_returns) -> None:  # N27
    world = make_world(rows=7)
    for baseline in ("batch", "running"):
        agent = reinforce(world.setup, baseline=baseline)
        rollout = with_returns(world.rollout(agent), [0.35] * 7)
        agent.update(rollout)
        agent.update(rollout)
        gradient = gradient_of(agent, rollout)
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_rows_without_a_score_are_as_if_absent(make_world, gradient_of, with_returns) -> None:  # N30
    world = make_world(rows=4)
    agent = reinforce(world.setup, baseline="batch")
    written = world.rollout(agent)
    rollout = with_returns(written, [None, 1.0, 2.0, 6.0])
    assert torch.equal(gradient_of(agent, rollout), gradient_of(agent, rollout.select([1, 2, 3])))
    metrics = agent.update(rollout)
    assert (metrics["rows_without_score"], metrics["baseline"]) == (1.0, 3.0)
    before = [p.clone() for p in agent.policy.parameters()]
    assert agent.update(with_returns(written, [None] * 4)) == {
        "rows_without_score": 4.0,
        "steps_without_signal": 1.0,
    }
    assert all(torch.equal(a, b) for a, b in zip(agent.policy.parameters(), before, strict=True))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(assert_learns, seed: int) -> None:
    assert_learns(reinforce, seed)


def test_it_resumes(assert_resumes) -> None:
    assert_resumes(reinforce)


def test_what_it_cannot_do_is_refused(make_world, make_episode) -> None:  # N11, N28
    from rlhf_env.policies import Sampling

    with pytest.raises(ConfigError, match="num_envs is 1: use 'running'"):
        reinforce(make_world(rows=1).setup, baseline="batch")
    with pytest.raises(ConfigError, match="top_p"):
        reinforce(make_world(sampling=Sampling(top_p=0.9)).setup)
    with pytest.raises(DataError, match="needs the log-probabilities of the policy that wrote"):
        reinforce(make_world().setup).update(demonstrations([make_episode([0, 2], [1, 4])], pad_id=5))
    with pytest.raises(ConfigError) as caught:
        Reinforce.Config(group_size=0, baseline="value", baseline_decay=1.0, importance_cap=0.5)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4
