"""What the common families of language models are made of: one description of a layer for all of them.

The transformers library has separate modules for each family, and runs them in many small operations. All families
have the same matrices in nearly the same order, so one piece of code can compute any of them in fewer operations:
`fused` decodes one token more, `trunk` reads whole texts. Both follow the description given here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_env.policies.attention import CAPPED
from rlhf_env.policies.untyped import HFConfig, HFModel, HFModule

# Rotary embeddings in which the angle depends on the position alone: one table serves every text. (In "dynamic" and
# "longrope" it depends on the longest text of the batch as well.)
ROTARY_TYPES = {"default", "linear", "llama3", "yarn"}

# Implementations of attention in transformers that compute the same formula, up to the order of sums.
ATTENTIONS = {"sdpa", "eager", CAPPED}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One transformer layer: attention, then an MLP, each added to the residual stream.

    The modules are the model's own. Those in a tuple read the same input; their outputs are concatenated.
    """

    before_attention: nn.Module
    """The norm before attention."""
    qkv: tuple[nn.Module, ...]
    """The projections to queries, keys and values, or the one module that makes all three."""
    qk_norms: tuple[nn.Module, nn.Module] | None
    """The norms of queries and of keys, head by head (Qwen 3, Gemma 3)."""
    out: nn.Module
    """The projection of what attention gives."""
    after_attention: nn.Module | None
    """The norm between `out` and the residual stream (Gemma 2 and 3)."""
    before_mlp: nn.Module
    """The norm before the MLP."""
    up: tuple[nn.Module, ...]
    """The projections to gate and up, or to up alone."""
    activation: Callable[[Tensor], Tensor]
    """The activation of the gate, or of up where there is no gate."""
    down: nn.Module
    """The projection back to the width of the residual stream."""
    after_mlp: nn.Module | None
    """The norm between `down` and the residual stream (Gemma 2 and 3)."""
    heads: int
    """The number of query heads."""
    kv_heads: int
    """The number of heads of keys and values; each serves heads / kv_heads query heads (grouped-query attention)."""
    head_size: int
    """The width of one head."""
    scaling: float
    """The factor of the scores q k."""
    softcap: float | None
    """The cap of the scores, see `attention.attend`."""
    window: int | None
    """Sliding-window attention: how many positions a query looks at, its own included. None: all before it."""
    rotary_table: str | None
    """Which of `Anatomy.rotary_tables` rotates queries and keys; None where positions are learned."""

    @property
    def gated(self) -> bool:
        return len(self.up) == 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """A trunk, which is a language model without its head."""

    embed: nn.Module
    """The token embedding."""
    learned_positions: nn.Module | None
    """The position embedding (GPT-2); None where positions are rotary."""
    rotary: nn.Module | None
    """The module that computes rotary embeddings; None where positions are learned."""
    layers: tuple[Layer, ...]
    norm: nn.Module
    """The norm after the last layer."""

    def rotary_tables(self, like: Tensor, positions: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Cosines and signed sines [positions, 1, head_size], as `apply_rotary` takes them, by `Layer.rotary_table`.

        They have the device and the precision of `like`.
        """
        names = {layer.rotary_table for layer in self.layers if layer.rotary_table is not None}
        every_position = torch.arange(positions, device=like.device)[None]
        tables: dict[str, tuple[Tensor, Tensor]] = {}
        for name in names:
            assert self.rotary is not None
            cosine, sine = self.rotary(like, every_position, **({"layer_type": name} if name != "all" else {}))
            half = sine.shape[-1] // 2  # transformers repeats the angles of the first half in the second
            signed = torch.cat([-sine[0, :, :half], sine[0, :, half:]], dim=-1)
            tables[name] = cosine[0].unsqueeze(1), signed.unsqueeze(1)
        return tables


def anatomy_of(model: HFModel) -> Anatomy | None:
    """The anatomy of a causal LM of the transformers library, or of its trunk; None for a model that is not known.

    A model is known if it belongs to one of the families below, is in float32, float64 or bfloat16, and computes what
    its family computes, but for low-rank adapters: no setting, other adapter, hook or quantisation changes that.
    """
    from transformers import (
        Gemma2ForCausalLM,
        Gemma2Model,
        Gemma3ForCausalLM,
        Gemma3TextModel,
        GemmaForCausalLM,
        GemmaModel,
        GPT2LMHeadModel,
        GPT2Model,
        LlamaForCausalLM,
        LlamaModel,
        MistralForCausalLM,
        MistralModel,
        Qwen2ForCausalLM,
        Qwen2Model,
        Qwen3ForCausalLM,
        Qwen3Model,
    )

    rotary = {LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM}
    rotary |= {GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM}
    rotary |= {LlamaModel, MistralModel, Qwen2Model, Qwen3Model, GemmaModel, Gemma2Model, Gemma3TextModel}
    if type(model) not in rotary | {GPT2LMHeadModel, GPT2Model} or not _is_plain(model):
        return None
    config, trunk = model.config, model.base_model
    if config._attn_implementation not in ATTENTIONS or getattr(trunk, "gradient_checkpointing", False):
        return None
    if type(trunk) is GPT2Model:
        if config.add_cross_attention or config.reorder_and_upcast_attn:
            return None
        return Anatomy(
            embed=trunk.wte,
            learned_positions=trunk.wpe,
            rotary=None,
            layers=tuple(_gpt2_layer(layer, config) for layer in trunk.h),
            norm=trunk.ln_f,
        )
    types = trunk.rotary_emb.rope_type
    known = set(types.values() if isinstance(types, dict) else [types]) <= ROTARY_TYPES
    if not known or getattr(config, "use_bidirectional_attention", False):
        return None
    return Anatomy(
        embed=trunk.embed_tokens,
        learned_positions=None,
        rotary=trunk.rotary_emb,
        layers=tuple(_rotary_layer(layer, config) for layer in trunk.layers),
        norm=trunk.norm,
    )


def has_dropout(model: HFModel) -> bool:
    """Whether dropout is active somewhere in the model."""
    attention_dropout = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    return any(
        module.training and (getattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else attention_dropout)
        for module in model.modules()
    )


@dataclass(frozen=True, eq=False)
class LowRank:
    """The adapter of a linear layer (LoRA): x weight^T becomes x weight^T + scaling (x a^T) b^T."""

    a: Tensor
    """[r, in]"""
    b: Tensor
    """[out, r]"""
    scaling: float


def low_rank_of(module: HFModule) -> LowRank | None:
    """The adapter of a matrix; None where it has none."""
    if not hasattr(module, "lora_A"):
        return None
    (name,) = module.active_adapters
    return LowRank(module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))


def weight_and_bias(*modules: HFModule) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias [out], None if there is none, of one linear layer with the outputs of all `modules`.

    Of a matrix with an adapter, those of its base. GPT-2's Conv1D stores its weight transposed.
    """
    modules = tuple(getattr(module, "base_layer", module) for module in modules)
    weights = [module.weight if isinstance(module, nn.Linear) else module.weight.t() for module in modules]
    biases = [module.bias for module in modules if module.bias is not None]
    if len(modules) == 1:
        return weights[0], biases[0] if biases else None
    return torch.cat(weights), torch.cat(biases) if biases else None


def rms_norm_weight(module: HFModule) -> tuple[Tensor, float] | None:
    """Weight [H] and epsilon of an RMS norm in float32 or bfloat16; None where the module itself has to be called.

    That is so for a LayerNorm, for float64 (RMS norms of transformers compute in float32 whatever the model's precision
    is), and for Gemma's norms in bfloat16, which round in another order than others.
    """
    gemma = "Gemma" in type(module).__name__
    if isinstance(module, nn.LayerNorm) or module.weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    weight: Tensor = module.weight
    if gemma and weight.dtype == torch.bfloat16:
        return None
    if gemma:  # which stores the weight minus 1
        weight = 1.0 + weight
    return weight, float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)


def apply_rotary(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of `x` [.., heads, D]; `cosine`, `sine` [.., 1, D] of its positions, from `rotary_tables`.

    The pair (x[i], x[i + D/2]) is rotated by one angle: the first becomes x[i] cos - x[i + D/2] sin, the second
    x[i + D/2] cos + x[i] sin. Rolling by D/2 puts each element's partner in its place. The minus is in the table: the
    sines of the first half are stored negative, which saves the negation and concatenation of `rotate_half`.
    """
    return x.roll(x.shape[-1] // 2, -1).mul_(sine).addcmul_(x, cosine)


def _is_plain(model: HFModel) -> bool:
    """Whether every module is as the library makes it, and all are in one precision, but for their adapters."""
    from transformers.pytorch_utils import Conv1D

    adapters = [module for module in model.modules() if hasattr(module, "lora_A")]
    inside = {id(part) for adapter in adapters for part in adapter.modules()}
    low_rank = {id(weight) for it in adapters for part in (it.lora_A, it.lora_B) for weight in part.parameters()}
    kinds = {(weight.dtype, weight.device) for weight in model.parameters() if id(weight) not in low_rank}
    plain = len(kinds) == 1 and kinds.pop()[0] in (torch.float32, torch.float64, torch.bfloat16)
    plain &= all(map(_is_low_rank, adapters))
    for module in model.modules():  # False for another adapter, a quantised layer, somebody's hook
        plain &= not (module._forward_hooks or module._forward_pre_hooks)
        plain &= not (module._backward_hooks or module._backward_pre_hooks)
        plain &= "forward" not in vars(module)
        plain &= not isinstance(module, nn.Linear | Conv1D) or type(module) in (nn.Linear, Conv1D)
        plain &= type(module).__module__.startswith(("transformers.", "torch.")) or id(module) in inside
        plain &= not isinstance(module, nn.Sequential)
    return plain


def _is_low_rank(module: HFModule) -> bool:
    """Whether an adapter computes what `LowRank` says: it is peft's own for a matrix, active, alone, and not merged."""
    return (
        (type(module).__module__, type(module).__name__) == ("peft.tuners.lora.layer", "Linear")
        and len(module.active_adapters) == 1
        and list(module.lora_A) == list(module.active_adapters)
        and not (module.merged or module.disable_adapters or module.lora_variant)
        and not any(layer.bias is not None for layer in module.lora_B.values())
    )


def _rotary_layer(layer: HFModule, config: HFConfig) -> Layer:
    """A layer of Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3."""
    attention, mlp = layer.self_attn, layer.mlp
    between = getattr(layer, "pre_feedforward_layernorm", None)  # Gemma 2 and 3 have norms on both sides
    window = getattr(attention, "sliding_window", None)
    if config.model_type == "mistral":
        window = config.sliding_window
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    return Layer(
        before_attention=layer.input_layernorm,
        qkv=(attention.q_proj, attention.k_proj, attention.v_proj),
        qk_norms=(attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None,
        out=attention.o_proj,
        after_attention=None if between is None else layer.post_attention_layernorm,
        before_mlp=layer.post_attention_layernorm if between is None else between,
        up=(mlp.gate_proj, mlp.up_proj),
        activation=ACTIVATIONS.get(activation, mlp.act_fn),
        down=mlp.down_proj,
        after_mlp=None if between is None else layer.post_feedforward_layernorm,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=attention.head_dim,
        scaling=attention.scaling,
        softcap=getattr(attention, "attn_logit_softcapping", None),
        window=window,
        rotary_table=attention.layer_type if config.model_type == "gemma3_text" else "all",
    )


def _gpt2_layer(layer: HFModule, config: HFConfig) -> Layer:
    attention, mlp = layer.attn, layer.mlp
    return Layer(
        before_attention=layer.ln_1,
        qkv=(attention.c_attn,),
        qk_norms=None,
        out=attention.c_proj,
        after_attention=None,
        before_mlp=layer.ln_2,
        up=(mlp.c_fc,),
        activation=ACTIVATIONS.get(config.activation_function, cast(Callable[[Tensor], Tensor], mlp.act)),
        down=mlp.c_proj,
        after_mlp=None,
        heads=attention.num_heads,
        kv_heads=attention.num_heads,
        head_size=attention.head_dim,
        scaling=attention.scaling,
        softcap=None,
        window=None,
        rotary_table=None,
    )
