"""How settings and options name a device, without torch. Whether there is one of that name is `learning.devices`'s."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlhf_env.errors import Problem
from rlhf_env.settings import fault

AUTO = "auto"
KNOWN = 'must be "auto", "cpu", "cuda", "cuda:N" or "mps"'


def is_device_name(name: str) -> bool:
    return re.fullmatch(r"auto|cpu|mps(:0)?|cuda(:[0-9]{1,3})?", name) is not None


def problems_of_device(name: str) -> Iterator[Problem]:
    """For the `problems` of settings that have a `device`."""
    if not is_device_name(name):
        yield fault("device", f"{KNOWN}, got {name!r}")
