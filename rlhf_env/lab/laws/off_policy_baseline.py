"""Learning from another's answers: how low the baseline has to be."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import entropy, softmax, stream

_ARMS, _STEPS, _STEP = 10, 20_000, 2.0


def _collapse(seed: int, above: float) -> float:
    rng = stream("off-policy", seed)
    behaviour, reward = rng.dirichlet(5.0 * np.ones(_ARMS)), rng.random(_ARMS)
    worth = behaviour * (reward - (behaviour @ reward + above))
    logits = np.log(behaviour)
    for _ in range(_STEPS):  # the expected gradient of log pi (r - V) over what the behaviour wrote
        logits = logits + _STEP * (worth - softmax(logits) * worth.sum())
    return 1.5 - float(np.exp(entropy(softmax(logits))))


LAW = Law(
    name="off-policy-baseline",
    claim="REINFORCE on another policy's answers collapses to one answer once its baseline is at or above their value.",
    source="Arnal et al. 2025, arXiv 2503.14286",
    prediction=(
        "1.5 less the number of arms (of ten; exp of the entropy) that the expected gradient leaves alive, the "
        "baseline 0.02 above the value of the behaviour, rewards in [0, 1]. Predicted: above 0; below 0 for lower "
        "baselines."
    ),
    smallest=0.1,
    measure=_collapse,
    at=0.02,
    axis="baseline less the value of the behaviour",
    places=(-0.5, -0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.2),
    place_seeds=10,
    teaches="`replay` learns from the advantages of the group that wrote the text, corrected by ratios.",
)
