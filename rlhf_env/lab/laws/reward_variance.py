"""A more accurate reward model that teaches more slowly."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import ascend, softmax, stream
from rlhf_env.types import Float

_RESPONSES = 50


def _ahead_by(seed: int, time: float) -> float:
    rng = stream("reward variance", seed)
    logits, gold = rng.normal(size=_RESPONSES), rng.normal(size=_RESPONSES)
    noisy = gold + rng.normal(size=_RESPONSES)
    # Both speak of [0, 1]. The accurate one has gold's order everywhere, and sees a difference between two alone.
    ranks = np.argsort(np.argsort(gold))
    accurate = 0.5 + 0.02 * (ranks / (_RESPONSES - 1) - 0.5)
    accurate[ranks == 0], accurate[ranks == _RESPONSES - 1] = 0.0, 1.0
    logits[[ranks.argmin(), ranks.argmax()]] -= 4.0  # which the policy seldom writes
    noisy = (noisy - noisy.min()) / np.ptp(noisy)
    return _gold(logits, noisy, time, gold) - _gold(logits, accurate, time, gold)


def _gold(logits: Float, proxy: Float, time: float, gold: Float) -> float:
    return float(softmax(ascend(logits, proxy, time, step=2.0)) @ gold) / float(gold.std())


LAW = Law(
    name="reward-variance",
    claim=(
        "Low reward variance under the policy flattens the objective whatever the accuracy: a perfectly accurate "
        "reward model can teach more slowly than one that errs."
    ),
    source="Razin et al. 2025, arXiv 2503.15477",
    prediction=(
        "Gold (in standard deviations over responses) after the exact policy gradient for 200 units of time: a reward "
        "model with noise as large as gold, less a perfectly accurate one of small variance; both in [0, 1]. "
        "Predicted: above 0, and below 0 in the long run."
    ),
    smallest=0.1,
    measure=_ahead_by,
    at=200.0,
    axis="time (learning rate x steps)",
    places=(20.0, 200.0, 2000.0, 20000.0),
    teaches="The scorecard has the variance of scores within a prompt; `health` warns of rewards that hardly differ.",
)
