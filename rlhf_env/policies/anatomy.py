"""What the common families of language models are made of: one description of a layer for all of them.

The library's own code runs each family through modules of its own, in many small operations. Whoever knows which
matrices there are, and in which order they act, can do the same in fewer: `fused` for a token more, `trunk` for whole
texts.
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

# Where position p is turned by an angle that depends on p alone ("dynamic" and "longrope" look at the longest text).
ROTARY_TYPES = {"default", "linear", "llama3", "yarn"}

# How attention is computed there: the same sums, in some order.
ATTENTIONS = {"sdpa", "eager", CAPPED}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One layer, as the modules that it is made of. Those of a tuple read the same input, their outputs side by side.

    `key_heads` heads of keys and values, `head_size` wide, each serve the same number of query heads. `norms`: of
    queries and keys. `up`: gate and up, or up alone. `window`: how many positions are attended to, its own included;
    None: all. `softcap`: see `attention.attend`. `rotation`: which of the model's tables of angles turns queries and
    keys; None where positions are learned.
    """

    before_attention: nn.Module
    qkv: tuple[nn.Module, ...]
    norms: tuple[nn.Module, nn.Module] | None
    out: nn.Module
    after_attention: nn.Module | None
    before_mlp: nn.Module
    up: tuple[nn.Module, ...]
    activation: Callable[[Tensor], Tensor]
    down: nn.Module
    after_mlp: nn.Module | None
    heads: int
    key_heads: int
    head_size: int
    scaling: float
    softcap: float | None
    window: int | None
    rotation: str | None

    @property
    def gated(self) -> bool:
        return len(self.up) == 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """A trunk: what looks a token up, `learned_positions` or `rotary` angles, layers, and the last norm."""

    embed: nn.Module
    learned_positions: nn.Module | None
    rotary: nn.Module | None
    layers: tuple[Layer, ...]
    norm: nn.Module

    def angles(self, like: Tensor, positions: int) -> dict[str, tuple[Tensor, Tensor]]:
        """By `Layer.rotation`, cosines and signed sines [positions, 1, head_size]: see `turned`."""
        names = {layer.rotation for layer in self.layers if layer.rotation is not None}
        places = torch.arange(positions, device=like.device)[None]
        tables: dict[str, tuple[Tensor, Tensor]] = {}
        for name in names:
            assert self.rotary is not None
            cosine, sine = self.rotary(like, places, **({"layer_type": name} if name != "all" else {}))
            half = sine.shape[-1] // 2
            signed = torch.cat([-sine[0, :, :half], sine[0, :, half:]], dim=-1)
            tables[name] = cosine[0].unsqueeze(1), signed.unsqueeze(1)
        return tables


def anatomy_of(model: HFModel) -> Anatomy | None:
    """Of a causal LM of the transformers library, or of its trunk alone; None where it is not exactly that.

    Which is to say: of another family, with settings that change what is computed, or touched by an adapter, a hook,
    a quantisation. In float32 or float64.
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


def drops_out(model: HFModel) -> bool:
    """Whether dropout is on somewhere in the model."""
    attends = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    return any(
        module.training and (getattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else attends)
        for module in model.modules()
    )


def weight_of(*modules: HFModule) -> tuple[Tensor, Tensor | None]:
    """Matrix [out, in] and bias [out], if there is one, of linear maps side by side."""
    weights = [module.weight if isinstance(module, nn.Linear) else module.weight.t() for module in modules]
    biases = [module.bias for module in modules if module.bias is not None]
    if len(modules) == 1:
        return weights[0], biases[0] if biases else None
    return torch.cat(weights), torch.cat(biases) if biases else None


def root_mean_square(module: HFModule) -> tuple[Tensor, float] | None:
    """Factor [H] and epsilon of a root-mean-square norm that may be computed in its own way, else None.

    The library's compute in float32 whatever the model's precision is, so that in float64 only theirs has the same
    bits.
    """
    if isinstance(module, nn.LayerNorm) or module.weight.dtype != torch.float32:
        return None
    weight: Tensor = module.weight
    if "Gemma" in type(module).__name__:  # stored as the difference from 1
        weight = 1.0 + weight
    return weight, float(module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps)


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """`x` [.., heads, D] turned by its positions' angles; the sine of the first half with the sign of `rotate_half`."""
    return x.roll(x.shape[-1] // 2, -1).mul_(sine).addcmul_(x, cosine)


def _is_plain(model: HFModel) -> bool:
    """Whether every module is as the library makes it, all in one precision: float32 or float64."""
    from transformers.pytorch_utils import Conv1D

    kinds = {(parameter.dtype, parameter.device) for parameter in model.parameters()}
    plain = len(kinds) == 1 and kinds.pop()[0] in (torch.float32, torch.float64)
    for module in model.modules():  # an adapter, a quantised layer, somebody's hook
        plain &= not (module._forward_hooks or module._forward_pre_hooks)
        plain &= not (module._backward_hooks or module._backward_pre_hooks)
        plain &= "forward" not in vars(module)
        plain &= not isinstance(module, nn.Linear | Conv1D) or type(module) in (nn.Linear, Conv1D)
        plain &= type(module).__module__.startswith(("transformers.", "torch."))
        plain &= not isinstance(module, nn.Sequential)
    return plain


def _rotary_layer(layer: HFModule, config: HFConfig) -> Layer:
    """Of Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3."""
    attention, mlp = layer.self_attn, layer.mlp
    between = getattr(layer, "pre_feedforward_layernorm", None)  # Gemma 2 and 3 have norms on both sides
    window = getattr(attention, "sliding_window", None)
    if config.model_type == "mistral":
        window = config.sliding_window
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    return Layer(
        before_attention=layer.input_layernorm,
        qkv=(attention.q_proj, attention.k_proj, attention.v_proj),
        norms=(attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None,
        out=attention.o_proj,
        after_attention=None if between is None else layer.post_attention_layernorm,
        before_mlp=layer.post_attention_layernorm if between is None else between,
        up=(mlp.gate_proj, mlp.up_proj),
        activation=ACTIVATIONS.get(activation, mlp.act_fn),
        down=mlp.down_proj,
        after_mlp=None if between is None else layer.post_feedforward_layernorm,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=attention.head_dim,
        scaling=attention.scaling,
        softcap=getattr(attention, "attn_logit_softcapping", None),
        window=window,
        rotation=attention.layer_type if config.model_type == "gemma3_text" else "all",
    )


def _gpt2_layer(layer: HFModule, config: HFConfig) -> Layer:
    attention, mlp = layer.attn, layer.mlp
    return Layer(
        before_attention=layer.ln_1,
        qkv=(attention.c_attn,),
        norms=None,
        out=attention.c_proj,
        after_attention=None,
        before_mlp=layer.ln_2,
        up=(mlp.c_fc,),
        activation=ACTIVATIONS.get(config.activation_function, cast(Callable[[Tensor], Tensor], mlp.act)),
        down=mlp.c_proj,
        after_mlp=None,
        heads=attention.num_heads,
        key_heads=attention.num_heads,
        head_size=attention.head_dim,
        scaling=attention.scaling,
        softcap=None,
        window=None,
        rotation=None,
    )
