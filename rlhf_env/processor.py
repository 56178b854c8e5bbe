"""What the operating system says of this machine's processor."""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType


@functools.cache
def processor_entries() -> Mapping[str, str]:
    """The entries of the first processor in /proc/cpuinfo, such as `vendor_id`; `vendor_id` alone on other systems."""
    found: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    except OSError:  # another system than Linux
        found["vendor_id"] = platform.processor()
    return MappingProxyType(found)


def is_intel() -> bool:
    """Whether the processor is Intel's, by its own word (Windows puts more words around it)."""
    return "GenuineIntel" in processor_entries().get("vendor_id", "")
