"""Wrong labels, and how far the reward model can be climbed: exactly."""

from __future__ import annotations

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.tilting import Proxy, peak

_FLIPPED = 0.25


def _nearer(seed: int, flipped: float) -> float:
    return peak(seed, Proxy())[0] - peak(seed, Proxy(flipped=flipped))[0]


LAW = Law(
    name="label-noise",
    claim="Label noise moves the peak of gold inwards.",
    source="Coste et al. 2024, arXiv 2310.02743; Gao, Schulman and Hilton 2023, arXiv 2210.10760",
    prediction=(
        "Distance sqrt(KL) of the highest gold along the exact tilt, labels as given less a quarter of them turned "
        "around. Predicted: above 0."
    ),
    smallest=0.1,
    measure=_nearer,
    at=_FLIPPED,
    axis="share of labels turned around",
    places=(0.1, _FLIPPED, 0.4),
    place_seeds=200,
    most=1000,
)
