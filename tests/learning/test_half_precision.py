"""Weights in bfloat16: what trains has a copy in float32, steps too small for bfloat16 add up, resume is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rlhf_env
from rlhf_env.learning.engine import Engine, Optimization, Optimizer
from rlhf_env.policies.anatomy import anatomy_of
from rlhf_env.policies.policy import all_weights
from rlhf_env.policies.tiny import tiny_language_model


def optimizer_of(*parameters: torch.Tensor, **settings: Any) -> Optimizer:
    return Engine().optimizer(parameters, Optimization(**{"max_grad_norm": 0.0, **settings}))


def test_steps_that_bfloat16_would_lose_add_up() -> None:
    """AdamW's step is about lr whatever the gradient; next to 1, bfloat16 has nothing nearer than 1 - 2^-9."""
    parameter = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    optimizer = optimizer_of(parameter, lr=1e-4)
    for _ in range(100):
        optimizer.backward(3.0 * parameter.sum())
        optimizer.step()
    assert float(parameter.detach()) == float(torch.tensor(0.99).bfloat16())


def test_gradients_of_micro_batches_are_summed_in_float32() -> None:
    """1 + 2^-9 + 2^-9 is 1 in bfloat16, however often 2^-9 is added."""
    parameter = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
    optimizer = optimizer_of(parameter)
    optimizer.backward(parameter.sum())
    for _ in range(64):
        optimizer.backward((parameter * 2.0**-9).sum())
    assert optimizer.step() == 1.125


def test_float32_parameters_have_no_copy() -> None:
    parameter = torch.zeros(3, requires_grad=True)
    optimizer = optimizer_of(parameter)
    optimizer.backward(parameter.sum())
    optimizer.step()
    assert set(optimizer.state_dict()["0"]) == {"step", "exp_avg", "exp_avg_sq"}


def test_the_copy_is_part_of_the_state() -> None:
    def steps(parameter: torch.Tensor, optimizer: Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.backward((parameter * torch.tensor([1.0, -2.0], dtype=torch.bfloat16)).sum())
            optimizer.step()

    one = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    optimizer = optimizer_of(one, lr=1e-4)
    steps(one, optimizer, 7)
    state = {name: {key: value.clone() for key, value in it.items()} for name, it in optimizer.state_dict().items()}
    assert state["0"]["master"].dtype == torch.float32
    other = one.detach().clone().requires_grad_()
    resumed = optimizer_of(other, lr=1e-4)
    resumed.load_state_dict(state)
    steps(one, optimizer, 40)
    steps(other, resumed, 40)
    assert torch.equal(one, other)
    assert torch.equal(optimizer.state_dict()["0"]["master"], resumed.state_dict()["0"]["master"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3"])
def test_gradients_point_where_those_of_float32_point(family: Any) -> None:
    full = tiny_language_model(family, init_std=0.1, hidden_size=64, dtype=torch.float32)
    half = tiny_language_model(family, init_std=0.1, hidden_size=64, dtype=torch.float32)
    half.model.to(torch.bfloat16)
    full.model.load_state_dict({name: value.float() for name, value in half.model.state_dict().items()})
    assert anatomy_of(half.model) is not None
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 250, (8, 24)))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    where = mask.clone()
    where[:, :4] = False
    for policy in (full, half):
        policy.evaluate(tokens, mask, where).logprobs.double().sum().backward()
    one, other = (torch.cat([p.grad.flatten().double() for p in it.parameters()]) for it in (full, half))  # type: ignore[union-attr]
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.999


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
@pytest.mark.parametrize("agent", ["ppo", "grpo", "dpo"])
def test_a_run_in_bfloat16_resumes_in_the_same_bits(
    agent: str, lora: dict[str, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lora is not None:
        pytest.importorskip("peft")
    experiment = {
        "policy": {"model": "tiny", "tokenizer": "alphabet:ab:", "dtype": "bfloat16", "lora": lora},
        "environment": {"num_envs": 8, "max_new_tokens": 6},
        "rewards": {"task": 1.0, "kl": 0.1},
        "agent": {"name": agent, "lr": 1e-4},
        "evaluation": {"prompts": 4},
        "checkpoint_every": 1,
    }
    if lora is None:
        del experiment["policy"]["lora"]  # type: ignore[attr-defined]
    whole = rlhf_env.run({**experiment, "budget": {"updates": 3}}, tmp_path / "whole")
    rlhf_env.run({**experiment, "budget": {"updates": 1}}, tmp_path / "cut")
    resumed = rlhf_env.run({**experiment, "budget": {"updates": 3}}, tmp_path / "cut", resume=True)
    after = all_weights(whole.policy)
    assert {value.dtype for name, value in after.items() if ".lora_" not in name} == {torch.bfloat16}
    assert {value.dtype for name, value in after.items() if ".lora_" in name} <= {torch.float32}
    assert all(torch.equal(value, all_weights(resumed.policy)[name]) for name, value in after.items())
    assert [row.get("loss") for row in whole.metrics] == [row.get("loss") for row in resumed.metrics]
