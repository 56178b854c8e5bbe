"""A larger reward model, and how far it can be climbed."""

from __future__ import annotations

from rlhf_env.lab.laws.climbs import LAYERS, MANY_LAYERS, MOST, PILOT, peak
from rlhf_env.lab.laws.form import Law


def _farther(seed: int, _at: float) -> float:
    return peak(seed, "large")[0] - peak(seed, "base")[0]


LAW = Law(
    name="study-larger-proxy",
    claim="A larger reward model moves the peak of gold outwards.",
    source="Gao, Schulman and Hilton 2023, arXiv 2210.10760",
    prediction=(
        f"Distance sqrt(KL) of the peak of gold, a reward model of {MANY_LAYERS} layers less one of {LAYERS}, same "
        "labels, RLOO on the shipped model. Predicted: above 0."
    ),
    smallest=0.5,
    measure=_farther,
    most=MOST,
    pilot=PILOT,
)
