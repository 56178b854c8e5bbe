"""The bound of PPO's clip on the low side raises entropy."""

from __future__ import annotations

from rlhf_env.lab.laws.clipping import train_on_coins
from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import entropy, softmax, stream

_ACTIONS, _CLIP = 10, 0.2


def _entropy_change(seed: int, lr: float) -> float:
    logits = stream("clip world", seed).normal(size=_ACTIONS)
    clipped, free = (
        train_on_coins(logits, stream("clip coins", seed), lr, **bounds) for bounds in ({"low": _CLIP}, {})
    )
    return float(entropy(softmax(clipped)) - entropy(softmax(free)))


LAW = Law(
    name="clip-low",
    claim="Clipping the ratio from below (clip-low) raises entropy, whatever the rewards.",
    source="Park et al. 2025, arXiv 2509.26114",
    prediction=(
        "Entropy in nats after 40 updates on rewards of a fair coin: clipped at 0.8 alone less not clipped, same "
        "coins. Predicted: above 0."
    ),
    smallest=0.02,
    measure=_entropy_change,
    at=1.0,
    axis="learning rate",
    places=(0.1, 0.3, 1.0, 3.0, 10.0),
    place_seeds=40,
    most=400,
    teaches="clip_high is a setting of its own; `health` says when entropy has collapsed.",
)
