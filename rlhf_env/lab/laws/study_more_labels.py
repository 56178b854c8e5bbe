"""More labels for a reward model, and how far it can be climbed."""

from __future__ import annotations

from rlhf_env.lab.laws.climbs import FEW, LABELS, MOST_SEEDS, PILOT, ClimbsOf, trained_peak
from rlhf_env.lab.laws.form import Claim


def _farther(seed: int, _at: float) -> float:
    return trained_peak(seed, "base")[0] - trained_peak(seed, "few-labels")[0]


LAW = Claim(
    name="study-more-labels",
    claim="More labels move the peak of gold outwards: the reward model can be climbed farther.",
    source="Gao, Schulman and Hilton 2023, arXiv 2210.10760",
    prediction=(
        f"Distance sqrt(KL) of the peak of gold, a reward model of {LABELS} labels less one of {FEW}, RLOO on the "
        "shipped model. Predicted: above 0."
    ),
    smallest=0.5,
    measure=_farther,
    prepare=ClimbsOf(["base", "few-labels"]),
    most=MOST_SEEDS,
    pilot=PILOT,
)
