"""The entropy bonus: its weight over the budget, the floor's controller by hand, what it adds to agents' gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rlhf_agents.grpo import GRPO
from rlhf_agents.ppo import PPO
from rlhf_agents.reinforce import Reinforce
from rlhf_agents.rloo import RLOO

from rlhf_env.errors import ConfigError
from rlhf_env.learning.engine import Optimization
from rlhf_env.learning.entropy import EntropyBonus, EntropyCourse

KINDS: dict[str, Any] = {"ppo": PPO, "grpo": GRPO, "rloo": RLOO, "reinforce": Reinforce}
FREE = Optimization(max_grad_norm=0.0, lr=1e-2)


def agent(setup: Any, kind: str, **settings: Any) -> Any:
    groups = {} if kind in ("ppo", "reinforce") else {"group_size": 4}
    return KINDS[kind](setup, KINDS[kind].Config(optimization=FREE, **groups, **settings))


# ---------------------------------------------------------------- its weight


def test_the_weight_follows_its_course_over_the_budget(make_world: Any) -> None:
    setup = make_world().setup
    bonus = EntropyBonus(setup, 0.3, EntropyCourse(entropy_schedule="linear", entropy_end=0.1))
    seen = []
    for setup.engine.progress in (0.0, 0.25, 0.5, 1.0):
        seen.append(bonus.coefficient)
    assert seen == pytest.approx([0.3, 0.25, 0.2, 0.1])
    rising = EntropyBonus(setup, 0.0, EntropyCourse(entropy_schedule="linear", entropy_end=0.1))
    setup.engine.progress = 0.5
    assert rising.coefficient == pytest.approx(0.05)
    assert EntropyBonus(setup, 0.3, EntropyCourse()).coefficient == 0.3


def test_below_the_floor_the_weight_rises_and_above_it_falls_back(make_world: Any) -> None:
    course = EntropyCourse(entropy_floor=1.0, entropy_horizon=100, entropy_max=0.02)
    bonus = EntropyBonus(make_world().setup, 0.01, course)
    assert bonus.observe(0.9, 50) == {"entropy_coefficient": 0.01}
    assert bonus.coefficient == pytest.approx(0.01 * 1.05)  # 10 % off, half a horizon
    bonus.observe(0.2, 200)  # no more than 20 %, in one move
    assert bonus.coefficient == pytest.approx(0.01 * 1.05 * 1.2)
    bonus.observe(1.1, 100)
    assert bonus.coefficient == pytest.approx(0.01 * 1.05 * 1.2 * 0.9)
    for _ in range(9):
        bonus.observe(0.1, 100)
    assert bonus.coefficient == 0.02 and bonus.factor == pytest.approx(2.0), "the limit winds nothing up"
    for _ in range(9):
        bonus.observe(3.0, 100)
    assert bonus.coefficient == 0.01 and bonus.factor == 1.0, "it falls to its course, and no lower"


def test_what_does_not_belong_together_is_refused(make_world: Any) -> None:
    for settings, said in [
        ({"entropy": EntropyCourse(entropy_floor=0.5)}, "entropy_floor raises a weight that is there: entropy_coef"),
        (
            {"entropy": EntropyCourse(entropy_floor=0.5), "entropy_coefficient": 2.0},
            "entropy_max must be at least the weight itself, got 1.0",
        ),
    ]:
        for kind in KINDS:
            with pytest.raises(ConfigError, match=said):
                agent(make_world().setup, kind, **settings)
    with pytest.raises(ConfigError, match="entropy_end belongs to a schedule: entropy_schedule = 'linear' or 'cosine'"):
        EntropyCourse(entropy_end=0.1)
    with pytest.raises(ConfigError, match="entropy_end must be above 0"):
        EntropyCourse(entropy_schedule="linear", entropy_floor=0.1)
    high = EntropyCourse(entropy_floor=1.8)  # of 6 tokens: log 6 = 1.79
    with pytest.raises(
        ConfigError, match=r"entropy_floor must be below 1.792 nats, the entropy of a token drawn evenly"
    ):
        agent(make_world().setup, "rloo", entropy_coefficient=0.1, entropy=high)


# ---------------------------------------------------------------- in an agent


@pytest.mark.parametrize("kind", KINDS)
def test_it_adds_the_gradient_of_the_mean_entropy_of_tokens(make_world: Any, gradient_of: Any, kind: str) -> None:
    world = make_world(rows=8)
    plain = agent(world.setup, kind)
    rollout = world.rollout(plain, seed=3)
    policy = world.setup.policy
    entropy = policy.evaluate(rollout.tokens, rollout.mask, rollout.actions).entropy[rollout.actions].mean()
    expected = -0.7 * torch.cat([g.flatten() for g in torch.autograd.grad(entropy, list(policy.parameters()))])
    paid = gradient_of(agent(world.setup, kind, entropy_coefficient=0.7), rollout)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(paid - gradient_of(plain, rollout), expected, rtol=0, atol=1e-12)


def test_a_floor_brings_the_entropy_back(make_world: Any) -> None:
    course = EntropyCourse(entropy_floor=0.8, entropy_horizon=32, entropy_max=5.0)
    bonus: dict[str, Any] = {"entropy_coefficient": 0.1, "entropy": course}
    last = {}
    for name, settings in {"plain": {}, "floor": bonus}.items():
        world = make_world(kl=0.0)
        made = RLOO(world.setup, RLOO.Config(optimization=Optimization(lr=3e-3), **settings))
        for _ in range(36):
            metrics = made.update(world.rollout(made))
        last[name] = metrics["entropy"]
        assert ("entropy_coefficient" in metrics) == (name == "floor")
    assert last["plain"] < 0.2 and last["floor"] > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_it_resumes(assert_resumes: Any, kind: str) -> None:
    course = EntropyCourse(entropy_floor=1.7, entropy_horizon=8, entropy_max=10.0)
    assert_resumes(lambda setup: agent(setup, kind, entropy_coefficient=0.1, entropy=course), rows=8)


def test_without_a_floor_nothing_of_it_is_in_a_state(make_world: Any) -> None:
    setup = make_world().setup
    assert "entropy" not in agent(setup, "rloo", entropy_coefficient=0.1).state_dict()
    course = EntropyCourse(entropy_floor=0.5)
    assert agent(setup, "rloo", entropy_coefficient=0.1, entropy=course).state_dict()["entropy"] == {"factor": 1.0}
