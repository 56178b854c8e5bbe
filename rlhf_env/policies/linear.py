"""Linear maps of many rows by oneDNN, where the rows are many enough.

In float32 on a CPU, torch multiplies matrices by MKL, which on processors of other makers than its own leaves their
widest instructions unused; oneDNN uses them. It compiles a kernel for every new shape and keeps it for ever: small
products stay where they are, and so do those of a number of rows that is not `round_up` of itself, of which a run of
uneven texts would have thousands.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_env.policies.untyped import AutogradContext

# Multiplications from which on it pays, a shape being used a few times (once per layer).
LARGE_PRODUCT = 2**24


def has_onednn(like: Tensor) -> bool:
    """Whether oneDNN can take matrices like this one."""
    built_in = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return built_in and like.dtype == torch.float32 and like.device.type == "cpu"


def round_up(rows: int) -> int:
    """The next of 16 numbers between two powers of 2 (of all multiples of 8 below 256)."""
    return -(-rows // _step(rows)) * _step(rows)


def round_down(rows: int) -> int:
    """The one before; `rows` themselves where they are fewer than 8."""
    return rows // _step(rows) * _step(rows) or rows


def _step(rows: int) -> int:
    return 8 if rows < 256 else 1 << (rows.bit_length() - 5)


def image(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, in] -> x weight^T + bias, [N, out]. Without gradients."""
    return _product(x, weight, bias) if _pays(x, weight, rows=len(x)) else F.linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`image` with gradients, once."""
    return cast(Tensor, _Linear.apply(x, weight, bias))  # type: ignore[no-untyped-call]


def weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    """g^T x, [out, in], of `g` [N, out] and `x` [N, in]."""
    if not _pays(x, g.t(), rows=len(x)):
        return g.t() @ x
    if x.shape[1] > g.shape[1]:
        return _product(g.t(), x.t())
    return _product(x.t(), g.t()).t()  # this way round it is the quicker one


def _pays(x: Tensor, weight: Tensor, *, rows: int) -> bool:
    large = x.numel() * weight.shape[0] >= LARGE_PRODUCT and rows == round_up(rows)
    return large and x.dtype == weight.dtype and has_onednn(x)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return image(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            image(g, weight.t()) if to_x else None,
            weight_gradient(g, x) if to_weight else None,
            g.sum(0) if to_bias else None,
        )
