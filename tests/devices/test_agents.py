"""Every agent on a device that is not the CPU: the same texts, the same update, a state that goes to the CPU and back.

A tensor that stays on the CPU by mistake raises here, as it would on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from agents.conftest import World, stir
from agents.test_every_agent import OTHERS, VARIANTS, make, with_rewards, world_of

from rlhf_env.learning import checkpoints
from rlhf_env.learning.engine import Engine, Optimization
from rlhf_env.learning.rollout import Rollout

from .fake import FakeDevice

REWARDS = [0.1, 0.9, 0.4, 0.0, 1.0, 0.3, 0.6, 0.2]
ON_CUDA, ON_MPS = 1e-9, 2e-3  # float64 by other kernels; float32 throughout


def world_on(device: str, variant: str, dtype: torch.dtype = torch.float64, **more: Any) -> World:
    length = 2 if variant == "options" else None
    world = world_of(variant, action_length=length, dtype=dtype, **more)
    engine = Engine(world.setup.spending, device)
    for model in (world.setup.policy, world.setup.reference):
        engine.place(model)  # type: ignore[type-var]
    return World(world.env, replace(world.setup, engine=engine))


def two_updates(
    device: str, variant: str, dtype: torch.dtype = torch.float64
) -> tuple[list[Rollout], list[dict[str, float]], Any]:
    """Two rollouts, with the rewards above, and what the updates on them said, after the policy has moved."""
    world = world_on(device, variant, dtype)
    agent = make(world, variant, Optimization(lr=1e-3))
    rollouts, said = [], []
    for seed in (5, 6):
        rollouts.append(with_rewards(world.rollout(agent, seed=seed), REWARDS))
        if agent.trains and variant != "sb3, a2c":  # which learns from its own texts alone
            stir(agent.policy, seed=seed)
        said.append(agent.update(rollouts[-1]))
    return rollouts, said, agent


def weights_of(agent: Any) -> torch.Tensor:
    weights = [p.detach().cpu().double().flatten() for p in agent.setup.policy.parameters()]
    return torch.cat(weights)


@pytest.mark.parametrize("variant", [*VARIANTS, *OTHERS])
def test_an_agent_writes_and_learns_there_as_on_the_cpu(variant: str, gpu: FakeDevice) -> None:
    assert_as_on_the_cpu(variant, gpu)


@pytest.mark.parametrize(
    "variant",
    [
        "sft",
        "sft+rm, separate",
        "reinforce, to go",
        "grpo, kl in loss",
        "ppo, mixed",
        "dpo, soft",
        "kto",
        "rejection",
        "options",
        "sb3",
    ],
)
def test_an_agent_needs_no_float64(variant: str) -> None:
    with FakeDevice("mps:0") as device:
        assert_as_on_the_cpu(variant, device)


def assert_as_on_the_cpu(variant: str, device: FakeDevice) -> None:
    dtype, close = (torch.float64, ON_CUDA) if device.has_float64 else (torch.float32, ON_MPS)
    before = device.worked
    rollouts, said, agent = two_updates(str(device.device), variant, dtype)
    expected_rollouts, expected, ours = two_updates("cpu", variant, dtype)
    assert rollouts[0].tokens.device.type == "cpu"  # episodes are nobody's device's
    assert torch.equal(rollouts[0].tokens, expected_rollouts[0].tokens)
    assert (rollouts[0].logprobs - expected_rollouts[0].logprobs).abs().max() < close
    for one, other in zip(said, expected, strict=True):
        assert one.keys() == other.keys()
        off = {
            name: (one[name], other[name])
            for name in one
            if not math.isclose(one[name], other[name], rel_tol=close, abs_tol=close)
        }
        assert not off
    assert (weights_of(agent) - weights_of(ours)).abs().max() < close
    assert {p.device for p in agent.setup.policy.parameters()} == {device.device}
    assert device.worked > before


@pytest.mark.parametrize("variant", ["sft", "grpo", "ppo, separate", "sb3"])
def test_its_state_resumes_on_the_cpu_and_the_cpus_there(variant: str, gpu: FakeDevice, tmp_path: Path) -> None:
    for first, second in ((str(gpu.device), "cpu"), ("cpu", str(gpu.device))):
        rollouts, _, agent = two_updates(first, variant)
        folder = checkpoints.save(tmp_path / second[:3], 2, agent.state_dict(), {})
        state, _ = checkpoints.load(folder)
        world = world_on(second, variant)
        again = make(world, variant, Optimization(lr=1e-3))
        again.load_state_dict(state)
        assert (weights_of(agent) - weights_of(again)).abs().max() == 0.0
        expected, said = agent.update(rollouts[0]), again.update(rollouts[0])
        assert all(math.isclose(said[name], expected[name], rel_tol=ON_CUDA, abs_tol=ON_CUDA) for name in expected)
        assert (weights_of(agent) - weights_of(again)).abs().max() < ON_CUDA


def test_masters_of_half_precision_and_their_moments_are_there(gpu: FakeDevice, tmp_path: Path) -> None:
    def trained(device: str) -> Any:
        world = world_of("grpo", dtype=torch.bfloat16)
        engine = Engine(world.setup.spending, device)
        for model in (world.setup.policy, world.setup.reference):
            engine.place(model)  # type: ignore[type-var]
        world = World(world.env, replace(world.setup, engine=engine))
        agent = make(world, "grpo", Optimization(lr=1e-3))
        agent.update(with_rewards(world.rollout(agent, seed=5), REWARDS))
        return agent

    agent, ours = trained(str(gpu.device)), trained("cpu")
    moments = agent.optimizer.state_dict()["0"]
    assert moments["master"].dtype == moments["exp_avg"].dtype == torch.float32
    assert moments["master"].device == moments["exp_avg"].device == gpu.device
    state, _ = checkpoints.load(checkpoints.save(tmp_path, 1, agent.state_dict(), {}))
    ours.load_state_dict(state)
    assert torch.equal(ours.optimizer.state_dict()["0"]["master"], moments["master"].cpu())


def test_dropout_there_is_drawn_from_the_seed_of_the_run(gpu: FakeDevice) -> None:
    states = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        torch.rand(noise, device=gpu.device)
        before = gpu.random_state(), torch.default_generator.get_state()
        world = world_on(str(gpu.device), "sft")
        for part in world.setup.policy.modules():  # type: ignore[attr-defined]
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.3
        agent = make(world, "sft", Optimization(lr=1e-3))
        agent.update(world.rollout(agent, seed=5))
        assert torch.equal(before[0], gpu.random_state()) and torch.equal(
            before[1], torch.default_generator.get_state()
        )
        states.append(weights_of(agent))
    assert torch.equal(*states)


def test_a_tensor_that_is_forgotten_on_the_cpu_raises(fake: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug that these tests are for, put in on purpose: a mask, positions, row numbers without a device."""
    here = torch.arange

    def forgetful(*numbers: Any, device: Any = None, **settings: Any) -> torch.Tensor:
        return here(*numbers, **settings)

    world = world_on(str(fake.device), "ppo", torch.float32)
    agent = make(world, "ppo")
    rollout = world.rollout(agent, seed=5)
    monkeypatch.setattr(torch, "arange", forgetful)
    with pytest.raises(RuntimeError, match="two devices"):
        agent.update(rollout)
