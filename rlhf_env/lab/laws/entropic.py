"""Several reward models as one: -beta log mean exp(-r / beta)."""

from __future__ import annotations

import numpy as np

from rlhf_env.feedback.reward_models.ensemble import combined
from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import stream

_MEMBERS, _TEXTS, _BETA = 4, 2000, 1.0


def _leaves_the_range(seed: int, spread: float) -> float:
    scores = spread * stream("entropic", seed).normal(size=(_MEMBERS, _TEXTS))
    low, high = scores.min(0) - 1e-9, scores.max(0) + 1e-9
    weighted = combined(scores, "uncertainty", penalty=0.5 / _BETA)
    entropic = combined(scores, "entropic", penalty=0.5 / _BETA)
    outside = [float(((value < low) | (value > high)).mean()) for value in (weighted, entropic)]
    nearer = float(np.abs(weighted - entropic).mean()) / spread
    # The two agree to second order where members differ by little; if they did not, the claim would be wrong there.
    return outside[0] - outside[1] if spread > 0.1 or nearer < 0.05 else -1.0


LAW = Law(
    name="entropic",
    claim=(
        "-beta log E exp(-r / beta) over an ensemble is its mean for large beta, its worst case for small, uncertainty "
        "weighting to second order, and never below the worst member, as uncertainty weighting is."
    ),
    source="arXiv 2606.09073; uncertainty weighting: Coste et al. 2024, arXiv 2310.02743",
    prediction=(
        "Share of texts to which uncertainty weighting (mean - variance / (2 beta)) gives less than the worst of four "
        "members says, less that share for the entropic form. Predicted: above 0 where members differ by more than "
        "beta, both 0 where they differ by little."
    ),
    smallest=0.01,
    measure=_leaves_the_range,
    at=3.0,
    axis="standard deviation of the members, in units of beta",
    places=(0.05, 0.3, 1.0, 3.0, 10.0),
    teaches='combination = "entropic" for ensembles of reward models.',
)
