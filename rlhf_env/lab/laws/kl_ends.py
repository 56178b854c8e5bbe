"""Where training ends with the KL penalty in the loss."""

from __future__ import annotations

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.studies.exact.losses import penalty_ends


def _left_by_k3(seed: int, beta: float) -> float:
    ends = penalty_ends(beta, seed)
    return ends["k3 in loss"] - ends["k1 in reward"]


LAW = Law(
    name="kl-ends",
    claim="A k3 penalty in the loss (GRPO's) does not end at the optimum of reward - beta KL.",
    source="Shah et al. 2025, arXiv 2512.21852; GRPO: Shao et al. 2024, arXiv 2402.03300",
    prediction=(
        "Share of the attainable gain that is left where the expected gradient of RLOO ends, k3 in the loss less k1 "
        "in the reward, in a world of seven texts. Predicted: above 0."
    ),
    smallest=0.01,
    measure=_left_by_k3,
    at=0.5,
    axis="beta",
    places=(0.25, 0.5, 1.0, 2.0),
    place_seeds=20,
    most=40,
    teaches="As kl-placement; docs/losses.md has the ends of every loss.",
)
