"""Brakes that ask: a few texts of each evaluation are judged by a noisy annotator, and each judgement is paid for.

The scores of single texts go to the rule `brake`, that of any experiment; votes do so as a share of wins against the
untrained policy's answers, or decide themselves, against the best policy so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rlhf_env.lab.brake.records import SavedRun
from rlhf_env.learning.stopping import Brake
from rlhf_env.types import Float

NOISE_OF_ANNOTATOR = 0.5  # standard deviations of gold: the scale of Bradley-Terry votes, and of the error of scores
BUDGETS = (8, 16, 32, 64)
DROPS, WAITS, INTERVALS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0), (1, 2, 3), (1, 2)


@dataclass(frozen=True)
class BrakeDecision:
    """What a rule did with a run."""

    stopped: int | None
    """The evaluation at which it was ended; None: it went to its end."""
    kept: int
    """The evaluation whose policy its owner has."""
    labels: int = 0
    """Judgements that were paid for."""


@dataclass(frozen=True)
class WayOfAsking:
    """How an annotator is asked."""

    kind: str
    """"scores", "votes against the reference" or "votes against the best so far"."""
    texts: int
    """Judgements of an evaluation."""
    drop: float
    """In standard deviations (scores and shares of wins), or how far the share of votes is below a half."""
    wait: int
    """Evaluations in a row."""
    every: int
    """Every so many evaluations."""

    @property
    def words(self) -> str:
        which = "each evaluation" if self.every == 1 else f"one evaluation of {self.every}"
        return f"drop {self.drop:g}, {self.wait} in a row, {which}"


KINDS = ("scores", "votes against the reference", "votes against the best so far")


def ways_of_asking(kind: str, texts: int) -> Iterator[WayOfAsking]:
    drops = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3) if kind == KINDS[2] else DROPS
    for drop in drops:
        for wait in WAITS:
            for every in INTERVALS:
                yield WayOfAsking(kind, texts, drop, wait, every)


def ask(record: SavedRun, asking: WayOfAsking) -> BrakeDecision:
    """Replay a run whose texts' gold is known."""
    if asking.kind == KINDS[2]:
        return _against_best(record, asking)
    judged = _judged(record, asking.kind, asking.texts)
    rule = Brake(drop=asking.drop, evaluations=asking.wait)
    best, kept, labels = -np.inf, 0, 0
    for evaluation in range(0, len(judged), asking.every):
        values = judged[evaluation]
        mean, labels = float(values.mean()), labels + asking.texts
        if mean > best:
            best, kept = mean, evaluation
        row = {"update": evaluation, "eval/gold": mean, "eval/gold_std": float(values.std())}
        if rule(row) is not None:
            return BrakeDecision(evaluation, kept, labels)
    return BrakeDecision(None, kept, labels)


@lru_cache(maxsize=4096)
def _judged(record: SavedRun, kind: str, texts: int) -> Float:
    """float64[E, n]: what the annotator says of the first texts; the same noise for all rules."""
    gold = _texts(record)[:, :texts]
    rng = np.random.default_rng([record.seed, texts, *record.name.encode()])
    if kind == KINDS[0]:
        return np.asarray(gold + NOISE_OF_ANNOTATOR * rng.logistic(size=gold.shape))
    return np.asarray(rng.random(gold.shape) < _wins(gold, gold[0]), dtype=np.float64)


def _against_best(record: SavedRun, asking: WayOfAsking) -> BrakeDecision:
    """The best so far is replaced by who wins more than half of the votes; who loses clearly counts against the run."""
    gold = _texts(record)[:, : asking.texts]
    rng = np.random.default_rng([record.seed, asking.texts, *record.name.encode()])
    draws, best, lost, labels = rng.random(gold.shape), 0, 0, 0
    for evaluation in range(asking.every, len(gold), asking.every):
        share = float((draws[evaluation] < _wins(gold[evaluation], gold[best])).mean())
        labels += asking.texts
        best = evaluation if share > 0.5 else best
        lost = lost + 1 if share < 0.5 - asking.drop else 0
        if lost >= asking.wait:
            return BrakeDecision(evaluation, best, labels)
    return BrakeDecision(None, best, labels)


def _wins(gold: Float, other: Float) -> Float:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip((gold - other) / NOISE_OF_ANNOTATOR, -50.0, 50.0))))


def _texts(record: SavedRun) -> Float:
    """The texts of an evaluation are sorted by prompt: those that are asked about are spread over the prompts."""
    assert record.texts is not None
    count = record.texts.shape[1]
    order = np.arange(count).reshape(-1, max(count // 4, 1)).T.ravel() if count % 4 == 0 else np.arange(count)
    return np.asarray(record.texts[:, order])


ASKED_FAMILIES: Mapping[str, tuple[str, int]] = {
    f"{kind}, {texts} a time": (kind, texts) for kind in KINDS for texts in BUDGETS
}
