"""One token more for every row, computed straight from the weights of the common families.

At the sizes where one row's token costs little, a step through the library's modules is mostly bookkeeping. Here a
layer is some twenty tensor operations: one matrix for query, key and value, one for gate and up, no mask when no row is
padded. The matrices are copies, so a `FusedStep` is of the weights it was made from, and is made anew for others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.policies.anatomy import Anatomy, Layer, root_mean_square, turned, weight_of
from rlhf_env.policies.linear import has_onednn
from rlhf_env.policies.trunk import layout_of, read
from rlhf_env.policies.untyped import HFCache, HFModel, HFModule

Map = Callable[[Tensor], Tensor]


class Linear:
    """x [R, in] -> x weight^T + bias, of a `weight` [out, in].

    In float32 on a CPU by oneDNN, the weight in the order that it reads: with few rows 1.6 to 2 times as fast.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.packed = has_onednn(weight)
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


class Block:
    """One layer, of copies of its matrices."""

    def __init__(self, layer: Layer) -> None:
        self.of = layer
        self.before_attention, self.before_mlp = _norm(layer.before_attention), _norm(layer.before_mlp)
        self.norms = None if layer.norms is None else (_norm(layer.norms[0]), _norm(layer.norms[1]))
        self.after_attention = None if layer.after_attention is None else _norm(layer.after_attention)
        self.after_mlp = None if layer.after_mlp is None else _norm(layer.after_mlp)
        self.qkv, self.out = _linear(*layer.qkv), _linear(layer.out)
        self.up, self.down = _linear(*layer.up), _linear(layer.down)

    def __call__(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, layer: object, bias: Tensor | None) -> Tensor:
        attended = self.attend(self.before_attention(x), turn, layer, bias)
        x = self._added(self.out, attended, x, self.after_attention)
        up = self.up(self.before_mlp(x))
        if self.of.gated:
            gate, up = up.chunk(2, dim=-1)
            up = self.of.activation(gate).mul_(up)
        else:
            up = self.of.activation(up)
        return self._added(self.down, up, x, self.after_mlp)

    def attend(self, x: Tensor, turn: tuple[Tensor, Tensor] | None, layer: HFModule, bias: Tensor | None) -> Tensor:
        """[R, heads * head_size] from `x` [R, H]; the new key and value go into the cache's `layer`."""
        of, rows, heads = self.of, len(x), self.of.heads
        both = heads + of.key_heads
        projected = self.qkv(x).view(rows, -1, of.head_size)
        looking, values = projected[:, :both], projected[:, both:]
        if self.norms is not None:
            looking = torch.cat([self.norms[0](looking[:, :heads]), self.norms[1](looking[:, heads:])], dim=1)
        if turn is not None:
            looking = turned(looking, *turn)
        keys, values = layer.update(looking[:, heads:].unsqueeze(2), values.unsqueeze(2))
        if of.window is not None:  # slots of a row are contiguous, and its newest is the last
            keys, values = keys[:, :, -of.window :], values[:, :, -of.window :]
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        queries = looking[:, :heads].reshape(len(keys), -1, of.head_size)
        if bias is not None:
            bias = bias[:, :, -keys.shape[1] :]
        if of.softcap is not None:
            scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(of.scaling / of.softcap).tanh_()
            scores = scores.mul_(of.softcap) if bias is None else torch.add(bias, scores, alpha=of.softcap)
        elif bias is not None:
            scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=of.scaling)
        else:
            scores = torch.bmm(queries, keys.transpose(1, 2)).mul_(of.scaling)
        return torch.bmm(scores.softmax(-1), values).view(rows, -1)

    def _added(self, linear: Linear, x: Tensor, residual: Tensor, norm: Map | None) -> Tensor:
        return linear.onto(x, residual) if norm is None else norm(linear(x)).add_(residual)


class FusedStep:
    """The logits after a text, and after one token more, for a model of this anatomy. Holds copies of its matrices.

    The cache is a `roomy_cache` in which the texts stand flush right.
    """

    def __init__(self, model: HFModel, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        self._blocks = [Block(layer) for layer in anatomy.layers]
        self._norm = _norm(anatomy.norm)
        self._head = _linear(model.get_output_embeddings())
        self._cap: float | None = getattr(model.config, "final_logit_softcapping", None)

    def __call__(self, tokens: Tensor, positions: Tensor, cache: HFCache, mask: Tensor | None) -> Tensor:
        """[R, V] after `tokens` int64[R] at `positions` int64[R] of the texts; the cache grows by one.

        `mask` bool[R, length of the cache + 1], True on text; None when all is.
        """
        x = self._anatomy.embed(tokens)
        if self._anatomy.learned_positions is not None:
            x = x + self._anatomy.learned_positions(positions)
        turns = {name: (cosine[positions], sine[positions]) for name, (cosine, sine) in self._angles(cache).items()}
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, -torch.inf)
            bias = bias.repeat_interleave(self._blocks[0].of.key_heads, dim=0).unsqueeze(1)
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            x = block(x, turns.get(block.of.rotation or ""), layer, bias)
        return self._logits(self._norm(x))

    def read(self, tokens: Tensor, mask: Tensor, cache: HFCache, rows: Tensor, columns: Tensor) -> Tensor:
        """[B, V] after texts `tokens` int64[B, L], flush left, `mask` bool[B, L] True on text; into the empty cache.

        There, row r is text `rows[r]`, and its slot s is that text's place `columns[r, s]`.
        """
        layout = layout_of(tokens, mask)
        kept: list[tuple[Tensor, Tensor]] = []
        states = read(self._anatomy, layout, keep=kept)
        places = layout.places[rows].gather(1, columns)
        for layer, (keys, values) in zip(cache.layers, kept, strict=True):
            layer.update(keys[places].transpose(1, 2), values[places].transpose(1, 2))
        last = layout.places.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
        return self._logits(states[last])

    def _logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self._head(states)
        return logits if self._cap is None else logits.div_(self._cap).tanh_().mul_(self._cap)

    def _angles(self, cache: HFCache) -> dict[str, tuple[Tensor, Tensor]]:
        """`Anatomy.angles` for every position that the cache can hold."""
        needed = cache.get_seq_length() + 1
        if not self._tables or len(next(iter(self._tables.values()))[0]) < needed:
            self._tables = self._anatomy.angles(cast(Tensor, self._anatomy.embed.weight), 2 * needed)
        return self._tables


def _linear(*parts: object) -> Linear:
    """A copy of the parts, their outputs side by side."""
    weight, bias = weight_of(*parts)
    return Linear(weight.detach().contiguous(), None if bias is None else bias.detach())


def _norm(module: object) -> Map:
    """The module itself; in float32, the same of root-mean-square norms in one operation."""
    found = root_mean_square(module)
    if found is None:
        return cast(Map, module)
    weight, eps = found
    return partial(F.rms_norm, normalized_shape=weight.shape, weight=weight.detach(), eps=eps)
