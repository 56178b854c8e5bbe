"""Rotary embeddings as tables by position, in the three layouts that the families have.

A rotary embedding rotates pairs of elements of a query or key by an angle that depends on the position. Families differ
in which elements make a pair: i and i + D/2 (Llama), 2i and 2i + 1 (GLM, Cohere), and in whether the last elements of a
head are left as they are (partial rotary: Phi 3, GLM).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rotary:
    """The rotations of queries and keys of width D at some positions: x cos + (the partner of x) sin."""

    cosine: Tensor
    """[.., 1, D]"""
    sine: Tensor
    """[.., 1, D], negative for the first element of a pair: that one becomes x cos - partner sin, the other
    x cos + partner sin. (With the minus in the table, nothing has to be negated for every query.)"""
    partners: Tensor | None = None
    """int64[D]: the index of the other element of each pair. None: D/2 further on, around the end."""
    from_float32: bool = False
    """Whether queries and keys are rounded to float32 before they are rotated, whatever their precision (Cohere)."""

    def at(self, positions: Tensor) -> Rotary:
        """The rotations at `positions` int64[N], of a table that begins with position 0."""
        return replace(self, cosine=self.cosine[positions], sine=self.sine[positions])

    def inverse(self) -> Rotary:
        """The rotations by the opposite angles."""
        return replace(self, sine=-self.sine)


def rotary_table(
    cosine: Tensor, sine: Tensor, head_size: int, *, interleaved: bool = False, from_float32: bool = False
) -> Rotary:
    """The table of `cosine`, `sine` [positions, R], as the modules of transformers give them, for heads of D elements.

    Where R is less than D, the rest of a head is not rotated. Angles stand there twice, pair by pair if `interleaved`.
    """
    positions, rotated = cosine.shape
    half = rotated // 2
    sign = torch.ones(rotated, dtype=sine.dtype, device=sine.device)
    sign[slice(0, None, 2) if interleaved else slice(0, half)] = -1.0
    rest = (positions, head_size - rotated)
    cosine = torch.cat([cosine, cosine.new_ones(rest)], dim=1)
    sine = torch.cat([sine * sign, sine.new_zeros(rest)], dim=1)
    partners = None
    if interleaved or rotated < head_size:
        partners = torch.arange(head_size, device=cosine.device)
        pairs = partners[:rotated]
        partners[:rotated] = pairs ^ 1 if interleaved else pairs.roll(half)
    return Rotary(cosine.unsqueeze(1), sine.unsqueeze(1), partners, from_float32)


def apply_rotary(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary embedding of `x` [.., heads, D], in the precision of `x`; what `rotary` holds are [.., 1, D].

    Computed in the precision of the table where that is higher, as it is for OLMo in bfloat16.
    """
    precision = x.dtype
    if rotary.from_float32:
        x = x.float()
    if rotary.cosine.dtype != x.dtype:
        x = x.to(torch.promote_types(x.dtype, rotary.cosine.dtype))
    partner = x.roll(x.shape[-1] // 2, -1) if rotary.partners is None else x.index_select(-1, rotary.partners)
    return partner.mul_(rotary.sine).addcmul_(x, rotary.cosine).to(precision)
