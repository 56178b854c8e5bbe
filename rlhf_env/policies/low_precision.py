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

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WriterDtype = Literal["auto", "int8", "bfloat16"]

# "auto" takes 8 bits from this many multiplications per token on; below, a step costs little but its calls.
WORTH_A_COPY = 2**23

# Rows of a weight that become 8-bit numbers at a time: what is computed on the way stays in the processor's cache.
_ROWS_AT_ONCE = 512
_LARGEST = 127
# Where all values are 0, any scale does; this one keeps 0 / scale a number.
_LEAST_SCALE = 1e-30


def quantized(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of `values` [R, in] as whole numbers int8[R, in] and its scale float32[R, 1]; rounds half to even."""
    scale = values.abs().amax(1, keepdim=True).div_(_LARGEST).clamp_(min=_LEAST_SCALE)
    return (values / scale).round_().to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear layer x [R, in] -> x weight^T + bias in 8 bits, of `weight` [out, in] at the moment it is made.

    It takes and gives numbers in the precision of `x`; scales and what is added are in float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        whole = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
        for start in range(0, len(weight), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            whole[rows], scale = quantized(weight[rows].float())
            scales[rows] = scale.squeeze(1)
        self.weight, self.scales = whole.t(), scales  # [in, out], [out]
        self.bias = None if bias is None else bias.float()

    def forward(self, x: Tensor) -> Tensor:
        product, scale = self._product(x)
        product.mul_(scale)
        return (product if self.bias is None else product.add_(self.bias)).to(x.dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` + x weight^T + bias."""
        product, scale = self._product(x)
        summed = torch.addcmul(residual, product.to(x.dtype), scale.to(x.dtype))
        return summed if self.bias is None else summed.add_(self.bias.to(x.dtype))

    def _product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x weight^T [R, out] but for the scale of each row, and those scales [R, 1], float32 both."""
        whole, scale = quantized(x.float())
        return torch._int_mm(whole, self.weight).float().mul_(self.scales), scale


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
        if self.packed:
            product = torch.ops.mkldnn._linear_pointwise(rounded, self.weight, self.bias, "none", [], "")
            return cast(Tensor, product).to(x.dtype)
        return F.linear(rounded, self.weight, self.bias).to(x.dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual + self(x)


LowPrecisionLinear = Int8Linear | BFloat16Linear


def has_int8() -> bool:
    """Whether this processor multiplies in 8 bits (VNNI), and torch knows how to use it."""
    return _onednn() and bool(torch.cpu._is_vnni_supported())


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16, and torch knows how to use it."""
    return _onednn() and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
