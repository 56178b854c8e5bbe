"""The floor of a piece of work: what it takes if all that it needs is done as fast as plain products run here.

Of a matrix product that is the quickest of several plain products of the same shape, which the same process measures
beside the work, or the reading of its weights, whichever takes longer; of attention, its multiplications at the speed
of a plain product or the reading of keys and values, whichever takes longer. Nothing else counts: no norms, no drawing
of tokens, no calls. The distance to the roofline is the floor over the time taken: 1 could not be improved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F

BYTES = {"float32": 4, "float32-mkl": 4, "bfloat16": 2, "int8": 1}
# Beyond these, a row of a product costs the same. Of a large one, fewer are measured: that many multiplications.
MANY, LARGE = 512, 2**31
LONGEST, LEAST_TIMES = 0.01, 3  # of measuring one product: seconds, repeats


@dataclass(frozen=True)
class Shape:
    """What a Llama multiplies."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        return cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.vocab_size,
        )

    @property
    def width(self) -> int:
        return self.hidden // self.heads

    @property
    def layer(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the products of a layer: queries, keys and values; output; gate and up; down."""
        return (
            (self.hidden, (self.heads + 2 * self.kv_heads) * self.width),
            (self.heads * self.width, self.hidden),
            (self.hidden, 2 * self.intermediate),
            (self.intermediate, self.hidden),
        )

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the matrices of a layer one by one, by the names of their modules."""
        keys = self.kv_heads * self.width
        sizes = {"q_proj": (self.hidden, self.hidden), "k_proj": (self.hidden, keys), "v_proj": (self.hidden, keys)}
        sizes |= {"o_proj": (self.hidden, self.hidden), "down_proj": (self.intermediate, self.hidden)}
        return sizes | dict.fromkeys(("gate_proj", "up_proj"), (self.hidden, self.intermediate))

    @property
    def head(self) -> tuple[int, int]:
        return self.hidden, self.vocabulary

    @property
    def weights(self) -> int:
        return self.layers * sum(inner * outer for inner, outer in self.layer) + self.hidden * self.vocabulary


def writing(shape: Shape, kind: str, lengths: Sequence[int], *, prompt: int, per_prompt: int = 1) -> float:
    """Seconds to write answers of these lengths, all at once, to prompts of `prompt` tokens, each read once for
    `per_prompt` answers. `kind`: of the products; keys and values are in float32, or in bfloat16 with it.
    """
    prompts = len(lengths) // per_prompt
    seconds = shape.layers * sum(product(kind, prompts * prompt, *it) for it in shape.layer)
    seconds += product(kind, prompts, *shape.head)
    of_weights = reading(shape.weights * BYTES[kind], BYTES[kind] * shape.weights)
    position = 2 * shape.layers * shape.kv_heads * shape.width * (2 if kind == "bfloat16" else 4)  # bytes of a token
    kept = position * (prompts * prompt + sum(lengths))
    for step in range(1, max(lengths, default=0)):
        rows = sum(length > step for length in lengths)
        products = shape.layers * sum(product(kind, rows, *it) for it in shape.layer) + product(kind, rows, *shape.head)
        # The prompt's keys and values are read once for all of its answers.
        tokens = rows * step + min(rows, prompts) * prompt
        pairs = rows * (prompt + step) * shape.layers * shape.heads * shape.width
        attention = max(reading(position * tokens, kept), 2 * pairs * multiplication())
        seconds += max(products, of_weights) + attention
    return seconds


def learning(
    shape: Shape,
    rows: int,
    *,
    prompt: int,
    answer: int,
    per_prompt: int = 1,
    lora: int = 0,
    targets: Sequence[str] = ("all-linear",),
) -> float:
    """Seconds of one pass forwards and one backwards over `rows` texts in float32, of which `per_prompt` neighbours
    share their prompt; gradients of all weights, or of adapters of rank `lora` on the modules `targets`.
    """
    # A product of the same size each for values, for gradients of inputs, and for gradients of weights.
    seconds = (2 if lora else 3) * reading_texts(shape, rows, prompt=prompt, answer=answer, per_prompt=per_prompt)
    if lora:
        adapted = [sum(size) for name, size in shape.modules.items() if name in targets or "all-linear" in targets]
        small = lora * shape.layers * sum(adapted)
        seconds += 3 * _distinct(rows, prompt, answer, per_prompt) * small * multiplication()
    return seconds


def reading_texts(shape: Shape, rows: int, *, prompt: int, answer: int, per_prompt: int = 1) -> float:
    """Seconds to read `rows` texts in float32 for the log-probabilities of their answers, shared prompts once."""
    tokens = _distinct(rows, prompt, answer, per_prompt)
    products = shape.layers * sum(product("float32", tokens, *it) for it in shape.layer)
    pairs = rows * ((prompt + answer - 1) ** 2 - prompt**2) / 2 + rows // per_prompt * prompt**2 / 2
    attention = 2 * pairs * shape.layers * shape.heads * shape.width * multiplication()
    return products + product("float32", rows * answer, *shape.head) + attention


def _distinct(rows: int, prompt: int, answer: int, per_prompt: int) -> int:
    """The tokens that have to be read; nobody asks what follows the last one of a text."""
    return rows // per_prompt * prompt + rows * (answer - 1)


def product(kind: str, rows: int, inner: int, outer: int) -> float:
    """Seconds of [rows, inner] x [inner, outer], the weights in the processor's cache if they fit."""
    if not rows:
        return 0.0
    many = max(64, min(MANY, 1 << (LARGE // (inner * outer)).bit_length()))
    if rows > many:
        return rows / many * _product(kind, many, inner, outer)
    # Measured for 1, 2, 3, 4, 6, 8, 12, 16, ... rows; between those, a straight line.
    below = 1 << (rows.bit_length() - 1)
    if rows >= below + below // 2 and below > 1:
        below, above = below + below // 2, 2 * below
    else:
        above = below + max(below // 2, 1)
    low = _product(kind, below, inner, outer)
    return (
        low if rows == below else low + (rows - below) / (above - below) * (_product(kind, above, inner, outer) - low)
    )


@cache
def multiplication() -> float:
    """Seconds of a multiplication in a large product in float32."""
    return _product("float32", MANY, 576, 3072) / (MANY * 576 * 3072)


def reading(amount: float, of: float) -> float:
    """Seconds to read `amount` bytes, over and over, out of `of`: from the processor's caches if those fit."""
    size = 1 << max(20, min(28, int(of).bit_length()))
    return amount * _reading(size)


@cache
def _reading(size: int) -> float:
    """Seconds a byte."""
    some = torch.ones(size // 4)
    return _quickest([some.sum, partial(torch.dot, some, some)], least=5) / size


@cache
def _product(kind: str, rows: int, inner: int, outer: int) -> float:
    return _quickest(_plain(kind, torch.randn(rows, inner), torch.randn(outer, inner)))


def _plain(kind: str, x: torch.Tensor, weight: torch.Tensor) -> list[Callable[[], Any]]:
    """The ways to multiply that this processor offers for the kind."""
    if kind == "int8":
        whole, other = (it.mul(20).clamp(-127, 127).to(torch.int8) for it in (x, weight))
        ways: list[Callable[[], Any]] = [partial(torch._int_mm, whole, other.t())]
        with suppress(AttributeError, RuntimeError):  # oneDNN with packed weights, as torch's own quantized layers
            packed, outer = torch.ops.onednn.qlinear_prepack(other, list(whole.shape)), len(weight)
            scales, zeros = torch.ones(outer), torch.zeros(outer, dtype=torch.int64)
            half = torch.float32, "none", [], ""
            ways.append(
                partial(
                    torch.ops.onednn.qlinear_pointwise, whole.view(torch.uint8), 1.0, 0, packed, scales, zeros, None,
                    1.0, 0, *half,
                )
            )  # fmt: skip
            ways[-1]()
        return ways
    if kind == "float32-mkl":
        return [partial(F.linear, x, weight)]  # which is MKL's
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    x, weight = x.to(dtype), weight.to(dtype)
    ways = [partial(F.linear, x, weight)]
    with suppress(AttributeError, RuntimeError):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        ways.append(partial(torch.ops.mkldnn._linear_pointwise, x, packed, None, "none", [], ""))
        ways[-1]()
    return ways


def _quickest(ways: Sequence[Callable[[], Any]], least: int = LEAST_TIMES) -> float:
    """Processor seconds of the quickest way in its quickest run."""
    best = float("inf")
    with torch.inference_mode():
        for way in ways:
            way()
            start, times = time.process_time(), 0
            while times < least or time.process_time() - start < LONGEST:
                # Several at a time: the clock has steps, and short products would be all clock.
                at_once = 1 if best > 1e-3 else 8
                begun = time.process_time()
                for _ in range(at_once):
                    way()
                best = min(best, (time.process_time() - begun) / at_once)
                times += 1
    return best
