"""Memory for keys and values that grows where it is.

An `Arena` holds blocks [heads, slots, D] for places 0 to P - 1, one behind the other from its first byte on:

    2 places, 1 head, 2 slots     a b | p q . . . .
    the same with 3 slots         a b . | p q . . .

To copy them into larger memory at every growth would need a second copy of one layer, and leave holes of all sizes in
the process's heap, which nothing of another size fits into. So a processor's arena is made with the address space that
may be needed in all, which costs nothing: the operating system gives a page of memory when it is first written. Blocks
move apart from the last one on, some at a time. On a GPU, memory is what is needed now, and larger memory takes its
place.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Bytes that move at a time: there and back, they stay in the processor's cache.
_BYTES_AT_ONCE = 2**20
_LINE = 64  # bytes that a processor reads at once; tensors begin at multiples of it


class Arena:
    """`memory` [places, heads, slots, D], contiguous, with no place at first.

    What was never written is 0; the slots by which places grow may hold what stood elsewhere.
    """

    def __init__(self, heads: int, size: int, like: Tensor) -> None:
        """`size` is D; on the device and in the precision of `like`."""
        self._flat = like.new_empty(0)
        self._like = like
        self.memory = like.new_empty(0, heads, 0, size)

    def __len__(self) -> int:
        """How many places there are."""
        return len(self.memory)

    @property
    def slots(self) -> int:
        return self.memory.shape[2]

    def resize(self, places: int, slots: int, *, expected: tuple[int, int] = (0, 0)) -> None:
        """Have this many places, of which those that there were are the first, and at least as many slots.

        `expected`: the places and slots that may be needed later.
        """
        old, (_, heads, before, size) = self.memory, self.memory.shape
        needed = places * heads * slots * size
        if needed > len(self._flat):
            self._flat = _zeros(needed, max(places, expected[0]) * heads * max(slots, expected[1]) * size, self._like)
            self.memory = self._flat[:needed].view(places, heads, slots, size)
            self.memory[: len(old), :, :before] = old
            return
        if slots > before:
            _move_apart(self._flat, len(old) * heads, before * size, slots * size)
        self.memory = self._flat[:needed].view(places, heads, slots, size)


def _move_apart(flat: Tensor, blocks: int, before: int, now: int) -> None:
    """In the numbers `flat`, put `blocks` of `before` numbers, which stand one behind the other, `now` apart."""
    at_once = max(1, _BYTES_AT_ONCE // max(1, before * flat.element_size()))
    for end in range(blocks, 0, -at_once):  # the last first: what is in the way of a block has moved
        first = max(0, end - at_once)
        moving = flat[first * before : end * before].view(end - first, before).clone()
        flat[first * now : end * now].view(end - first, now)[:, :before] = moving


def _zeros(needed: int, expected: int, like: Tensor) -> Tensor:
    """`needed` zeros or more: on a processor, address space for those that are `expected`, where there is so much."""
    if like.device.type != "cpu":
        return like.new_zeros(needed)
    width, line = like.element_size(), _LINE // like.element_size()
    try:
        bytes_ = np.zeros((expected + line) * width, np.uint8)
    except MemoryError:  # a system that counts address space as memory
        bytes_ = np.zeros((needed + line) * width, np.uint8)
    flat = torch.from_numpy(bytes_).view(like.dtype)
    first = -flat.data_ptr() % _LINE // width
    return flat[first : len(flat) - line + first]
