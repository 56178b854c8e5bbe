"""Averaging the loss within each answer."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import softmax, stream
from rlhf_env.types import Float

_LONGEST, _REACHED, _STEP = 12, 0.9, 0.5
_LENGTHS = np.tile(np.arange(1.0, _LONGEST + 1.0), 2)
_RIGHT = np.repeat([1.0, 0.0], _LONGEST)


def _longer_wrong_ones(seed: int, success: float) -> float:
    logits = stream("lengths", seed).normal(size=2 * _LONGEST)
    odds = np.log(success / (1.0 - success))
    at_first = softmax(logits)
    logits = logits + _RIGHT * (odds - np.log((at_first @ _RIGHT) / (at_first @ (1.0 - _RIGHT))))
    by_mean, by_sum = (_trained(logits, 1.0 / scale) for scale in (_LENGTHS, np.full(2 * _LONGEST, 6.5)))
    return _wrong_length(by_mean) - _wrong_length(by_sum)


def _trained(logits: Float, weight: Float) -> Float:
    """The policy once 0.9 is right: the expected gradient of the advantage times each answer's weight."""
    for _ in range(100_000):
        policy = softmax(logits)
        value = policy @ _RIGHT
        if value >= _REACHED:
            break
        push = policy * weight * (_RIGHT - value)
        logits = logits + _STEP * (push - policy * push.sum())
    return softmax(logits)


def _wrong_length(policy: Float) -> float:
    wrong = policy * (1.0 - _RIGHT)
    return float(wrong @ _LENGTHS / wrong.sum())


LAW = Law(
    name="length-bias",
    claim="The mean over each answer's own tokens (GRPO) makes wrong answers longer than a sum over tokens does.",
    source="Liu et al. 2025 (Dr. GRPO), arXiv 2503.20783",
    prediction=(
        "Mean length of wrong answers (1 to 12 tokens) once 0.9 are right, begun at 0.3: mean within the answer less "
        "one constant divisor; exact expected gradients. Predicted: above 0."
    ),
    smallest=0.2,
    measure=_longer_wrong_ones,
    at=0.3,
    axis="success rate at the start",
    places=(0.05, 0.3, 0.6, 0.8),
    teaches='aggregation = "dr-grpo"; `health` warns of texts that grow into the limit.',
)
