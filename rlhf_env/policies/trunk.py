"""Runs whole texts through the layers of the common families and computes every distinct prefix once.

Scoring and learning need the hidden state of every token of a batch. A padded batch [B, L] wastes work twice: on the
padding, and on prefixes that several texts have in common (the prompt of a group of answers; the prompt of a preferred
and a rejected one). In a causal model a hidden state depends on nothing but the tokens up to it, so equal prefixes have
equal hidden states, and one computation serves all texts.

The batch therefore becomes a prefix tree (a trie). A node is one token after one prefix. All N nodes lie in one flat
list without padding, and whatever works token by token (embedding, norms, projections, MLPs) runs on that list, [N, H].
Attention alone looks across tokens. It gathers rectangles from the list: every text asks (queries) from the nodes that
it added to the tree, and is answered (keys, values) by all nodes from its beginning on. For example:

    text         shared with the text above   nodes       queries   keys
    a b c d      -                            0 1 2 3     0 1 2 3   0 1 2 3
    a b c e f    a b c                        0 1 2 4 5   4 5       0 1 2 4 5
    a b g        a b                          0 1 6       6         0 1 6

Gathering is differentiable: the gradient of a shared node is the sum over all texts that pass through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
from rlhf_env.policies.linear import adapted_linear, has_onednn, linear, round_up
from rlhf_env.policies.low_precision import LowPrecisionLinear
from rlhf_env.policies.recomputation import recomputed
from rlhf_env.policies.untyped import AutogradContext, HFModule
from rlhf_env.types import Bool, Int

# A bucket takes rows that have at least this share of the queries of its longest row; the rest of a row is padding.
BUCKET_FILL = 0.6


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows (texts) that attend as one rectangle: b rows, padded to q queries and k keys each."""

    rows: int
    """b, the number of rows."""
    start: int
    """The rows' own nodes are neighbours in the flat list, one row after another; this is the first of them ..."""
    count: int
    """... and this is how many they are."""
    query_nodes: Tensor | None
    """int64[b * q]: the node of every query, padding included. None where all rows have q queries: no padding."""
    unpadded: Tensor | None
    """int64[count]: the indices in `query_nodes` that are no padding. None where there is none."""
    key_nodes: Tensor
    """int64[b * k]: the node of every key, from the beginning of the text on."""
    prefix_lengths: Tensor
    """int64[b]: the number of tokens in a row before its first query."""
    has_prefix: bool
    """Whether any of `prefix_lengths` is above 0."""

    def attention_mask(self, window: int | None) -> Tensor | None:
        """bool[b or 1, 1, q, k], True where a query may look at a key; None: the plain causal mask of a square.

        `window`: the number of positions that sliding-window attention looks at, the query's own included.
        """
        if not self.has_prefix and window is None:
            return None
        # Query i of a row stands at position prefix_length + i of its text, key j at position j.
        # One mask [1, 1, q, k] serves all rows where all prefixes have one length.
        prefix = self.prefix_lengths
        prefix = prefix[:1] if bool((prefix == prefix[0]).all()) else prefix
        query_positions = prefix[:, None, None, None] + torch.arange(self._queries, device=prefix.device)[:, None]
        key_positions = torch.arange(self._keys, device=prefix.device)
        causal = key_positions <= query_positions
        return causal if window is None else causal & (key_positions > query_positions - window)

    @property
    def _queries(self) -> int:
        """q, the number of queries of every row."""
        return (self.count if self.query_nodes is None else len(self.query_nodes)) // self.rows

    @property
    def _keys(self) -> int:
        """k, the number of keys of every row."""
        return len(self.key_nodes) // self.rows


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """The N nodes of the texts [B, L]; two tokens are one node where their texts are equal up to and with them."""

    nodes: Tensor
    """int64[B, L]: the node of every token; 0 on padding."""
    tokens: Tensor
    """int64[N]: the token id of every node."""
    positions: Tensor
    """int64[N]: the position of every node in its text, 0 for the first."""
    buckets: tuple[Bucket, ...]


def prefix_tree(tokens: Tensor, mask: Tensor) -> PrefixTree:
    """The prefix tree of `tokens` int64[B, L], padded on the right; `mask` bool[B, L] is True on text.

    Every row must have at least one token.
    """
    device = tokens.device
    texts: Int = np.where(mask.cpu().numpy(), tokens.cpu().numpy(), -1)
    # Sorted like words in a dictionary: the text with which a row has the longest prefix in common is the row above.
    order = _dictionary_order(texts)
    texts = texts[order]
    rows, width = texts.shape
    lengths = (texts >= 0).sum(1)

    # shared[r]: how many tokens row r has in common with the row above. `equal` is True column by column; the running
    # product is 1 up to the first difference and 0 from there on, so that its sum is the length of the common prefix.
    equal = (texts[1:] == texts[:-1]) & (texts[1:] >= 0)
    shared = np.concatenate([[0], np.cumprod(equal, axis=1).sum(1)])
    own = lengths - shared  # the number of nodes that row r adds to the tree

    # owner[r, c]: the row that added the node of token c of row r. From column shared[r] on that is r itself. Before,
    # it is whoever owns that column in the row above: the largest row number so far that stands in the column.
    starts_here = np.where(np.arange(width) >= shared[:, None], np.arange(rows)[:, None], 0)
    owner = np.maximum.accumulate(starts_here, axis=0)

    # The flat list holds the own nodes of one row after another, and the rows of one bucket are neighbours.
    # base[r]: the node at which the own nodes of row r begin (a cumulative sum without the row itself).
    groups = _bucket_rows(own, shared)
    flat_order = np.concatenate(groups)
    base = np.zeros(rows, np.int64)
    base[flat_order] = np.cumsum(own[flat_order]) - own[flat_order]

    # The own nodes of a row are its columns from shared[row] on: column c is node base[row] + c - shared[row].
    nodes = base[owner] + np.arange(width) - shared[owner]
    nodes[texts < 0] = 0
    buckets = [_bucket(group, int(base[group[0]]), own, shared, lengths, nodes, device) for group in groups]

    # The same the other way round, node by node: the row that owns it, and its column there.
    row_of_node = np.repeat(flat_order, own[flat_order])
    positions = np.arange(len(row_of_node)) - base[row_of_node] + shared[row_of_node]

    # Back to the order in which the caller gave the texts; token ids and positions go to the device in one transfer.
    caller_order = np.empty(rows, np.int64)
    caller_order[order] = np.arange(rows)
    ids = torch.from_numpy(np.stack([texts[row_of_node, positions], positions])).to(device)
    return PrefixTree(torch.from_numpy(nodes[caller_order]).to(device), ids[0], ids[1], tuple(buckets))


def hidden_states(
    anatomy: Anatomy,
    tree: PrefixTree,
    *,
    take: Callable[[int, Tensor, Tensor], None] | None = None,
    recompute: bool = False,
    call: Callable[[int, Callable[[Tensor], Tensor], Tensor], Tensor] | None = None,
) -> Tensor:
    """The states [N, H] of all nodes after the final norm; with gradients where they are enabled.

    `take` is given the number of each layer and its keys and values, [N or more, kv_heads, head_size] each, but for a
    layer that reads those of another. `recompute`: the backward pass computes every layer again instead of keeping what
    it needs of it. `call` computes a layer, by its number, where its weights are not here until then.
    """
    weight = next(anatomy.norm.parameters())
    count = len(tree.tokens)
    # oneDNN keeps a kernel for round numbers of rows only: padding nodes at the end of the list make the number round.
    # Every layer computes something for them, nobody looks at them, and the last line drops them.
    padding = round_up(count) - count if has_onednn(weight) else 0
    tokens, positions = F.pad(tree.tokens, (0, padding)), F.pad(tree.positions, (0, padding))
    x = anatomy.embedded(tokens, positions)
    layer_inputs = None if anatomy.layer_inputs is None else anatomy.layer_inputs(tokens, x).unbind(1)
    # Rotations are tables by position: each node takes the rows of its position.
    rotary = {name: table.at(positions) for name, table in anatomy.rotary_tables(x, tree.nodes.shape[1]).items()}
    # Masks depend on the window alone, and layers have one or two different windows: made once for all layers.
    windows = {layer.window for layer in anatomy.layers}
    masks = {window: [bucket.attention_mask(window) for bucket in tree.buckets] for window in windows}
    shared: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values that a later layer reads too, by layer
    read_again = {layer.keys_from for layer in anatomy.layers}

    def run(number: int, layer: Layer, x: Tensor) -> Tensor:
        normed = _norm(layer.before_attention, x)
        queries, keys, values = _queries_keys_values(layer, normed, rotary, shared)
        if number in read_again and number not in shared:  # and not once more when the backward pass computes it again
            shared[number] = keys, values
        if take is not None and layer.keys_from is None:
            take(number, keys, values)  # with padding nodes at the end
        attended = _attention(layer, queries, keys, values, tree.buckets, masks[layer.window])
        x = _add_to_residual(layer, layer.out, attended, x, layer.after_attention)
        if not layer.parallel:
            normed = _norm(layer.before_mlp, x)
        x = _add_mlp(layer, normed, x)
        if layer.finish is not None:
            x = layer.finish(x, None if layer_inputs is None else layer_inputs[number])
        return x

    for number, layer in enumerate(anatomy.layers):
        compute = partial(run, number, layer)
        if recompute:
            compute = partial(recomputed, compute)
        x = compute(x) if call is None else call(number, compute, x)
    return _norm(anatomy.norm, x)[:count]


def _queries_keys_values(
    layer: Layer, x: Tensor, rotary: dict[str, Rotary], shared: dict[int, tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of every node of `x` [N, H], [N, heads or kv_heads, head_size] each.

    `shared`: the keys and values of the layers that others read from (`Layer.keys_from`).
    """
    # One matmul for queries, keys and values: [N, heads + 2 * own_kv_heads, head_size]. Queries and keys stay together
    # as long as the same is done to both.
    heads, query_and_key_heads = layer.heads, layer.heads + layer.own_kv_heads
    projected = _project(layer.qkv, x).view(len(x), -1, layer.head_size)
    queries_keys, values = projected[:, :query_and_key_heads], projected[:, query_and_key_heads:]
    if layer.q_norm is not None:
        parts = [(layer.q_norm, queries_keys[:, :heads])]
        if layer.k_norm is not None:
            parts.append((layer.k_norm, queries_keys[:, heads:]))
        if layer.norms_of_heads:
            queries_keys = torch.cat([_norm(norm, part) for norm, part in parts], dim=1)
        else:  # one norm over all heads side by side
            queries_keys = torch.cat([_norm(norm, part.flatten(1)).view_as(part) for norm, part in parts], dim=1)
    if layer.rotary_table is not None:
        queries_keys = cast(Tensor, _Rotary.apply(queries_keys, rotary[layer.rotary_table]))  # type: ignore[no-untyped-call]
    if layer.keys_from is not None:
        return queries_keys, *shared[layer.keys_from]
    return queries_keys[:, :heads], queries_keys[:, heads:], _norm(layer.v_norm, values)


def _attention(
    layer: Layer, queries: Tensor, keys: Tensor, values: Tensor, buckets: tuple[Bucket, ...], masks: list[Tensor | None]
) -> Tensor:
    """Self-attention of every node over its own text, [N, heads * head_size], before the projection."""
    outputs = []
    for bucket, mask in zip(buckets, masks, strict=True):
        # A bucket's own nodes are neighbours in the flat list: a slice, spread out where shorter rows need padding.
        bucket_queries = queries[bucket.start : bucket.start + bucket.count]
        if bucket.query_nodes is not None:
            bucket_queries = queries.index_select(0, bucket.query_nodes)
        # [b * q, heads, D] -> [b, q, heads, D] -> [b, heads, q, D], and keys and values alike with k.
        q, k, v = (
            flat.view(bucket.rows, -1, *flat.shape[1:]).transpose(1, 2)
            for flat in (
                bucket_queries,
                keys.index_select(0, bucket.key_nodes),
                values.index_select(0, bucket.key_nodes),
            )
        )
        # [b, heads, q, D] -> [b * q, heads * D], and out with the padding: the order of the flat list again.
        output = _scaled_dot_product(layer, q, k, v, mask).transpose(1, 2).flatten(0, 1).flatten(1)
        outputs.append(output if bucket.unpadded is None else output.index_select(0, bucket.unpadded))
    padding = len(queries) - sum(map(len, outputs))
    if padding:
        outputs.append(outputs[0].new_zeros(padding, outputs[0].shape[1]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _scaled_dot_product(layer: Layer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention [b, heads, q, D]; `mask` bool[b or 1, 1, q, k], None for the plain causal mask."""
    grouped = layer.heads != layer.kv_heads  # grouped-query attention: several query heads share a key head
    if layer.softcap is None and q.dtype == torch.bfloat16 and q.requires_grad and q.device.type == "cpu":
        # Torch's backward kernel takes twice as long in bfloat16 as in float32, its forward kernel as long.
        return _scaled_dot_product(layer, q.float(), k.float(), v.float(), mask).to(q.dtype)
    if layer.softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=layer.scaling, enable_gqa=grouped
        )
    # Torch's kernel has no soft cap: the same by hand, softcap * tanh(scaling * q k / softcap).
    if grouped:
        k, v = (heads.repeat_interleave(layer.heads // layer.kv_heads, dim=1) for heads in (k, v))
    scores = layer.softcap * torch.tanh(q @ k.transpose(2, 3) * (layer.scaling / layer.softcap))
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def _project(modules: tuple[HFModule, ...], x: Tensor) -> Tensor:
    """x weight^T + bias [N, out] of `x` [N, in], the outputs of all `modules` side by side, with their adapters."""
    if isinstance(modules[0], LowPrecisionLinear):  # of a copy that writes; it has joined them already
        return modules[0](x)
    adapters = [low_rank_of(module) for module in modules]
    if not any(adapters):
        return linear(x, *weight_and_bias(*modules))
    outputs = []
    for module, adapter in zip(modules, adapters, strict=True):  # joined weights would be kept for the backward pass
        weight, bias = weight_and_bias(module)
        if adapter is None:
            outputs.append(linear(x, weight, bias))
        else:
            outputs.append(adapted_linear(x, weight, bias, adapter.a, adapter.b, adapter.scaling))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _add_mlp(layer: Layer, x: Tensor, residual: Tensor) -> Tensor:
    """`residual` [N, H] plus what the MLP makes of `x` [N, H]."""
    if layer.experts is not None:
        branch = _norm(layer.after_mlp, layer.experts(x.unsqueeze(0)).squeeze(0))
        return torch.add(residual, branch, alpha=layer.residual_multiplier)
    assert layer.down is not None
    return _add_to_residual(layer, layer.down, _gate_and_up(layer, x), residual, layer.after_mlp)


def _gate_and_up(layer: Layer, x: Tensor) -> Tensor:
    """The MLP up to its last matmul: act(x W_up), or act(x W_gate) * (x W_up) where it is gated."""
    projected = [_project((module,), x) for module in layer.up]
    if not layer.gated:
        return layer.activation(projected[0])
    gate, up = projected if len(projected) == 2 else projected[0].chunk(2, dim=-1)
    if layer.activation is F.silu:
        return cast(Tensor, _SwiGLU.apply(gate, up))  # type: ignore[no-untyped-call]
    return layer.activation(gate) * up


def _add_to_residual(layer: Layer, module: nn.Module, x: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
    """`residual` plus the projection of `x` by `module`, which goes through `norm` first if there is one."""
    return torch.add(residual, _norm(norm, _project((module,), x)), alpha=layer.residual_multiplier)


def _norm(module: nn.Module | None, x: Tensor) -> Tensor:
    """`x` after a norm, or as it is where there is none."""
    if module is None:
        return x
    if (weight_eps := rms_norm_weight(module)) is not None:
        return cast(Tensor, _RMSNorm.apply(x, *weight_eps))  # type: ignore[no-untyped-call]
    if (weight_eps := layer_norm_weight(module)) is not None:
        weight, eps = weight_eps
        return F.layer_norm(x, weight.shape, weight, None, eps)
    return cast(Tensor, module(x))


class _RMSNorm(torch.autograd.Function):
    """y = w x / r with r = sqrt(mean(x^2) + eps) over the last axis; d x = (w g - x mean(w g x) / r^2) / r.

    It keeps its input and one number per row for the backward pass; autograd would keep several tensors of that size.
    In bfloat16, x / r is computed in float32 and rounded before it is multiplied by w, as transformers does.
    """

    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))  # the same tensor unless it is in half precision
        # 1 / r. `vecdot` sums x * x without a tensor of all squares.
        inverse: Tensor = torch.linalg.vecdot(exact, exact).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, weight, inverse)
        return (exact * inverse).to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        exact, exact_g = x.to(inverse.dtype), g.to(inverse.dtype)
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = (exact * inverse).mul_(exact_g).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            weighted = exact_g * weight
            along_x = torch.linalg.vecdot(weighted, exact).unsqueeze(-1).mul_(inverse.square()).div_(x.shape[-1])
            x_gradient = weighted.addcmul_(exact, along_x, value=-1.0).mul_(inverse).to(x.dtype)
        return x_gradient, weight_gradient, None


class _Rotary(torch.autograd.Function):
    """`apply_rotary`; a rotation's gradient is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor, rotary: Rotary) -> Tensor:
        ctx.rotary = rotary
        return apply_rotary(x, rotary)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, g: Tensor) -> tuple[Tensor | None, ...]:
        return apply_rotary(g, ctx.rotary.inverse()), None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up; the backward pass computes silu(gate) again instead of keeping it."""

    @staticmethod
    def forward(ctx: AutogradContext, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, g: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(g * up, gate), F.silu(gate).mul_(g)


def _dictionary_order(texts: Int) -> Int:
    """The order of the rows, int64[B], in which rows with long common prefixes are neighbours; padding is -1."""
    # Each row as one string of bytes, which numpy sorts in a single call. Big-endian numbers that are not negative
    # compare as their bytes do, hence texts + 1 and ">u8" (unsigned, 8 bytes, the highest first).
    keys = np.ascontiguousarray((texts + 1).astype(">u8")).view(np.dtype((np.void, 8 * texts.shape[1]))).ravel()
    return np.argsort(keys, kind="stable")


def _bucket_rows(own: Int, shared: Int) -> list[Int]:
    """The rows of every bucket; `own`, `shared` int64[B] count tokens. Rows that add no node are in no bucket.

    Rows without a shared prefix come first and by themselves (the plain causal mask, torch's quickest, serves them).
    The longest come first: a bucket is as wide as its first row, and takes rows until one would be mostly padding.
    """
    groups: list[list[int]] = []
    widest, without_prefix = 0, True
    for row in sorted(np.flatnonzero(own).tolist(), key=lambda row: (shared[row] > 0, -own[row], row)):
        if not groups or (shared[row] == 0) != without_prefix or own[row] < BUCKET_FILL * widest:
            groups.append([])
            widest, without_prefix = int(own[row]), bool(shared[row] == 0)
        groups[-1].append(row)
    return [np.array(group) for group in groups]


def _bucket(group: Int, start: int, own: Int, shared: Int, lengths: Int, nodes: Int, device: torch.device) -> Bucket:
    """The bucket of the rows `group`, whose own nodes begin at `start`; the other arguments as in `prefix_tree`."""
    count, q, k = int(own[group].sum()), int(own[group].max()), int(lengths[group].max())
    query_nodes = unpadded = None
    if count < len(group) * q:
        # Query i of a row is its column shared + i. Behind its end a row repeats its last column, a node that exists.
        columns = np.minimum(shared[group, None] + np.arange(q), lengths[group, None] - 1)
        query_nodes = torch.from_numpy(nodes[group[:, None], columns].reshape(-1)).to(device)
        is_query: Bool = np.arange(q) < own[group, None]
        unpadded = torch.from_numpy(np.flatnonzero(is_query)).to(device)
    return Bucket(
        rows=len(group),
        start=start,
        count=count,
        query_nodes=query_nodes,
        unpadded=unpadded,
        key_nodes=torch.from_numpy(nodes[group, :k].reshape(-1)).to(device),  # node 0 behind the end: the mask hides it
        prefix_lengths=torch.from_numpy(shared[group]).to(device),
        has_prefix=bool(shared[group].any()),
    )
