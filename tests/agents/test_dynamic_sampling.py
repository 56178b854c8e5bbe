"""Dynamic sampling: which groups are left out, when there is enough, what it does to the gradient, and resuming."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rlhf_agents.curriculum import Curriculum
from rlhf_agents.dynamic_sampling import DynamicSampling
from rlhf_agents.grpo import GRPO
from rlhf_agents.ppo import PPO
from rlhf_agents.rloo import RLOO

from rlhf_env.errors import ConfigError
from rlhf_env.learning.engine import Optimization
from rlhf_env.types import Score

from .test_replay_exact import against, groups_of, require_on_page


def rloo(setup: Any, group_size: int = 2, **settings: Any) -> RLOO:
    return RLOO(setup, RLOO.Config(group_size=group_size, optimization=Optimization(lr=1e-2), **settings))


def dynamic(setup: Any, agent: Any = None, **settings: Any) -> DynamicSampling:
    return DynamicSampling(setup, DynamicSampling.Config(**settings), agent or rloo(setup))


def earned(rollout: Any, *rewards: float | None) -> Any:
    nothing = Score(raw={}, weights={})
    scores = (nothing if r is None else Score(raw={"task": r, "kl": -i}, weights={"task": 1.0, "kl": 0.1})
              for i, r in enumerate(rewards))  # fmt: skip
    return replace(rollout, scores=tuple(scores))


FLAT, TOLD = (0.5, 0.5), (0.5, 0.6)


def test_groups_without_a_spread_of_rewards_but_for_kl_are_left_out(make_world: Any) -> None:
    world = make_world(rows=8)
    agent = dynamic(world.setup)
    rollout = earned(world.rollout(agent), *FLAT, *TOLD, None, 0.2, *TOLD)
    kept = agent.with_spread(rollout)
    assert kept.group.tolist() == [1, 1, 3, 3]
    assert torch.equal(kept.logprobs, rollout.select([2, 3, 6, 7]).logprobs)


def test_it_learns_when_a_batch_is_full_or_enough_was_written(make_world: Any) -> None:
    world = make_world(rows=8)
    agent = dynamic(world.setup, draws=3)
    steps = world.setup.spending

    def update(*rewards: float) -> dict[str, float]:
        found: dict[str, float] = agent.update(earned(world.rollout(agent), *rewards))
        return found

    assert update(*FLAT, *TOLD, *TOLD, *TOLD)["dynamic/groups_pending"] == 3.0 and steps.gradient_steps == 0
    metrics = update(*TOLD, *TOLD, *FLAT, *FLAT)  # five groups: all are learned from
    assert steps.gradient_steps == 1 and metrics["dynamic/groups_left_out"] == 2.0 and "policy_loss" in metrics
    for last, learns in ((FLAT, False), (FLAT, False), (TOLD, True)):  # at the third, with a single group
        assert ("policy_loss" in update(*FLAT, *FLAT, *FLAT, *last)) == learns
    for _ in range(3):  # nothing to learn from
        metrics = update(*FLAT * 4)
        assert "policy_loss" not in metrics
    assert metrics["steps_without_signal"] == 1.0 and agent.pending == []
    half = dynamic(world.setup, fill=0.5)
    assert "policy_loss" in half.update(earned(world.rollout(half), *TOLD, *TOLD, *FLAT, *FLAT))


def test_what_it_learns_is_what_the_agent_learns_from_all_of_them_at_once(make_world: Any, gradient_of: Any) -> None:
    world = make_world(rows=8)
    agent = dynamic(world.setup)
    first = earned(world.rollout(agent, seed=1), *TOLD, *FLAT, *TOLD, *FLAT)
    second = earned(world.rollout(agent, seed=2), *FLAT, *TOLD, *TOLD, *TOLD)
    wanted = gradient_of(agent.agent, agent.with_spread(first)), gradient_of(agent.agent, agent.with_spread(second))
    agent.update(first)
    learned = []
    step = agent.optimizer.step
    agent.optimizer.step = lambda: (
        learned.append(torch.cat([p.grad.flatten() for p in agent.policy.parameters()])) or step()
    )
    agent.update(second)
    torch.testing.assert_close(learned[0], (2 * wanted[0] + 3 * wanted[1]) / 5, rtol=0, atol=1e-12)


def test_the_gradient_keeps_its_direction_without_kl_and_loses_the_pull_of_kl(
    enumerate_world: Any, gradient_of: Any
) -> None:
    """Over all groups of two: the sum over what is left, and what docs/mechanisms.md says of it."""
    rows = {}
    for kl in (0.0, 0.3):
        enumerated = enumerate_world(kl=kl, length=1, rows=2)
        setup = enumerated.world.setup
        agent = dynamic(setup, rloo(setup, clip=0.0, importance_cap=1e9))
        chance, mean, square = 0.0, torch.zeros(()), 0.0
        for likely, group in groups_of(enumerated.answers, 2):
            told = agent.with_spread(group)
            if len(told):
                gradient = gradient_of(agent.agent, told)
                chance, mean = chance + likely, mean + likely * gradient
                square += likely * float(gradient @ gradient)
        exact = enumerated.exact_gradient()
        if not kl:
            torch.testing.assert_close(mean, exact, rtol=0, atol=1e-12)
        assert 0.2 < chance < 0.8
        rows[kl] = [f"{chance:.2f}", *against(exact, mean, square - float(mean @ mean))[:2]]
    require_on_page([f"| {kl:g} | {' | '.join(numbers)} |" for kl, numbers in rows.items()])


def test_a_checkpoint_gives_pending_groups_back(assert_resumes: Any) -> None:
    assert_resumes(lambda setup: dynamic(setup, draws=4), task={"name": "echo", "length": 3}, rows=8)


def test_groups_put_aside_are_in_the_state(make_world: Any) -> None:
    world = make_world(rows=8)
    agent, fresh = dynamic(world.setup), dynamic(world.setup)
    agent.update(earned(world.rollout(agent), *FLAT, *TOLD, *TOLD, *TOLD))
    fresh.load_state_dict(agent.state_dict())
    (kept,), (given,) = agent.pending, fresh.pending
    assert len(given) == 6 and torch.equal(given.tokens, kept.tokens) and given.scores == kept.scores
    assert given.group.tolist() == [1, 1, 2, 2, 3, 3]


def test_who_compares_nothing_is_refused(make_world: Any) -> None:
    setup = make_world(rows=8, task={"name": "echo", "length": 2}).setup
    with pytest.raises(ConfigError, match="PPO has one answer to a prompt here, which has no spread"):
        dynamic(setup, PPO(setup, PPO.Config()))
    around = Curriculum(setup, Curriculum.Config(levels=(1, 2)), GRPO(setup, GRPO.Config()))
    with pytest.raises(ConfigError, match="Curriculum has to see all texts"):
        dynamic(setup, around)
