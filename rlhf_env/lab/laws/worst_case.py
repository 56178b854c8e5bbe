"""A worst-case ensemble of reward models on noisy labels: exactly."""

from __future__ import annotations

from rlhf_env.lab.laws.form import Claim
from rlhf_env.lab.laws.tilting import ensemble_gain


def _higher(seed: int, members: float) -> float:
    return ensemble_gain(seed, members, "worst")


LAW = Claim(
    name="worst-case",
    claim="A worst-case ensemble raises the peak of gold under label noise.",
    source="Coste et al. 2024, arXiv 2310.02743",
    prediction=(
        "Highest gold (standard deviations under the reference) along the exact tilt, a quarter of the labels wrong: "
        "the lowest of four models on bootstraps less one model of all labels. Predicted: above 0."
    ),
    smallest=0.1,
    measure=_higher,
    at=4,
    axis="members",
    places=(2, 4, 8),
    place_seeds=200,
    most=1000,
)
