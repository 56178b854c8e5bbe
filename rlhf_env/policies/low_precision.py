"""Linear layers in 8 or 16 bits, of which a copy of a policy is made that writes its texts.

A text that such a copy writes is a text of another policy, which is known exactly: the copy states its own
log-probabilities, and importance ratios between policy and copy correct what is learned from the text.

In 8 bits, a weight [out, in] is stored as whole numbers from -127 to 127 and one scale per output, and the inputs
become such numbers with one scale per row while the copy writes:

    y[r, o] = sum_i q_x[r, i] q_w[o, i] * s_x[r] * s_w[o]        q = round(value / s), s = max |value| / 127

The sum is one of whole numbers and exact. A row has a scale of its own, so what it writes does not depend on the rows
beside it. (Dettmers et al. 2022, LLM.int8(), arXiv 2208.07339, section 2.1, without its outliers.) The products are
oneDNN's, in two ways with the same results: `torch._int_mm`, as in torchao, needs no packed copy of the weight, so that
making the copy is cheap; `onednn.qlinear_pointwise`, as in torch's inductor, is quicker, but packing costs as much
as it gains in some 60 steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.policies.linear import has_mkldnn, has_packed
from rlhf_env.policies.policy import TextWriter
from rlhf_env.policies.untyped import HFModel

WriterDtype = Literal["auto", "int8", "bfloat16"]

# "auto" makes a copy of models of this many weights or more: in smaller ones, a step costs little but its calls.
WORTH_A_COPY = 2**23

# From this many steps of writing on, weights in 8 bits of this many numbers or more are packed.
WORTH_PACKING, LARGE_ENOUGH_TO_PACK = 96, 2**20

# Numbers of a weight that become 8-bit numbers at a time, and rows of inputs that are multiplied at a time: what is
# computed on the way stays in the processor's cache.
_NUMBERS_AT_ONCE, _INPUTS_AT_ONCE = 2**16, 256
_LARGEST, _SHIFT = 127, 128
# Where all values are 0, any scale does; this one keeps 0 / scale a number. (Two axes: without them, the precision of
# the result would be that of the other summand, even where that is bfloat16.)
_LEAST_SCALE = torch.full((1, 1), 1e-30)


@dataclass(frozen=True, eq=False)
class RowsIn8Bits:
    """Rows of `numbers` [R, in], whole ones from -127 to 127 that are not yet int8, times the `scale` [R, 1] of each.

    Whatever multiplies rows in 8 bits takes them so as well: a norm gives them, and its products share them.
    """

    numbers: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def dtype(self) -> torch.dtype:
        """Of what a layer makes of them."""
        return self.scale.dtype


def in_8_bits(values: Tensor) -> RowsIn8Bits:
    """Each row of `values` [R, in] in 8 bits; rounds half to even."""
    scale = torch.add(_LEAST_SCALE, values.abs().amax(1, keepdim=True), alpha=1 / _LARGEST)
    return RowsIn8Bits(torch.div(values, scale).round_(), scale)


class RMSNormIn8Bits:
    """An RMS norm whose result is in 8 bits. What each row is divided by goes into its scale, which is all that it
    changes: the whole numbers are those of x times the weight.

        x w / sqrt(mean(x^2) + eps) = x w sqrt(H) / hypot(|x|, sqrt(H eps))
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight * len(weight) ** 0.5
        self.beside = torch.tensor((len(weight) * eps) ** 0.5, dtype=weight.dtype)

    def __call__(self, x: Tensor) -> RowsIn8Bits:
        rows = in_8_bits(x * self.weight)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return RowsIn8Bits(rows.numbers, rows.scale.div_(length.hypot_(self.beside)))


class Int8Linear:
    """A linear layer x [R, in] -> x weight^T + bias in 8 bits, of `weight` [out, in] at the moment it is made.

    Everything but the whole numbers is in the precision of `x`, but at least float32.
    """

    def __init__(self, weight: Tensor | Sequence[Tensor], bias: Tensor | None) -> None:
        """`weight`: one matrix, or several [out', in] of which this layer has all outputs."""
        weights = [weight] if isinstance(weight, Tensor) else weight
        outputs, inputs = sum(map(len, weights)), weights[0].shape[1]
        self.dtype, self.exact = weights[0].dtype, _computed_in(weights[0])
        whole = torch.empty(outputs, inputs, dtype=torch.int8)
        scales = torch.empty(outputs, dtype=self.exact)
        start = 0
        for few in (few for it in weights for few in torch.split(it, max(1, _NUMBERS_AT_ONCE // inputs))):
            rows, part = in_8_bits(few.to(self.exact)), slice(start, start := start + len(few))
            whole[part], scales[part] = rows.numbers, rows.scale.squeeze(1)
        self.weight, self.scales = self._stored(whole), scales
        self.bias = None if bias is None else bias.to(self.exact)

    def __call__(self, x: Tensor | RowsIn8Bits) -> Tensor:
        if len(x) > _INPUTS_AT_ONCE and isinstance(x, Tensor):
            return torch.cat([self(part) for part in torch.split(x, _INPUTS_AT_ONCE)])
        rows = self._rows(x)
        product = self._product(rows.numbers).mul_(rows.scale)
        if self.bias is not None:
            product.add_(self.bias)
        return product.to(self.dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """`residual` + x weight^T + bias."""
        if residual.dtype != self.exact:
            return residual + self(x)
        rows = self._rows(x)
        summed = torch.addcmul(residual, self._product(rows.numbers), rows.scale)
        return summed if self.bias is None else summed.add_(self.bias)

    def gated(self, x: Tensor | RowsIn8Bits, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """activation(gate) * up, where x weight^T + bias has gate and up side by side."""
        gate, up = self(x).chunk(2, dim=-1)
        return activation(gate).mul_(up)

    def _rows(self, x: Tensor | RowsIn8Bits) -> RowsIn8Bits:
        return x if isinstance(x, RowsIn8Bits) else in_8_bits(x if x.dtype == self.exact else x.to(self.exact))

    def _stored(self, whole: Tensor) -> Tensor:
        """The weight as `_product` reads it, of int8[out, in]."""
        return whole.t()

    def _product(self, numbers: Tensor) -> Tensor:
        """x weight^T [R, out], but for the scale of each row."""
        return torch._int_mm(numbers.to(torch.int8), self.weight).to(self.exact).mul_(self.scales)


class PackedInt8Linear(Int8Linear):
    """The same, bit for bit, with a weight that is large in the blocks in which oneDNN reads it. Float32 alone.

    oneDNN then multiplies by the scales of the weight while it adds up. The processor's instructions multiply numbers
    without a sign by numbers with one, so that inputs are stored as 128 more, which oneDNN takes off again: given int8,
    it would take a path without these instructions, which is a thousand times as slow.
    """

    def _stored(self, whole: Tensor) -> Tensor:
        self.packed = whole.numel() >= LARGE_ENOUGH_TO_PACK
        if not self.packed:
            return super()._stored(whole)
        self._zeros = torch.zeros(len(whole), dtype=torch.int32)
        # Contiguous: of any other tensor, the operator reads the memory as if it were.
        return cast(Tensor, torch.ops.onednn.qlinear_prepack(whole.contiguous(), None))

    def _product(self, numbers: Tensor) -> Tensor:
        if not self.packed:
            return super()._product(numbers)
        shifted = torch.add(numbers, _SHIFT).to(torch.uint8)
        weight = self.weight, self.scales, self._zeros
        # No bias, an output that is not in 8 bits, and nothing after it.
        product = torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, _SHIFT, *weight, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return cast(Tensor, product)


def _computed_in(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)


class BFloat16Linear:
    """A linear layer in bfloat16, for inputs and outputs in another precision; see `Int8Linear`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.dtype = weight.dtype
        self.weight = weight.bfloat16()
        self.bias = None if bias is None else bias.bfloat16()
        self.packed = weight.device.type == "cpu" and has_bfloat16()
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, 32)  # 32: how many rows to expect

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x).to(self.dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return torch.add(residual, self._product(x))

    def gated(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        gate, up = self._product(x).chunk(2, dim=-1)
        return activation(gate).mul_(up)

    def _product(self, x: Tensor) -> Tensor:
        """In bfloat16."""
        rounded = x.bfloat16()
        if self.packed:
            product = torch.ops.mkldnn._linear_pointwise(rounded, self.weight, self.bias, "none", [], "")
            return cast(Tensor, product)
        return F.linear(rounded, self.weight, self.bias)


LowPrecisionLinear = Int8Linear | BFloat16Linear


def writer_linear(wanted: WriterDtype | None, model: HFModel, *, steps: int = 0) -> type[LowPrecisionLinear] | None:
    """The linear layers of the copy that writes `steps` tokens of texts of `model`; None: the model writes them itself.

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
        wanted = "bfloat16"  # 8 bits are quicker still, and on some models far from the policy
    if wanted == "int8":
        packs = steps >= WORTH_PACKING and weight.dtype != torch.float64
        return (PackedInt8Linear if packs else Int8Linear) if has_int8() else None
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
    """Inside, every policy that a copy in low precision, or another engine, writes for writes its texts itself."""
    written = [(policy, policy.writer_dtype, policy.writer) for policy in policies if isinstance(policy, HasWriter)]
    for policy, _, writer in written:
        policy.writer_dtype, policy.writer = None, None if writer is None or writer.of_training else writer
    try:
        yield
    finally:
        for policy, dtype, writer in written:
            policy.writer_dtype, policy.writer = dtype, writer


def copy_writes(policy: object) -> bool:
    """Whether texts of `policy` written now come from a copy of it, or from another engine with its weights: their
    log-probabilities are not quite its own."""
    return isinstance(policy, HasWriter) and policy.copy_writes


def other_writer(policy: object) -> TextWriter | None:
    """The engine that writes in the place of `policy` now, if one does."""
    return policy.writer if isinstance(policy, HasWriter) else None


@runtime_checkable
class HasWriter(Protocol):
    """A policy that a copy of it, or another engine, may write for."""

    writer_dtype: WriterDtype | None
    writer: TextWriter | None

    @property
    def copy_writes(self) -> bool:
        """Whether texts written now are not its own, so that their log-probabilities are not quite the policy's."""


def has_int8() -> bool:
    """Whether this processor multiplies in 8 bits (VNNI), and torch knows how to use it."""
    return has_mkldnn() and bool(torch.cpu._is_vnni_supported())


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16, and torch knows how to use it."""
    return has_packed(torch.empty(0, dtype=torch.bfloat16))
