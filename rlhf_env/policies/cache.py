"""A key-value cache with room to grow: a step writes one column instead of copying everything read so far."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from rlhf_env.policies.untyped import HFCache


def roomy_cache(config: object, slots: int) -> HFCache:
    """A transformers cache for a model of `config`, with room for `slots` positions before it has to move.

    Layers that are no plain attention (recurrent ones, say) stay as transformers makes them.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(slots) if _is_attention(layer) else layer for layer in cache.layers]
    return cache


def is_movable(cache: HFCache) -> bool:
    """Whether positions can change their slots: not so in a recurrent state."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def flush_right(cache: HFCache, rows: Tensor, columns: Tensor) -> None:
    """Rearrange every layer: `rows` [R] names the row, `columns` [R, slots] the slot, that each comes from."""
    for layer in cache.layers:
        layer.rearrange(rows, columns)


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values of one layer, [B, heads, slots, D], of which the first `length` slots are in use.

    A sliding-window layer keeps all positions too: the window is in the attention mask that transformers derives.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.is_initialized = False
        self.slots = slots
        self.length = 0
        self._key_room = self._value_room = torch.empty(0)

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Take in new positions, [B, heads, n, D]; returns everything held."""
        start, self.length = self.length, self.length + key_states.shape[-2]
        if not self.is_initialized or self.length > self.slots:
            self.slots = max(self.slots, self.length + self.length // 2)
            self._key_room = self._moved(self.keys, key_states)
            self._value_room = self._moved(self.values, value_states)
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self._key_room[:, :, start : self.length] = key_states
        self._value_room[:, :, start : self.length] = value_states
        return self._in_use()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows `beam_idx`, in that order; a row may be named many times or never."""
        if self.is_initialized:
            self._key_room = self._key_room.index_select(0, beam_idx)
            self._value_room = self._value_room.index_select(0, beam_idx)
            self._in_use()

    def rearrange(self, rows: Tensor, columns: Tensor) -> None:
        if self.keys is not None and self.values is not None:
            origin = rows[:, None], columns
            self._hold(
                self.keys.transpose(1, 2)[origin].transpose(1, 2), self.values.transpose(1, 2)[origin].transpose(1, 2)
            )

    def get_seq_length(self) -> int:
        return self.length

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        self._key_room, self._value_room = self._moved(keys, keys), self._moved(values, values)
        self._in_use()

    def _in_use(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = self._key_room[:, :, : self.length], self._value_room[:, :, : self.length]
        return self.keys, self.values

    def _moved(self, old: Tensor | None, like: Tensor) -> Tensor:
        """New room, of the rows, heads and width of `like`, that begins with `old`."""
        rows, heads, _, width = like.shape
        room = like.new_empty(rows, heads, self.slots, width)
        if old is not None:
            room[:, :, : old.shape[-2]] = old
        return room


def _is_attention(layer: object) -> bool:
    return type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
