"""Prefill and decode steps of the common families, computed straight from their weights.

In a small model, a decode step (one token more for every row) through the modules of transformers is mostly Python.
Here a layer is some twenty tensor operations: one matmul for queries, keys and values, one for gate and up, and no mask
where all texts are of one length. Joined matrices are copies: a `FusedStep` has the weights of the moment at which it
was made, and other weights need another one. (What is called as a whole, as experts are, has its present weights.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.policies.anatomy import (
    Anatomy,
    Layer,
    Rotary,
    apply_rotary,
    layer_norm_weight,
    low_rank_of,
    rms_norm_weight,
    weight_and_bias,
)
from rlhf_env.policies.linear import has_packed
from rlhf_env.policies.low_precision import Int8Linear, LowPrecisionLinear, RMSNormIn8Bits, has_bfloat16
from rlhf_env.policies.text_cache import DecodingStep, LayerMemory, TextCache, attend_to_cache
from rlhf_env.policies.trunk import hidden_states, prefix_tree
from rlhf_env.policies.untyped import HFModel
from rlhf_env.types import Int

Norm = Callable[[Tensor], Tensor]


class Linear:
    """A linear layer x [R, in] -> x weight^T + bias, with `weight` [out, in].

    On a CPU the matmul is oneDNN's, and the weight is stored in the blocks in which oneDNN reads it: with few rows that
    is 1.6 to 2 times as fast in float32, and 1.3 to 1.7 times in bfloat16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.packed = has_packed(weight)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 32)  # 32: how many rows to expect

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], ""))
        return F.linear(x, self.weight, self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` + x weight^T + bias; oneDNN adds while it multiplies."""
        if self.packed:
            summed = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
            return cast(Tensor, summed)
        return residual + F.linear(x, self.weight, self.bias)

    def gated(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """activation(gate) * up, where x weight^T + bias has gate and up side by side."""
        gate, up = self(x).chunk(2, dim=-1)
        return activation(gate).mul_(up)


class SeparateLinear(Linear):
    """The same with the outputs of several `weights` [out', in], which stay where they are: for a few steps alone, to
    join and to store them anew costs more than it gains."""

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None) -> None:
        self.weights, self.bias, self.packed = weights, bias, False

    def __call__(self, x: Tensor) -> Tensor:
        products = [F.linear(x, weight) for weight in self.weights]
        product = torch.cat(products, dim=1) if len(products) > 1 else products[0]
        return product if self.bias is None else product.add_(self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual + self(x)


AnyLinear = Linear | LowPrecisionLinear


class Block:
    """One transformer layer with copies of its matrices."""

    def __init__(self, layer: Layer, linear: type[AnyLinear]) -> None:
        self.layer = layer
        self.before_attention = _norm_before(linear, layer.before_attention, layer)
        self.before_mlp = _norm_before(linear, layer.before_mlp, layer)
        self.q_norm, self.k_norm, self.v_norm = _norm(layer.q_norm), _norm(layer.k_norm), _norm(layer.v_norm)
        self.after_attention, self.after_mlp = _norm(layer.after_attention), _norm(layer.after_mlp)
        self.qkv, self.out = _linear(linear, *layer.qkv), _linear(linear, layer.out)
        self.up = _linear(linear, *layer.up) if layer.up else None
        self.down = None if layer.down is None else _linear(linear, layer.down)

    def __call__(
        self, x: Tensor, rotary: Rotary | None, memory: LayerMemory, step: DecodingStep, layer_input: Tensor | None
    ) -> Tensor:
        """The residual stream [R, H] after this layer; `layer_input` as in `Layer.finish`, the rest as in `attend`."""
        normed = x if self.before_attention is None else self.before_attention(x)
        attended = self.attend(normed, rotary, memory, step)
        x = self._add_to_residual(self.out, attended, x, self.after_attention)
        if not self.layer.parallel:
            normed = x if self.before_mlp is None else self.before_mlp(x)
        x = self._add_mlp(normed, x)
        return x if self.layer.finish is None else self.layer.finish(x, layer_input)

    def attend(self, x: Tensor, rotary: Rotary | None, memory: LayerMemory, step: DecodingStep) -> Tensor:
        """Attention [R, heads * head_size] of one new token per place, `x` [R, H], to everything in the cache.

        `rotary`: the rotations of the tokens' positions, None without rotary embeddings. `memory`: of the layer whose
        keys and values this one reads; its own grows by the new token.
        """
        layer, rows, heads = self.layer, len(x), self.layer.heads
        query_and_key_heads = heads + layer.own_kv_heads
        projected = self.qkv(x).view(rows, -1, layer.head_size)  # [R, heads + 2 * own_kv_heads, D]
        queries_keys, values = projected[:, :query_and_key_heads], projected[:, query_and_key_heads:]
        if self.q_norm is not None:
            queries_keys = self._norm_queries_keys(queries_keys)
        if rotary is not None:
            queries_keys = apply_rotary(queries_keys, rotary)
        if layer.keys_from is None:
            if self.v_norm is not None:
                values = self.v_norm(values)
            memory.write(queries_keys[:, heads:], values, step)
        attended = attend_to_cache(queries_keys[:, :heads], layer, memory, step)
        return attended if isinstance(self.out, LowPrecisionLinear) else attended.to(x.dtype)

    def _norm_queries_keys(self, queries_keys: Tensor) -> Tensor:
        """Queries and keys [R, heads + own_kv_heads, D] after their norms."""
        assert self.q_norm is not None
        heads, per_head = self.layer.heads, self.layer.norms_of_heads
        parts = [(self.q_norm, queries_keys[:, :heads])]
        if self.k_norm is not None:
            parts.append((self.k_norm, queries_keys[:, heads:]))
        normed = [norm(part) if per_head else norm(part.flatten(1)).view_as(part) for norm, part in parts]
        return normed[0] if len(normed) == 1 else torch.cat(normed, dim=1)

    def _add_mlp(self, x: Tensor, residual: Tensor) -> Tensor:
        """`residual` [R, H] plus what the MLP makes of `x` [R, H]."""
        if self.layer.experts is not None:
            branch = self.layer.experts(x.unsqueeze(0)).squeeze(0)
            return self._add(branch if self.after_mlp is None else self.after_mlp(branch), residual)
        assert self.up is not None and self.down is not None
        activation = self.layer.activation
        up = self.up.gated(x, activation) if self.layer.gated else activation(self.up(x))
        return self._add_to_residual(self.down, up, residual, self.after_mlp)

    def _add_to_residual(self, linear: AnyLinear, x: Tensor, residual: Tensor, norm: Norm | None) -> Tensor:
        if norm is not None:
            return self._add(norm(linear(x)), residual)
        if self.layer.residual_multiplier != 1.0:
            return self._add(linear(x), residual)
        return linear.add_to(residual, x)

    def _add(self, branch: Tensor, residual: Tensor) -> Tensor:
        return torch.add(residual, branch, alpha=self.layer.residual_multiplier)


class FusedStep:
    """Prefill and decode of a model with this anatomy: logits of the next token, from copies of its matrices.

    `linear` is the kind of its linear layers: one in low precision makes it another policy than the model (see
    `low_precision`).
    """

    def __init__(self, model: HFModel, anatomy: Anatomy, linear: type[AnyLinear] = Linear) -> None:
        self._rotary_tables: dict[str, Rotary] = {}
        self._blocks = [Block(layer, linear) for layer in anatomy.layers]
        # Prompts are read by the matrices of the model itself, or by those in low precision.
        self._anatomy = anatomy if issubclass(linear, Linear) else _with_matrices_of(self._blocks, anatomy)
        self._norm = cast(Norm, _norm(anatomy.norm))
        self._head = _linear(linear, model.get_output_embeddings())

    def cache(self) -> TextCache:
        """An empty cache.

        Keys and values are in bfloat16 where the linear layers compute in less than float32, unless the model is in
        float64, which is for exactness.
        """
        weight = cast(Tensor, self._anatomy.embed.weight)
        low = isinstance(self._blocks[0].out, LowPrecisionLinear) and weight.dtype == torch.float32
        like = weight.detach().new_empty(0, dtype=torch.bfloat16 if low and has_bfloat16() else weight.dtype)
        return TextCache(self._anatomy.layers, like)

    def __call__(self, tokens: Tensor, positions: Tensor, cache: TextCache) -> Tensor:
        """Decode: the logits [R, V] after one token more per place, `tokens` int64[R] at `positions` int64[R]."""
        x = self._anatomy.embedded(tokens, positions)
        rotary = {name: table.at(positions) for name, table in self._tables(cache).items()}
        step = cache.step()
        inputs = self._anatomy.layer_inputs
        layer_inputs = None if inputs is None else inputs(tokens, x).unbind(1)
        for number, block in enumerate(self._blocks):
            layer = block.layer
            memory = cache.layers[number if layer.keys_from is None else layer.keys_from]
            assert memory is not None
            layer_input = None if layer_inputs is None else layer_inputs[number]
            x = block(x, rotary.get(layer.rotary_table or ""), memory, step, layer_input)
        cache.advance()
        return self._logits(self._norm(x))

    def prefill(self, tokens: Tensor, mask: Tensor, cache: TextCache, rows: Int, room: int) -> Tensor:
        """Prefill: the logits [D, V] after `tokens` int64[D, L], right-padded, `mask` bool[D, L] True on text.

        Text `rows[i]`, of int64[R], goes into the i-th new place of the cache. `room`: how many tokens may follow.
        """
        tree = prefix_tree(tokens, mask)
        lengths = mask.sum(1)
        states = hidden_states(self._anatomy, tree, take=cache.add(tree.nodes, lengths.cpu().numpy(), rows, room))
        return self._logits(states[tree.nodes.gather(1, lengths[:, None] - 1).squeeze(1)])

    def _logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self._head(states)
        if (scale := self._anatomy.logit_scale) != 1.0:
            logits = logits.mul_(scale)
        cap = self._anatomy.logit_cap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def _tables(self, cache: TextCache) -> dict[str, Rotary]:
        """`Anatomy.rotary_tables` with every position of the cache; they double when the cache outgrows them."""
        needed = cache.longest + 1
        if not self._rotary_tables or len(next(iter(self._rotary_tables.values())).cosine) < needed:
            weight, longest = cast(Tensor, self._anatomy.embed.weight), self._anatomy.longest
            positions = 2 * needed if longest is None else max(needed, min(2 * needed, longest))
            self._rotary_tables = self._anatomy.rotary_tables(weight, positions)
        return self._rotary_tables


def _with_matrices_of(blocks: Sequence[Block], anatomy: Anatomy) -> Anatomy:
    """`anatomy` with the linear layers of `blocks`, joined as they are there, in place of the model's."""
    layers = []
    for block, layer in zip(blocks, anatomy.layers, strict=True):
        matrices: dict[str, object] = {"qkv": (block.qkv,), "out": block.out}
        if block.up is not None:
            matrices |= {"up": (block.up,), "down": block.down}
        layers.append(replace(layer, **matrices))  # type: ignore[arg-type]
    return replace(anatomy, layers=tuple(layers))


def _linear(linear: type[AnyLinear], *modules: object) -> AnyLinear:
    """One layer of the kind `linear` with the outputs of all modules, their adapters added to the weight."""
    biases = [bias.detach() for _, bias in map(weight_and_bias, modules) if bias is not None]
    bias = torch.cat(biases) if len(biases) > 1 else biases[0] if biases else None
    weights = [_with_adapter(module) for module in modules]
    if issubclass(linear, Int8Linear | SeparateLinear):
        return linear(weights, bias)  # it needs no matrix that is theirs side by side
    return linear(weights[0].contiguous() if len(weights) == 1 else torch.cat(weights), bias)


def _with_adapter(module: object) -> Tensor:
    """The weight [out, in] of a matrix and its adapter."""
    weight = weight_and_bias(module)[0].detach()
    if (adapter := low_rank_of(module)) is None:
        return weight
    change = torch.mm(adapter.b.detach(), adapter.a.detach()).mul_(adapter.scaling)
    return (weight + change).to(weight.dtype)  # rounded once, where the weight is in less than float32


def _norm(module: object) -> Norm | None:
    """One fused operation for a norm in float32 without a bias, three for one in bfloat16, the module itself for any
    other norm; None for none."""
    if module is None:
        return None
    if (weight_eps := rms_norm_weight(module)) is not None:
        weight, eps = weight_eps
        if weight.dtype == torch.bfloat16:
            return partial(_rms_norm_in_half, weight=weight.detach(), eps=eps)
        return partial(F.rms_norm, normalized_shape=weight.shape, weight=weight.detach(), eps=eps)
    if (weight_eps := layer_norm_weight(module)) is not None:
        weight, eps = weight_eps
        return partial(F.layer_norm, normalized_shape=weight.shape, weight=weight.detach(), eps=eps)
    return cast(Norm, module)


def _norm_before(linear: type[AnyLinear], module: object, layer: Layer) -> Norm | None:
    """The norm whose result goes into layers of the kind `linear`, of which those in 8 bits read rows in 8 bits."""
    if issubclass(linear, Int8Linear) and layer.experts is None and (weight_eps := rms_norm_weight(module)) is not None:
        weight, eps = weight_eps
        if weight.dtype == torch.float32:
            return cast(Norm, RMSNormIn8Bits(weight.detach(), eps))
    return _norm(module)


def _rms_norm_in_half(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normed in float32, rounded, and then multiplied by the weight, as transformers rounds."""
    return F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype).mul_(weight)
