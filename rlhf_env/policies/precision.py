"""float64 where the device has it, for what is summed, divided or subtracted: probabilities, advantages, losses.

Apple's GPUs (mps) have no float64: there it is float32, and what comes back to the processor is float64 again.
"""

from __future__ import annotations

import torch
from torch import Tensor


def has_float64(device: torch.device) -> bool:
    return device.type != "mps"


def finest(device: torch.device) -> torch.dtype:
    """float64, or what the device has instead."""
    return torch.float64 if has_float64(device) else torch.float32


def refined(values: Tensor) -> Tensor:
    """`values` in the finest precision of the device they are on; differentiable."""
    return values.to(finest(values.device))


def moved(values: Tensor, device: torch.device) -> Tensor:
    """`values` on the device, and in float64 no more where it has none."""
    if values.dtype == torch.float64 and not has_float64(device):
        return values.float().to(device)
    return values.to(device)


def as_float64(values: Tensor) -> Tensor:
    """`values` on the processor, in float64."""
    return values.detach().cpu().double()
