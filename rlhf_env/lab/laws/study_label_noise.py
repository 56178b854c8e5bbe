"""Wrong labels, and how far the reward model can be climbed."""

from __future__ import annotations

from rlhf_env.lab.laws.climbs import FLIPPED, MOST, PILOT, peak
from rlhf_env.lab.laws.form import Law


def _nearer(seed: int, _at: float) -> float:
    return peak(seed, "base")[0] - peak(seed, "noisy")[0]


LAW = Law(
    name="study-label-noise",
    claim="Label noise moves the peak of gold inwards.",
    source="Coste et al. 2024, arXiv 2310.02743; Gao, Schulman and Hilton 2023, arXiv 2210.10760",
    prediction=(
        f"Distance sqrt(KL) of the peak of gold, labels as the annotator gives them less with {FLIPPED:.0%} of them "
        "turned around, RLOO on the shipped model. Predicted: above 0."
    ),
    smallest=0.5,
    measure=_nearer,
    most=MOST,
    pilot=PILOT,
)
