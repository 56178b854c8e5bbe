"""Do several rewards learn better once each is normalised by itself?"""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.sum_collapse import _normalised
from rlhf_env.lab.laws.worlds import softmax, stream

_ANSWERS, _GROUP, _GROUPS, _LR = 24, 8, 8, 1.0


def _gain(seed: int, updates: float) -> float:
    rng = stream("two rewards learned", seed)
    logits = rng.normal(size=_ANSWERS)
    rewards = (rng.random((_ANSWERS, 2)) < [0.5, 0.15]).astype(np.float64)
    rewards[0] = 1.0  # one answer has both
    ends = []
    for apart in (True, False):
        draws, learned = stream("two rewards drawn", seed), logits
        for _ in range(int(updates)):
            policy = softmax(learned)
            rows = draws.choice(_ANSWERS, size=(_GROUPS, _GROUP), p=policy)
            paid = rewards[rows]
            advantages = (
                _normalised(paid[..., 0]) + _normalised(paid[..., 1]) if apart else _normalised(paid.sum(2))
            ).ravel()
            advantages = advantages / max(float(advantages.std()), 1e-9)  # steps of one length
            weights = np.bincount(rows.ravel(), weights=advantages, minlength=_ANSWERS) / rows.size
            learned = learned + _LR * (weights - policy * weights.sum())
        ends.append(float(softmax(learned) @ rewards.sum(1)))
    return ends[0] - ends[1]


LAW = Law(
    name="separate-normalising",
    claim="Normalising each reward by itself learns several rewards better than normalising their sum.",
    source="GDPO, arXiv 2601.05242",
    prediction=(
        f"Sum of two binary rewards (0 to 2) after 10 updates of {_GROUPS} groups of {_GROUP}, each normalised by "
        "itself less the sum normalised, same budget and length of steps. Predicted: above 0."
    ),
    smallest=0.02,
    measure=_gain,
    at=10,
    axis="updates",
    places=(3, 10, 30, 100),
    place_seeds=200,
    most=1000,
    teaches="docs/mechanisms.md measures the same on texts.",
)
