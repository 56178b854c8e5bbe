"""What a run needs of memory, estimated before its model is loaded, beside what is free.

Counted are what stays - weights, the reference, what the optimizer keeps - and the larger of what comes and goes:
gradients while it learns; keys, values and the joined copy of the matrices while it writes. Not counted are the
activations of an update, which depend on its texts (`micro_batch_tokens` bounds them, `gradient_checkpointing` lessens
them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.sizes import ModelSize, in_bytes

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes, by what they are for."""

    stays: Mapping[str, int]
    learning: Mapping[str, int]
    writing: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.stays.values()) + max(sum(self.learning.values()), sum(self.writing.values()))

    def __str__(self) -> str:
        more = max(self.learning, self.writing, key=lambda part: sum(part.values()))
        parts = [f"{name} {in_bytes(size)}" for name, size in {**self.stays, **more}.items() if size]
        return f"{in_bytes(self.total)} ({', '.join(parts)}, and activations)"


def memory_need(
    size: ModelSize,
    settings: PolicySettings,
    *,
    trains: bool,
    separate_value_model: bool = False,
    tokens: int = 0,
    teachers: int = 0,
) -> MemoryNeed:
    """Of a run of a model of this size. `tokens`: of all texts that are written side by side, prompts included;
    `teachers`: bytes of the weights of other models, which are frozen."""
    kind = size.kind(settings.torch_dtype)
    weights = size.weights(settings.torch_dtype)
    trained, one = size.parameters, kind.itemsize
    stays = {"weights": weights}
    if settings.lora is not None:
        trained, one = _adapters(size, settings.lora), max(kind.itemsize, 4)  # adapters are in float32 at least
        stays["adapters"] = trained * one
    else:
        stays["reference"] = weights
    stays["teacher"] = teachers
    models = 2 if separate_value_model else 1
    if separate_value_model:
        stays["value model"] = weights if settings.lora is None else trained * one
    learning: dict[str, int] = {}
    if trains:
        finer = max(one, 4)  # of the optimizer: float32 where the weights are in bfloat16
        stays["moments"] = 2 * models * trained * finer
        if one < finer:
            stays["master copy"] = models * trained * finer
        learning["gradients"] = models * trained * (finer if one == finer else finer + one)
    writing = {"keys and values": tokens * size.keys_and_values * kind.itemsize}
    if settings.fused:
        writing["joined matrices"] = sum(inputs * outputs for _, inputs, outputs in size.matrices) * kind.itemsize
    return MemoryNeed(stays, learning, writing)


def fitting_need(size: ModelSize, dtype: torch.dtype, lora: Lora | None) -> MemoryNeed:
    """Of fitting a reward model to a trunk of this size: the weights of the best epoch so far are kept beside."""
    weights, trained, one = size.weights(dtype), size.parameters, dtype.itemsize
    stays = {"weights": weights, "those of the best epoch": weights}
    if lora is not None:
        trained, one = _adapters(size, lora), max(dtype.itemsize, 4)
        stays["adapters"] = trained * one
    return MemoryNeed({**stays, "moments": 2 * trained * one}, {"gradients": trained * one}, {})


def remedies(settings: PolicySettings, *, trains: bool) -> str:
    """What there is to do, of what is not done yet."""
    ways = []
    if trains and settings.lora is None:
        ways.append("[policy.lora] trains adapters alone and needs no second model")
    if settings.torch_dtype in (torch.float32, torch.float64):
        ways.append('dtype = "bfloat16" halves the weights')
    ways.append("a smaller model needs less")
    return "; ".join(ways)


def _adapters(size: ModelSize, lora: Lora) -> int:
    """Numbers in the adapters: [r, in] and [out, r] of every matrix that gets one."""
    adapted = [
        inputs + outputs
        for name, inputs, outputs in size.matrices
        if "all-linear" in lora.targets or any(name == it or name.endswith(f".{it}") for it in lora.targets)
    ]
    return lora.rank * sum(adapted)
