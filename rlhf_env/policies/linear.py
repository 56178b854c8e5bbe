"""Linear maps of many rows by oneDNN, where the rows are many enough.

In float32 on a CPU, torch multiplies matrices by MKL, which on processors of other makers than its own leaves their
widest instructions unused: on a Zen 5 core oneDNN took 0.4 to 0.45 of its time for the products of a training step. On
Intel's they are about even. oneDNN compiles a kernel for every new shape (some 0.5 ms), so that small products stay
where they are.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Multiplications from which on it pays, a shape being used a few times (once per layer).
LARGE_PRODUCT = 2**24


def has_onednn(like: Tensor) -> bool:
    """Whether oneDNN can take matrices like this one."""
    built_in = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return built_in and like.dtype == torch.float32 and like.device.type == "cpu"


def image(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, in] -> x weight^T + bias, [N, out]. Without gradients."""
    if x.dtype == weight.dtype and len(x) * weight.numel() >= LARGE_PRODUCT and has_onednn(x):
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
    return F.linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`image` with gradients, once."""
    return cast(Tensor, _Linear.apply(x, weight, bias))  # type: ignore[no-untyped-call]


def weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    """g^T x, [out, in], of `g` [N, out] and `x` [N, in]."""
    if x.shape[1] > g.shape[1]:
        return image(g.t(), x.t())
    return image(x.t(), g.t()).t()  # this way round it is the quicker one


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return image(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            image(g, weight.t()) if to_x else None,
            weight_gradient(g, x) if to_weight else None,
            g.sum(0) if to_bias else None,
        )
