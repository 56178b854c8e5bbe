"""One token more for every row, computed straight from the weights of the common families.

At the sizes where one row's token costs little, a step through the library's modules is mostly bookkeeping. Here a
layer is some twenty tensor operations: one matrix for query, key and value, one for gate and up, no mask when no row is
padded. The matrices are copies, so a `FusedStep` is of the weights it was made from, and is made anew for others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Where position p is turned by an angle that depends on p alone ("dynamic" and "longrope" look at the longest text).
ROTARY_TYPES = {"default", "linear", "llama3", "yarn"}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}

Map = Callable[[Tensor], Tensor]


class Linear:
    """x [R, in] -> x weight^T + bias, of a `weight` [out, in].

    In float32 on a CPU by oneDNN, the weight in the order that it reads: with few rows 1.6 to 2 times as fast.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        built_in = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        self.packed = built_in and weight.dtype == torch.float32 and weight.device.type == "cpu"
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 32)  # it is told how many rows to expect

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], ""))
        return F.linear(x, self.weight, self.bias)

    def onto(self, x: Tensor, residual: Tensor) -> Tensor:
        """`residual` plus the image of `x`."""
        if self.packed:
            summed = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
            return cast(Tensor, summed)
        return residual + F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One layer. `key_heads` heads of keys and values, `head_size` wide, each serve the same number of query heads.

    `window`: how many positions are attended to, its own included; None: all. `softcap`: see `attention.attend`.
    `rotation`: which of the model's tables of angles turns queries and keys; None where positions are learned.
    """

    before_attention: Map
    qkv: Linear
    norms: tuple[Map, Map] | None
    out: Linear
    after_attention: Map | None
    before_mlp: Map
    up: Linear
    activation: Map
    gated: bool
    down: Linear
    after_mlp: Map | None
    heads: int
    key_heads: int
    head_size: int
    scaling: float
    softcap: float | None
    window: int | None
    rotation: str | None

    def __call__(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, layer: Any, bias: Tensor | None) -> Tensor:
        attended = self.attend(self.before_attention(x), turn, layer, bias)
        x = self._added(self.out, attended, x, self.after_attention)
        up = self.up(self.before_mlp(x))
        if self.gated:
            gate, up = up.chunk(2, dim=-1)
            up = self.activation(gate).mul_(up)
        else:
            up = self.activation(up)
        return self._added(self.down, up, x, self.after_mlp)

    def attend(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, layer: Any, bias: Tensor | None) -> Tensor:
        """[R, heads * head_size] from `x` [R, H]; the new key and value go into the cache's `layer`."""
        rows, heads, both = len(x), self.heads, self.heads + self.key_heads
        projected = self.qkv(x).view(rows, -1, self.head_size)
        turned, values = projected[:, :both], projected[:, both:]
        if self.norms is not None:
            turned = torch.cat([self.norms[0](turned[:, :heads]), self.norms[1](turned[:, heads:])], dim=1)
        if turn is not None:
            cosine, sine = turn  # the sine of the first half with the sign of `rotate_half`
            turned = turned.roll(self.head_size // 2, -1).mul_(sine).addcmul_(turned, cosine)
        keys, values = layer.update(turned[:, heads:].unsqueeze(2), values.unsqueeze(2))
        if self.window is not None:  # slots of a row are contiguous, and its newest is the last
            keys, values = keys[:, :, -self.window :], values[:, :, -self.window :]
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        queries = turned[:, :heads].reshape(len(keys), -1, self.head_size)
        if bias is not None:
            bias = bias[:, :, -keys.shape[1] :]
        if self.softcap is not None:
            scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(self.scaling / self.softcap).tanh_()
            scores = scores.mul_(self.softcap) if bias is None else torch.add(bias, scores, alpha=self.softcap)
        elif bias is not None:
            scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=self.scaling)
        else:
            scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(self.scaling)
        return torch.bmm(scores.softmax(-1), values).view(rows, -1)

    def _added(self, linear: Linear, x: Tensor, residual: Tensor, norm: Map | None) -> Tensor:
        return linear.onto(x, residual) if norm is None else norm(linear(x)).add_(residual)


class FusedStep:
    """The logits after one token more, for a model that `can_fuse`. Holds copies of the layers' matrices.

    The cache is a `roomy_cache` in which the texts stand flush right.
    """

    def __init__(self, model: Any) -> None:
        config, trunk = model.config.get_text_config(), model.base_model
        self._embed: nn.Embedding = trunk.get_input_embeddings()
        self._learned_positions: nn.Embedding | None = getattr(trunk, "wpe", None)
        self._rotary: Any = getattr(trunk, "rotary_emb", None)
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        build = _gpt2_block if self._rotary is None else _rotary_block
        self._blocks = [build(layer, config) for layer in (trunk.h if self._rotary is None else trunk.layers)]
        self._norm = _norm(trunk.ln_f if self._rotary is None else trunk.norm)
        self._head = _linear(model.get_output_embeddings())
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)

    def __call__(self, tokens: Tensor, positions: Tensor, cache: Any, mask: Tensor | None) -> Tensor:
        """[R, V] after `tokens` int64[R] at `positions` int64[R] of the texts; the cache grows by one.

        `mask` bool[R, length of the cache + 1], True on text; None when all is.
        """
        x = self._embed(tokens)
        if self._learned_positions is not None:
            x = x + self._learned_positions(positions)
        turns = {name: (cosine[positions], sine[positions]) for name, (cosine, sine) in self._angles(cache).items()}
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, -torch.inf)
            bias = bias.repeat_interleave(self._blocks[0].key_heads, dim=0).unsqueeze(1)
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            x = block(x, turns.get(block.rotation or ""), layer, bias)
        logits: Tensor = self._head(self._norm(x))
        return logits if self._cap is None else logits.div_(self._cap).tanh_().mul_(self._cap)

    def _angles(self, cache: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Cosines and signed sines [positions, 1, head_size] by name, for every position that the cache can hold."""
        needed = cache.get_seq_length() + 1
        names = {block.rotation for block in self._blocks if block.rotation is not None}
        if names and (not self._tables or len(next(iter(self._tables.values()))[0]) < needed):
            like = self._embed.weight
            places = torch.arange(2 * needed, device=like.device)[None]
            for name in names:
                cosine, sine = self._rotary(like, places, **({"layer_type": name} if name != "all" else {}))
                half = sine.shape[-1] // 2
                signed = torch.cat([-sine[0, :, :half], sine[0, :, half:]], dim=-1)
                self._tables[name] = cosine[0].unsqueeze(1), signed.unsqueeze(1)
        return self._tables


def can_fuse(model: Any) -> bool:
    """Whether the model is of a family and of settings that `FusedStep` knows, its layers as the library makes them."""
    from transformers import (
        Gemma2ForCausalLM,
        Gemma3ForCausalLM,
        GemmaForCausalLM,
        GPT2LMHeadModel,
        LlamaForCausalLM,
        MistralForCausalLM,
        Qwen2ForCausalLM,
        Qwen3ForCausalLM,
    )
    from transformers.pytorch_utils import Conv1D

    rotary = {LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM}
    rotary |= {GemmaForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM}
    config, trunk = model.config, model.base_model
    plain = all(parameter.dtype in (torch.float32, torch.float64) for parameter in model.parameters())
    plain &= len({(parameter.dtype, parameter.device) for parameter in model.parameters()}) == 1
    for module in model.modules():  # an adapter, a quantised layer, somebody's hook
        plain &= not (module._forward_hooks or module._forward_pre_hooks)
        plain &= "forward" not in vars(module)
        plain &= not isinstance(module, nn.Linear | Conv1D) or type(module) in (nn.Linear, Conv1D)
        plain &= type(module).__module__.startswith(("transformers.", "torch."))
        plain &= not isinstance(module, nn.Sequential)
    if not plain:
        return False
    if type(model) is GPT2LMHeadModel:
        return not (config.add_cross_attention or config.reorder_and_upcast_attn)
    if type(model) not in rotary or getattr(config, "use_bidirectional_attention", False):
        return False
    types = trunk.rotary_emb.rope_type
    return set(types.values() if isinstance(types, dict) else [types]) <= ROTARY_TYPES


def _rotary_block(layer: Any, config: Any) -> Block:
    """Of Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3."""
    attention, mlp = layer.self_attn, layer.mlp
    between = getattr(layer, "pre_feedforward_layernorm", None)  # Gemma 2 and 3 have norms on both sides
    window = getattr(attention, "sliding_window", None)
    if config.model_type == "mistral":
        window = config.sliding_window
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    return Block(
        before_attention=_norm(layer.input_layernorm),
        qkv=_linear(attention.q_proj, attention.k_proj, attention.v_proj),
        norms=(_norm(attention.q_norm), _norm(attention.k_norm)) if hasattr(attention, "q_norm") else None,
        out=_linear(attention.o_proj),
        after_attention=None if between is None else _norm(layer.post_attention_layernorm),
        before_mlp=_norm(layer.post_attention_layernorm if between is None else between),
        up=_linear(mlp.gate_proj, mlp.up_proj),
        activation=ACTIVATIONS.get(activation, mlp.act_fn),
        gated=True,
        down=_linear(mlp.down_proj),
        after_mlp=None if between is None else _norm(layer.post_feedforward_layernorm),
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=attention.head_dim,
        scaling=attention.scaling,
        softcap=getattr(attention, "attn_logit_softcapping", None),
        window=window,
        rotation=attention.layer_type if config.model_type == "gemma3_text" else "all",
    )


def _gpt2_block(layer: Any, config: Any) -> Block:
    attention, mlp = layer.attn, layer.mlp
    return Block(
        before_attention=_norm(layer.ln_1),
        qkv=_conv(attention.c_attn),
        norms=None,
        out=_conv(attention.c_proj),
        after_attention=None,
        before_mlp=_norm(layer.ln_2),
        up=_conv(mlp.c_fc),
        activation=ACTIVATIONS.get(config.activation_function, mlp.act),
        gated=False,
        down=_conv(mlp.c_proj),
        after_mlp=None,
        heads=attention.num_heads,
        key_heads=attention.num_heads,
        head_size=attention.head_dim,
        scaling=attention.scaling,
        softcap=None,
        window=None,
        rotation=None,
    )


def _linear(*parts: nn.Linear) -> Linear:
    """The parts' outputs side by side."""
    weights = [part.weight.detach() for part in parts]
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    return Linear(weights[0] if len(parts) == 1 else torch.cat(weights), torch.cat(biases) if biases else None)


def _conv(module: Any) -> Linear:
    """GPT-2 keeps its matrices the other way round."""
    return Linear(module.weight.detach().t().contiguous(), module.bias.detach())


def _norm(module: Any) -> Map:
    """The module itself; in float32, the same of root-mean-square norms in one operation.

    Theirs compute in float32 whatever the model's precision is, so that in float64 only theirs has the same bits.
    """
    if isinstance(module, nn.LayerNorm) or module.weight.dtype != torch.float32:
        return cast(Map, module)
    weight = module.weight.detach()
    if "Gemma" in type(module).__name__:  # stored as the difference from 1
        weight = 1.0 + weight
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return partial(F.rms_norm, normalized_shape=weight.shape, weight=weight, eps=eps)
