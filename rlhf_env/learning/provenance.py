"""Where a run's bits come from besides its settings: the processor's family, and this library's own code.

Two machines of one family, with the same versions, add up in the same order, and so come to the same bits.
"""

from __future__ import annotations

import functools
import hashlib
import platform
from importlib.util import find_spec
from pathlib import Path

import torch

from rlhf_env.processor import processor_entries

_PACKAGES = ("rlhf_env", "rlhf_agents", "rlhf_rewards")
_TELLING = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")  # of /proc/cpuinfo, x86 and ARM


@functools.cache
def processor_family() -> str:
    """Such as "x86_64 AuthenticAMD 25 17 AVX512": architecture, maker, family, model, and what torch makes of it."""
    found = processor_entries()
    words = [platform.machine(), *(found.get(name, "") for name in _TELLING)]
    return " ".join(word for word in [*words, torch.backends.cpu.get_cpu_capability()] if word)


@functools.cache
def library_sha256() -> str:
    """sha256 of the Python files of this distribution: a version number stands still while somebody works on it."""
    whole = hashlib.sha256()
    for package in _PACKAGES:
        spec = find_spec(package)
        for folder in sorted(spec.submodule_search_locations or []) if spec is not None else []:
            for file in sorted(Path(folder).rglob("*.py")):
                whole.update(f"{package}/{file.relative_to(folder).as_posix()}\0".encode())
                whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()
