"""A larger reward model, and how far it can be climbed."""

from __future__ import annotations

from rlhf_env.lab.laws.climbs import LAYERS, MANY_LAYERS, MOST_SEEDS, PILOT, ClimbsOf, trained_peak
from rlhf_env.lab.laws.form import Claim


def _farther(seed: int, _at: float) -> float:
    return trained_peak(seed, "large")[0] - trained_peak(seed, "base")[0]


LAW = Claim(
    name="study-larger-proxy",
    claim="A larger reward model moves the peak of gold outwards.",
    source="Gao, Schulman and Hilton 2023, arXiv 2210.10760",
    prediction=(
        f"Distance sqrt(KL) of the peak of gold, a reward model of {MANY_LAYERS} layers less one of {LAYERS}, same "
        "labels, RLOO on the shipped model. Predicted: above 0."
    ),
    smallest=0.5,
    measure=_farther,
    prepare=ClimbsOf(["large", "base"]),
    most=MOST_SEEDS,
    pilot=PILOT,
)
