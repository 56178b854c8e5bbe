"""Learning-rate schedules: progress through the budget, in [0, 1], to a multiplier of the learning rate."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["constant", "linear", "cosine"]


def multiplier(name: ScheduleName, progress: float, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """The learning rate's multiplier.

    A linear rise over the first `warmup` share of the budget, then constant, or a linear or cosine fall to `floor`.
    """
    if progress < warmup:
        # The first update, at progress 0, must move the parameters: rise from a tenth instead of zero.
        return 0.1 + 0.9 * progress / warmup
    if name == "constant":
        return 1.0
    after = (progress - warmup) / max(1.0 - warmup, 1e-12)
    shape = 1.0 - after if name == "linear" else 0.5 * (1.0 + math.cos(math.pi * after))
    return floor + (1.0 - floor) * shape
