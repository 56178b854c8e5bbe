"""Which device a run computes on, what it can hold, and how many threads a processor gets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from rlhf_env.device_names import AUTO, KNOWN, is_device_name
from rlhf_env.errors import ConfigError, Problem
from rlhf_env.learning.processes import current as current_processes
from rlhf_env.policies.precision import has_float64
from rlhf_env.policies.sizes import in_bytes, memory_free

LARGE = 5_000_000  # a model of this many parameters gains from a second thread

_Module = TypeVar("_Module", bound=torch.nn.Module)


@contextmanager
def seeded_on(device: torch.device, seed: int) -> Iterator[None]:
    """The generator of a GPU alone. `torch.manual_seed` would seed those of all devices."""
    if device.type == "cuda":
        before = torch.cuda.get_rng_state(device)
        torch.cuda.default_generators[device.index].manual_seed(seed)
        try:
            yield
        finally:
            torch.cuda.set_rng_state(before, device)
    elif device.type == "mps":
        before = torch.mps.get_rng_state()
        torch.mps.manual_seed(seed)
        try:
            yield
        finally:
            torch.mps.set_rng_state(before)
    else:
        yield


def find_device(wanted: str = AUTO) -> str:
    """What torch calls the device that settings call `wanted`: "cpu", "cuda:0", "mps:0".

    "auto" is the present CUDA GPU where there is one, else the processor. It is never "mps", which has no float64:
    whoever wants it says so. Raises ConfigError for a device that is not here, or no name of one.
    """
    if not is_device_name(wanted):
        raise ConfigError(Problem(f"device {KNOWN}, got {wanted!r}", ("device",)))
    kind, _, number = wanted.partition(":")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError(_not_here(wanted, "torch finds no GPU of Apple's on this machine"))
        return "mps:0"
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == AUTO and not gpus):
        return "cpu"
    if not gpus:
        build = "" if torch.version.cuda else f": this torch, {torch.__version__}, is built without CUDA"
        raise ConfigError(_not_here(wanted, f"torch finds no CUDA GPU on this machine{build}"))
    index = int(number) if number else torch.cuda.current_device()
    if number and current_processes().launch.local_size > 1:
        several = current_processes().launch.local_size
        said = f'device "{wanted}" is one GPU for {several} processes: say "cuda", and each takes its own'
        raise ConfigError(Problem(said, ("device",)))
    if index >= gpus:
        have = "cuda:0" if gpus == 1 else f"cuda:0 to cuda:{gpus - 1}"
        raise ConfigError(_not_here(wanted, f"this machine has {have}"))
    return f"cuda:{index}"


def _not_here(wanted: str, why: str) -> Problem:
    return Problem(f'device "{wanted}" is not here, {why}: set device = "auto" or "cpu" (or --device)', ("device",))


def require_dtype(device: str, dtype: torch.dtype | None) -> None:
    """Raise ConfigError where the device cannot compute in `dtype`; None is that of a model's files, not known yet."""
    if dtype is None:
        return
    place, name = torch.device(device), str(dtype).removeprefix("torch.")
    if dtype == torch.float64 and not has_float64(place):
        raise ConfigError(Problem(f'dtype "{name}" does not exist on {device}: set "float32"', ("dtype",)))
    if dtype == torch.bfloat16 and place.type != "cpu":
        native = place.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        try:
            torch.ones(1, dtype=dtype, device=place).add_(1.0)
        except (RuntimeError, TypeError):  # of an Apple GPU, by the version of macOS
            native = False
        if not native:
            raise ConfigError(Problem(f'{device} cannot compute in dtype "{name}": set "float32"', ("dtype",)))


def placed(module: _Module, device: str) -> _Module:
    """The module, on a device that `find_device` found. Raises ConfigError where the device lacks its precision, or
    the memory for it."""
    for dtype in {it.dtype for it in (*module.parameters(), *module.buffers())}:
        require_dtype(device, dtype)
    try:
        return module.to(device)
    except torch.OutOfMemoryError as error:
        size = sum(it.numel() * it.element_size() for it in (*module.parameters(), *module.buffers()))
        raise ConfigError(
            Problem(
                f"{device} has no room for the model, {in_bytes(size)}: take a smaller one, dtype = "
                '"bfloat16" or device = "cpu"',
                ("device",),
            )
        ) from error


def free_on(device: str) -> int | None:
    """Bytes of memory that are free on a device that `find_device` found; None where nothing tells."""
    place = torch.device(device)
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    return memory_free()  # GPUs of Apple's share it with the processor


def set_threads(threads: int | None = None, *, parameters: int = 0) -> int:
    """Let torch use `threads` threads, and return that number.

    The default is the environment variable RLHF_ENV_THREADS, or else `sensible_threads(parameters)`.
    """
    default = os.environ.get("RLHF_ENV_THREADS") or str(sensible_threads(parameters))
    wanted = default if threads is None else str(threads)
    if not wanted.isdecimal() or (number := int(wanted)) < 1:
        raise ConfigError(f"threads must be a whole number of at least 1, got {wanted!r}")
    torch.set_num_threads(number)
    return number


def sensible_threads(parameters: int) -> int:
    """1 for a model of fewer parameters than `LARGE`, which gains nothing from two; otherwise one per idle core, which
    several processes on one machine share.

    The idle cores are all cores minus the load average of the last minute. On a busy machine, threads that wait for
    each other spin, and make everything many times slower.
    """
    if parameters < LARGE:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, (cores - round(os.getloadavg()[0])) // current_processes().launch.local_size)
