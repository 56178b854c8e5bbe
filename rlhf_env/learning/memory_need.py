"""What a run needs of memory, estimated before its model is loaded, beside what is free.

Counted are what stays - weights, the reference, what the optimizer keeps - and the larger of what comes and goes: while
it learns, gradients, activations and logits; while it writes, keys, values and the joined copy of the matrices. Where
processes divide the model among them (`[engine] shard`), each has its part of what stays and of the gradients; what is
gathered comes on top: while it learns, what is in no layer (embeddings and head), one layer, and their gradients; while
it writes, the whole model. Checkpoints take memory of the process that writes them, and not a GPU's.

`benchmarks/memory_arithmetic.py` prints it beside what runs take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.lora_settings import Lora
from rlhf_env.policies.lm_head import LOGITS_KEPT
from rlhf_env.policies.sizes import ModelSize, in_bytes

_HALF = (torch.bfloat16, torch.float16)
_LOGITS_DRAWN = 3  # tensors of the size of the logits, while a token of each row is drawn


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
        rest = "" if "activations" in self.learning else ", and activations"
        return f"{in_bytes(self.total)} ({', '.join(parts)}{rest})"


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a run does at a time."""

    trains: bool = True
    separate_value_model: bool = False
    written: int = 0
    """Tokens of all texts that are written side by side, prompts included."""
    rows: int = 0
    """How many texts these are."""
    learned: int = 0
    """Tokens of a backward pass."""
    teachers: int = 0
    """Bytes of the weights of other models, which are frozen."""
    parts: int = 1
    """Processes that divide the model among them."""


def memory_need(size: ModelSize, settings: PolicySettings, load: Load) -> MemoryNeed:
    """Of each process of a run of a model of this size."""
    kind = size.kind(settings.torch_dtype)
    weights = size.weights(settings.torch_dtype)
    trained, one = size.parameters, kind.itemsize
    stays = {"weights": weights}
    if settings.lora is not None:
        trained, one = _adapters(size, settings.lora), max(kind.itemsize, 4)  # adapters are in float32 at least
        stays["adapters"] = trained * one
    else:
        stays["reference"] = weights
    models = 2 if load.separate_value_model else 1
    if load.separate_value_model:
        stays["value model"] = weights if settings.lora is None else trained * one
    learning: dict[str, int] = {}
    if load.trains:
        finer = max(one, 4)  # of the optimizer: float32 where the weights are in bfloat16
        stays["moments"] = 2 * models * trained * finer
        if one < finer:
            stays["master copy"] = models * trained * finer
        learning["gradients"] = models * trained * (finer if one == finer else finer + one)
    stays = {name: -(-each // load.parts) for name, each in stays.items()} | {"teacher": load.teachers}
    learning = {name: -(-each // load.parts) for name, each in learning.items()}
    writing = {"keys and values": load.written * size.keys_and_values * kind.itemsize}
    if load.trains and load.learned:
        kept = size.kept_per_token if not settings.gradient_checkpointing else _recomputed(size)
        learning["activations"] = models * load.learned * kept * kind.itemsize
        finest = max(kind.itemsize, 4)
        logits = LOGITS_KEPT if settings.lora is None else 0  # of a frozen head, none are kept
        if settings.lora is None:  # a tied head's waits for the embedding's, beside the sum over micro-batches
            learning["the head's gradient"] = size.head * kind.itemsize
        learning["logits"] = min(logits, load.learned * size.vocabulary) * finest
    if load.parts > 1:
        if load.trains:
            learning["gathered"] = _gathered(size, whole_gradients=settings.lora is None) * kind.itemsize
        writing["gathered"] = weights
    elif settings.fused:
        joined = sum(inputs * outputs for _, inputs, outputs in size.matrices) + size.head
        writing["joined matrices"] = joined * kind.itemsize
    if load.rows:
        writing["logits"] = _LOGITS_DRAWN * load.rows * size.vocabulary * max(kind.itemsize, 4)
    return MemoryNeed(stays, learning, writing)


def _recomputed(size: ModelSize) -> int:
    """Numbers kept of each token where layers are computed again: the input of each, and all of one of them."""
    width = min((min(inputs, outputs) for _, inputs, outputs in size.matrices), default=0)
    return size.layers * width + size.kept_per_token // max(1, size.layers)


def _gathered(size: ModelSize, *, whole_gradients: bool) -> int:
    """Numbers that are whole while a pass runs: what is in no layer, and a layer, once as the buffer that they arrive
    in; and their gradients, once as the buffer that is added up."""
    layer = (size.parameters - size.outside) // max(1, size.layers)
    return size.outside + 2 * layer + (size.outside if whole_gradients else layer)


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
