"""Texts over five letters, what they are truly worth, and proxies of that: learned from few labels, or with a flaw.

Gold rises with each letter's count to a number of its own and falls behind it, so that more of what was good becomes
bad, as it does for people; and some pairs of neighbours are worth more than others. A learned proxy is linear in what
it sees, fitted by Bradley-Terry to noisy labels of pairs that the reference wrote: it is right where the reference
writes, and goes on rising where gold has turned. All is drawn from a seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlhf_env.settings import settings
from rlhf_env.types import Episode, Float

LETTERS = "abcde"
LONGEST = 12
_PAIRS = ["".join(pair) for pair in itertools.product(LETTERS, repeat=2)]
_RIDGE, _MEMBERS = 1.0, 4
_BIGRAMS = 0.5  # the weight of neighbours in gold, where counts have 1


@settings
class ProxyDesign:
    """How the reward of a run differs from gold."""

    labels: int = 0
    """Pairs that it is fitted to; 0: it is gold, and what `flaw` adds."""
    flipped: float = 0.0
    """The share of labels turned around."""
    sees_turns: bool = False
    """Whether squares of the counts are among its features, so that it can tell where gold turns."""
    flaw: str = ""
    """What it pays for besides: "length", "repetition" or "letter"."""
    pays: float = 0.0
    """How much, in standard deviations of gold under the reference, for one standard deviation of the flaw."""


@dataclass(frozen=True)
class GoldOfLetters:
    """The true reward of a seed, in standard deviations of `sample`, texts of the reference, above their mean."""

    seed: int
    sample: tuple[str, ...]

    @cached_property
    def _weights(self) -> tuple[Float, Float, Float]:
        rng = np.random.default_rng([self.seed, *b"gold"])
        return rng.normal(size=5), rng.uniform(1.5, 4.5, size=5), rng.normal(size=len(_PAIRS))

    @cached_property
    def _unit(self) -> tuple[float, float]:
        raw = self._raw(self.sample)
        return float(raw.mean()), float(raw.std())

    def _raw(self, texts: Sequence[str]) -> Float:
        worth, turns, pairs = self._weights
        features = _features(texts, sees_turns=False)
        counts, neighbours = features[:, :5], features[:, 5:30]
        # Good letters turn at a count of their own; bad ones are bad at any.
        rising = np.where(worth > 0.0, worth * counts * (1.0 - counts / (2.0 * turns)), worth * counts / 2.0)
        too_long = 0.05 * np.maximum(features[:, 30] - 8.0, 0.0) ** 2
        return np.asarray(rising.sum(axis=1) + _BIGRAMS * (np.sqrt(neighbours) @ pairs) - too_long)

    def of(self, texts: Sequence[str]) -> Float:
        """float64[B]."""
        mean, spread = self._unit
        return (self._raw(texts) - mean) / spread

    def __call__(self, episodes: Sequence[Episode]) -> Float:
        return self.of([episode.response for episode in episodes])


class ProxyOfLetters:
    """The reward that is climbed. `disagreement`: how far its members were apart in the last call, if it has any."""

    def __init__(self, gold: GoldOfLetters, design: ProxyDesign, seed: int) -> None:
        self.gold, self.design = gold, design
        self.disagreement: float | None = None
        sample = gold.sample
        if design.labels:
            self._members = self._fitted(sample, seed)
            scores = self._scores(sample).mean(axis=0)
            self._mean, self._spread = float(scores.mean()), float(scores.std())
        if design.flaw:
            values = _flaw(sample, design.flaw)
            self._flaw_unit = float(values.mean()), float(values.std())

    def __call__(self, episodes: Sequence[Episode]) -> Float:
        return self.of([episode.response for episode in episodes])

    def of(self, texts: Sequence[str]) -> Float:
        """float64[B], in standard deviations under the reference."""
        design = self.design
        if design.labels:
            each = (self._scores(texts) - self._mean) / self._spread
            self.disagreement = float(each.std(axis=0).mean())
            scores = each.mean(axis=0)
        else:
            scores = self.gold.of(texts)
        if design.flaw:
            mean, spread = self._flaw_unit
            scores = scores + design.pays * (_flaw(texts, design.flaw) - mean) / spread
        return np.asarray(scores)

    def _scores(self, texts: Sequence[str]) -> Float:
        return np.asarray(self._members @ _features(texts, self.design.sees_turns).T)

    def _fitted(self, sample: Sequence[str], seed: int) -> Float:
        """float64[M, F]: each member fitted to its own bootstrap of the labels."""
        rng = np.random.default_rng([seed, *b"labels"])
        labels = self.design.labels
        pairs = rng.integers(len(sample), size=(labels, 2))
        gold = self.gold.of(sample)
        says = rng.random(labels) < 1.0 / (1.0 + np.exp(-2.0 * (gold[pairs[:, 0]] - gold[pairs[:, 1]])))
        says ^= rng.random(labels) < self.design.flipped
        features = _features(sample, self.design.sees_turns)
        apart = (features[pairs[:, 0]] - features[pairs[:, 1]]) * np.where(says, 1.0, -1.0)[:, None]
        return np.array([fit_votes(apart[rng.integers(labels, size=labels)]) for _ in range(_MEMBERS)])


def fit_votes(apart: Float, ridge: float = _RIDGE, steps: int = 10) -> Float:
    """float64[F]: Bradley-Terry on float64[N, F], chosen less rejected, with a ridge, by so many steps of Newton's."""
    theta = np.zeros(apart.shape[1])
    for _ in range(steps):
        lost = 1.0 / (1.0 + np.exp(np.clip(apart @ theta, -50.0, 50.0)))
        curvature = (apart * (lost * (1.0 - lost))[:, None]).T @ apart + ridge * np.eye(len(theta))
        theta = theta - np.linalg.solve(curvature, ridge * theta - apart.T @ lost)
    return theta


def _features(texts: Sequence[str], sees_turns: bool) -> Float:
    """float64[B, F]: counts of letters, of pairs of neighbours, the length, and where asked for squares of counts."""
    found = np.zeros((len(texts), 36))
    for row, text in enumerate(texts):
        for letter in text:
            found[row, LETTERS.index(letter)] += 1.0
        for one, other in itertools.pairwise(text):
            found[row, 5 + 5 * LETTERS.index(one) + LETTERS.index(other)] += 1.0
        found[row, 30] = len(text)
    found[:, 31:] = found[:, :5] ** 2 / 4.0
    return found if sees_turns else found[:, :31]


def _flaw(texts: Sequence[str], kind: str) -> Float:
    if kind == "length":
        return np.array([float(len(text)) for text in texts])
    if kind == "letter":
        return np.array([float(text.count("e")) for text in texts])
    return np.array([float(sum(a == b for a, b in itertools.pairwise(text))) for text in texts])
