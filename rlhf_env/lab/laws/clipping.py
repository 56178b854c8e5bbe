"""A clipped update on rewards that say nothing: what the clip alone does to a policy."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.worlds import softmax
from rlhf_env.types import Float

BATCH, MINIBATCHES, EPOCHS, UPDATES = 256, 4, 4, 40


def train_on_coins(
    logits: Float, rng: np.random.Generator, lr: float, *, low: float = np.inf, high: float = np.inf
) -> Float:
    """The logits after `UPDATES` rollouts of `BATCH` responses, each worth +1 or -1 by a fair coin.

    PPO's loss, min(ratio A, clip(ratio, 1 - low, 1 + high) A), by plain gradient steps on minibatches. A bound of
    infinity is none.
    """
    for _ in range(UPDATES):
        written = softmax(logits)
        actions = rng.choice(len(logits), size=BATCH, p=written)
        advantages = 2.0 * rng.integers(2, size=BATCH) - 1.0
        for _ in range(EPOCHS):
            for rows in np.split(rng.permutation(BATCH), MINIBATCHES):
                policy = softmax(logits)
                acted, worth = actions[rows], advantages[rows]
                ratio = policy[acted] / written[acted]
                counts = np.where(worth > 0.0, ratio < 1.0 + high, ratio > 1.0 - low)
                weights = np.bincount(acted, weights=worth * ratio * counts, minlength=len(logits)) / len(rows)
                logits = logits + lr * (weights - policy * weights.sum())
    return logits
