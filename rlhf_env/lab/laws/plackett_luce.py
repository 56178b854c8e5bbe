"""Rankings of K answers: their likelihood, or all their pairs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import softmax, stream
from rlhf_env.types import Float

_DATA_SETS, _RANKINGS, _FEATURES = 20, 100, 3
_Derivatives = Callable[[Float, Float], tuple[Float, Float]]


def _log_error_ratio(seed: int, size: float) -> float:
    rng, k = stream("rankings", seed), int(size)
    truth, errors = rng.normal(size=_FEATURES), np.zeros(2)
    for _ in range(_DATA_SETS):
        answers = rng.normal(size=(_RANKINGS, k, _FEATURES))
        order = np.argsort(-(answers @ truth + rng.gumbel(size=(_RANKINGS, k))), axis=1)  # a Plackett-Luce ranking
        ranked = np.take_along_axis(answers, order[:, :, None], axis=1)
        errors += [float(((_fitted(ranked, how) - truth) ** 2).sum()) for how in (_of_pairs, _of_whole)]
    return float(np.log(errors[0] / errors[1]))


def _fitted(ranked: Float, derivatives: _Derivatives) -> Float:
    theta = np.zeros(_FEATURES)
    for _ in range(12):  # Newton's method: both losses are convex
        slope, curvature = derivatives(ranked, theta)
        theta = theta - np.linalg.solve(curvature + 1e-9 * np.eye(_FEATURES), slope)
    return theta


def _of_pairs(ranked: Float, theta: Float) -> tuple[Float, Float]:
    better, worse = np.triu_indices(ranked.shape[1], 1)
    gap = (ranked[:, better] - ranked[:, worse]).reshape(-1, _FEATURES)
    lost = 1.0 / (1.0 + np.exp(gap @ theta))
    return -gap.T @ lost, (gap * (lost * (1.0 - lost))[:, None]).T @ gap


def _of_whole(ranked: Float, theta: Float) -> tuple[Float, Float]:
    slope, curvature = np.zeros(_FEATURES), np.zeros((_FEATURES, _FEATURES))
    for place in range(ranked.shape[1] - 1):  # the best of those that are left
        left = ranked[:, place:]
        chance = softmax(left @ theta)
        mean = np.einsum("nk,nkf->nf", chance, left)
        slope += (mean - left[:, 0]).sum(0)
        curvature += np.einsum("nk,nkf,nkg->fg", chance, left, left) - mean.T @ mean
    return slope, curvature


LAW = Law(
    name="plackett-luce",
    claim="Splitting rankings of K answers into pairs learns the reward less well than the likelihood of the ranking.",
    source="Zhu, Jordan and Jiao 2023, arXiv 2301.11270",
    prediction=(
        f"log of the ratio of mean squared errors of a linear reward over {_DATA_SETS} sets of {_RANKINGS} rankings: "
        "fitted to all pairs over fitted by Plackett-Luce. Predicted: above 0 for K > 2; 0.05 is 5 % more rankings "
        "for the same error."
    ),
    smallest=0.05,
    measure=_log_error_ratio,
    at=9,
    axis="K, answers in a ranking",
    places=(2, 3, 4, 6, 9),
    place_seeds=40,
    teaches='ranking_loss = "plackett-luce" is the default of reward models.',
)
