"""What to spend labels on: prompts that differ from each other, and the pairs a reward model can learn most from."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_env.errors import ConfigError
from rlhf_env.types import Float, Int

# ---------------------------------------------------------------- prompts


@dataclass(frozen=True)
class TextDiversity:
    """How different `count` texts are, in Euclidean distances of their vectors.

    `mean_distance` is that between two of them drawn at random, `nearest` the mean distance to the nearest other one
    (0 where everything has a duplicate). Both are NaN for fewer than 2 texts.
    """

    count: int
    mean_distance: float
    nearest: float


def ngram_vectors(texts: Sequence[str], *, n: int = 2, size: int = 1024) -> Float:
    """float64[N, size]: texts as unit vectors of their words and runs of up to `n` words.

    Runs are hashed into `size` places with a sign (Weinberger et al. 2009, 0902.2206), so that no vocabulary is needed
    and inner products are right on average. Upper case counts as lower case. A text without words is the zero vector.
    """
    vectors = np.zeros((len(texts), size))
    for row, text in enumerate(texts):
        words = text.lower().split()
        for length in range(1, n + 1):
            for start in range(len(words) - length + 1):
                run = " ".join(words[start : start + length])
                hashed = zlib.crc32(run.encode("utf-8", errors="surrogatepass"))
                vectors[row, (hashed >> 1) % size] += 1.0 if hashed & 1 else -1.0
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1.0))


def k_centre(vectors: Float, count: int, *, first: int = 0) -> Int:
    """int64[count]: rows that lie far apart, in the order chosen: each next one is farthest from all before.

    Gonzalez (1985): the largest distance from any row to its nearest chosen one is at most twice the best possible.
    `vectors` float64[N, D] are embeddings of any kind, or `ngram_vectors`. Of equal distances the earlier row is taken.
    """
    if not 0 <= count <= len(vectors) or not (0 <= first < len(vectors) or not count):
        raise ConfigError(f"cannot choose {count} of {len(vectors)} texts, beginning with number {first}")
    chosen = np.zeros(count, dtype=np.int64)
    nearest = np.full(len(vectors), np.inf)
    pick = first
    for place in range(count):
        chosen[place] = pick
        nearest = np.minimum(nearest, _distances(vectors, vectors[pick]))
        nearest[pick] = -1.0  # a duplicate of a chosen row, at 0, comes before the row itself
        pick = int(nearest.argmax())
    return chosen


def covering_radius(vectors: Float, chosen: Int) -> float:
    """The largest distance from any row to its nearest chosen one: what k-centre keeps small."""
    return float(np.min([_distances(vectors, vectors[row]) for row in chosen], axis=0).max())


def diversity(vectors: Float) -> TextDiversity:
    """Of float64[N, D], one row a text."""
    count = len(vectors)
    if count < 2:
        return TextDiversity(count, float("nan"), float("nan"))
    total, nearest = 0.0, 0.0
    for row in range(count):
        distance = _distances(vectors, vectors[row])
        total += float(distance.sum())
        nearest += float(np.delete(distance, row).min())
    return TextDiversity(count, total / (count * (count - 1)), nearest / count)


def _distances(vectors: Float, to: Float) -> Float:
    return np.asarray(np.linalg.norm(vectors - to, axis=1))


# ---------------------------------------------------------------- pairs


def random_priority(pairs: int, rng: np.random.Generator) -> Float:
    """float64[P]: every order equally likely. What the others have to beat."""
    return rng.random(pairs)


def uncertainty_priority(first: Float, second: Float) -> Float:
    """float64[P]: the entropy in nats of P(first preferred) under a reward model's scores, float64[P] each.

    Largest, ln 2, where the model cannot tell them apart. It may be that nobody can: see `disagreement_priority`.
    """
    p = _win_probability(first, second)
    return np.asarray(-(_xlogx(p) + _xlogx(1 - p)))


def disagreement_priority(first: Float, second: Float) -> Float:
    """float64[P]: how far the members of an ensemble disagree, from scores float64[M, P].

    The mutual information of verdict and member: the entropy of the mean P(first preferred) less the mean of the
    members' entropies (BALD, Houlsby et al. 2011, 1112.5745, equation 2). It is 0 where all are unsure alike, since
    there the noise is in the pair and no label helps.
    """
    p = _win_probability(first, second)
    mean = p.mean(axis=0)
    return np.asarray((_xlogx(p) + _xlogx(1 - p)).mean(axis=0) - (_xlogx(mean) + _xlogx(1 - mean)))


def _win_probability(first: Float, second: Float) -> Float:
    return np.asarray(0.5 + 0.5 * np.tanh((first - second) / 2))  # sigmoid without overflow


def _xlogx(p: Float) -> Float:
    return np.asarray(p * np.log(np.where(p > 0, p, 1.0)))
