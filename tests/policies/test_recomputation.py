"""Gradient checkpointing: the same gradients, from less memory, on both ways through a model."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_env.errors import ConfigError
from rlhf_env.lora_settings import Lora
from rlhf_env.policies import recomputation
from rlhf_env.policies.anatomy import has_dropout
from rlhf_env.policies.language_model import LanguageModel
from rlhf_env.policies.lora import adapter_weights, add_adapter
from rlhf_env.policies.tiny import tiny_language_model

FAMILIES = ("llama", "gpt2", "gemma2", "qwen3")


def model_of(family: str, *, lora: bool = False, **settings: Any) -> LanguageModel:
    policy = tiny_language_model(family, init_std=0.3, **settings)  # type: ignore[arg-type]
    if lora:
        pytest.importorskip("peft")
        add_adapter(policy.model, Lora(rank=2, dropout=0.1), 0)
        generator = torch.Generator().manual_seed(1)
        for name, value in adapter_weights(policy.model).items():
            if "lora_B" in name:
                value.copy_(0.2 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    policy.eval()  # peft's modules come in training mode
    return policy


def gradients(policy: LanguageModel) -> dict[str, torch.Tensor]:
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 250, (4, 12)))
    mask = torch.arange(12) < torch.tensor([12, 9, 12, 5])[:, None]
    where = mask.clone()
    where[:, :3] = False
    scores = policy.evaluate(tokens, mask, where)
    (scores.logprobs.sum() + scores.hidden.square().mean()).backward()
    return {name: weight.grad for name, weight in policy.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradients_are_those_of_the_usual_pass(family: str, fused: bool, lora: bool) -> None:
    """In evaluation mode, as the agents learn; with adapters no input of the first layer needs a gradient."""
    usual, saving = (gradients(model_of(family, lora=lora, fused=fused, gradient_checkpointing=on)) for on in (0, 1))
    assert usual.keys() == saving.keys() and any(bool(value.any()) for value in usual.values())
    for name, value in usual.items():
        torch.testing.assert_close(saving[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lora", [False, True])
def test_dropout_draws_the_same_again(lora: bool) -> None:
    usual, saving = (model_of("gpt2", lora=lora, dropout=0.3, gradient_checkpointing=on).train() for on in (0, 1))
    assert has_dropout(usual.model)
    found = []
    for policy in (usual, saving):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            found.append(gradients(policy))
            found[-1]["next"] = torch.rand(3)  # and leaves the generator where it was
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_layers_are_computed_again_where_there_are_gradients_and_nowhere_else(
    fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_env.policies import trunk

    times, ours = 0, trunk._attention

    def count(*_: object) -> None:
        nonlocal times
        times += 1

    monkeypatch.setattr(trunk, "_attention", lambda *args: (count(), ours(*args))[1])
    for saving, expected in ((False, 2), (True, 4)):  # of two layers
        policy = model_of("llama", fused=fused, gradient_checkpointing=saving)
        for layer in () if fused else policy.model.model.layers:  # with a hook the model goes by its own code
            layer.self_attn.register_forward_pre_hook(count)
        gradients(policy)  # the first time, it is also asked whether its head alone gives the logits
        times = 0
        gradients(policy)
        assert times == expected
        times = 0
        with torch.no_grad():
            policy.evaluate(*(torch.ones(1, 4, dtype=torch.int64),) * 2, torch.tensor([[False, True, True, True]]))
        assert times == 2


def test_a_copy_saves_memory_too_and_the_model_is_left_as_it_was() -> None:
    policy = model_of("llama", fused=False, gradient_checkpointing=True)
    before = {name: dict(module.__dict__) for name, module in policy.model.named_modules()}
    gradients(copy.deepcopy(policy))
    gradients(policy)
    assert copy.deepcopy(policy).gradient_checkpointing
    assert all(set(module.__dict__) == set(before[name]) for name, module in policy.model.named_modules())


def test_a_model_without_such_layers_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputation, "layers_of", lambda _model: [])
    with pytest.raises(ConfigError, match="gradient_checkpointing: LlamaForCausalLM has no layers that can be comp"):
        tiny_language_model(gradient_checkpointing=True)


_PEAKS = """
import sys
import torch
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.lora import add_adapter
from rlhf_env.policies.tiny import tiny_language_model

torch.set_num_threads(1)
fused, lora = (bool(int(word)) for word in sys.argv[1:])
policy = tiny_language_model(hidden_size=96, layers=12, dtype=torch.float32, fused=fused)
if lora:
    add_adapter(policy.model, Lora(rank=2), 0)
mask = torch.ones(8, 256, dtype=torch.bool)
where = torch.zeros_like(mask)
where[:, -1] = True
tokens = torch.arange(8 * 256).view(8, 256) % 250

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

policy.evaluate(tokens[:1, :8], mask[:1, :8], mask[:1, :8] & False).hidden.sum().backward()
before = status("VmRSS")
for saving in (True, False):  # the highest so far only rises: first what should be less
    policy.gradient_checkpointing = saving
    policy.evaluate(tokens, mask, where).logprobs.sum().backward()
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts the memory of a process here")
@pytest.mark.parametrize(("fused", "lora"), [(True, True), (False, False)])
def test_an_update_needs_less_memory(fused: bool, lora: bool) -> None:
    """Measured: 278 MiB and 155 with adapters on the fused way, 266 and 108 through the library's modules."""
    words = [sys.executable, "-c", _PEAKS, str(int(fused)), str(int(lora))]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    saving, usual = map(float, said.split())
    assert saving < 0.7 * usual
