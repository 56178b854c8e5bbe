"""Where the KL penalty stands: only k1 in the reward has the gradient of the KL of whole texts."""

from __future__ import annotations

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.studies.exact.estimators import ESTIMATORS, Batches, example, measure


def _least_bias_in_loss(seed: int, longest: float) -> float:
    objective, logits = example(2, int(longest), 0.5, seed)
    (rloo,) = (each for each in ESTIMATORS if each.name == "RLOO")
    found = measure(objective, logits, rloo, Batches.of(objective.tree, 2))
    in_loss = min(found[place].bias for place in ("k2 in loss", "k3 in loss", "k3-corrected in loss"))
    return in_loss - found["k1 in reward"].bias


LAW = Law(
    name="kl-placement",
    claim="k1 in the reward gives the exact gradient of reward - beta KL; an estimate in the loss leaves a part out.",
    source="Shah et al. 2025, arXiv 2512.21852; Tang and Munos 2025, arXiv 2506.09477",
    prediction=(
        "Least bias (|expected - exact| / |exact|) of k2, k3 and corrected k3 in the loss, less that of k1 in the "
        "reward; exact sums over all batches of two texts under RLOO. Predicted: above 0, but for texts of one token."
    ),
    smallest=0.01,
    measure=_least_bias_in_loss,
    at=3,
    axis="tokens of the longest text",
    places=(1, 2, 3),
    place_seeds=100,
    teaches="The `kl` part is a reward (promise 2); the agents' kl_in_loss says what it leaves out.",
)
