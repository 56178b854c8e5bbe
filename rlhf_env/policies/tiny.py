"""Small random language models of the common families, for tests and for toy tasks that learn in seconds."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from rlhf_env.errors import ConfigError, UnknownName
from rlhf_env.policies.attention import naming_attention
from rlhf_env.policies.language_model import ROWS_AT_ONCE, LanguageModel
from rlhf_env.policies.low_precision import WriterDtype
from rlhf_env.policies.policy import Sampling

TINY_CONTEXT = 512
Family = Literal[
    "llama", "gpt2", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3",
    "phi3", "olmo2", "olmo3", "granite", "cohere", "cohere2", "smollm3", "glm", "glm4",
    "mixtral", "qwen2_moe", "qwen3_moe", "gemma4",
]  # fmt: skip

# What makes a small model of a family one of it, besides its size.
_SETTINGS: dict[str, dict[str, object]] = {
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "granite": {
        "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0,
        "logits_scaling": 0.75,
        "attention_multiplier": 0.5,
    },
    "cohere": {"use_qk_norm": True, "logit_scale": 0.75},
    "cohere2": {"logit_scale": 0.75},
    "smollm3": {"no_rope_layer_interval": 2, "use_sliding_window": True},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "mlp_only_layers": [1]},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma4": {"hidden_size_per_layer_input": 8},
}
_WITH_WINDOW = {"mistral", "gemma2", "gemma3", "phi3", "olmo3", "cohere2", "smollm3", "mixtral", "gemma4"}


def tiny_language_model(
    family: Family = "llama",
    *,
    vocab_size: int = 259,
    hidden_size: int = 32,
    layers: int = 2,
    heads: int = 4,
    key_value_heads: int | None = None,
    context: int = TINY_CONTEXT,
    window: int = 8,
    dropout: float = 0.0,
    init_std: float = 0.02,
    end_id: int | None = None,
    pad_id: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    rows_at_once: int = ROWS_AT_ONCE,
    fused: bool = True,
    attention: str | None = None,
    gradient_checkpointing: bool = False,
    writer_dtype: WriterDtype | None = None,
) -> LanguageModel:
    """A model with random weights; the same arguments give the same weights, and no global generator is used.

    With `init_std` 0.02 the distribution over the vocabulary is nearly uniform, with 0.5 it is far from it. `window` is
    for families with sliding-window attention (mistral, gemma2 and others). GPT-2 has learned absolute positions, and
    dropout everywhere; the others have rotary positions, and dropout in attention only. The default of `end_id` is the
    last id, and that of `pad_id` is the end token. `seed` gives the weights and starts the sampling streams.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if family not in get_args(Family):
        raise UnknownName("model family", family, get_args(Family))
    if hidden_size % (2 * heads):
        raise ConfigError(f"hidden_size: {hidden_size} does not split into {heads} heads of even width")
    end_id = vocab_size - 1 if end_id is None else end_id
    if not 0 <= end_id < vocab_size:
        raise ConfigError(f"end_id: {end_id} is outside the model's vocabulary of {vocab_size}")
    # Without a padding token in its configuration, because the weights of that token would start at zero.
    special = {"bos_token_id": None, "eos_token_id": end_id, "pad_token_id": None}
    if family == "gpt2":
        shape: dict[str, object] = {"n_embd": hidden_size, "n_layer": layers, "n_head": heads, "n_positions": context}
        shape |= {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    else:
        shape = {
            "hidden_size": hidden_size,
            "intermediate_size": 3 * hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads or heads,
            "head_dim": hidden_size // heads,
            "max_position_embeddings": context,
            "attention_dropout": dropout,
        }
        if family in _WITH_WINDOW:
            shape["sliding_window"] = window
        if family == "gemma4":
            shape |= {"global_head_dim": 2 * hidden_size // heads, "vocab_size_per_layer_input": vocab_size}
        if family in ("olmo3", "cohere2", "gemma4"):
            shape["layer_types"] = [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]
        if family.endswith("_moe"):
            shape |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 2 * hidden_size)
        shape |= _SETTINGS.get(family, {})
    name = f"{family}_text" if family in ("gemma3", "gemma4") else family
    config = AutoConfig.for_model(name, vocab_size=vocab_size, initializer_range=init_std, **shape, **special)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and not those of other devices, which nobody would put back
        with naming_attention(attention, dtype):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return LanguageModel(
        model,
        end_id=end_id,
        pad_id=pad_id,
        sampling=sampling,
        seed=seed,
        rows_at_once=rows_at_once,
        fused=fused,
        gradient_checkpointing=gradient_checkpointing,
        writer_dtype=writer_dtype,
    )
