"""Matmuls of linear layers: by oneDNN where they are large, by torch's default elsewhere.

In float32 on a CPU, torch multiplies matrices with MKL, which does not use the widest instructions of processors that
are not Intel's; oneDNN does. But oneDNN compiles a kernel for every new shape and never frees it, and a run with texts
of all lengths has thousands of shapes. So small matmuls stay with MKL, and so do those whose number of rows is not one
of the round numbers that `round_up` gives: callers pad to one of those. On Intel's processors MKL is as fast or faster
for all of them; there oneDNN only multiplies few rows by large matrices that it has packed.
"""

from __future__ import annotations

from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_env.policies.untyped import AutogradContext
from rlhf_env.processor import is_intel

# oneDNN pays from this many multiplications on, if a shape is used a few times (once per layer).
LARGE_MATMUL = 2**24


# Beside MKL on Intel's processors, packed matrices pay from this many numbers on.
LARGE_FOR_MKL = 2**18


def has_onednn(like: Tensor) -> bool:
    """Whether oneDNN can multiply matrices with the precision and device of `like`, and faster than MKL does."""
    return _is_float32_on_cpu(like) and not mkl_is_quick()


def has_packed(weight: Tensor) -> bool:
    """Whether oneDNN reads weights like this one fastest from blocks of its own: in float32, and in bfloat16 where the
    processor multiplies that."""
    if weight.dtype == torch.bfloat16:
        return has_mkldnn() and weight.device.type == "cpu" and multiplies_bfloat16()
    return _is_float32_on_cpu(weight) and (weight.numel() >= LARGE_FOR_MKL or not mkl_is_quick())


@cache
def mkl_is_quick() -> bool:
    """Whether MKL, where torch has it, uses all that this processor can do."""
    return bool(torch.backends.mkl.is_available()) and is_intel()  # type: ignore[no-untyped-call]


def _is_float32_on_cpu(like: Tensor) -> bool:
    return has_mkldnn() and like.dtype == torch.float32 and like.device.type == "cpu"


def has_mkldnn() -> bool:
    """Whether torch was built with oneDNN."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for matmuls in bfloat16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def round_up(rows: int) -> int:
    """The smallest round number that is at least `rows`.

    Round numbers are the multiples of 8 up to 256, and from there on 16 numbers from each power of 2 to the next.
    """
    return -(-rows // _step(rows)) * _step(rows)  # -(-a // b) is a / b, rounded up


def _step(rows: int) -> int:
    """The distance between round numbers at `rows`: a sixteenth of the largest power of 2 that is at most `rows`."""
    return 8 if rows < 256 else 1 << (rows.bit_length() - 5)


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, [N, out], of `x` [N, in]. Autograd does not see it."""
    return _onednn(x, weight, bias) if _pays(x, weight, rows=len(x)) else F.linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`matmul`, differentiable once."""
    return cast(Tensor, _Linear.apply(x, weight, bias))  # type: ignore[no-untyped-call]


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """x weight^T + bias + scaling (x a^T) b^T, [N, out]: a linear layer with low-rank adapter, differentiable once.

    `a` [r, in], `b` [out, r]. What the adapter adds is computed in the adapter's precision, which is float32 where the
    model's is less, and added in that of `x`.
    """
    return cast(Tensor, _AdaptedLinear.apply(x, weight, bias, a, b, scaling))  # type: ignore[no-untyped-call]


def weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    """The gradient g^T x of the weight, [out, in], for outputs with gradient `g` [N, out] of inputs `x` [N, in]."""
    if not _pays(x, g.t(), rows=len(x)):
        return g.t() @ x
    if x.shape[1] > g.shape[1]:
        return _onednn(g.t(), x.t())
    return _onednn(x.t(), g.t()).t()  # oneDNN is quicker with the larger matrix second


def add_weight_gradient(total: Tensor, g: Tensor, x: Tensor, *, new: bool) -> None:
    """Add `weight_gradient` to `total` [out, in], in place: of a large matrix, making a new one takes as long again.

    `new`: nothing has been added yet, and what stands in `total` does not count.
    """
    total.addmm_(g.t(), x, beta=0 if new else 1)


def _pays(x: Tensor, weight: Tensor, *, rows: int) -> bool:
    """Whether oneDNN is worth it; `rows` is the number that varies from batch to batch."""
    large = x.numel() * weight.shape[0] >= LARGE_MATMUL and rows == round_up(rows)
    return large and x.dtype == weight.dtype and has_onednn(x)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: AutogradContext, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # A frozen weight (below an adapter) has no gradient that would need the input: it is not kept.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return matmul(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            matmul(g, weight.t()) if for_x else None,
            weight_gradient(g, x) if for_weight else None,
            g.sum(0) if for_bias else None,
        )


class _AdaptedLinear(torch.autograd.Function):
    """With h = x a^T [N, r] and the outputs' gradient g, d x = g weight + s (g b) a, d a = s (g b)^T x, d b = s g^T h.

    It keeps x and h; autograd would keep the adapter's own output as well, and pass over the outputs three times more.
    """

    @staticmethod
    def forward(
        ctx: AutogradContext, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        h = F.linear(x.to(a.dtype), a)
        ctx.scaling = scaling
        ctx.save_for_backward(x if ctx.needs_input_grad[1] or ctx.needs_input_grad[3] else None, weight, a, b, h)
        return _add_product(matmul(x, weight, bias), h, b.t(), scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, h = ctx.saved_tensors
        for_x, for_weight, for_bias, for_a, for_b, _ = ctx.needs_input_grad
        exact_g = g.to(b.dtype)
        for_h = torch.mm(exact_g, b).mul_(ctx.scaling) if for_x or for_a else None
        return (
            _add_product(matmul(g, weight.t()), for_h, a, 1.0) if for_x and for_h is not None else None,
            weight_gradient(g, x) if for_weight else None,
            g.sum(0) if for_bias else None,
            torch.mm(for_h.t(), x.to(a.dtype)) if for_a and for_h is not None else None,
            # The narrow matrix first is twice as quick.
            torch.mm(h.t(), exact_g).mul_(ctx.scaling).t() if for_b else None,
            None,
        )


def _add_product(total: Tensor, x: Tensor, y: Tensor, factor: float) -> Tensor:
    """`total` + factor x y, in place; the product is in the precision of `x` and `y`."""
    if total.dtype == x.dtype:
        return total.addmm_(x, y, alpha=factor)
    return total.add_(torch.mm(x, y).mul_(factor))
