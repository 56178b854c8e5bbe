"""PPO: first ratios, masks, credit, switches, and that it learns and resumes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rlhf_agents.ppo import PPO
from rlhf_agents.random import Random
from rlhf_agents.reference import Reference

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.rollout import demonstrations


def ppo(setup: Any, **settings: Any) -> PPO:
    return PPO(setup, PPO.Config(**{"optimization": Optimization(lr=3e-3), **settings}))


@pytest.mark.parametrize("value_model", ["shared", "separate"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_the_first_ratio_is_one(make_world, value_model: str, temperature: float) -> None:  # N10, N15
    from rlhf_env.policies import Sampling

    world = make_world(sampling=Sampling(temperature=temperature), family="gpt2", dropout=0.2)
    agent = ppo(world.setup, epochs=1, value_model=value_model)
    agent.policy.train()  # dropout, if an agent left it on, would show
    metrics = agent.update(world.rollout(agent))
    assert metrics["clip_fraction"] == 0.0
    assert abs(metrics["approx_kl"]) < 1e-12
    assert abs(metrics["policy_loss"]) < 1e-10  # whitened advantages at ratio 1


def test_the_first_step_is_the_policy_gradient(make_world, gradient_of) -> None:
    """With no value, no whitening and lambda 1: the gradient of mean over tokens of -(return to go) log pi."""
    world = make_world()
    agent = ppo(world.setup, value_coefficient=0.0, whiten_advantages=False, lam=1.0)
    rollout = world.rollout(agent)
    rewards = rollout.rewards()
    to_go = rewards.flip(1).cumsum(1).flip(1)
    logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    loss = -(to_go * logprobs)[rollout.actions].sum() / rollout.actions.sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value_model", ["shared", "separate"])
@pytest.mark.parametrize("garbage", [1e6, float("nan")])
def test_what_is_masked_is_never_read(make_world, gradient_of, value_model: str, garbage: float) -> None:  # N4, N21
    world = make_world()
    agent = ppo(world.setup, value_model=value_model)
    rollout = world.rollout(agent)
    assert not rollout.mask.all()
    noise = torch.randint(0, 6, rollout.tokens.shape, generator=torch.Generator().manual_seed(0))
    dirty = replace(
        rollout,
        tokens=torch.where(rollout.mask, rollout.tokens, noise),
        logprobs=rollout.logprobs.masked_fill(~rollout.actions, garbage),
    )
    assert torch.equal(gradient_of(agent, rollout), gradient_of(agent, dirty))


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_micro_batches_change_nothing(make_world, gradient_of, size: int, value_model: str) -> None:  # N34
    world = make_world(rows=8)
    settings: dict[str, Any] = {"value_model": value_model, "entropy_coefficient": 0.01}
    whole = ppo(world.setup, **settings)
    rollout = world.rollout(whole)
    split = ppo(make_world(rows=8).setup, **settings, optimization=Optimization(micro_batch_size=size))
    torch.testing.assert_close(gradient_of(split, rollout), gradient_of(whole, rollout), rtol=0, atol=1e-12)


def test_order_of_rows_changes_nothing(make_world, gradient_of) -> None:  # N8
    world = make_world(rows=8)
    agent = ppo(world.setup)
    rollout = world.rollout(agent)
    permuted = rollout.select(torch.tensor([5, 2, 7, 0, 1, 4, 3, 6]))
    torch.testing.assert_close(gradient_of(agent, permuted), gradient_of(agent, rollout), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_only_a_text_cut_from_outside_is_worth_its_last_state(make_world, value_model: str) -> None:  # N23
    """The same texts, said to be cut or said to be over, differ by V of the state after the last token."""
    world = make_world(rows=8, kl=0.0, whole_responses=False, max_episode_steps=3)
    agent = ppo(world.setup, lam=1.0, whiten_advantages=False, value_model=value_model)
    with torch.no_grad():
        agent.value_head.weight.copy_(torch.linspace(-1, 1, 16))
    rollout = world.rollout(agent)
    cut = agent._assess(rollout).extras["targets"]
    over = agent._assess(replace(rollout, truncated=torch.zeros_like(rollout.truncated))).extras["targets"]
    assert {bool(row) for row in rollout.truncated} == {True, False}
    for row, episode in enumerate(rollout.episodes):
        one_more = torch.tensor([[*episode.ids, 0]])
        everywhere = torch.ones_like(one_more, dtype=torch.bool)
        last_state = agent.policy.evaluate(one_more, everywhere, ~everywhere).hidden[0, -1]
        worth = float(agent.value_head(last_state).detach()) if rollout.truncated[row] else 0.0
        difference = (cut - over)[row][rollout.actions[row]]
        torch.testing.assert_close(difference, torch.full_like(difference, worth), rtol=0, atol=1e-12)


def test_the_value_learns(make_world) -> None:
    world = make_world()
    agent = ppo(world.setup, value_model="separate", epochs=50, lam=1.0, clip=1e-9, optimization=Optimization(lr=1e-2))
    rollout = world.rollout(agent)
    first = agent.update(rollout)["explained_variance"]
    assert first == 0.0  # the head starts at zero
    assert agent.update(rollout)["explained_variance"] > 0.3


def test_the_update_stops_when_the_policy_has_strayed(make_world) -> None:
    world = make_world()
    bold = {"epochs": 10, "optimization": Optimization(lr=3e-2)}
    agent = ppo(world.setup, **bold, target_kl=0.01)
    assert agent.update(world.rollout(agent))["gradient_steps"] < 10
    agent = ppo(make_world().setup, **bold)
    assert agent.update(world.rollout(agent))["gradient_steps"] == 10


def test_value_clip_and_entropy_bonus_have_an_effect(make_world, gradient_of) -> None:
    world = make_world()
    agent = ppo(world.setup)
    rollout = world.rollout(agent)
    plain = gradient_of(agent, rollout)
    assert not torch.equal(plain, gradient_of(ppo(make_world().setup, entropy_coefficient=0.1), rollout))
    calm = ppo(make_world().setup, epochs=5, value_clip=1e-6)
    assert calm.update(rollout)["value_loss"] > ppo(make_world().setup, epochs=5).update(rollout)["value_loss"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(make_world, seed: int) -> None:
    """Beats both controls by 0.6 (of a reward in [-1, 1]) after 25 updates."""
    world = make_world(seed=seed)
    controls = max(world.mean_score(kind(world.setup, kind.Config())) for kind in (Random, Reference))
    agent = ppo(world.setup)
    world.learn(agent, 25)
    assert world.mean_score(agent) > controls + 0.6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_token_by_token(make_world, seed: int) -> None:
    """In the token view, 8 bold updates beat the reference by 0.4."""
    world = make_world(seed=seed, whole_responses=False)
    reference = world.mean_score(Reference(world.setup, Reference.Config()), batches=2)
    agent = ppo(world.setup, optimization=Optimization(lr=1e-2))
    world.learn(agent, 8)
    assert world.mean_score(agent, batches=2) > reference + 0.4


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_it_resumes(assert_resumes, value_model: str) -> None:
    assert_resumes(lambda setup: ppo(setup, minibatches=2, value_model=value_model))


def test_it_refuses_texts_without_stated_log_probabilities(make_world, make_episode) -> None:
    with pytest.raises(DataError, match="stated log-probabilities"):
        ppo(make_world().setup).update(demonstrations([make_episode([0, 2], [1, 4])], pad_id=5))


def test_it_refuses_a_truncated_distribution(make_world) -> None:  # N11
    from rlhf_env.policies import Sampling

    with pytest.raises(ConfigError, match="top_p"):
        ppo(make_world(sampling=Sampling(top_p=0.9)).setup)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        PPO.Config(epochs=0, lam=1.5, clip=0.0, value_model="none", value_clip=-1.0)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 5
