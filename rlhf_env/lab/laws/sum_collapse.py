"""Two rewards in one group: what is left of their combinations once a sum is normalised."""

from __future__ import annotations

from itertools import product

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import stream
from rlhf_env.types import Float

_GROUP = 4
_KINDS = np.array(list(product((0.0, 1.0), repeat=2)))  # of an answer: what its two rewards are
_GROUPS = np.array(list(product(range(4), repeat=_GROUP)))


def _kept(seed: int, weight: float) -> float:
    of_kind = stream("two rewards", seed).dirichlet(np.ones(4))
    chance = of_kind[_GROUPS].prod(axis=1)
    rewards = _KINDS[_GROUPS] * [1.0, weight]  # [256, G, 2]
    summed = _normalised(rewards.sum(2))
    apart = _normalised(rewards[..., 0]) + weight * _normalised(rewards[..., 1])
    return _nats(apart, chance) - _nats(summed, chance)


def _normalised(values: Float) -> Float:
    centred, spread = values - values.mean(1, keepdims=True), values.std(1, ddof=1, keepdims=True)
    return np.asarray(np.where(spread > 1e-12, centred / np.maximum(spread, 1e-12), 0.0))


def _nats(advantages: Float, chance: Float) -> float:
    """The entropy of what the policy is told: of the distinct advantage vectors."""
    _, which = np.unique(np.round(advantages, 9), axis=0, return_inverse=True)
    told = np.bincount(which.ravel(), weights=chance)
    return float(-(told * np.log(np.maximum(told, 1e-300))).sum())


LAW = Law(
    name="sum-collapse",
    claim="Normalising the sum of several rewards in a group gives different combinations the same advantages.",
    source="GDPO, arXiv 2601.05242",
    prediction=(
        "Entropy (nats) of the advantage vectors of a group of four answers with two binary rewards: each normalised "
        "by itself less their sum normalised; exact over the 256 groups, answers drawn at random rates. Predicted: "
        "above 0."
    ),
    smallest=0.05,
    measure=_kept,
    at=1.0,
    axis="weight of the second reward (the first has 1)",
    places=(0.5, 1.0, 1.5, 2.0, 3.0),
    teaches="The token loss `gdpo`; unequal weights keep what equal ones lose.",
)
