"""A larger reward model, and how far it can be climbed: exactly."""

from __future__ import annotations

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.tilting import Proxy, peak


def _farther(seed: int, size: float) -> float:
    return peak(seed, Proxy())[0] - peak(seed, Proxy(size=int(size)))[0]


LAW = Law(
    name="larger-proxy",
    claim="A larger reward model moves the peak of gold outwards.",
    source="Gao, Schulman and Hilton 2023, arXiv 2210.10760",
    prediction=(
        "Distance sqrt(KL) of the highest gold along the exact tilt, a reward model of 64 features less one of 8, "
        "same labels. Predicted: above 0."
    ),
    smallest=0.1,
    measure=_farther,
    at=8,
    axis="features of the smaller model",
    places=(4, 8, 32, 256),
    place_seeds=200,
    most=1000,
)
