"""How large a model is, told from its configuration alone, and how much memory there is: asked before it is loaded.

A process that takes more memory than there is gets killed without a word, and takes others with it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rlhf_env import assets
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.errors import DataError
from rlhf_env.policies.recomputation import layers_of
from rlhf_env.policies.untyped import HFConfig

_CGROUPS = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class ModelSize:
    """What of a model takes memory."""

    parameters: int
    matrices: tuple[tuple[str, int, int], ...]
    """Name and shape of every linear layer but the head."""
    keys_and_values: int
    """Numbers that a cache keeps of each token."""
    dtype: torch.dtype | None
    """The precision that its configuration names, if it names one."""
    layers: int = 0
    """How many layers it has, as far as that is told."""
    outside: int = 0
    """Parameters in none of them: embeddings, the last norm, the head."""
    vocabulary: int = 0
    """Words, for each of which there is a logit."""
    head: int = 0
    """Parameters of what makes the logits, which may be the embedding."""

    @property
    def kept_per_token(self) -> int:
        """About how many numbers a backward pass keeps of each token: what the matrices read and write."""
        return sum(inputs + outputs for _, inputs, outputs in self.matrices)

    def weights(self, dtype: torch.dtype | None) -> int:
        """Bytes of the weights; `dtype` None: in their own precision, as far as that is known."""
        return self.parameters * self.kind(dtype).itemsize

    def kind(self, dtype: torch.dtype | None) -> torch.dtype:
        """The precision in which they will be: float16 is read as float32 unless one is named."""
        if dtype is None:
            dtype = self.dtype if self.dtype in (torch.bfloat16, torch.float64) else torch.float32
        return dtype


def size_of(name: str | Path, revision: str | None = None, *, head: bool = True) -> ModelSize | None:
    """The size of the model in a folder, or of the hub; `head` False: of its trunk. Nothing of it is loaded: modules
    are made on torch's device "meta", which keeps shapes alone. None where the configuration says too little, which
    loading it explains better.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    loader = AutoModelForCausalLM if head else AutoModel
    try:
        with quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(assets.resolve(str(name)), revision=revision, trust_remote_code=False)
            model = loader.from_config(config)
    except Exception:  # the library raises many kinds
        return None
    output = model.get_output_embeddings()
    linear = [(its, it) for its, it in model.named_modules() if isinstance(it, nn.Linear) or _is_conv1d(it)]
    matrices = [(its, int(it.weight.shape[0]), int(it.weight.shape[1])) for its, it in linear if it is not output]
    layers = layers_of(model)
    inside = {id(weight) for layer in layers for weight in layer.parameters()}
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        matrices=tuple(matrices),
        keys_and_values=_keys_and_values(config.get_text_config()),
        dtype=getattr(config.get_text_config(), "dtype", None),
        layers=len(layers),
        outside=sum(weight.numel() for weight in model.parameters() if id(weight) not in inside),
        vocabulary=int(output.weight.shape[0]) if output is not None else 0,
        head=output.weight.numel() if output is not None else 0,
    )


def require_room(
    name: str | Path, dtype: torch.dtype | None, revision: str | None = None, *, head: bool = True
) -> None:
    """Raise DataError for a model whose weights alone are more than the memory that is free."""
    size, free = size_of(name, revision, head=head), memory_free()
    if size is not None and free is not None and size.weights(dtype) > free:
        raise too_large(name, size, dtype, free)


def too_large(
    name: str | Path, size: ModelSize, dtype: torch.dtype | None, free: int, device: str = "cpu"
) -> DataError:
    """What is to be said of a model whose weights do not fit."""
    kind, half = size.kind(dtype), size.weights(torch.bfloat16)
    remedy = "take a smaller model, or a machine with more"
    if kind != torch.bfloat16 and half <= free:
        remedy = f'dtype = "bfloat16" makes them {in_bytes(half)}'
    return DataError(
        f"model {str(name)!r}: its weights alone are {in_bytes(size.weights(dtype))} in "
        f"{str(kind).removeprefix('torch.')} ({size.parameters:,} parameters), and {in_bytes(free)} are free on "
        f"{device}: {remedy}"
    )


def memory_free() -> int | None:
    """Bytes that this process can still take: what the machine has free or can free, swap included, within what its
    control group (a container, a batch job) is allowed. None where the system does not say."""
    limits = [limit for limit in (_free_on_machine(), *_free_in_groups()) if limit is not None]
    return min(limits) if limits else None


def in_bytes(size: int) -> str:
    """Of bytes: "1.5 GiB", "40 MiB", "7 KiB"."""
    if size >= 2**29:
        return f"{size / 2**30:,.1f} GiB"
    return f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size / 2**10:,.0f} KiB"


def _free_on_machine() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="ascii").splitlines() if ":" in line)
        return sum(int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, LookupError):
        pass
    try:  # what there is, where nothing says how much of it is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _free_in_groups() -> list[int | None]:
    """In the process's own control group and in those around it, of version 2 and of version 1."""
    try:
        lines = [line.split(":", 2) for line in _OWN_GROUPS.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    free = []
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0":
            root, names = _CGROUPS, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = _CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inside = root / path.strip("/")  # in a container, the root is often the group itself, whatever the path says
        for group in (inside, *(it for it in inside.parents if it.is_relative_to(root))):
            free.append(_free_in(group / names[0], group / names[1], group / "memory.stat"))
    return free


def _free_in(limit: Path, used: Path, details: Path) -> int | None:
    """What a group is allowed beyond what it uses; file pages that it can drop at any time do not count as used."""
    try:
        allowed, taken = int(limit.read_text(encoding="ascii")), int(used.read_text(encoding="ascii"))
        pages = dict(line.split(maxsplit=1) for line in details.read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # there is none, or it is "max"
        return None
    dropped = int(pages.get("total_inactive_file", pages.get("inactive_file", 0)))
    return max(0, allowed - taken + dropped)


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D"


def _keys_and_values(config: HFConfig) -> int:
    layers, heads = (int(getattr(config, name, 0) or 0) for name in ("num_hidden_layers", "num_attention_heads"))
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    size = getattr(config, "head_dim", None) or (int(getattr(config, "hidden_size", 0)) // heads if heads else 0)
    return 2 * layers * kv_heads * int(size)
