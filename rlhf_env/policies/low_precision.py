"""Linear layers in 8 or 16 bits, of which a copy of a policy is made that writes its texts.

A text that such a copy writes is a text of another policy, which is known exactly: the copy states its own
log-probabilities, and importance ratios between policy and copy correct what is learned from the text.

In 8 bits, a weight [out, in] is stored as whole numbers from -127 to 127 and one scale per output, and the inputs
become such numbers with one scale per row while the copy writes:

    y[r, o] = sum_i q_x[r, i] q_w[o, i] * s_x[r] * s_w[o]        q = round(value / s), s = max |value| / 127

The sum is one of whole numbers and exact. A row has a scale of its own, so what it writes does not depend on the rows
beside it. (Dettmers et al. 2022, LLM.int8(), arXiv 2208.07339, section 2.1, without its outliers.) The products are
oneDNN's, by `torch._int_mm`, as in torchao: it needs no packed copy of the weight, so that making the copy is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.policies.linear import has_packed
from rlhf_env.policies.untyped import HFModel

WriterDtype = Literal["auto", "int8", "bfloat16"]

# "auto" makes a copy of models of this many weights or more: in smaller ones, a step costs little but its calls.
WORTH_A_COPY = 2**23

# Rows of a weight that become 8-bit numbers at a time, and rows of inputs that are multiplied at a time: what is
# computed on the way stays in the processor's cache.
_ROWS_AT_ONCE, _INPUTS_AT_ONCE = 512, 256
_LARGEST = 127
# Where all values are 0, any scale does; this one keeps 0 / scale a number.
_LEAST_SCALE = 1e-30


def quantized(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of `values` [R, in] as whole numbers int8[R, in] and its scale [R, 1]; rounds half to even."""
    scale = values.abs().amax(1, keepdim=True).div_(_LARGEST).clamp_(min=_LEAST_SCALE)
    return (values / scale).round_().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear layer x [R, in] -> x weight^T + bias in 8 bits, of `weight` [out, in] at the moment it is made.

    Everything but the whole numbers is in the precision of `x`, but at least float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        whole = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scales = torch.empty(len(weight), dtype=_computed_in(weight), device=weight.device)
        for start in range(0, len(weight), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            whole[rows], scale = quantized(weight[rows].to(scales.dtype))
            scales[rows] = scale.squeeze(1)
        self.weight, self.scales = whole.t(), scales  # [in, out], [out]
        self.bias = None if bias is None else bias.to(scales.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > _INPUTS_AT_ONCE:
            return torch.cat([self(part) for part in torch.split(x, _INPUTS_AT_ONCE)])
        product, scale = self._product(x)
        product.mul_(scale)
        if self.bias is not None:
            product.add_(self.bias)
        return product.to(x.dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` + x weight^T + bias."""
        product, scale = self._product(x)
        if product.dtype == residual.dtype:
            summed = torch.addcmul(residual, product, scale)
        else:
            summed = residual + product.mul_(scale).to(residual.dtype)
        return summed if self.bias is None else summed.add_(self.bias.to(residual.dtype))

    def _product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x weight^T [R, out] but for the scale of each row, and those scales [R, 1]."""
        whole, scale = quantized(x.to(_computed_in(x)))
        return torch._int_mm(whole, self.weight).to(scale.dtype).mul_(self.scales), scale


def _computed_in(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


class BFloat16Linear(nn.Module):
    """A linear layer in bfloat16, for inputs and outputs in another precision; see `Int8Linear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight.bfloat16()
        self.bias = None if bias is None else bias.bfloat16()
        self.packed = weight.device.type == "cpu" and has_bfloat16()
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, 32)  # 32: how many rows to expect

    def forward(self, x: Tensor) -> Tensor:
        rounded = x.bfloat16()
        product: Tensor
        if self.packed:
            product = torch.ops.mkldnn._linear_pointwise(rounded, self.weight, self.bias, "none", [], "")
            return product.to(x.dtype)
        product = F.linear(rounded, self.weight, self.bias)
        return product.to(x.dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return torch.add(residual, self(x))


LowPrecisionLinear = Int8Linear | BFloat16Linear


def writer_linear(wanted: WriterDtype | None, model: HFModel) -> type[LowPrecisionLinear] | None:
    """The linear layers of the copy that writes the texts of `model`; None: the model writes them itself.

    It does where nobody `wanted` a copy, where its own precision is the one that is wanted, on another device than the
    processor, and on a processor that has no such instructions; with "auto" also where a copy is not worth it.
    """
    weight = next(iter(model.parameters()))
    if wanted is None or weight.device.type != "cpu":
        return None
    if wanted == "auto":
        large = sum(it.numel() for it in model.parameters()) >= WORTH_A_COPY
        if not large or weight.dtype == torch.float64:  # float64 is for exactness
            return None
        wanted = "int8" if has_int8() else "bfloat16"
    if wanted == "int8":
        return Int8Linear if has_int8() else None
    return BFloat16Linear if has_bfloat16() and weight.dtype != torch.bfloat16 else None


def fallback(wanted: WriterDtype | None, device: str) -> str | None:
    """What to tell a user who `wanted` a copy that cannot be had on this `device`, in one line; None: nothing."""
    can = {"int8": has_int8, "bfloat16": has_bfloat16}
    if wanted not in can or (device == "cpu" and can[wanted]()):
        return None
    why = "this processor has no instructions for it" if device == "cpu" else f"the model is on {device}, not the CPU"
    return f'[policy] writer_dtype = "{wanted}": {why}, so texts are written in the policy\'s own precision'


def require_known(wanted: WriterDtype | None, model: HFModel, *, fused: bool, known: bool) -> None:
    """Raise ConfigError for a copy of a model that `FusedStep` does not know, or may not be used for."""
    if wanted in (None, "auto") or (fused and known):
        return
    why = f"{type(model).__name__} is none of the families that a copy can be made of" if fused else "fused is false"
    raise ConfigError(Problem(f'writer_dtype = "{wanted}": {why}: leave it out', ("writer_dtype",)))


@contextmanager
def writing_exactly(*policies: object) -> Iterator[None]:
    """Inside, every policy that a copy in low precision writes for writes its texts itself."""
    copied = [(policy, policy.writer_dtype) for policy in policies if isinstance(policy, HasWriter)]
    for policy, _ in copied:
        policy.writer_dtype = None
    try:
        yield
    finally:
        for policy, wanted in copied:
            policy.writer_dtype = wanted


def copy_writes(policy: object) -> bool:
    """Whether texts of `policy` written now come from a copy of it, whose log-probabilities are not quite its own."""
    return isinstance(policy, HasWriter) and policy.copy_writes


@runtime_checkable
class HasWriter(Protocol):
    """A policy that a copy of it may write for."""

    writer_dtype: WriterDtype | None

    @property
    def copy_writes(self) -> bool:
        """Whether texts written now come from a copy, whose log-probabilities are not quite the policy's."""


def has_int8() -> bool:
    """Whether this processor multiplies in 8 bits (VNNI), and torch knows how to use it."""
    built_in = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return built_in and bool(torch.cpu._is_vnni_supported())


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16, and torch knows how to use it."""
    return has_packed(torch.empty(0, dtype=torch.bfloat16))
