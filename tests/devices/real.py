"""The machine's own device behind what the tests ask of a `FakeDevice`."""

from __future__ import annotations

import time
from typing import Any

import torch

from rlhf_env.learning.devices import find_device
from rlhf_env.learning.engine import Engine


class RealDevice:
    """A context that does nothing: `name` is a device already."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(find_device(name))
        self.has_float64 = self.device.type != "mps"

    @property
    def name(self) -> str:
        return Engine(device=str(self.device)).hardware

    @property
    def worked(self) -> int:
        """Rises while the device works: the tensors that were ever made on it."""
        if self.device.type == "cuda":
            return int(torch.cuda.memory_stats(self.device)["allocation.all.allocated"])
        return time.perf_counter_ns()

    def random_state(self) -> torch.Tensor:
        if self.device.type == "cuda":
            return torch.cuda.get_rng_state(self.device)
        return torch.default_generator.get_state()

    def __enter__(self) -> RealDevice:
        return self

    def __exit__(self, *_problem: Any) -> None:
        """The device stays."""
