"""Where each family of language models keeps its parts: one function per family, and the table of all.

Each function follows the family's `modeling_*.py` in transformers, and gives None for settings of the family that the
fused paths do not compute. The classes are known by their names: older versions of the library lack some of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

from rlhf_env.policies.anatomy.layer import Anatomy, Layer
from rlhf_env.policies.untyped import HFConfig, HFModel, HFModule

# Rotary embeddings in which the angle depends on the position alone: one table serves every text. In "longrope" that is
# so for texts within `Anatomy.longest`. (In "dynamic" it depends on the longest text of the batch as well.)
ROTARY_TYPES = {"default", "linear", "llama3", "yarn", "proportional", "longrope"}

# What the modules of some activations compute, by the names of their classes.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "SiLUActivation": F.silu,
    "SiLU": F.silu,
    "NewGELUActivation": partial(F.gelu, approximate="tanh"),
    "GELUTanh": partial(F.gelu, approximate="tanh"),
    "PytorchGELUTanh": partial(F.gelu, approximate="tanh"),
}

Describe = Callable[[HFModel, HFConfig], Anatomy | None]
DescribeLayer = Callable[[HFModule, HFConfig], Layer]


def _gpt2(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """Learned positions, LayerNorm, no gate, one module for queries, keys and values."""
    if config.add_cross_attention or config.reorder_and_upcast_attn:
        return None
    layers = [
        Layer(
            before_attention=layer.ln_1,
            qkv=(layer.attn.c_attn,),
            out=layer.attn.c_proj,
            before_mlp=layer.ln_2,
            up=(layer.mlp.c_fc,),
            gated=False,
            activation=_activation(layer.mlp.act),
            down=layer.mlp.c_proj,
            heads=layer.attn.num_heads,
            kv_heads=layer.attn.num_heads,
            head_size=layer.attn.head_dim,
            scaling=layer.attn.scaling,
            rotary_table=None,
        )
        for layer in trunk.h
    ]
    return Anatomy(embed=trunk.wte, learned_positions=trunk.wpe, layers=tuple(layers), norm=trunk.ln_f)


def _llama(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """What the others change: rotary positions, RMS norms, a gated MLP. Gemma 1 has other modules for the same."""
    return _rotary_trunk(trunk, config, _layer)


def _qwen(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """Some layers of Qwen 2 and 3 look at a window; Qwen 3 has norms of queries and keys."""
    return _rotary_trunk(trunk, config, _layer)


def _mistral(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """Llama, with a window in all layers or none."""
    return _rotary_trunk(trunk, config, _windowed_layer)


def _gemma2(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """Norms on both sides of attention and MLP, and a cap of the scores."""

    def describe(layer: HFModule, config: HFConfig) -> Layer:
        return replace(_sandwich_layer(layer, config), softcap=layer.self_attn.attn_logit_softcapping)

    return _rotary_trunk(trunk, config, describe, logit_cap=config.final_logit_softcapping)


def _gemma3(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """Norms on both sides, norms of queries and keys, a rotary table for layers with a window and one for the others.
    The library takes no notice of the cap of the scores in its settings."""

    def describe(layer: HFModule, config: HFConfig) -> Layer:
        return replace(_sandwich_layer(layer, config), rotary_table=layer.self_attn.layer_type)

    return _rotary_trunk(trunk, config, describe, logit_cap=config.final_logit_softcapping)


def _sandwich_layer(layer: HFModule, config: HFConfig) -> Layer:
    return _layer(
        layer,
        config,
        after_attention=layer.post_attention_layernorm,
        before_mlp=layer.pre_feedforward_layernorm,
        after_mlp=layer.post_feedforward_layernorm,
    )


def _gemma4(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """Gemma 3 with norms of values, heads that are wider in layers without a window, and in some of the models: values
    that are the keys before their norm, last layers that read the keys and values of earlier ones, a second embedding
    that every layer reads, experts beside the MLP."""
    sources = {
        layer.self_attn.layer_type: number
        for number, layer in enumerate(trunk.layers)
        if layer.self_attn.store_full_length_kv
    }

    def describe(layer: HFModule, config: HFConfig) -> Layer:
        attention = layer.self_attn
        own = {"q_norm": attention.q_norm, "qkv": (attention.q_proj,), "k_norm": None}
        if not attention.is_kv_shared_layer:
            values = attention.k_proj if attention.v_proj is None else attention.v_proj
            own = {"qkv": (attention.q_proj, attention.k_proj, values), "v_norm": attention.v_norm}
        return replace(
            _sandwich_layer(layer, config),
            **own,
            **(_experts_beside_mlp(layer) if layer.enable_moe_block else {}),
            keys_from=sources[attention.layer_type] if attention.is_kv_shared_layer else None,
            rotary_table=attention.layer_type,
            finish=partial(_finish_gemma4_layer, layer),
        )

    def layer_inputs(tokens: Tensor, embedded: Tensor) -> Tensor:
        own = trunk.get_per_layer_inputs(tokens[None], embedded[None])
        return cast(Tensor, trunk.project_per_layer_inputs(embedded[None], own)[0])

    return _rotary_trunk(
        trunk,
        config,
        describe,
        layer_inputs=layer_inputs if config.hidden_size_per_layer_input else None,
        logit_cap=config.final_logit_softcapping,
    )


def _experts_beside_mlp(layer: HFModule) -> dict[str, Any]:
    def both(x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        dense = layer.mlp(layer.pre_feedforward_layernorm(flat))
        _, weights, experts = layer.router(flat)
        sparse = layer.experts(layer.pre_feedforward_layernorm_2(flat), experts, weights)
        normed = layer.post_feedforward_layernorm_1(dense) + layer.post_feedforward_layernorm_2(sparse)
        return cast(Tensor, normed.view_as(x))

    return {"experts": both, "before_mlp": None}


def _finish_gemma4_layer(layer: HFModule, x: Tensor, layer_input: Tensor | None) -> Tensor:
    if layer_input is not None:
        told = layer.act_fn(layer.per_layer_input_gate(x)) * layer_input
        x = x + layer.post_per_layer_input_norm(layer.per_layer_projection(told))
    return cast(Tensor, x * layer.layer_scalar)


def _windowed_layer(layer: HFModule, config: HFConfig) -> Layer:
    return _layer(layer, config, window=config.sliding_window)


def _phi3(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """One module for queries, keys and values, one for gate and up; a part of each head is rotated in Phi 4."""

    def describe(layer: HFModule, config: HFConfig) -> Layer:
        return _layer(layer, config, qkv=(layer.self_attn.qkv_proj,), window=config.sliding_window)

    return _rotary_trunk(trunk, config, describe)


def _olmo(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """OLMo 2 and 3: norms after attention and MLP and none before, norms of queries and keys over all heads; OLMo 3
    looks at a window in some layers, which have a rotary table of their own."""
    several = isinstance(trunk.rotary_emb.rope_type, dict)

    def describe(layer: HFModule, config: HFConfig) -> Layer:
        return _layer(
            layer,
            config,
            norms_of_heads=False,
            after_attention=layer.post_attention_layernorm,
            before_mlp=None,
            after_mlp=layer.post_feedforward_layernorm,
            rotary_table=layer.self_attn.attention_type if several else "all",
        )

    return _rotary_trunk(trunk, config, describe)


def _granite(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """Llama with factors: of the embedding, the scores, what is added to the residual stream, and the logits."""

    def describe(layer: HFModule, config: HFConfig) -> Layer:
        return _layer(layer, config, residual_multiplier=float(layer.residual_multiplier))

    return _rotary_trunk(
        trunk,
        config,
        describe,
        embedding_multiplier=float(trunk.embedding_multiplier),
        logit_scale=1.0 / config.logits_scaling,
    )


def _cohere(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """Attention and MLP side by side behind one LayerNorm without bias, interleaved rotary embeddings in float32, a
    factor of the logits. Cohere 2 looks at a window in most layers, and the others know no positions."""

    def describe(layer: HFModule, config: HFConfig) -> Layer:
        window = getattr(layer.self_attn, "sliding_window", None)
        rotated = config.model_type == "cohere" or window is not None
        return _layer(layer, config, parallel=True, before_mlp=None, rotary_table="all" if rotated else None)

    return _rotary_trunk(
        trunk, config, describe, interleaved=True, rotary_from_float32=True, logit_scale=float(config.logit_scale)
    )


def _smollm3(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """Llama, in which some layers know no positions, and some look at a window if the settings say so."""

    def describe(layer: HFModule, config: HFConfig) -> Layer:
        return _layer(
            layer,
            config,
            window=_window_of(layer, config),
            rotary_table="all" if layer.self_attn.use_rope else None,
        )

    return _rotary_trunk(trunk, config, describe)


def _glm(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """GLM and GLM 4: one module for gate and up, half of each head is rotated, pairs interleaved; GLM 4 has norms on
    both sides of attention and MLP."""

    def describe(layer: HFModule, config: HFConfig) -> Layer:
        return _layer(
            layer,
            config,
            after_attention=getattr(layer, "post_self_attn_layernorm", None),
            after_mlp=getattr(layer, "post_mlp_layernorm", None),
        )

    def angles(like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        cosine, sine = trunk.rotary_emb(like, positions)  # the second half repeats the first
        half = cosine.shape[-1] // 2
        return cosine[..., :half].repeat_interleave(2, -1), sine[..., :half].repeat_interleave(2, -1)

    return _rotary_trunk(trunk, config, describe, rotary=angles, interleaved=True)


def _mixtral(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """Mistral with experts. With jitter, which is random while it learns, the library's own code does the work."""
    if config.router_jitter_noise:
        return None
    return _rotary_trunk(trunk, config, _windowed_layer)


def _qwen_moe(trunk: HFModel, config: HFConfig) -> Anatomy | None:
    """Qwen 2 and 3 with experts in some layers or all."""
    return _rotary_trunk(trunk, config, _layer)


def _layer(layer: HFModule, config: HFConfig, **changes: Any) -> Layer:
    """A layer as Llama has it; the other families are told by what they change."""
    attention = layer.self_attn
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    usual: dict[str, Any] = {
        "before_attention": getattr(layer, "input_layernorm", None),
        "qkv": tuple(getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj") if hasattr(attention, name)),
        "q_norm": q_norm,
        "k_norm": k_norm,
        "out": attention.o_proj,
        "before_mlp": getattr(layer, "post_attention_layernorm", None),
        **_mlp(layer.mlp),
        "heads": config.num_attention_heads,
        "kv_heads": config.num_attention_heads // attention.num_key_value_groups,
        "head_size": attention.head_dim,
        "scaling": attention.scaling,
        "window": getattr(attention, "sliding_window", None),
        "rotary_table": "all",
    }
    return Layer(**{**usual, **changes})


def _mlp(mlp: HFModule) -> dict[str, Any]:
    """The gated MLP of a layer: two modules before the activation, one that makes both halves, or experts."""
    if hasattr(mlp, "experts"):
        return {"experts": mlp}
    return {
        "up": (mlp.gate_up_proj,) if hasattr(mlp, "gate_up_proj") else (mlp.gate_proj, mlp.up_proj),
        "activation": _activation(mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn),
        "down": mlp.down_proj,
    }


def _activation(module: HFModule) -> Callable[[Tensor], Tensor]:
    return ACTIVATIONS.get(type(module).__name__, cast(Callable[[Tensor], Tensor], module))


def _window_of(layer: HFModule, config: HFConfig) -> int | None:
    """The window of a layer in families whose settings say it layer by layer, as their attention masks read them."""
    sliding = config.layer_types[layer.self_attn.layer_idx] == "sliding_attention"
    return cast("int | None", config.sliding_window) if sliding else None


def _rotary_trunk(trunk: HFModel, config: HFConfig, describe: DescribeLayer, **changes: Any) -> Anatomy | None:
    """A trunk with rotary positions; None where they depend on the batch, or where layers are left out."""
    types = trunk.rotary_emb.rope_type
    known = set(types.values() if isinstance(types, dict) else [types]) <= ROTARY_TYPES
    if not known or len(trunk.layers) != config.num_hidden_layers:
        return None
    layers = tuple(describe(layer, config) for layer in trunk.layers)
    if not all(layer.window is None or layer.window > 0 for layer in layers):
        return None
    if isinstance(types, dict) and not {layer.rotary_table for layer in layers} <= types.keys():
        return None
    settings = config.rope_parameters
    tables = [settings[name] for name in types] if isinstance(types, dict) else [settings]
    longest = [int(it["original_max_position_embeddings"]) for it in tables if it["rope_type"] == "longrope"]
    usual: dict[str, Any] = {
        "embed": trunk.embed_tokens,
        "rotary": trunk.rotary_emb,
        "longest": min(longest, default=None),
        "layers": layers,
        "norm": trunk.norm,
    }
    return Anatomy(**{**usual, **changes})


# By the class of a causal language model, and of its trunk.
FAMILIES: dict[str, Describe] = {
    name: describe
    for describe, names in {
        _gpt2: ("GPT2LMHeadModel", "GPT2Model"),
        _llama: ("LlamaForCausalLM", "LlamaModel", "GemmaForCausalLM", "GemmaModel"),
        _qwen: ("Qwen2ForCausalLM", "Qwen2Model", "Qwen3ForCausalLM", "Qwen3Model"),
        _mistral: ("MistralForCausalLM", "MistralModel"),
        _gemma2: ("Gemma2ForCausalLM", "Gemma2Model"),
        _gemma3: ("Gemma3ForCausalLM", "Gemma3TextModel"),
        _gemma4: ("Gemma4ForCausalLM", "Gemma4TextModel"),
        _phi3: ("Phi3ForCausalLM", "Phi3Model"),
        _olmo: ("Olmo2ForCausalLM", "Olmo2Model", "Olmo3ForCausalLM", "Olmo3Model"),
        _granite: ("GraniteForCausalLM", "GraniteModel"),
        _cohere: ("CohereForCausalLM", "CohereModel", "Cohere2ForCausalLM", "Cohere2Model"),
        _smollm3: ("SmolLM3ForCausalLM", "SmolLM3Model"),
        _glm: ("GlmForCausalLM", "GlmModel", "Glm4ForCausalLM", "Glm4Model"),
        _mixtral: ("MixtralForCausalLM", "MixtralModel"),
        _qwen_moe: ("Qwen2MoeForCausalLM", "Qwen2MoeModel", "Qwen3MoeForCausalLM", "Qwen3MoeModel"),
    }.items()
    for name in names
}
