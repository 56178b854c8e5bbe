"""Reward bought with entropy: R = b - a exp(H)."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import entropy, softmax, stream

_PROMPTS, _RESPONSES, _POINTS, _BETWEEN, _STEP = 20, 50, 60, 20, 1.0


def _explained(seed: int, share: float) -> float:
    rng = stream("entropy and reward", seed)
    logits = 1.5 * rng.normal(size=(_PROMPTS, _RESPONSES))
    right = (rng.random((_PROMPTS, _RESPONSES)) < share).astype(np.float64)
    right[:, 0] = 1.0
    entropies, rewards = [], []
    for _ in range(_POINTS):
        policy = softmax(logits)
        entropies.append(float(entropy(policy).mean()))
        rewards.append(float((policy * right).sum(1).mean()))
        for _ in range(_BETWEEN):
            policy = softmax(logits)
            logits = logits + _STEP * policy * (right - (policy * right).sum(1, keepdims=True))
    design = np.stack([np.exp(entropies), np.ones(_POINTS)], axis=1)
    reward = np.array(rewards)
    left = reward - design @ np.linalg.lstsq(design, reward, rcond=None)[0]
    return 1.0 - float((left**2).sum() / ((reward - reward.mean()) ** 2).sum()) - 0.95


LAW = Law(
    name="entropy-reward",
    claim="Without intervention reward is bought with entropy, R = b - a exp(H), and ends where entropy is spent.",
    source="Cui et al. 2025, arXiv 2505.22617",
    prediction=(
        f"R squared of that form, fitted to the curve of the exact policy gradient on {_PROMPTS} prompts of "
        f"{_RESPONSES} answers each, less 0.95. Predicted: above 0."
    ),
    smallest=0.005,
    measure=_explained,
    at=0.1,
    axis="share of the answers that are right",
    places=(0.02, 0.1, 0.3, 0.6),
    teaches="The report shows entropy beside reward; a curve of this form says what is still to be had.",
)
