"""More labels for a reward model, and how far it can be climbed: exactly."""

from __future__ import annotations

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.tilting import Proxy, peak


def _farther(seed: int, few: float) -> float:
    return peak(seed, Proxy())[0] - peak(seed, Proxy(labels=int(few)))[0]


LAW = Law(
    name="more-labels",
    claim="More labels move the peak of gold outwards: the reward model can be climbed farther.",
    source="Gao, Schulman and Hilton 2023, arXiv 2210.10760",
    prediction=(
        "Distance sqrt(KL) of the highest gold along the exact tilt, a reward model of 200 labels less one of 30. "
        "Predicted: above 0."
    ),
    smallest=0.1,
    measure=_farther,
    at=30,
    axis="labels of the smaller set",
    places=(15, 30, 100),
    place_seeds=200,
    most=1000,
)
