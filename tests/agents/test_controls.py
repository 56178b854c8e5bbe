"""The controls: `reference` writes as the reference does, `random` uniformly, and neither learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from rlhf_agents.random import Random
from rlhf_agents.reference import Reference

from rlhf_env import plugins


@pytest.mark.parametrize("whole_responses", [True, False])
def test_reference_stays_the_reference(make_world, whole_responses: bool) -> None:
    world = make_world(whole_responses=whole_responses)
    with torch.no_grad():
        for parameter in world.setup.policy.parameters():
            parameter.add_(0.1)
    rollout = world.rollout(Reference(world.setup, Reference.Config()))
    assert float(rollout.part("kl").abs().max()) < 1e-10


@pytest.mark.parametrize("whole_responses", [True, False])
def test_random_is_uniform_and_says_so(make_world, whole_responses: bool) -> None:
    world = make_world(rows=256, length=4, whole_responses=whole_responses)
    agent = Random(world.setup, Random.Config())
    rollout = world.rollout(agent)
    drawn = rollout.tokens[rollout.actions]
    assert set(drawn.tolist()) == {0, 1, 2, 3, 4}  # the four symbols and the end, never padding
    assert torch.equal(rollout.logprobs[rollout.actions], torch.full(drawn.shape, -math.log(5), dtype=torch.float64))
    first = np.bincount(rollout.tokens[:, 2].numpy(), minlength=5)[:5]
    assert ((first - 256 / 5) ** 2 / (256 / 5)).sum() < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


@pytest.mark.parametrize("kind", [Random, Reference])
def test_controls_learn_nothing_and_resume(make_world, assert_resumes, kind: Any) -> None:
    world = make_world()
    agent = kind(world.setup, kind.Config())
    assert agent.update(world.rollout(agent)) == {}
    assert_resumes(lambda setup: kind(setup, kind.Config()))


def test_every_built_in_agent_loads_by_name() -> None:
    names = ["best_of_n", "dpo", "grpo", "ppo", "random", "reference", "reinforce", "rejection", "rloo", "sft"]
    assert set(names) <= set(plugins.host().names("agent"))
    trains = {name: plugins.host().load("agent", name).trains for name in names}
    assert [name for name in names if trains[name]] == ["dpo", "grpo", "ppo", "reinforce", "rejection", "rloo", "sft"]
    for name in names:
        plugins.host().load("agent", name).Config()
