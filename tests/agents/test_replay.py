"""Replay: what is kept and for how long, what it costs, who may be replayed, and that it resumes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.curriculum import Curriculum
from rlhf_agents.dpo import DPO
from rlhf_agents.grpo import GRPO
from rlhf_agents.ppo import PPO
from rlhf_agents.reinforce import Reinforce
from rlhf_agents.replay import Replay, group_probabilities
from rlhf_agents.rloo import RLOO

from rlhf_env.errors import ConfigError
from rlhf_env.learning import checkpoints
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.making_agents import make_agent
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.stored_rollouts import bytes_of, rollout_from_state, rollout_state, to_keep
from rlhf_env.learning.unequal_draws import draw_probabilities, drawing_weights, stratified_draws

from .conftest import build_world

OPTIMIZATION = Optimization(lr=1e-2)
INNER: dict[str, Any] = {
    "grpo": lambda setup: GRPO(setup, GRPO.Config(group_size=4, optimization=OPTIMIZATION)),
    "rloo": lambda setup: RLOO(setup, RLOO.Config(group_size=4, optimization=OPTIMIZATION)),
    "reinforce": lambda setup: Reinforce(setup, Reinforce.Config(optimization=OPTIMIZATION)),
    "ppo": lambda setup: PPO(setup, PPO.Config(whiten_advantages=False, optimization=OPTIMIZATION)),
}


def replay(setup: Any, inner: str = "grpo", **settings: Any) -> Replay:
    return Replay(setup, Replay.Config(**settings), INNER[inner](setup))


# ---------------------------------------------------------------- what is kept


def test_a_rollout_comes_back_from_a_checkpoint_as_it_was_kept(make_world: Any, tmp_path: Path) -> None:
    world = make_world(rows=8)
    rollout = to_keep(world.rollout(replay(world.setup)))
    rollout = replace(rollout, weights=torch.rand(8, dtype=torch.float64)).with_extras(
        seen=torch.rand(*rollout.mask.shape)
    )
    state = rollout_state(rollout)
    loaded, _ = checkpoints.load(checkpoints.save(tmp_path, 1, state, {}))
    again = rollout_from_state(loaded)
    assert again.episodes == rollout.episodes and again.scores == rollout.scores
    for name in ("tokens", "mask", "actions", "logprobs", "group", "truncated", "weights"):
        assert torch.equal(getattr(again, name), getattr(rollout, name)), name
    assert torch.equal(again.extras["seen"], rollout.extras["seen"])
    assert (again.stated, again.judged) == (True, False)
    folder = next(tmp_path.glob("step-*"))
    written = sum((folder / name).stat().st_size for name in ("tensors.safetensors", "state.json"))
    assert 0.7 * written < bytes_of(state) <= written


def test_the_buffer_keeps_within_its_bytes_and_the_oldest_go_first(make_world: Any) -> None:
    world = make_world(rows=8)
    agent = replay(world.setup)
    agent.update(world.rollout(agent))
    one = agent.bytes
    agent = replay(world.setup, max_bytes=int(3.5 * one))
    for update in range(6):
        metrics = agent.update(world.rollout(agent))
        assert metrics["replay/bytes"] == agent.bytes <= 3.5 * one
        assert metrics["replay/groups"] == 2.0 * len(agent.kept)
        newest = [kept.written for kept in agent.kept]
        assert newest == list(range(update + 1))[-len(newest) :]
    assert 2 <= len(agent.kept) <= 4
    with pytest.raises(ConfigError, match="max_bytes of replay, 100, hold no rollout: one has 4,"):
        replay(world.setup, max_bytes=100).update(world.rollout(agent))


def test_rollouts_are_forgotten_by_age(make_world: Any) -> None:
    world = make_world(rows=8)
    agent = replay(world.setup, max_age=2)
    ages = [world.learn(agent, 1) or [agent._updates - kept.written for kept in agent.kept] for _ in range(4)]
    assert ages == [[1], [2, 1], [2, 1], [2, 1]]


def test_groups_are_drawn_whole_and_stay_apart(make_world: Any) -> None:
    world = make_world(rows=8, task={"name": "echo", "length": 2})
    agent = replay(world.setup)
    for _ in range(2):
        world.learn(agent, 1)
    batch = agent.batch([3, 0, 3, 1], agent.probabilities(), 1.0)
    assert Counter(batch.group.tolist()) == {0: 4, 1: 4, 2: 4, 3: 4}
    kept = [group for one in agent.kept for group in one.groups]
    for place, number in enumerate([3, 0, 3, 1]):
        rows = batch.select(batch.group == place)
        assert [it.ids.tolist() for it in rows.episodes] == [it.ids.tolist() for it in kept[number].episodes]
        assert len({it.prompt.text for it in rows.episodes}) == 1


# ---------------------------------------------------------------- what it costs


def test_it_costs_gradients_and_no_texts_rewards_or_labels(make_world: Any) -> None:
    def spent(agent: Any, world: Any) -> dict[str, float]:
        for seed in range(3):
            agent.update(world.rollout(agent, seed=seed))
        found: dict[str, float] = world.setup.spending.as_dict()
        return found

    def dpo(setup: Any) -> DPO:
        return DPO(setup, DPO.Config(group_size=4))

    plain, again = make_world(rows=8), make_world(rows=8)
    without = spent(dpo(plain.setup), plain)
    agent = Replay(again.setup, Replay.Config(updates=2), dpo(again.setup))
    with_it = spent(agent, again)
    assert with_it["gradient_steps"] == without["gradient_steps"] + 2 * 2
    assert with_it["gradient_tokens"] > 2 * without["gradient_tokens"]
    assert with_it["preference_labels"] == without["preference_labels"] > 0
    assert with_it["generated_tokens"] == with_it["reward_calls"] == 0  # the loop counts those of new texts


def test_the_first_update_has_nothing_to_replay(make_world: Any, gradient_of: Any) -> None:
    world = make_world(rows=8)
    agent = replay(world.setup, updates=3)
    metrics = agent.update(world.rollout(agent))
    assert world.setup.spending.gradient_steps == 1 and "replay/policy_loss" not in metrics
    metrics = agent.update(world.rollout(agent))
    assert world.setup.spending.gradient_steps == 5 and metrics["replay/age"] == 1.0
    assert 0.25 < metrics["replay/ess"] <= 1.0


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("name", INNER)
def test_a_rows_weight_scales_its_part_of_the_gradient(make_world: Any, gradient_of: Any, name: str) -> None:
    world = make_world(rows=8)
    agent = INNER[name](world.setup)
    rollout = world.rollout(agent, seed=3)
    whole = gradient_of(agent, rollout)
    assert whole.norm() > 1e-4

    def weighted(*weights: float) -> torch.Tensor:
        found: torch.Tensor = gradient_of(agent, replace(rollout, weights=torch.tensor(weights, dtype=torch.float64)))
        return found

    assert torch.equal(weighted(*[1.0] * 8), whole)
    torch.testing.assert_close(weighted(*[0.25] * 8), 0.25 * whole, rtol=0, atol=1e-14)
    halves = weighted(*[1.0] * 4, *[0.0] * 4), weighted(*[0.0] * 4, *[1.0] * 4)
    torch.testing.assert_close(halves[0] + halves[1], whole, rtol=0, atol=1e-14)
    assert (halves[0] - halves[1]).norm() > 1e-4


def test_probabilities_and_weights_are_those_of_the_paper() -> None:
    assert draw_probabilities(np.array([1.0, 4.0, 9.0]), 0.5) == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=1e-15)
    assert draw_probabilities(np.zeros(4), 0.5).tolist() == [0.25] * 4
    probabilities = np.array([0.5, 0.25, 0.25])
    assert drawing_weights(probabilities, 1.0, scale_by_max=False) == pytest.approx([2 / 3, 4 / 3, 4 / 3])
    assert drawing_weights(probabilities, 0.5, scale_by_max=True) == pytest.approx([0.5**0.5, 1.0, 1.0])
    counts = np.bincount(stratified_draws(probabilities, 4000, np.random.default_rng(0)), minlength=3)
    assert counts.tolist() == [2000, 1000, 1000]  # a share each: where they end, these shares end too
    few = [stratified_draws(probabilities, 1, np.random.default_rng(seed))[0] for seed in range(2000)]
    assert np.bincount(few) / 2000 == pytest.approx(probabilities, abs=0.03)


def test_what_is_drawn_more_often() -> None:
    returns = [np.array([0.0, 1.0]), np.array([3.0, 3.0]), np.array([1.0, 4.0]), np.array([])]
    ages = [4, 3, 2, 1]

    def shares(priority: Any) -> list[float]:
        found: list[float] = group_probabilities(returns, ages, priority, 1.0).tolist()
        return found

    assert shares("uniform") == [0.25] * 4
    assert shares("staleness") == pytest.approx(np.array([1 / 4, 1 / 3, 1 / 2, 1]) / (25 / 12))
    spreads = np.array([0.5, 0.0, 1.5, 0.0]) + 0.005
    assert shares("advantage") == pytest.approx(spreads / spreads.sum())
    ranks = np.array([1 / 4, 1, 1 / 2, 1 / 3])  # means 0.5, 3, 2.5; one without a score is worth the mean of all, 2
    assert shares("reward") == pytest.approx(ranks / ranks.sum())
    alone = [np.array([0.0]), np.array([1.0]), np.array([5.0])]  # groups of one: against the mean of all
    spreads = np.array([2.0, 1.0, 3.0]) + 0.02
    assert group_probabilities(alone, [1, 1, 1], "advantage", 1.0) == pytest.approx(spreads / spreads.sum())
    equal = group_probabilities([np.array([1.0])] * 3, [1, 1, 1], "reward", 0.7)
    assert equal == pytest.approx([1 / 3] * 3)


def test_the_exponent_of_the_weights_rises_to_one_over_the_budget(make_world: Any) -> None:
    world = make_world(rows=8)
    agent = replay(world.setup, priority="reward", beta_start=0.4)
    agent.update(world.rollout(agent))
    for progress, beta in ((0.0, 0.4), (0.5, 0.7), (1.0, 1.0)):
        world.setup.engine.progress = progress
        assert agent.update(world.rollout(agent))["replay/beta"] == pytest.approx(beta)
    probabilities = agent.probabilities()
    rows = agent.batch([0, 5], probabilities, 0.7).weights
    expected = (8 * probabilities) ** -0.7 / ((8 * probabilities) ** -0.7).max()
    assert rows is not None and rows[[0, 4]].tolist() == pytest.approx([expected[0], expected[5]])
    assert agent.batch([0], probabilities, 0.7).row_weights.max() <= 1.0


def test_weights_that_a_rollout_has_already_are_kept(make_world: Any) -> None:
    world = make_world(rows=8)
    for priority in ("uniform", "reward"):
        agent = replay(world.setup, priority=priority, scale_by_max=False)
        agent.keep(replace(world.rollout(agent), weights=torch.full((8,), 0.5, dtype=torch.float64)))
        expected = 0.5 / (2 * agent.probabilities()) if priority == "reward" else [0.5, 0.5]
        batch = agent.batch([0, 1], agent.probabilities(), 1.0)
        assert batch.row_weights[[0, 4]].tolist() == pytest.approx(list(expected))


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("inner", INNER)
def test_a_checkpoint_gives_the_buffer_and_the_draws_back(assert_resumes: Any, inner: str) -> None:
    priority = "uniform" if inner == "grpo" else "advantage"
    assert_resumes(lambda setup: replay(setup, inner, priority=priority, updates=2), task={"name": "echo"}, rows=8)


def test_a_state_taken_before_does_not_change(make_world: Any) -> None:
    world = make_world(rows=8)
    agent = replay(world.setup)
    world.learn(agent, 2)
    before = agent.state_dict()
    kept = len(before["kept"]), before["kept"][0]["rollout"]["logprobs"].clone()
    world.learn(agent, 2)
    assert (len(before["kept"]), len(agent.state_dict()["kept"])) == (kept[0], 4)
    assert torch.equal(before["kept"][0]["rollout"]["logprobs"], kept[1])


# ---------------------------------------------------------------- who may be replayed


def test_who_cannot_be_replayed_is_told_what_can() -> None:
    setup = build_world(rows=8, task={"name": "echo", "length": 2}).setup
    for inner, says in (
        ({"name": "sft"}, "SFT learns wrongly from texts of an older policy: take an agent with a probability"),
        ({"name": "random"}, "Random learns wrongly"),
        (
            {"name": "curriculum", "levels": [1, 2], "agent": {"name": "ppo"}},
            r"replay goes around the agent that learns, and Curriculum wraps one: write it the other way round",
        ),
    ):
        with pytest.raises(ConfigError, match=says):
            make_agent({"name": "replay", "agent": inner}, setup)
    with pytest.raises(ConfigError, match="'reward' is corrected by weights, and DPO takes none: use 'uniform'"):
        make_agent({"name": "replay", "priority": "reward", "agent": {"name": "dpo"}}, setup)
    around = make_agent(
        {"name": "curriculum", "levels": [1, 2], "agent": {"name": "replay", "agent": {"name": "ppo"}}}, setup
    )
    assert isinstance(around, Curriculum) and isinstance(around.agent, Replay)


def test_joined_rollouts_keep_their_rows(make_world: Any) -> None:
    world = make_world(rows=8)
    agent = INNER["grpo"](world.setup)
    parts = [world.rollout(agent, seed=seed).select([4, 5, 6, 7, 0]) for seed in (1, 2)]
    both = Rollout.joined(parts, pad_id=world.setup.tokenizer.pad_id)
    assert both.group.tolist() == [1, 1, 1, 1, 0, 3, 3, 3, 3, 2]
    assert both.weights is None and both.stated and not both.judged
    for first, part in ((0, parts[0]), (5, parts[1])):
        rows = both.select(list(range(first, first + 5)))
        assert torch.equal(rows.tokens, part.tokens) and torch.equal(rows.logprobs, part.logprobs)
        assert rows.episodes == part.episodes and torch.equal(rows.returns(), part.returns())
