"""A learned reward climbed exactly: reward models of a few labels, and the best policy for each at every distance.

Responses are points in space; gold is a smooth function of them that no proxy has the form of. A proxy is a linear
model on random ReLU features (its size), fitted by Bradley-Terry to pairs that the reference wrote and a noisy
annotator labelled. No agent is involved: at each distance d = sqrt(KL) stands the policy with the highest proxy reward,
which is the reference tilted by it. Responses that the reference seldom writes are seldom labelled, and there a proxy
is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from rlhf_env.feedback.reward_models.config import Combination
from rlhf_env.feedback.reward_models.ensemble import combined
from rlhf_env.lab.laws.worlds import kl_nats, softmax, stream, tilted
from rlhf_env.types import Float

_RESPONSES, _DIMENSIONS, _RIDGE, _ANNOTATOR = 2000, 30, 0.1, 0.5
_STRENGTHS = np.geomspace(0.05, 60.0, 36)
_PAIRS = 1000  # drawn; a proxy of fewer labels learns from the first


@dataclass(frozen=True)
class TiltedProxy:
    """What a reward model is made of: pairs, random features, the share of labels turned around, members."""

    labels: int = 200
    size: int = 64
    flipped: float = 0.0
    members: int = 1
    combination: Combination = "mean"
    penalty: float = 0.5


@cache
def tilted_peak(seed: int, proxy: TiltedProxy) -> tuple[float, float]:
    """(d, gold) where gold is highest along the tilt; gold in standard deviations under the reference, 0 its mean."""
    points, reference, gold = _world(seed)
    scores = np.array([_fitted(seed, proxy, member, points, reference, gold) for member in range(proxy.members)])
    climbed = combined(scores, proxy.combination, penalty=proxy.penalty)
    policies = [tilted(reference, climbed, strength) for strength in _STRENGTHS]
    best = max(policies, key=lambda policy: float(policy @ gold))
    return float(np.sqrt(kl_nats(best, reference))), float(best @ gold)


@cache
def _world(seed: int) -> tuple[Float, Float, Float]:
    """Points [N, D], the reference [N] and gold [N]."""
    rng = stream("tilting", seed)
    points = rng.normal(size=(_RESPONSES, _DIMENSIONS))
    # The reference writes what is near its own taste far more often: coverage is uneven, as it is for texts.
    reference = softmax(1.5 * points @ rng.normal(size=_DIMENSIONS) / np.sqrt(_DIMENSIONS))
    inner = rng.normal(size=(_DIMENSIONS, 12))
    gold = np.tanh(points @ inner) @ rng.normal(size=12)
    gold -= reference @ gold
    return points, reference, np.asarray(gold / np.sqrt(reference @ gold**2))


def _fitted(seed: int, proxy: TiltedProxy, member: int, points: Float, reference: Float, gold: Float) -> Float:
    """The scores [N] of one member. All proxies of a seed see the first of the same pairs, with the same noise."""
    draws = stream("labels", seed)
    pairs = draws.choice(_RESPONSES, size=(_PAIRS, 2), p=reference)
    noise, flips = draws.random(_PAIRS), draws.random(_PAIRS)
    says = noise < 1.0 / (1.0 + np.exp(-(gold[pairs[:, 0]] - gold[pairs[:, 1]]) / _ANNOTATOR))
    says = np.where(flips < proxy.flipped, ~says, says)[: proxy.labels]
    rows = np.arange(proxy.labels)
    if proxy.members > 1:  # each of an ensemble has its own bootstrap
        rows = stream(f"bootstrap {member}", seed).integers(proxy.labels, size=proxy.labels)
    features = _features(seed, member if proxy.members > 1 else 0, proxy.size, points)
    apart = (features[pairs[rows, 0]] - features[pairs[rows, 1]]) * np.where(says[rows], 1.0, -1.0)[:, None]
    theta = np.zeros(proxy.size)
    for _ in range(12):  # Newton's method
        lost = 1.0 / (1.0 + np.exp(np.minimum(apart @ theta, 500.0)))
        curvature = (apart * (lost * (1.0 - lost))[:, None]).T @ apart + _RIDGE * np.eye(proxy.size)
        theta = theta - np.linalg.solve(curvature, _RIDGE * theta - apart.T @ lost)
    scores = features @ theta
    return np.asarray((scores - reference @ scores) / np.sqrt(reference @ (scores - reference @ scores) ** 2))


def _features(seed: int, member: int, size: int, points: Float) -> Float:
    rng = stream(f"features {member}", seed)
    inner = rng.normal(size=(_DIMENSIONS, 256))[:, :size]  # larger ones contain the smaller
    return np.asarray(np.maximum(points @ inner + rng.normal(size=256)[:size], 0.0) / np.sqrt(_DIMENSIONS))


def ensemble_gain(seed: int, members: float, combination: Combination, flipped: float = 0.25) -> float:
    """How much higher gold climbs with an ensemble than with one model of all labels, `flipped` of them wrong."""
    ensemble = TiltedProxy(flipped=flipped, members=int(members), combination=combination)
    return tilted_peak(seed, ensemble)[1] - tilted_peak(seed, TiltedProxy(flipped=flipped))[1]
