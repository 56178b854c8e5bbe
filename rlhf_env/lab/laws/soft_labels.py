"""One comparison of a seldom seen answer, fitted for many epochs."""

from __future__ import annotations

import numpy as np

from rlhf_env.lab.laws.form import Law
from rlhf_env.lab.laws.worlds import stream
from rlhf_env.types import Float

_OFTEN, _EPOCHS, _LR, _SMOOTHING = 100, 3000, 0.5, 0.02
_PAIRS = np.array([[0, 1], [0, 2]])  # the good answer against a fair one, often; against a bad one, seldom


def _less_regret(seed: int, seldom: float) -> float:
    rng = stream("three arms", seed)
    worth = np.array([rng.uniform(1.0, 2.0), rng.uniform(0.2, 0.8), 0.0])
    counts = np.array([_OFTEN, int(seldom)])
    odds = 1.0 / (1.0 + np.exp(-(worth[0] - worth[1:])))
    found = np.zeros(2)
    wins = np.arange(int(seldom) + 1)
    log_choose = np.cumsum(np.log(np.maximum(seldom - wins + 1, 1))) - np.cumsum(np.log(np.maximum(wins, 1)))
    log_choose -= log_choose[0]
    chance = np.exp(log_choose + wins * np.log(odds[1]) + (seldom - wins) * np.log1p(-odds[1]))
    for won, likely in zip(wins, chance / chance.sum(), strict=True):  # exact over the seldom pair's outcomes
        labels = np.array([odds[0], won / seldom])
        for way, smoothing in enumerate((0.0, _SMOOTHING)):
            taken = int(_fitted(labels, counts, smoothing).argmax())
            found[way] += likely * (worth[0] - worth[taken])
    return float(found[0] - found[1])


def _fitted(labels: Float, counts: Float, smoothing: float) -> Float:
    """The scores of the three answers; `smoothing` is the step by which labels follow the model each epoch."""
    scores, labels = np.zeros(3), labels.copy()
    for _ in range(_EPOCHS):
        says = 1.0 / (1.0 + np.exp(-(scores[_PAIRS[:, 0]] - scores[_PAIRS[:, 1]])))
        push = counts / counts.sum() * (labels - says)
        scores[0] += _LR * push.sum()
        scores[1:] -= _LR * push
        # A label moves as often as it is seen: those that are well covered have been learned by then.
        labels += smoothing * (says - labels)
    return scores


LAW = Law(
    name="soft-labels",
    claim="Hard labels overfit pairs that are seldom compared; labels that follow the model do not.",
    source="Zhu, Jordan and Jiao 2024, arXiv 2401.16335",
    prediction=(
        "Regret of the answer with the highest fitted score, labels as they are less labels that follow the model: "
        "three answers, one pair compared 100 times, one once; exact over outcomes. Predicted: above 0, and gone once "
        "both pairs are well covered."
    ),
    smallest=0.02,
    measure=_less_regret,
    at=1,
    axis="comparisons of the seldom pair",
    places=(1, 2, 4, 8, 16),
    place_seeds=20,
    most=50,
    teaches="label_smoothing and early stopping are settings of reward models.",
)
