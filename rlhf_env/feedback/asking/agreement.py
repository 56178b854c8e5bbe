"""How far annotators agree: with each other beyond chance, with themselves, and how long they take.

Kappa and alpha are 1 for perfect agreement and 0 for the agreement of chance. A matrix of ratings is float64[N, M]: N
units (pairs, responses) by M annotators, NaN where somebody did not judge. Intervals are percentile bootstraps over the
units (Efron & Tibshirani 1993, chapter 13), with a generator that is handed in. Where all units are alike, every
resample is the same, and an interval of no width would say that three units are certainty: a share then has Wilson's
interval, and what is no share has none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from rlhf_env.errors import DataError
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import kind_of
from rlhf_env.feedback.kinds.kind import MeasurementLevel, Opinion
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.types import Float, Int

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; NaN where the data do not determine it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "-"
        ends = "(all alike)" if np.isnan(self.low) else f"[{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f} {ends}"


@dataclass(frozen=True)
class Agreement:
    """What the judgements of one kind, by one criterion, say about their annotators."""

    kind: str
    criterion: str
    annotators: tuple[str, ...]
    """Who judged."""
    judgements: int
    """How many there are."""
    units: int
    """Pairs or responses that at least two people judged."""
    agreement: Interval
    """The share of pairs of people who said the same about a unit, chance included."""
    alpha: Interval
    """Krippendorff's, at the level of the kind: ordinal for scores, otherwise nominal."""
    fleiss: Interval
    """Fleiss' kappa; NaN unless as many people judged each unit."""
    cohen: Interval
    """The mean of Cohen's kappa over pairs of people with a unit in common."""
    self_consistency: Interval
    """The share of repeated judgements in which a person said the same again."""
    seconds: Interval
    """The median time of a judgement."""


def cohen_kappa(one: Float, other: Float) -> float:
    """Of two annotators' categories, float64[N] each, over the units both judged. Cohen (1960), equation 1.

    NaN where no unit is shared, or where both always say one and the same thing.
    """
    both = ~(np.isnan(one) | np.isnan(other))
    one, other = one[both], other[both]
    if not len(one):
        return float("nan")
    observed = float(np.mean(one == other))
    values = np.unique(np.concatenate([one, other]))
    expected = float(sum(np.mean(one == value) * np.mean(other == value) for value in values))
    return _beyond_chance(observed, expected)


def fleiss_kappa(counts: Int) -> float:
    """Of int64[N, C]: how many annotators put unit i into category j. Fleiss (1971), equations 1 to 5.

    Every unit must have as many judgements, two at least; DataError otherwise. NaN where only one category occurs.
    """
    raters = counts.sum(axis=1)
    if not len(counts) or raters.min() != raters.max() or raters[0] < 2:
        raise DataError(
            "Fleiss' kappa needs the same number of judgements of every unit, at least 2: use alpha instead"
        )
    n = int(raters[0])
    observed = float(np.mean((counts * (counts - 1)).sum(axis=1) / (n * (n - 1))))
    shares = counts.sum(axis=0) / counts.sum()
    return _beyond_chance(observed, float(np.sum(shares**2)))


def krippendorff_alpha(ratings: Float, level: MeasurementLevel = "nominal") -> float:
    """Of float64[N, M] with NaN where a judgement is missing. Krippendorff, "Content Analysis" (2004), chapter 11.

    alpha = 1 - observed disagreement / expected disagreement, from the coincidences of values within units. Units that
    fewer than two judged are left out. `level`: values are names, an order, or numbers whose differences mean
    something. NaN where nothing is left or only one value occurs.
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(axis=1).astype(np.float64)  # N, V
    return _alpha_of_counts(counts[counts.sum(axis=1) >= 2], values, level)


def _alpha_of_counts(counts: Float, values: Float, level: MeasurementLevel) -> float:
    """`counts` float64[N, V]: how many gave each of `values`, in units with two judgements or more."""
    if not len(counts):
        return float("nan")
    pairable = counts.sum(axis=1) - 1
    coincidences = np.einsum("nc,nk->ck", counts / pairable[:, None], counts) - np.diag(
        (counts / pairable[:, None]).sum(0)
    )
    totals = counts.sum(axis=0)  # V
    n = totals.sum()
    match level:
        case "nominal":
            distance = 1.0 - np.eye(len(values))
        case "ordinal":
            # Between two ranks: the values at them and in between, the ends counting half.
            upto = np.cumsum(totals) - totals / 2
            distance = (upto[:, None] - upto[None, :]) ** 2
        case "interval":
            distance = (values[:, None] - values[None, :]) ** 2
    expected = float(totals @ distance @ totals)
    return float("nan") if expected == 0 else 1 - float(n - 1) * float((coincidences * distance).sum()) / expected


def bootstrap(
    statistic: Callable[[Any], float], units: Any, rng: np.random.Generator, *, resamples: int = RESAMPLES
) -> Interval:
    """`statistic(units)` with its 95 % percentile interval, resampling rows of `units` (an array [N, ...])."""
    value = statistic(units) if len(units) else float("nan")
    if np.isnan(value):
        return Interval(value, value, value)
    drawn = np.array([statistic(units[rng.integers(len(units), size=len(units))]) for _ in range(resamples)])
    low, high = np.nanquantile(drawn, [0.025, 0.975])  # a resample may hold one value only, which says nothing
    return Interval(value, float(low), float(high))


def unless_alike(interval: Interval, low: float, high: float) -> Interval:
    """`interval`, or these ends where no resample differed from the others."""
    return interval if interval.low != interval.high else Interval(interval.value, low, high)


def agreement_of(
    judgements: Iterable[Judgement], rng: np.random.Generator, *, resamples: int = RESAMPLES
) -> list[Agreement]:
    """Agreement for each kind and criterion, in the order of their first judgement.

    Two judgements are of one unit when they are of the same prompt and the same responses, in whatever order shown;
    what was said of a unit, each kind says itself (`JudgementKind.opinions`). Where somebody judged a unit more than
    once, the first judgement counts for the agreement with others, and all for that with himself. Abstentions say
    nothing of a unit, and are left out.
    """
    groups: dict[tuple[str, str], list[_Judged]] = defaultdict(list)
    levels: dict[str, MeasurementLevel] = {}
    for judgement in judgements:
        kind = kind_of(judgement)
        if not kind.is_asked:
            continue
        levels[kind.name] = kind.level
        for criterion, opinions in kind.opinions_of(judgement).items():
            judged = _Judged(annotator=judgement.annotator, seconds=judgement.seconds, opinions=opinions)
            groups[kind.name, criterion].append(judged)
    return [
        _agreement(kind, criterion, levels[kind], group, rng, resamples) for (kind, criterion), group in groups.items()
    ]


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A judgement by one criterion, as far as agreement goes."""

    annotator: str
    seconds: float | None
    opinions: Sequence[Opinion]


def _agreement(
    kind: str,
    criterion: str,
    level: MeasurementLevel,
    judgements: Sequence[_Judged],
    rng: np.random.Generator,
    resamples: int,
) -> Agreement:
    def with_interval(statistic: Callable[[Float], float], units: Float) -> Interval:
        return unless_alike(bootstrap(statistic, units, rng, resamples=resamples), np.nan, np.nan)

    def share(statistic: Callable[[Float], float], units: Float) -> Interval:
        found = bootstrap(statistic, units, rng, resamples=resamples)
        return unless_alike(found, *wilson_interval(found.value, len(units))) if len(units) else found

    values_of: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))  # unit, annotator
    for judgement in judgements:
        for unit, value in judgement.opinions:
            values_of[unit][judgement.annotator].append(value)
    people = tuple(dict.fromkeys(judgement.annotator for judgement in judgements))
    ratings = np.full((len(values_of), len(people)), np.nan)
    for row, by_person in enumerate(values_of.values()):
        for person, values in by_person.items():
            ratings[row, people.index(person)] = values[0]
    shared = ratings[(~np.isnan(ratings)).sum(axis=1) >= 2]
    repeats = [
        float(np.mean([one == other for one, other in combinations(values, 2)]))
        for by_person in values_of.values()
        for values in by_person.values()
        if len(values) > 1
    ]
    seconds = np.array([one.seconds for one in judgements if one.seconds is not None], dtype=np.float64)
    return Agreement(
        kind=kind,
        criterion=criterion,
        annotators=people,
        judgements=len(judgements),
        units=len(shared),
        agreement=share(_raw_agreement, shared),
        alpha=with_interval(lambda rows: krippendorff_alpha(rows, level), shared),
        fleiss=with_interval(_fleiss_of_ratings, shared),
        cohen=with_interval(_mean_cohen, shared),
        self_consistency=share(lambda rows: float(np.mean(rows)), np.array(repeats)),
        seconds=with_interval(lambda rows: float(np.median(rows)), seconds),
    )


def _raw_agreement(ratings: Float) -> float:
    """The mean over units of the share of pairs of people who said the same."""
    same = ratings[:, :, None] == ratings[:, None, :]  # NaN equals nothing
    given = (~np.isnan(ratings)).sum(axis=1)
    equal = same.sum(axis=(1, 2)) - given
    return float(np.mean(equal / (given * (given - 1))))


def _fleiss_of_ratings(ratings: Float) -> float:
    given = (~np.isnan(ratings)).sum(axis=1)
    if given.min() != given.max():
        return float("nan")
    values = np.unique(ratings[~np.isnan(ratings)])
    return fleiss_kappa((ratings[:, :, None] == values).sum(axis=1))


def _mean_cohen(ratings: Float) -> float:
    kappas = [cohen_kappa(ratings[:, i], ratings[:, j]) for i, j in combinations(range(ratings.shape[1]), 2)]
    known = [kappa for kappa in kappas if not np.isnan(kappa)]
    return float(np.mean(known)) if known else float("nan")


def _beyond_chance(observed: float, expected: float) -> float:
    return float("nan") if expected == 1 else (observed - expected) / (1 - expected)
