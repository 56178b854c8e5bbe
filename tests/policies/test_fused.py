"""`FusedStep` is taken for the models it knows, and only for those."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_env.policies import LanguageModel, tiny_language_model
from rlhf_env.policies.anatomy import anatomy_of
from rlhf_env.policies.fused import FusedStep, Linear, SeparateLinear
from rlhf_env.policies.tiny import Family
from tests.policies.conftest import FAMILIES

ROTARY = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 1e4},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
        "rope_theta": 1e4,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
}


def llama(**changes: Any) -> Any:
    settings = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "max_position_embeddings": 64,
        "eos_token_id": 39,
        "pad_token_id": None,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("llama", **{**settings, **changes}), dtype=torch.float64
        )
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
    return model


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every step of a `FusedStep`."""
    count: list[int] = []
    step = FusedStep.__call__
    monkeypatch.setattr(FusedStep, "__call__", lambda self, *inputs: count.append(1) or step(self, *inputs))
    return count


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_may_stay_where_they_are(family: Family) -> None:
    """As in the check at load, which holds our own code for a family and writes a few tokens."""
    model = tiny_language_model(family, vocab_size=30, init_std=0.3, key_value_heads=2).model
    anatomy, tokens = anatomy_of(model), torch.arange(12).view(2, 6)
    assert anatomy is not None
    with torch.inference_mode():
        logits = []
        for linear in (Linear, SeparateLinear):
            step = FusedStep(model, anatomy, linear)
            cache = step.cache()
            first = step.prefill(tokens, tokens >= 0, cache, np.arange(2), 2)
            logits.append(torch.stack([first, step(tokens[:, 0], torch.tensor([6, 6]), cache)]))
    assert float((logits[0] - logits[1]).abs().max()) < 1e-10
    assert step._blocks[0].out.weights[0].data_ptr() == anatomy.layers[0].out.weight.data_ptr()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_it_and_can_do_without(family: Family, texts: Any, steps: list[int]) -> None:
    before = texts().observation
    quick, plain = (tiny_language_model(family, vocab_size=30, init_std=0.3, fused=fused) for fused in (True, False))
    steps.clear()  # those of the check at load
    fused = quick.write(before, 9)
    assert len(steps) == 8  # the first token comes with the prompt
    general = plain.write(before, 9)
    assert len(steps) == 8
    np.testing.assert_array_equal(fused.tokens, general.tokens)
    np.testing.assert_allclose(fused.logprobs, general.logprobs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_where_other_operations_compute_it(
    family: Family, texts: Any, recomputed: Any, steps: list[int]
) -> None:
    policy = tiny_language_model(family, vocab_size=200, init_std=0.1, key_value_heads=2, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    before = texts()
    steps.clear()  # those of the check at load
    written = policy.write(before.observation, 20)
    assert len(steps) == 19
    for row, tokens, expected in zip(
        written.logprobs, written.tokens, recomputed(policy, before, written), strict=True
    ):
        np.testing.assert_allclose(row[tokens < 200], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [{"attention_bias": True, "mlp_bias": True}, {"hidden_act": "relu"}, {"head_dim": 12}]
    + [{"rope_parameters": ROTARY[name]} for name in ("linear", "yarn", "llama3")],
    ids=["biases", "relu", "wide heads", "linear", "yarn", "llama3"],
)
def test_variants_of_llama(changes: dict[str, Any], texts: Any, recomputed: Any, steps: list[int]) -> None:
    policy, before = LanguageModel(llama(**changes)), texts()
    steps.clear()  # those of the check at load
    written = policy.write(before.observation, 20)
    assert len(steps) == 19
    for row, tokens, expected in zip(
        written.logprobs, written.tokens, recomputed(policy, before, written), strict=True
    ):
        np.testing.assert_allclose(row[tokens < 40], expected, rtol=0, atol=1e-10)


def test_what_it_does_not_know_goes_the_general_way() -> None:
    assert anatomy_of(llama()) is not None
    assert anatomy_of(llama(rope_parameters=ROTARY["dynamic"])) is None
    assert anatomy_of(llama().half()) is None
    hooked = llama()
    hooked.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    adapted = llama()
    adapted.model.layers[1].self_attn.q_proj = nn.Sequential(adapted.model.layers[1].self_attn.q_proj)
    replaced = llama()
    replaced.model.layers[1].mlp.up_proj = Doubled(32, 50, bias=False, dtype=torch.float64)
    mixed = llama()
    mixed.lm_head.float()
    for model in (hooked, adapted, replaced, mixed):
        assert anatomy_of(model) is None
    gpt2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 9}
    for odd in ("add_cross_attention", "reorder_and_upcast_attn"):
        assert anatomy_of(AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **gpt2, **{odd: True}))) is None
    assert anatomy_of(AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_neo", **SMALL_NEO))) is None


class Doubled(nn.Linear):
    """What an adapter may look like."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


SMALL_NEO = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "vocab_size": 9,
    "attention_types": [[["global"], 1]],
}
