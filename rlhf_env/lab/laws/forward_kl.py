"""What predicts forgetting."""

from __future__ import annotations

from rlhf_env.lab.laws.forgetting import correlation
from rlhf_env.lab.laws.form import Law

LAW = Law(
    name="forward-kl",
    claim="The forward KL to the base, measured on the new task, predicts how much of the old one is forgotten.",
    source="Shenfeld et al. 2025, arXiv 2509.04259",
    prediction=(
        "Rank correlation between KL(base || policy) on the new task and that on the old one, over ten ways to learn "
        "it (nine sets of demonstrations, one policy gradient), less 0.7. Predicted: above 0."
    ),
    smallest=0.02,
    measure=correlation,
    most=400,
    teaches="`rlhf-env evaluate` prints KL on prompts of your choice: take those you want to keep.",
)
