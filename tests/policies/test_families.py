"""Every family on the fused path, in the settings of its models: written, read and learned as by the library.

The models are small and random, but for two things: weights are large, so that the past matters, and all norms, biases
and buffers differ from each other, so that none can stand in for another.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from rlhf_env.lora_settings import Lora
from rlhf_env.policies import LanguageModel, Sampling
from rlhf_env.policies.anatomy import anatomy_of, layer_norm_weight, rms_norm_weight
from rlhf_env.policies.attention import attend_in_own_precision
from rlhf_env.policies.experts import loop_over_experts_in_float64
from rlhf_env.policies.fused import FusedStep
from rlhf_env.policies.fused import _norm as _fused_norm
from rlhf_env.policies.lora import adapter_weights, add_adapter, merge_adapter
from rlhf_env.policies.trunk import _norm as _read_norm
from rlhf_env.policies.trunk import hidden_states, prefix_tree
from tests.policies.conftest import FAMILIES, Texts

VOCABULARY = 40
SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": 39,
    "pad_token_id": None,
}
_NAMES = {"gemma3": "gemma3_text", "gemma4": "gemma4_text"}  # in transformers, of the text models of two families
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
GEMMA4 = {"sliding_window": 5, "head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 0}
GEMMA4 |= {"layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]}
ROTARY = {"rope_type": "default", "rope_theta": 100.0}
LONG = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 32}  # the longest text has 30
LONG |= {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 4.0]}

# The settings of the models that are published, and the others that are computed. By a name: family and settings.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "phi 3": ("phi3", {"sliding_window": 5}),
    "phi 4 mini": ("phi3", {"rope_parameters": {**ROTARY, "partial_rotary_factor": 0.75}, "tie_word_embeddings": True}),
    "phi 3.5": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 32}),
    "olmo 2": ("olmo2", {}),
    "olmo 2, biases": ("olmo2", {"attention_bias": True, "num_key_value_heads": 4}),
    "olmo 3": ("olmo3", {"sliding_window": 5}),
    "olmo 3, long": (
        "olmo3",
        {
            "sliding_window": 5,
            "rope_parameters": {
                "sliding_attention": ROTARY,
                "full_attention": {
                    **ROTARY,
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32,
                },
            },
        },
    ),
    "granite": (
        "granite",
        {
            "residual_multiplier": 0.22,
            "embedding_multiplier": 12.0,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.4,
            "tie_word_embeddings": True,
        },
    ),
    "granite, biases": ("granite", {"attention_bias": True, "mlp_bias": True, "residual_multiplier": 2.0}),
    "command r": ("cohere", {"logit_scale": 1.5, "rope_parameters": ROTARY}),
    "command r plus": ("cohere", {"logit_scale": 0.5, "use_qk_norm": True, "tie_word_embeddings": False}),
    "command a": ("cohere2", {"logit_scale": 1.5, "sliding_window": 5, "rope_parameters": ROTARY}),
    "command a, biases": (
        "cohere2",
        {
            "attention_bias": True,
            "logit_scale": 1.5,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "smollm 3": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm 3, windows": ("smollm3", {"use_sliding_window": True, "sliding_window": 5, "tie_word_embeddings": False}),
    "smollm 3, windows elsewhere": (
        "smollm3",
        {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2, "mlp_bias": True},
    ),
    "glm": ("glm", {"head_dim": 8, "attention_bias": True}),
    "glm 4": ("glm4", {"head_dim": 16, "rope_parameters": {**ROTARY, "partial_rotary_factor": 0.5}}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "mixtral, windows": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 5}),
    "qwen 2 moe": ("qwen2_moe", {**EXPERTS, "decoder_sparse_step": 2}),
    "qwen 2 moe, windows": (
        "qwen2_moe",
        {**EXPERTS, "use_sliding_window": True, "sliding_window": 5, "norm_topk_prob": True, "qkv_bias": False},
    ),
    "qwen 3 moe": ("qwen3_moe", {**EXPERTS, "head_dim": 12, "norm_topk_prob": True}),
    "qwen 3 moe, windows": (
        "qwen3_moe",
        {**EXPERTS, "head_dim": 8, "use_sliding_window": True, "sliding_window": 5, "mlp_only_layers": [1]},
    ),
    "gemma 4": ("gemma4_text", {**GEMMA4, "final_logit_softcapping": 4.0}),
    "gemma 4, effective": (
        "gemma4_text",
        {**GEMMA4, "num_hidden_layers": 6, "num_kv_shared_layers": 3}
        | {"layer_types": ["sliding_attention", "full_attention"] * 3, "use_double_wide_mlp": True}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY},
    ),
    "gemma 4, experts": (
        "gemma4_text",
        {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
        | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}
        | {"use_bidirectional_attention": "vision"},
    ),
    "qwen 3, windows": ("qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
}

ONE_OF_EACH = list({family: variant for variant, (family, _) in reversed(VARIANTS.items())}.values())
ONE_OF_EACH += ["gemma 4, effective", "gemma 4, experts"]


def model_of(family: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """A model in which every number that is the same at first is another."""
    if family not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **copy.deepcopy({**SIZE, **settings}))
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
                if name.endswith("bias"):
                    nn.init.normal_(parameter, std=0.3)
            for name, buffer in model.named_buffers():
                if name.endswith("layer_scalar"):
                    buffer.uniform_(0.5, 1.5)
    return model


def policy_of(variant: str, dtype: torch.dtype = torch.float64, **changes: Any) -> LanguageModel:
    family, settings = VARIANTS[variant]
    policy = LanguageModel(model_of(family, dtype, **settings), **changes)
    assert anatomy_of(policy.model) is not None
    return policy


def plain_logprobs(policy: LanguageModel, text: np.ndarray) -> Tensor:
    """The log-probabilities [L - 1] of one text, alone in a batch, without a mask: the definition."""
    ids = torch.from_numpy(text)[None]
    with torch.no_grad():
        logits = policy.model(input_ids=ids, use_cache=False).logits[0, :-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / policy.sampling.temperature
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


def batch_of(texts: list[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, mask, and where to score: everything but the first token."""
    width = max(map(len, texts))
    tokens, mask = torch.zeros(len(texts), width, dtype=torch.int64), torch.zeros(len(texts), width, dtype=torch.bool)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text), True
    where = mask.clone()
    where[:, 0] = False
    return tokens, mask, where


def written_texts(policy: LanguageModel, texts: Any) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Prompts of 1 to 12 tokens, the texts after two calls of `write`, and what was stated of each token.

    Some rows are dropped after the first call, and others end by themselves.
    """
    prompts: Texts = texts(rows=14)
    some = np.arange(14) % 3 > 0
    first = policy.write(prompts.observation, 7)
    after = prompts.after(first, VOCABULARY)
    going = some & ~(first.tokens == policy.end_id).any(1)
    second = policy.write({**after.observation, "writing": going}, 11)
    ended = after.after(second, VOCABULARY)
    stated = [
        np.concatenate([one[a < VOCABULARY], other[b < VOCABULARY]])
        for one, other, a, b in zip(first.logprobs, second.logprobs, first.tokens, second.tokens, strict=True)
    ]
    assert any(len(row) < 7 for row in stated) and 5 <= going.sum() < some.sum() + 1
    return list(prompts.prompts), list(ended.prompts), stated


@pytest.mark.parametrize("variant", VARIANTS)
def test_written_read_and_plain_agree(variant: str, texts: Any) -> None:
    policy = policy_of(variant, sampling=Sampling(temperature=1.3))
    prompts, ended, stated = written_texts(policy, texts)
    with torch.no_grad():
        read = policy.evaluate(*batch_of(ended)).logprobs
    spread = []
    for row, (prompt, text) in enumerate(zip(prompts, ended, strict=True)):
        if len(text) == 1:
            continue
        expected = plain_logprobs(policy, text).numpy()
        np.testing.assert_allclose(read[row, 1 : len(text)].numpy(), expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(stated[row], expected[len(prompt) - 1 :], rtol=0, atol=1e-10)
        spread.append(expected.std())
    assert np.mean(spread) > 0.3  # the past matters: otherwise all would agree whatever was computed


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_the_library(variant: str) -> None:
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, VOCABULARY, 6)
    texts = [np.append(prompt, rng.integers(0, VOCABULARY, n)) for n in (9, 4, 12)] + [rng.integers(0, VOCABULARY, 8)]
    gradients: list[list[Tensor]] = []
    for fused in (True, False):
        policy = policy_of(variant, fused=fused)
        answer = policy.evaluate(*batch_of(texts))
        weights = torch.linspace(-1, 1, answer.hidden.numel(), dtype=torch.float64).view_as(answer.hidden)
        loss = (answer.logprobs * answer.logprobs.detach().sin()).sum() + answer.entropy.sum()
        (loss + 0.1 * (answer.hidden * weights).sum()).backward()
        gradients.append([parameter.grad for parameter in policy.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for one, other in zip(*gradients, strict=True):  # norms compute in float32 in the library: so do their gradients
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_adapters_are_written_with_and_learned(variant: str, texts: Any) -> None:
    pytest.importorskip("peft")
    gradients: list[dict[str, Tensor]] = []
    for fused in (True, False):
        policy = policy_of(variant, fused=fused)
        add_adapter(policy.model, Lora(rank=3, alpha=6.0), 0)
        generator = torch.Generator().manual_seed(1)
        for name, value in adapter_weights(policy.model).items():
            if "lora_B" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
        assert anatomy_of(policy.model) is not None
        prompts: Texts = texts(rows=6)
        written = policy.write(prompts.observation, 9)
        after = list(prompts.after(written, VOCABULARY).prompts)
        answer = policy.evaluate(*batch_of(after))
        merged = LanguageModel(merge_adapter(policy.model))
        assert not merged.adapted
        for row, (prompt, text) in enumerate(zip(prompts.prompts, after, strict=True)):
            expected = plain_logprobs(policy, text).numpy()[len(prompt) - 1 :]
            np.testing.assert_allclose(
                plain_logprobs(merged, text).numpy()[len(prompt) - 1 :], expected, rtol=0, atol=1e-10
            )
            stated = written.logprobs[row, written.tokens[row] < VOCABULARY]
            np.testing.assert_allclose(stated, expected, rtol=0, atol=1e-10)
            read = answer.logprobs.detach()[row, len(prompt) : len(text)]
            np.testing.assert_allclose(read.numpy(), expected, rtol=0, atol=1e-10)
        answer.logprobs.sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and all(".lora_" in name for name in gradients[0])
    assert len(gradients[0]) >= 4 * 4
    for name, one in gradients[0].items():
        other = gradients[1][name]
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_in_bfloat16_it_rounds_as_much_as_the_library(variant: str, texts: Any) -> None:
    """Beside the same weights in float32. Experts of which one wins by less than rounding are others then."""
    half = policy_of(variant, torch.float32)
    half.model.bfloat16()
    full = policy_of(variant, torch.float32)
    full.model.load_state_dict({name: value.float() for name, value in half.model.state_dict().items()})
    prompts: Texts = texts(rows=24)
    written = half.write(prompts.observation, 12)
    after = list(prompts.after(written, VOCABULARY).prompts)
    with torch.no_grad():
        read = half.evaluate(*batch_of(after)).logprobs
    errors: dict[str, list[Tensor]] = {"written": [], "read": [], "library": []}
    for row, (prompt, text) in enumerate(zip(prompts.prompts, after, strict=True)):
        exact = plain_logprobs(full, text)[len(prompt) - 1 :]
        stated = torch.from_numpy(written.logprobs[row, written.tokens[row] < VOCABULARY])
        errors["written"].append(stated - exact)
        errors["read"].append(read[row, len(prompt) : len(text)] - exact)
        errors["library"].append(plain_logprobs(half, text)[len(prompt) - 1 :] - exact)
    size = {name: float(torch.cat(those).abs().median()) for name, those in errors.items()}
    assert 1e-4 < size["library"] < 0.2
    assert max(size["written"], size["read"]) < 1.5 * size["library"]


# Settings of one family that another may be given, in a file that somebody wrote by hand or a converter left them in.
# The library keeps whatever it does not know, and computes as if it was not there.
FOREIGN: dict[str, dict[str, Any]] = {
    "factors and caps": {
        "residual_multiplier": 3.0,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.3,
        "logits_scaling": 2.5,
        "logit_scale": 3.5,
        "query_pre_attn_scalar": 3,
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "pretraining_tp": 2,
    },
    "caps": {"final_logit_softcapping": 1.5, "attn_logit_softcapping": 0.7},
    "windows": {"sliding_window": 3, "use_sliding_window": True, "attention_chunk_size": 3},
    "kinds of layers": {
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "no_rope_layers": [1, 0, 0, 1],
    },
    "activations": {"hidden_activation": "relu", "hidden_act": "relu", "activation_function": "relu"},
    "parts": {
        "use_qk_norm": True,
        "mlp_bias": True,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "head_dim": 12,
    },
    "rotary": {"rope_parameters": {**ROTARY, "partial_rotary_factor": 0.5}},
    "gemma": {"attention_k_eq_v": True, "hidden_size_per_layer_input": 4} | {"vocab_size_per_layer_input": VOCABULARY},
    "experts": {"num_experts": 2, "norm_topk_prob": True, "decoder_sparse_step": 2},
    "an encoder": {"use_bidirectional_attention": True},
    "another encoder": {"is_causal": False},
    "layers of different kinds": {"per_layer_config": {1: {"sliding_window": 3}}},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_setting_changes_silently_what_is_computed(family: str) -> None:
    """With each of them the family computes what the library computes, or is not known any more."""
    name = _NAMES.get(family, family)
    usual: dict[str, Any] = next((settings for of, settings in VARIANTS.values() if of == name), {})
    text = torch.arange(15)[None] * 7 % VOCABULARY
    known = 0
    for what, settings in FOREIGN.items():
        try:
            model = model_of(name, **{**usual, "sliding_window": 5, **settings}).eval()
            loop_over_experts_in_float64(model)
            attend_in_own_precision(model)
            with torch.no_grad():
                expected = model(input_ids=text, use_cache=False).logits[0]
        except Exception:  # the library itself refuses the setting
            continue
        anatomy = anatomy_of(model)
        if anatomy is None:
            continue
        known += 1
        with torch.inference_mode():
            step, part = FusedStep(model, anatomy), text[:, :9]
            cache = step.cache()
            logits = [step.prefill(part, torch.ones_like(part) > 0, cache, np.zeros(1, np.int64), 3)]
            logits += [step(text[:, place], torch.tensor([place]), cache) for place in range(9, 12)]
            tree = prefix_tree(text, torch.ones_like(text, dtype=torch.bool))
            read = step._logits(hidden_states(anatomy, tree)[tree.nodes[0]])
        for ours, theirs in ((torch.cat(logits), expected[8:12]), (read, expected)):
            assert float((ours - theirs).abs().max()) < 1e-9, what
    assert known >= 5


@pytest.mark.parametrize("variant", ["gemma 4, effective", "mixtral", "command a", "granite"])
def test_a_layer_may_be_computed_again_for_its_gradient(variant: str) -> None:
    rng = np.random.default_rng(0)
    tokens, mask, _ = batch_of([rng.integers(0, VOCABULARY, n) for n in (9, 4, 12)])
    gradients = []
    for recompute in (False, True):
        model = policy_of(variant).model
        anatomy = anatomy_of(model)
        assert anatomy is not None
        hidden_states(anatomy, prefix_tree(tokens, mask), recompute=recompute).sin().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_experts_are_computed_one_by_one_in_float64_alone() -> None:
    """Where torch has no grouped matmul; in float32 the model computes as the library makes it."""
    settings = {"num_local_experts": 3}
    full, half = model_of("mixtral", **settings), model_of("mixtral", torch.float32, **settings)
    usual = half.config._experts_implementation
    LanguageModel(half)
    assert half.config._experts_implementation == usual
    LanguageModel(full)
    assert full.config._experts_implementation == "eager"


NOT_KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "angles that depend on the longest text of a batch": (
        "granite",
        {"rope_parameters": {**ROTARY, "rope_type": "dynamic", "factor": 2.0}},
    ),
    "random routing": ("mixtral", {"num_local_experts": 3, "router_jitter_noise": 0.1}),
    "an encoder": ("gemma4_text", {**GEMMA4, "use_bidirectional_attention": "all"}),
    "no window at all": ("qwen2_moe", {**EXPERTS, "layer_types": ["sliding_attention", "full_attention"] * 2}),
}


@pytest.mark.parametrize("what", NOT_KNOWN)
def test_what_is_not_known_goes_the_general_way(what: str) -> None:
    family, settings = NOT_KNOWN[what]
    assert anatomy_of(model_of(family, **settings)) is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_whoever_changes_a_model_afterwards_gets_the_general_way(variant: str) -> None:
    family, settings = VARIANTS[variant]
    hooked, shorter, replaced, encoder, half = (model_of(family, **settings) for _ in range(5))
    inner = [module for name, module in hooked.named_modules() if ".layers.1." in name]
    inner[-1].register_forward_hook(lambda *_: None)
    shorter.config.num_hidden_layers = 2
    replaced.model.layers[1].mlp.forward = lambda x: x
    encoder.model.layers[0].self_attn.is_causal = False
    half.half()
    assert anatomy_of(model_of(family, **settings).model) is not None  # and the trunk of a reward model is known
    for model in (hooked, shorter, replaced, encoder, half):
        assert anatomy_of(model) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ONE_OF_EACH)
def test_norms_of_our_own_are_those_of_the_modules(variant: str, dtype: torch.dtype) -> None:
    """In bfloat16 to the bit, but for one number in a hundred, whose mean of squares lies between two roundings."""
    model = policy_of(variant, torch.float32).model.to(dtype)
    modules = [module for module in model.modules() if "Norm" in type(module).__name__]
    ours = [module for module in modules if rms_norm_weight(module) or layer_norm_weight(module)]
    for module in ours:
        width = module.weight.shape[-1]
        x = (3.0 * torch.randn(64, width, generator=torch.Generator().manual_seed(0))).to(dtype)
        fused = _fused_norm(module)
        assert fused is not None
        with torch.no_grad():
            expected, answers = module(x), (fused(x), _read_norm(module, x))
        for answer in answers:
            if dtype == torch.bfloat16:
                assert float((answer != expected).double().mean()) < 0.01
            torch.testing.assert_close(answer, expected, rtol=1e-6 if dtype == torch.float32 else 2**-7, atol=1e-6)
    assert dtype != torch.float32 or len(ours) >= 5
