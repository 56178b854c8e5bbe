"""Wrong labels, and how far the reward model can be climbed."""

from __future__ import annotations

from rlhf_env.lab.laws.climbs import FLIPPED_SHARE, MOST_SEEDS, PILOT, ClimbsOf, trained_peak
from rlhf_env.lab.laws.form import Claim


def _nearer(seed: int, _at: float) -> float:
    return trained_peak(seed, "base")[0] - trained_peak(seed, "noisy")[0]


LAW = Claim(
    name="study-label-noise",
    claim="Label noise moves the peak of gold inwards.",
    source="Coste et al. 2024, arXiv 2310.02743; Gao, Schulman and Hilton 2023, arXiv 2210.10760",
    prediction=(
        f"Distance sqrt(KL) of the peak of gold, labels as the annotator gives them less with {FLIPPED_SHARE:.0%} of "
        "them turned around, RLOO on the shipped model. Predicted: above 0."
    ),
    smallest=0.5,
    measure=_nearer,
    prepare=ClimbsOf(["base", "noisy"]),
    most=MOST_SEEDS,
    pilot=PILOT,
)
