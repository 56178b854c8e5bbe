"""An uncertainty-weighted ensemble of reward models on noisy labels."""

from __future__ import annotations

from rlhf_env.lab.laws.climbs import FLIPPED_SHARE, MEMBERS, MOST_SEEDS, PILOT, ClimbsOf, trained_peak
from rlhf_env.lab.laws.form import Claim


def _higher(seed: int, _at: float) -> float:
    return trained_peak(seed, "uncertainty")[1] - trained_peak(seed, "noisy")[1]


LAW = Claim(
    name="study-uncertainty",
    claim="An uncertainty-weighted ensemble raises the peak of gold under label noise.",
    source="Coste et al. 2024, arXiv 2310.02743",
    prediction=(
        f"Gold at its peak, in standard deviations of the reference's replies: {MEMBERS} models of one layer on "
        f"bootstraps of the labels, {FLIPPED_SHARE:.0%} of them wrong, less one model of all. Predicted: above 0."
    ),
    smallest=0.15,
    measure=_higher,
    prepare=ClimbsOf(["uncertainty", "noisy"]),
    most=MOST_SEEDS,
    pilot=PILOT,
)
