"""Rewards of a coin still train, by the bias of the clip."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.clipping import train_on_coins
from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import softmax, stream

_ACTIONS, _FAVOURITE = 10, 0.6


def _gain_of_the_favourite(seed: int, clip: float) -> float:
    logits = stream("favourite", seed).normal(size=_ACTIONS)
    logits[0] = np.log(_FAVOURITE / (1.0 - _FAVOURITE) * np.exp(logits[1:]).sum())
    clipped, free = (
        float(softmax(train_on_coins(logits, stream("coins", seed), 1.0, **bounds))[0])
        for bounds in ({"low": clip, "high": clip}, {})
    )
    return clipped - free


LAW = Law(
    name="random-rewards",
    claim="Random rewards train through the bias of the clip: what the model favours already becomes more likely.",
    source="Shao et al. 2025, arXiv 2506.10947",
    prediction=(
        f"Probability of the response that begins at {_FAVOURITE}, after 40 updates on rewards of a fair coin at "
        "learning rate 1: clipped at 1 +- clip, less not clipped, same coins. Predicted: above 0."
    ),
    smallest=0.02,
    measure=_gain_of_the_favourite,
    at=0.2,
    axis="clip",
    places=(0.05, 0.1, 0.2, 0.4),
    place_seeds=40,
    most=400,
    teaches="A control with random rewards is worth its price: the agent `random`, and rewards of a coin.",
)
