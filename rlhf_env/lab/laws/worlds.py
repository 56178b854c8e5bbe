"""Worlds of one state, in numpy: all responses in one softmax, every expectation a sum.

A policy is float64[N], probabilities of N responses; `reward` float64[N] is what each is worth.
"""

from __future__ import annotations

import numpy as np

from rlhf_env.types import Float


def stream(name: str, seed: int) -> np.random.Generator:
    """What a law draws a seed's world from."""
    return np.random.default_rng([seed, *name.encode()])


def softmax(logits: Float) -> Float:
    """Of the last axis."""
    grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=-1, keepdims=True))


def entropy(policy: Float) -> Float:
    """Nats, of the last axis."""
    return np.asarray(-(policy * np.log(np.maximum(policy, 1e-300))).sum(axis=-1))


def kl(policy: Float, reference: Float) -> float:
    """KL(policy || reference), nats."""
    inside = policy > 0.0
    return float((policy[inside] * np.log(policy[inside] / reference[inside])).sum())


def tilted(reference: Float, reward: Float, strength: float) -> Float:
    """~ reference * exp(strength * reward): the best policy for a KL penalty of weight 1 / strength."""
    return softmax(np.log(reference) + strength * reward)


def tilted_to(reference: Float, reward: Float, nats: float) -> Float:
    """The tilted policy at KL `nats` from the reference: of those no farther away, the one of the highest reward."""
    low, high = 0.0, 1.0
    while kl(tilted(reference, reward, high), reference) < nats and high < 1e9:
        low, high = high, 2.0 * high
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kl(tilted(reference, reward, middle), reference) < nats else (low, middle)
    return tilted(reference, reward, high)


def best_of(reference: Float, reward: Float, n: int) -> Float:
    """The best of n by `reward`, of which no two are equal: F^n - F_below^n."""
    order = np.argsort(reward)
    upto = np.cumsum(reference[order])
    upto /= upto[-1]
    policy = np.empty_like(reference)
    policy[order] = np.diff(upto**n, prepend=0.0)
    return policy


def ascend(logits: Float, reward: Float, time: float, step: float = 1.0) -> Float:
    """The logits after following the exact policy gradient of the expected reward, p (r - p r), for this long."""
    for _ in range(round(time / step)):
        policy = softmax(logits)
        logits = logits + step * policy * (reward - policy @ reward)
    return logits


def rank_correlation(a: Float, b: Float) -> float:
    """Spearman's, of values without ties."""
    one, other = (np.argsort(np.argsort(values)).astype(np.float64) for values in (a, b))
    return float(np.corrcoef(one, other)[0, 1])
