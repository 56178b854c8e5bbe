"""A preallocated key/value cache: a decode step writes one column instead of copying everything read so far."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from rlhf_env.policies.untyped import HFCache


def preallocated_cache(config: object, slots: int) -> HFCache:
    """A transformers cache for a model of `config`, with memory for `slots` tokens per row; it grows if it must.

    Layers that are not plain attention (recurrent ones, for instance) stay as transformers makes them.
    """
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer(slots) if _is_attention(layer) else layer for layer in cache.layers]
    return cache


def has_slots(cache: HFCache) -> bool:
    """Whether every layer keeps each token in a slot of its own, where it can move; a recurrent state has no slots."""
    return all(isinstance(layer, PreallocatedLayer) for layer in cache.layers)


def rearrange(cache: HFCache, rows: Tensor, columns: Tensor) -> None:
    """In every layer, slot s of row r gets what was in slot `columns[r, s]` of row `rows[r]`.

    `rows` int64[R], `columns` int64[R, slots]. Rows may be named several times or never.
    """
    for layer in cache.layers:
        layer.rearrange(rows, columns)


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values of one layer, in memory [B, heads, slots, D] whose first `length` slots are in use.

    `keys` and `values` are views of the slots in use. A layer with sliding-window attention keeps all tokens too: the
    window is in the attention mask that transformers makes.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.is_initialized = False
        self.slots = slots
        self.length = 0
        self._key_memory = self._value_memory = torch.empty(0)

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Append the keys and values [B, heads, n, D] of n new tokens; returns those of all tokens."""
        start, self.length = self.length, self.length + key_states.shape[-2]
        if not self.is_initialized or self.length > self.slots:
            self.slots = max(self.slots, self.length + self.length // 2)
            self._key_memory = self._allocate(self.keys, key_states)
            self._value_memory = self._allocate(self.values, value_states)
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self._key_memory[:, :, start : self.length] = key_states
        self._value_memory[:, :, start : self.length] = value_states
        return self._in_use()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows `beam_idx`, in that order; a row may be named several times or never."""
        if self.is_initialized:
            self._key_memory = self._key_memory.index_select(0, beam_idx)
            self._value_memory = self._value_memory.index_select(0, beam_idx)
            self._in_use()

    def rearrange(self, rows: Tensor, columns: Tensor) -> None:
        """See `rearrange` above."""
        if self.keys is not None and self.values is not None:
            # [B, heads, slots, D] -> [B, slots, heads, D], so that one index picks row and slot together, and back.
            source = rows[:, None], columns
            keys = self.keys.transpose(1, 2)[source].transpose(1, 2)
            values = self.values.transpose(1, 2)[source].transpose(1, 2)
            self._key_memory, self._value_memory = self._allocate(keys, keys), self._allocate(values, values)
            self._in_use()

    def get_seq_length(self) -> int:
        return self.length

    def _in_use(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self._key_memory[:, :, : self.length], self._value_memory[:, :, : self.length]
        return self.keys, self.values

    def _allocate(self, old: Tensor | None, like: Tensor) -> Tensor:
        """Memory with all slots, for the rows, heads and width of `like`, that begins with a copy of `old`."""
        rows, heads, _, width = like.shape
        memory = like.new_empty(rows, heads, self.slots, width)
        if old is not None:
            memory[:, :, : old.shape[-2]] = old
        return memory


def _is_attention(layer: object) -> bool:
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
