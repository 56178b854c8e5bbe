"""What the accuracy of a reward model says of best-of-n, and of training on it."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import ascend, best_of, rank_correlation, softmax, stream

_RESPONSES, _MODELS, _N, _TIME = 200, 30, 16, 100.0


def _correlations_apart(seed: int, scales: float) -> float:
    rng = stream("reward models", seed)
    logits, gold = rng.normal(size=_RESPONSES), rng.normal(size=_RESPONSES)
    reference = softmax(logits)
    pairs = rng.choice(_RESPONSES, size=(2, 4000), p=reference)
    accuracy, chosen_best, trained = np.empty(_MODELS), np.empty(_MODELS), np.empty(_MODELS)
    for number in range(_MODELS):
        proxy = gold + rng.uniform(0.2, 2.0) * rng.normal(size=_RESPONSES)
        proxy *= np.exp(scales * rng.normal()) / proxy.std()
        right = np.sign(proxy[pairs[0]] - proxy[pairs[1]]) == np.sign(gold[pairs[0]] - gold[pairs[1]])
        accuracy[number] = right[pairs[0] != pairs[1]].mean()
        chosen_best[number] = best_of(reference, proxy, _N) @ gold
        trained[number] = softmax(ascend(logits, proxy, _TIME, step=0.5)) @ gold
    return rank_correlation(accuracy, chosen_best) - rank_correlation(accuracy, trained)


LAW = Law(
    name="accuracy-predicts",
    claim="The accuracy of a reward model predicts best-of-n with it, and not training on it.",
    source="RewardBench 2: Malik et al. 2025, arXiv 2506.01937; Razin et al. 2025, arXiv 2503.15477",
    prediction=(
        "Rank correlation of accuracy with gold over 30 reward models: after best-of-16 less after the exact policy "
        "gradient of one length, models of unlike scale (log-normal, sigma 1). Predicted: above 0."
    ),
    smallest=0.1,
    measure=_correlations_apart,
    at=1.0,
    axis="sigma of the models' log-scale",
    places=(0.0, 0.5, 1.0, 2.0),
    place_seeds=20,
    most=100,
    teaches="The scorecard has the spread of scores within a prompt beside accuracy.",
)
