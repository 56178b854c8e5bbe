"""Learning-rate schedules: they map progress through the budget, in [0, 1], to a factor of the learning rate."""

from __future__ import annotations

import math
from typing import Literal

ScheduleName = Literal["constant", "linear", "cosine"]


def multiplier(name: ScheduleName, progress: float, *, warmup: float = 0.0, floor: float = 0.0) -> float:
    """The factor of the learning rate.

    It rises linearly over the first `warmup` share of the budget. Then it is constant, or falls to `floor`, linearly or
    by a cosine.
    """
    if progress < warmup:
        # The first update, at progress 0, has to change the parameters: so the rise begins at a tenth, not at zero.
        return 0.1 + 0.9 * progress / warmup
    if name == "constant":
        return 1.0
    share = (progress - warmup) / max(1.0 - warmup, 1e-12)  # of the budget after the warmup
    decay = 1.0 - share if name == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))
    return floor + (1.0 - floor) * decay
