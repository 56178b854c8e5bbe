"""Best-of-n at its KL: near the best win rate, not the best reward."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import best_of, kl, stream, tilted_to

_RESPONSES, _N = 2000, 8


def _more_left_of_reward(seed: int, tail: float) -> float:
    drawn = stream("order statistics", seed).normal(size=_RESPONSES)
    reference = np.full(_RESPONSES, 1.0 / _RESPONSES)
    rank = (np.argsort(np.argsort(drawn)) + 0.5) / _RESPONSES  # the win rate against the reference
    reward = rank if tail == 0.0 else np.exp(tail * drawn)
    best = best_of(reference, rank, _N)
    nats = kl(best, reference)
    left = []
    for worth in (reward, rank):
        worth = (worth - worth.mean()) / worth.std()
        left.append(1.0 - float(best @ worth) / float(tilted_to(reference, worth, nats) @ worth))
    return left[0] - left[1]


LAW = Law(
    name="best-of-n-wins",
    claim="At its KL, best-of-n is near optimal for the win rate, and not for the expected reward.",
    source="COLT 2026 (sriraman26a)",
    prediction=(
        "Share of the gain attainable at the same KL that best-of-8 leaves: of the reward, lognormal with the given "
        "sigma, less of the win rate; exact over 2,000 responses. Predicted: above 0; 0 for a reward that is the win "
        "rate (sigma 0 here)."
    ),
    smallest=0.02,
    measure=_more_left_of_reward,
    at=1.0,
    axis="sigma of the lognormal reward",
    places=(0.0, 0.25, 0.5, 1.0, 1.5),
    teaches="Compare best-of-n by win rate only with agents that are compared by win rate.",
)
