"""Whole texts through the layers of the common families, no place twice: what scoring and learning read.

The places of all texts lie in one flat list, padding left out, and a beginning that several texts share (answers to one
prompt, the chosen and the rejected) is there once: norms, projections and MLPs see nothing else. Attention alone looks
at texts again, each place at the places before it in its own text. Gradients flow back along the same ways, so that a
shared place gathers them from all of its texts.

The library's own modules would read padding, and shared beginnings in each row anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlhf_env.policies.anatomy import Anatomy, Layer, root_mean_square, turned, weight_of
from rlhf_env.policies.linear import has_onednn, linear, round_up
from rlhf_env.policies.untyped import AutogradContext
from rlhf_env.types import Bool, Int

# Rows are read side by side whose own places are at least this share of the longest row's: the rest would be padding.
LIKE_LENGTH = 0.6


@dataclass(frozen=True, eq=False)
class Band:
    """Texts that attend side by side: b rows of q own places each, padded to the longest, and k places to look at.

    `start`: of the rows' own places in the flat list, one row after another, `count` of them. `queries` int64[b * q]:
    these places with padding; `kept` int64[count]: where among them the places are; None: all rows own q places.
    `keys` int64[b * k]: what the rows consist of from their beginnings on. `first` int64[b]: how many places of a row
    stand before its own. `square`: each row owns all that it looks at.
    """

    rows: int
    start: int
    count: int
    queries: Tensor | None
    kept: Tensor | None
    keys: Tensor
    first: Tensor
    square: bool

    def visible(self, window: int | None) -> Tensor | None:
        """Which keys a query may look at, bool [b or 1, 1, q, k]; None: those that a plain causal mask shows."""
        if self.square and window is None:
            return None
        wide, long = self._shape
        first = self.first[:1] if bool((self.first == self.first[0]).all()) else self.first
        here = first[:, None, None, None] + torch.arange(wide, device=first.device)[:, None]
        there = torch.arange(long, device=first.device)
        seen = there <= here
        return seen if window is None else seen & (there > here - window)

    @property
    def _shape(self) -> tuple[int, int]:
        own = self.count if self.queries is None else len(self.queries)
        return own // self.rows, len(self.keys) // self.rows


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the places of texts [B, L] lie in a flat list of the N that differ.

    `places` int64[B, L]: of each token (0 on padding); `tokens`, `positions` int64[N]: what stands there, and how far
    from the beginning. Two tokens share a place where everything up to and with them is equal.
    """

    places: Tensor
    tokens: Tensor
    positions: Tensor
    bands: tuple[Band, ...]


def layout_of(tokens: Tensor, mask: Tensor) -> Layout:
    """Of `tokens` int64[B, L], flush left; `mask` bool[B, L], True on text, of which each row has some."""
    device = tokens.device
    texts: Int = np.where(mask.cpu().numpy(), tokens.cpu().numpy(), -1)
    order = _sorted(texts)
    texts = texts[order]
    rows, width = texts.shape
    lengths = (texts >= 0).sum(1)
    equal = (texts[1:] == texts[:-1]) & (texts[1:] >= 0)
    shared = np.concatenate([[0], np.cumprod(equal, axis=1).sum(1)])  # with the row above
    own = lengths - shared
    # What a row shares with the one above it may be that row's own, or shared with one further up.
    owner = np.maximum.accumulate(np.where(np.arange(width) >= shared[:, None], np.arange(rows)[:, None], 0), axis=0)
    groups = _alike(own, shared)
    arranged = np.concatenate(groups)
    base = np.zeros(rows, np.int64)  # where a row's own places begin in the flat list
    base[arranged] = np.cumsum(own[arranged]) - own[arranged]
    places = base[owner] + np.arange(width) - shared[owner]
    places[texts < 0] = 0
    bands = [_band(group, int(base[group[0]]), own, shared, lengths, places, device) for group in groups]
    row_of = np.repeat(arranged, own[arranged])
    positions = np.arange(len(row_of)) - base[row_of] + shared[row_of]
    back = np.empty(rows, np.int64)
    back[order] = np.arange(rows)
    ids = torch.from_numpy(np.stack([texts[row_of, positions], positions])).to(device)
    return Layout(torch.from_numpy(places[back]).to(device), ids[0], ids[1], tuple(bands))


def read(anatomy: Anatomy, layout: Layout, *, keep: list[tuple[Tensor, Tensor]] | None = None) -> Tensor:
    """The states [N, H] after the final norm, place by place; with gradients where they are on.

    `keep` is filled with keys and values [N or more, key_heads, head_size] of each layer.
    """
    like = next(anatomy.norm.parameters())
    count = len(layout.tokens)
    # Places that nobody looks at make up a number of rows that a kernel is kept for.
    spare = round_up(count) - count if has_onednn(like) else 0
    tokens, positions = F.pad(layout.tokens, (0, spare)), F.pad(layout.positions, (0, spare))
    x = anatomy.embed(tokens)
    if anatomy.learned_positions is not None:
        x = x + anatomy.learned_positions(positions)
    angles = {
        name: (cosine[positions], sine[positions])
        for name, (cosine, sine) in anatomy.angles(x, layout.places.shape[1]).items()
    }
    windows = {layer.window for layer in anatomy.layers}
    seen = {window: [band.visible(window) for band in layout.bands] for window in windows}
    for layer in anatomy.layers:
        looked = _attention(layer, _normed(layer.before_attention, x), angles, layout.bands, seen[layer.window], keep)
        x = _added(layer.out, looked, x, layer.after_attention)
        x = _added(layer.down, _activated(layer, _normed(layer.before_mlp, x)), x, layer.after_mlp)
    return _normed(anatomy.norm, x)[:count]


def _attention(
    layer: Layer,
    x: Tensor,
    angles: dict[str, tuple[Tensor, Tensor]],
    bands: tuple[Band, ...],
    seen: list[Tensor | None],
    keep: list[tuple[Tensor, Tensor]] | None,
) -> Tensor:
    """[N, heads * head_size]: what every place of `x` [N, H] sees in its text up to itself."""
    heads, both = layer.heads, layer.heads + layer.key_heads
    projected = linear(x, *weight_of(*layer.qkv)).view(len(x), -1, layer.head_size)
    looking, values = projected[:, :both], projected[:, both:]
    if layer.norms is not None:
        queries, keys = _normed(layer.norms[0], looking[:, :heads]), _normed(layer.norms[1], looking[:, heads:])
        looking = torch.cat([queries, keys], dim=1)
    if layer.rotation is not None:
        looking = cast(Tensor, _Turn.apply(looking, *angles[layer.rotation]))  # type: ignore[no-untyped-call]
    queries, keys = looking[:, :heads], looking[:, heads:]
    if keep is not None:
        keep.append((keys, values))  # with spare places at the end
    found = []
    for band, visible in zip(bands, seen, strict=True):
        own = queries[band.start : band.start + band.count]
        if band.queries is not None:
            own = queries.index_select(0, band.queries)
        q, k, v = (
            part.view(band.rows, -1, *part.shape[1:]).transpose(1, 2)
            for part in (own, keys.index_select(0, band.keys), values.index_select(0, band.keys))
        )
        out = _seen(layer, q, k, v, visible).transpose(1, 2).flatten(0, 1).flatten(1)
        found.append(out if band.kept is None else out.index_select(0, band.kept))
    spare = len(x) - sum(map(len, found))
    if spare:
        found.append(found[0].new_zeros(spare, found[0].shape[1]))
    return found[0] if len(found) == 1 else torch.cat(found)


def _seen(layer: Layer, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """[b, heads, q, D]; `visible` bool[b or 1, 1, q, k], None for the plain causal mask."""
    grouped = layer.heads != layer.key_heads
    if layer.softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=visible is None, scale=layer.scaling, enable_gqa=grouped
        )
    if grouped:
        k, v = (part.repeat_interleave(layer.heads // layer.key_heads, dim=1) for part in (k, v))
    scores = layer.softcap * torch.tanh(q @ k.transpose(2, 3) * (layer.scaling / layer.softcap))
    if visible is None:
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v


def _activated(layer: Layer, x: Tensor) -> Tensor:
    image = [linear(x, *weight_of(module)) for module in layer.up]
    if not layer.gated:
        return layer.activation(image[0])
    if layer.activation is F.silu:
        return cast(Tensor, _Swiglu.apply(*image))  # type: ignore[no-untyped-call]
    return layer.activation(image[0]) * image[1]


def _added(module: nn.Module, x: Tensor, residual: Tensor, norm: nn.Module | None) -> Tensor:
    """`residual` plus the image of `x`, normed if there is a norm."""
    image = linear(x, *weight_of(module))
    return residual + (image if norm is None else _normed(norm, image))


def _normed(module: nn.Module, x: Tensor) -> Tensor:
    found = root_mean_square(module)
    if found is None:
        return cast(Tensor, module(x))
    return cast(Tensor, _RootMeanSquare.apply(x, *found))  # type: ignore[no-untyped-call]


class _RootMeanSquare(torch.autograd.Function):
    """y = w x / r with r = sqrt(mean(x^2) + eps) over the last axis; d x = (w g - x mean(w g x) / r^2) / r."""

    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse: Tensor = torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        to_x = to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = (x * inverse).mul_(g).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            scaled = g * weight
            back = torch.linalg.vecdot(scaled, x).unsqueeze(-1).mul_(inverse.square()).div_(x.shape[-1])
            to_x = scaled.addcmul_(x, back, value=-1.0).mul_(inverse)
        return to_x, to_weight, None


class _Turn(torch.autograd.Function):
    """`turned`; backwards, by the opposite angle."""

    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return turned(x, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, g: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        return turned(g, cosine, -sine), None, None


class _Swiglu(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: AutogradContext, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, g: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(g * up, gate), F.silu(gate).mul_(g)


def _sorted(texts: Int) -> Int:
    """An order of the rows in which those with the longest common beginnings are neighbours."""
    # Big-endian numbers of one sign compare as their bytes do.
    keys = np.ascontiguousarray((texts + 1).astype(">u8")).view(np.dtype((np.void, 8 * texts.shape[1]))).ravel()
    return np.argsort(keys, kind="stable")


def _alike(own: Int, shared: Int) -> list[Int]:
    """The rows that own any place, in groups that can attend side by side: `own` and `shared` int64[B] places."""
    groups: list[list[int]] = []
    longest, whole = 0, True
    for row in sorted(np.flatnonzero(own).tolist(), key=lambda row: (shared[row] > 0, -own[row], row)):
        if not groups or (shared[row] == 0) != whole or own[row] < LIKE_LENGTH * longest:
            groups.append([])
            longest, whole = int(own[row]), bool(shared[row] == 0)
        groups[-1].append(row)
    return [np.array(group) for group in groups]


def _band(group: Int, start: int, own: Int, shared: Int, lengths: Int, places: Int, device: torch.device) -> Band:
    count, wide, long = int(own[group].sum()), int(own[group].max()), int(lengths[group].max())
    queries = kept = None
    if count < len(group) * wide:
        inside: Bool = np.arange(wide) < own[group, None]
        columns = np.minimum(shared[group, None] + np.arange(wide), lengths[group, None] - 1)
        queries = torch.from_numpy(places[group[:, None], columns].reshape(-1)).to(device)
        kept = torch.from_numpy(np.flatnonzero(inside)).to(device)
    return Band(
        rows=len(group),
        start=start,
        count=count,
        queries=queries,
        kept=kept,
        keys=torch.from_numpy(places[group, :long].reshape(-1)).to(device),
        first=torch.from_numpy(shared[group]).to(device),
        square=not shared[group].any(),
    )
