"""What a launcher (torchrun, accelerate, mpirun) says to a process that it starts, read from the environment.

No torch here: a command asks this before it imports anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_env.errors import ConfigError

# As accelerate reads them: torchrun's first, then those of MPI's launchers.
_SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
_LOCAL_SIZE = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")
# What accelerate's configuration may ask for, and is not done.
_NOT_HERE = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}


@dataclass(frozen=True)
class Launched:
    """This process among those that were started together: number `rank` of `size`, `local_rank` of `local_size` on
    this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def launched(environment: Mapping[str, str] | None = None) -> Launched:
    """What the launcher said; one process where there is no launcher.

    Raises ConfigError for what no launcher says, and where a launcher was asked for several processes and has started
    one: `accelerate launch --cpu --num_processes 2` does, without a word.
    """
    said = os.environ if environment is None else environment
    for flag, engine in _NOT_HERE.items():
        if _is_true(said, flag):
            raise ConfigError(
                f"accelerate's configuration asks for {engine}, which rlhf-env does not train with: leave it out, and "
                "write `[engine] shard = true` into the experiment file to divide the model among the processes"
            )
    size = _number(said, _SIZE, 1)
    if size == 1:
        if _one_of_several_asked_for(said):
            raise ConfigError(
                "accelerate was asked for several processes and has started one (with --cpu it always does, unless "
                "there is an MPI): start them with `accelerate launch --multi_gpu --num_processes N`, which needs no "
                "GPU, or with `torchrun --nproc-per-node N`"
            )
        return Launched()
    rank = _number(said, _RANK, 0)
    found = Launched(rank, size, _number(said, _LOCAL_RANK, rank), _number(said, _LOCAL_SIZE, size))
    if not (0 <= found.rank < size and 0 <= found.local_rank < found.local_size <= size):
        raise ConfigError(
            f"process {found.rank} of {size}, {found.local_rank} of {found.local_size} on this machine (RANK, "
            "WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE): that cannot be; a launcher such as torchrun sets them"
        )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not said.get(name)]
    if missing and any(said.get(name) for name in _SIZE[:1]):
        raise ConfigError(
            f"WORLD_SIZE is {size}, and {' and '.join(missing)} not set, so that nobody knows where the others are: "
            f"start the processes with a launcher (torchrun --nproc-per-node {size}), or leave WORLD_SIZE out"
        )
    return found


def asks_for_shards(environment: Mapping[str, str] | None = None) -> bool:
    """Whether accelerate's configuration asks for FSDP, as `[engine] shard` does. Raises ConfigError for a kind of it
    that is not done here."""
    said = os.environ if environment is None else environment
    if not _is_true(said, "ACCELERATE_USE_FSDP"):
        return False
    if (version := said.get("FSDP_VERSION", "1")) != "2":
        raise ConfigError(
            f"accelerate's configuration asks for FSDP {version}, and rlhf-env shards by FSDP 2: set `fsdp_version: 2` "
            "(--fsdp_version 2), or leave its FSDP out and write `[engine] shard = true` into the experiment file"
        )
    if _is_true(said, "FSDP_OFFLOAD_PARAMS"):
        raise ConfigError(
            "accelerate's configuration asks for FSDP with weights that wait on the processor (fsdp_offload_params), "
            "which is not done: set it to false"
        )
    return True


def _is_true(said: Mapping[str, str], name: str) -> bool:
    return said.get(name, "").lower() in ("1", "true", "yes")


def _one_of_several_asked_for(said: Mapping[str, str]) -> bool:
    """accelerate's launcher of one process names a place to meet at only if it was asked for several."""
    by_accelerate = bool(said.get("ACCELERATE_MIXED_PRECISION")) and not said.get("TORCHELASTIC_RUN_ID")
    return by_accelerate and bool(said.get("MASTER_PORT")) and not any(said.get(name) for name in _SIZE)


def _number(said: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        if value := said.get(name, ""):
            if not value.strip().isdecimal() or (name in _SIZE and int(value) < 1):
                raise ConfigError(f"{name} must be a whole number, got {value!r}: a launcher such as torchrun sets it")
            return int(value)
    return default
