"""Tensors of which each of several processes holds a part: torch's DTensor, divided along the first axis by FSDP2.

torch.distributed is imported only where there is such a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor


def is_shard(value: object) -> TypeGuard[Any]:
    """Whether it is a tensor of which this process holds a part."""
    return isinstance(value, Tensor) and hasattr(value, "placements")


def part_of(tensor: Tensor) -> Tensor:
    """What of a tensor is here, in the same memory: all of it, or this process's part."""
    if not is_shard(tensor):
        return tensor.detach()
    part: Tensor = tensor.detach().to_local()
    return part


def cut_like(whole: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor the part that is here of `like`, which has its shape."""
    if not is_shard(like):
        return whole
    if is_shard(whole):
        return part_of(whole)
    parts = whole.chunk(like.device_mesh.size(), dim=0)  # fewer than processes, where there are fewer rows
    rank = like.device_mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else whole[:0]


def joined_like(part: Tensor, like: Tensor) -> Tensor:
    """`part`, as the part that is here of a tensor with the shape of `like`; the memory stays where it is."""
    if not is_shard(like) or is_shard(part):
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def has_shards(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(has_shards, value.values()))
    return any(map(has_shards, value)) if isinstance(value, (list, tuple)) else is_shard(value)


def made_whole(value: Any, *, keep: bool) -> Any:
    """The same nested state with whole tensors, on the processor; all processes call it alike, one tensor at a time is
    whole. Where not `keep`, None stands for them. Tensors that shared their memory share it again."""
    return _gathered(value, keep, {})


def _gathered(value: Any, keep: bool, known: dict[tuple[object, ...], Tensor]) -> Any:
    if isinstance(value, Mapping):
        return {name: _gathered(item, keep, known) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_gathered(item, keep, known) for item in value]
    if not is_shard(value):
        return value
    with torch.no_grad():
        whole = value.detach().full_tensor()
    if not keep:
        return None
    memory = value.to_local().data_ptr(), value.shape, value.dtype
    return known.setdefault(memory, whole.cpu()) if value.to_local().numel() else whole.cpu()
