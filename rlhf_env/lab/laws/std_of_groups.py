"""Dividing advantages by the deviation of their group."""

from __future__ import annotations

import math

import numpy as np

from rlhf_env.lab.laws.form import Law


def _weight(success: float, size: int) -> float:
    """The expected gradient by the log-odds of success, over success (1 - success): exact over a group's outcomes."""
    total = 0.0
    for right in range(1, size):
        chance = math.comb(size, right) * success**right * (1.0 - success) ** (size - right)
        spread = math.sqrt(right * (size - right) / (size * (size - 1)))
        total += chance * right * (size - right) / size**2 / spread
    return total / (success * (1.0 - success))


def _unlike_even_ones(seed: int, success: float) -> float:
    size = int(np.random.default_rng(seed).integers(4, 65))
    return _weight(success, size) / _weight(0.5, size) - 1.0


LAW = Law(
    name="std-of-groups",
    claim="Dividing by the standard deviation of a group weighs prompts that are nearly always or never solved more.",
    source="Liu et al. 2025 (Dr. GRPO), arXiv 2503.20783",
    prediction=(
        "Weight of a prompt solved 1 time in 10 against one solved every second time, relative to the gradient of the "
        "success rate, less 1; exact, groups of 4 to 64. Predicted: above 0."
    ),
    smallest=0.05,
    measure=_unlike_even_ones,
    at=0.1,
    axis="success rate",
    places=(0.001, 0.01, 0.1, 0.3, 0.5, 0.9),
    teaches='`scale_by_std = false` in grpo; the loss "dr-grpo".',
)
