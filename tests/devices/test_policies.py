"""Language models, tables and adapters on a device: the same texts as on the CPU, by every path of the code."""

from __future__ import annotations

import copy
from typing import Any, get_args

import numpy as np
import pytest
import torch

from rlhf_env.learning.engine import Engine
from rlhf_env.lora_settings import Lora
from rlhf_env.policies import LanguageModel, tiny_language_model
from rlhf_env.policies.lora import add_adapter
from rlhf_env.policies.policy import Sampling
from rlhf_env.policies.tabular import TabularPolicy
from rlhf_env.policies.tiny import Family

from .fake import FakeDevice

VOCABULARY = 200  # more than two blocks of `decoding.BLOCK`
PROMPTS = [[3, 4, 5], [3, 4, 5], [7, 8], [9, 10, 11, 12]]


def model(family: Family, **settings: Any) -> LanguageModel:
    size = {"hidden_size": 16, "layers": 2, "heads": 2, "context": 32, "vocab_size": VOCABULARY, "init_std": 0.3}
    policy = tiny_language_model(family, **{**size, "dtype": torch.float32, **settings}).eval()
    if hasattr(policy.model.config, "_experts_implementation"):  # the usual one asks the driver what the GPU can do
        policy.model.set_experts_implementation("eager")
    return policy


def observation(prompts: list[list[int]]) -> Any:
    width = max(map(len, prompts))
    ids = np.array([it + [0] * (width - len(it)) for it in prompts])
    return {"input_ids": ids, "attention_mask": np.array([[i < len(it) for i in range(width)] for it in prompts])}


def learn(policy: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of fixed texts [B, L], and the gradient of their sum, both on the CPU."""
    tokens = torch.arange(3, 27).reshape(4, 6)
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 6])[:, None]
    where = mask & (torch.arange(6) > 1)
    scores = policy.evaluate(tokens, mask, where)
    (scores.logprobs.sum() + scores.entropy.sum() + scores.hidden.square().sum()).backward()
    gradient = [p.grad.detach().cpu().flatten() for p in policy.parameters() if p.grad is not None]
    return scores.logprobs.detach().cpu(), torch.cat(gradient)


def assert_the_same(policy: LanguageModel, device: FakeDevice, again: LanguageModel | None = None) -> None:
    there = Engine(device=str(device.device)).place(again or copy.deepcopy(policy))
    assert there.device == device.device
    one, other = policy.write(observation(PROMPTS), 6), there.write(observation(PROMPTS), 6)
    assert np.array_equal(one.tokens, other.tokens)
    assert np.abs(one.logprobs - other.logprobs).max() < 1e-4
    for ours, theirs in zip(learn(policy), learn(there), strict=True):
        assert (ours - theirs).abs().max() < 1e-3 * (1.0 + ours.abs().max())


@pytest.mark.parametrize("family", get_args(Family))
def test_each_family_on_the_fused_path(family: Family, gpu: FakeDevice) -> None:
    assert_the_same(model(family), gpu)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gemma2", {"fused": False}),
        ("gpt2", {"rows_at_once": 2}),
        ("llama", {"sampling": Sampling(temperature=0.7, top_k=20)}),
        ("gpt2", {"sampling": Sampling(top_p=0.8)}),
        ("llama", {"sampling": Sampling(top_k=1)}),
        ("gemma2", {"gradient_checkpointing": True}),
        ("qwen2_moe", {"gradient_checkpointing": True}),
        ("qwen3_moe", {"fused": False}),
    ],
    ids=["modules", "waves", "top-k", "top-p", "greedy", "checkpointing", "experts, checkpointing", "experts, modules"],
)
def test_the_other_ways_through_it(family: Family, settings: dict[str, Any], device: FakeDevice) -> None:
    assert_the_same(model(family, **settings), device)


def test_a_text_written_token_by_token_keeps_its_cache_there(device: FakeDevice) -> None:
    here = model("llama")
    there = Engine(device=str(device.device)).place(copy.deepcopy(here))
    prompts = [list(it) for it in PROMPTS]
    for _ in range(3):
        one, other = (it.write(observation(prompts), 1).tokens for it in (here, there))
        assert np.array_equal(one, other)
        prompts = [[*prompt, int(token)] for prompt, (token,) in zip(prompts, one, strict=True)]


def test_adapters_begin_alike_and_share_their_base(device: FakeDevice) -> None:
    def adapted() -> LanguageModel:  # a copy would share its base, and move it
        made = model("llama")
        add_adapter(made.model, Lora(rank=2), seed=3)
        with torch.no_grad():
            for name, weight in made.named_parameters():
                if "lora_B" in name:
                    weight.add_(0.1)
        return made

    there = adapted()
    assert_the_same(adapted(), device, there)
    shared = {id(p) for p in there.parameters()} & {id(p) for p in there.frozen_copy().parameters()}
    assert len(shared) > 4


def test_a_table_of_logits_there_draws_and_learns_the_same(device: FakeDevice) -> None:
    here = TabularPolicy(4, 3, prompt=[0], dtype=torch.float32)
    there = Engine(device=str(device.device)).place(copy.deepcopy(here))
    one, other = here.write(observation([[0]] * 8), 3), there.write(observation([[0]] * 8), 3)
    assert np.array_equal(one.tokens, other.tokens)
    tokens = torch.tensor([[0, 1, 2, 4], [0, 3, 4, 5]])
    mask = tokens < 5
    where = mask & (torch.arange(4) > 0)
    for policy in (here, there):
        policy.evaluate(tokens, mask, where).logprobs.sum().backward()
    assert here.logits.grad is not None and there.logits.grad is not None
    assert torch.allclose(here.logits.grad, there.logits.grad.cpu(), atol=1e-6)


def test_half_precision_there(device: FakeDevice) -> None:
    here = model("llama", dtype=torch.bfloat16)
    there = Engine(device=str(device.device)).place(copy.deepcopy(here))
    written = there.write(observation(PROMPTS), 4)
    assert (written.tokens < VOCABULARY).any() and np.isfinite(written.logprobs).all()
    ours, theirs = learn(here)[0], learn(there)[0]
    assert theirs.dtype == torch.float32 and (ours - theirs).abs().max() < 0.2
