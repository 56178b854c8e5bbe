"""PPO: first ratios, masks, credit, switches, and that it learns and resumes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rlhf_agents.ppo import PPO

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.functional import whiten
from rlhf_env.learning.rollout import demonstrations

TEXTS = {"name": "prompts", "prompts": ["abab", "ba=", "aaab:", "bb"]}


def ppo(setup: Any, **settings: Any) -> PPO:
    return PPO(setup, PPO.Config(**{"optimization": Optimization(lr=3e-3), **settings}))


@pytest.mark.parametrize("value_model", ["shared", "separate"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_the_first_ratio_is_one(make_world, value_model: str, temperature: float) -> None:  # N10, N12, N15
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


def test_what_is_sampled_is_learned_and_nothing_else(make_world) -> None:  # N1, N2
    """The actions are the sampled tokens, the end token too, and only their predictors' states have a gradient."""
    world = make_world(rows=8)
    agent = ppo(world.setup, value_coefficient=0.0)
    rollout = world.rollout(agent)
    expected = torch.zeros_like(rollout.actions)
    for row, episode in enumerate(rollout.episodes):
        start = len(episode.prompt_ids)
        expected[row, start : start + len(episode.response_ids)] = True
    assert torch.equal(rollout.actions, expected)
    assert rollout.actions.sum() == sum(len(episode.response_ids) for episode in rollout.episodes)
    assert any(episode.finish_reason == "stop" for episode in rollout.episodes)

    seen: list[torch.Tensor] = []

    def watch(_module: Any, _inputs: Any, states: torch.Tensor) -> None:
        if states.requires_grad:
            states.retain_grad()
            seen.append(states)

    hook = agent.policy.model.transformer.ln_f.register_forward_hook(watch)  # states that speak about the next token
    agent.update(rollout)
    hook.remove()
    assert seen[0].grad is not None
    learned = seen[0].grad.abs().sum(dim=-1) > 0
    assert sorted(learned.tolist()) == sorted(expected[:, 1 : 1 + learned.shape[1]].tolist())  # rows were shuffled


def test_advantages_of_a_rollout_by_hand(make_world) -> None:  # N2, N17
    """Lambda 1/2: delta_t = r_t + V_(t+1) - V_t with V = 0 after the last token; rewards sum to the score, exactly."""
    world = make_world(rows=24, kl=0.3)
    world.learn(ppo(world.setup), 2)
    agent = ppo(world.setup, lam=0.5, whiten_advantages=False)
    with torch.no_grad():
        agent.value_head.weight.copy_(torch.linspace(-1, 1, 16))
    rollout = world.rollout(agent)
    assert {len(episode.response_ids) for episode in rollout.episodes} >= {1, 6}
    assessed = agent._assess(rollout)
    for row, (episode, score) in enumerate(zip(rollout.episodes, rollout.scores, strict=True)):
        start, count = len(episode.prompt_ids), len(episode.response_ids)
        values = [*assessed.extras["values"][row, start : start + count].tolist(), 0.0]
        rewards = [0.3 * kl for kl in score.tokens["kl"]]
        rewards[-1] += score.raw["task"]
        paid = rollout.rewards()[row]
        assert paid[start : start + count].tolist() == rewards
        assert not paid[:start].any()
        assert not paid[start + count :].any()
        assert abs(sum(rewards) - score.total) < 1e-14
        advantage = 0.0
        for t in reversed(range(count)):
            advantage = rewards[t] + values[t + 1] - values[t] + 0.5 * advantage
            assert abs(float(assessed.extras["advantages"][row, start + t]) - advantage) < 1e-12


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_layout_changes_nothing(assert_layout_changes_nothing, value_model: str) -> None:  # N3, N4, N8, N34
    settings: dict[str, Any] = {"value_model": value_model, "entropy_coefficient": 0.01}
    assert_layout_changes_nothing(lambda setup, **more: ppo(setup, **settings, **more))


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


def test_the_clip_can_be_left_out(make_world, gradient_of) -> None:
    """Off a strayed policy: clipped and unclipped loss by hand, whitened or not, from separate passes."""
    for clip, white in ((0.2, True), (0.2, False), (0.0, True)):
        world = make_world(rows=8)
        settings = {"value_coefficient": 0.0, "whiten_advantages": white, "lam": 1.0, "importance_cap": 1e9}
        rollout = world.rollout(ppo(world.setup))
        ppo(world.setup, optimization=Optimization(lr=0.1), epochs=3).update(rollout)
        agent = ppo(world.setup, clip=clip, **settings)
        to_go = rollout.rewards().flip(1).cumsum(1).flip(1).masked_fill(~rollout.actions, 0.0)
        advantages = whiten(to_go, rollout.actions) if white else to_go
        logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
        ratio = (logprobs - rollout.logprobs)[rollout.actions].exp()
        worth = advantages[rollout.actions]
        bounded = ratio.clamp(1 - clip, 1 + clip) if clip else ratio
        loss = -torch.minimum(ratio * worth, bounded * worth).mean()
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
        assert (ratio > 1.2).any()
        assert (ratio < 0.8).any()
        torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)


def test_rollouts_of_another_policy_weigh_at_most_the_cap(make_world, gradient_of) -> None:  # N15
    """An older policy's texts: the ratio is to what it stated, cut off at the cap, without a gradient beyond."""
    world = make_world(rows=8)
    settings: dict[str, Any] = {"value_coefficient": 0.0, "lam": 1.0, "whiten_advantages": False, "clip": 0.0}
    agent = ppo(world.setup, importance_cap=1.5, **settings)
    rollout = world.rollout(agent)
    fresh = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs
    assert ((fresh - rollout.logprobs)[rollout.actions].abs() < 1e-10).all()  # w == 1 on texts of its own
    ppo(world.setup, optimization=Optimization(lr=0.1), epochs=3).update(rollout)

    to_go = rollout.rewards().flip(1).cumsum(1).flip(1)[rollout.actions]
    logprobs = agent.policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).logprobs[rollout.actions]
    weight = (logprobs - rollout.logprobs[rollout.actions]).exp()
    assert (weight > 1.5).any()
    loss = -(torch.where(weight > 1.5, 1.5, weight) * to_go).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.policy.parameters()))])
    torch.testing.assert_close(gradient_of(agent, rollout), expected, rtol=0, atol=1e-12)
    assert agent.update(rollout)["approx_kl"] > 1e-3  # and the log says how far the writer is


def test_value_clip_and_entropy_bonus_have_an_effect(make_world, gradient_of) -> None:
    world = make_world()
    agent = ppo(world.setup)
    rollout = world.rollout(agent)
    plain = gradient_of(agent, rollout)
    assert not torch.equal(plain, gradient_of(ppo(make_world().setup, entropy_coefficient=0.1), rollout))
    calm = ppo(make_world().setup, epochs=5, value_clip=1e-6)
    assert calm.update(rollout)["value_loss"] > ppo(make_world().setup, epochs=5).update(rollout)["value_loss"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns(assert_learns, seed: int) -> None:
    assert_learns(ppo, seed)


@pytest.mark.parametrize("value_model", ["shared", "separate"])
def test_it_resumes(assert_resumes, value_model: str) -> None:
    assert_resumes(lambda setup: ppo(setup, minibatches=2, value_model=value_model))


def test_it_refuses_texts_without_stated_log_probabilities(make_world, make_episode) -> None:
    with pytest.raises(DataError, match="needs the log-probabilities of the policy that wrote"):
        ppo(make_world().setup).update(demonstrations([make_episode([0, 2], [1, 4])], pad_id=5))


def test_it_refuses_a_truncated_distribution(make_world) -> None:  # N11
    from rlhf_env.policies import Sampling

    with pytest.raises(ConfigError, match="top_p"):
        ppo(make_world(sampling=Sampling(top_p=0.9)).setup)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError) as caught:
        PPO.Config(
            epochs=0,
            lam=1.5,
            clip=-0.1,
            importance_cap=0.5,
            value_model="none",  # type: ignore[arg-type]
            value_clip=-1.0,
        )
    assert len(caught.value.problems) == 6
