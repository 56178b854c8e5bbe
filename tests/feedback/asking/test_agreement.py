"""Coefficients of agreement against the worked examples they were published with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rlhf_env.errors import DataError
from rlhf_env.feedback.asking.agreement import (
    Agreement,
    agreement_of,
    bootstrap,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
)
from rlhf_env.feedback.judgements import Author, Judgement, Response
from rlhf_env.feedback.kinds import Comparison, CriteriaRating, Ranking, Rating
from rlhf_env.types import Float, Prompt

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), part C: four observers, twelve units.
OBSERVED = """
    1 2 3 3 2 1 4 1 2 . . .
    1 2 3 3 2 2 4 1 2 5 . 3
    . 3 3 3 2 3 4 2 2 5 1 .
    1 2 3 3 2 4 4 1 2 5 1 .
"""
# Fleiss, "Measuring nominal scale agreement" (1971), in the shape many texts repeat: 14 raters, ten subjects.
DIAGNOSES = """
    0 0 0 0 14
    0 2 6 4 2
    0 0 3 5 6
    0 3 9 2 0
    2 2 8 1 1
    7 7 0 0 0
    3 2 6 3 0
    2 5 3 2 2
    6 5 2 1 0
    0 2 2 3 7
"""


def table(text: str) -> Float:
    return np.array([[float(x.replace(".", "nan")) for x in line.split()] for line in text.strip().splitlines()])


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorff_as_published(level: Any, published: float) -> None:
    assert abs(krippendorff_alpha(table(OBSERVED).T, level) - published) < 5e-4


def test_krippendorff_two_observers_as_published() -> None:
    """The same paper, part A: ten binary units, alpha 0.095."""
    two = table("0 1 0 0 0 0 0 0 1 0\n1 1 1 0 0 1 0 0 0 0").T
    assert abs(krippendorff_alpha(two) - 0.095) < 5e-4


def test_krippendorff_from_its_definition() -> None:
    """Mean squared distance within units over that of all pairable values, pair by pair."""
    rng = np.random.default_rng(0)
    ratings = rng.integers(1, 6, size=(30, 4)).astype(np.float64)
    ratings[rng.random(ratings.shape) < 0.3] = np.nan
    units = [row[~np.isnan(row)] for row in ratings]
    units = [row for row in units if len(row) > 1]
    pool = np.concatenate(units)
    count = len(pool)

    def pairs(values: Float) -> float:
        return float(sum((a - b) ** 2 for i, a in enumerate(values) for j, b in enumerate(values) if i != j))

    observed = sum(pairs(row) / (len(row) - 1) for row in units) / count
    expected = pairs(pool) / (count * (count - 1))
    assert abs(krippendorff_alpha(ratings, "interval") - (1 - observed / expected)) < 1e-12


def test_fleiss_as_published() -> None:
    assert abs(fleiss_kappa(table(DIAGNOSES).astype(np.int64)) - 0.210) < 5e-4
    with pytest.raises(DataError, match="same number of judgements"):
        fleiss_kappa(np.array([[2, 0], [1, 0]]))


def test_cohen_as_published() -> None:
    """Cohen (1960), table 1 of 200 cases: observed .70, expected .41, kappa .492."""
    joint = np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]])
    cells = [(i, j) for i in range(3) for j in range(3) for _ in range(joint[i, j])]
    one, other = np.array(cells, dtype=np.float64).T
    assert abs(cohen_kappa(one, other) - (0.70 - 0.41) / (1 - 0.41)) < 1e-12
    missing = np.concatenate([one, [1.0, np.nan]]), np.concatenate([other, [np.nan, 2.0]])
    assert cohen_kappa(*missing) == cohen_kappa(one, other)


def test_what_cannot_be_known_is_nan() -> None:
    nothing = np.full((3, 2), np.nan)
    assert math.isnan(krippendorff_alpha(nothing))
    assert math.isnan(krippendorff_alpha(np.ones((3, 2)))), "one value only: chance agrees as well"
    assert math.isnan(cohen_kappa(nothing[:, 0], nothing[:, 1]))
    assert krippendorff_alpha(np.array([[1.0, 1.0], [2.0, 2.0]])) == 1.0
    assert str(bootstrap(np.mean, np.zeros(0), np.random.default_rng(0))) == "-"  # type: ignore[arg-type]


def test_the_interval_covers_as_often_as_it_says() -> None:
    """150 samples of 40 units of 3 raters. 95 % nominal; the bootstrap of alpha falls short by a few points."""
    rng = np.random.default_rng(0)

    def sample(units: int) -> Float:
        truth = rng.integers(0, 2, size=(units, 1))
        wrong = rng.random((units, 3)) < 0.15
        return np.where(wrong, 1 - truth, truth).astype(np.float64)

    # Two raters agree when both or neither err; values are balanced, so chance agrees half the time.
    truth = (0.85**2 + 0.15**2 - 0.5) / 0.5
    assert abs(krippendorff_alpha(sample(100_000)) - truth) < 0.01
    inside = 0
    for _ in range(150):
        interval = bootstrap(krippendorff_alpha, sample(40), rng, resamples=100)
        inside += interval.low <= truth <= interval.high
    assert 0.85 < inside / 150 <= 0.99


PROMPT = Prompt("p", "q")
ANN = Author("human", "Zoë")


def response(text: str) -> Response:
    return Response(text, ANN)


def only(judgements: list[Judgement]) -> Agreement:
    (found,) = agreement_of(judgements, np.random.default_rng(0))
    return found


def test_the_order_shown_is_no_disagreement() -> None:
    votes: list[Judgement] = []
    for i in range(6):
        a, b = response(f"a{i}"), response(f"b{i}")
        votes.append(Comparison(PROMPT, a, b, "first" if i % 2 else "second", "ann", seconds=1.0 + i))
        votes.append(Comparison(PROMPT, b, a, "second" if i % 2 else "first", "bob", seconds=3.0))
        votes.append(Comparison(PROMPT, a, b, "cannot say", "cid"))
    found = only(votes)
    assert (found.units, found.judgements, found.annotators) == (6, 18, ("ann", "bob", "cid"))
    assert found.alpha.value == found.cohen.value == found.fleiss.value == found.agreement.value == 1.0
    assert math.isnan(found.self_consistency.value)
    assert found.seconds.value == 3.0


def test_disagreement_and_ties_of_rankings() -> None:
    a, b, c = map(response, "abc")
    ranked: list[Judgement] = [
        Ranking(PROMPT, (a, b, c), (1, 2, 3), "ann"),
        Ranking(PROMPT, (c, b, a), (2, 2, 1), "bob"),
    ]
    found = only(ranked)
    assert found.units == 3
    assert abs(found.agreement.value - 2 / 3) < 1e-12


def test_people_may_disagree_with_themselves() -> None:
    rated: list[Judgement] = [Rating(PROMPT, response("a"), score, "ann", created=str(score)) for score in (3, 3, 4)]
    rated += [Rating(PROMPT, response("b"), 1, "ann"), Rating(PROMPT, response("b"), 1, "ann", created="later")]
    rated += [Rating(PROMPT, response("a"), 3, "bob"), Rating(PROMPT, response("b"), 2, "bob")]
    found = only(rated)
    assert abs(found.self_consistency.value - (1 / 3 + 1) / 2) < 1e-12
    assert found.units == 2
    assert found.agreement.value == 0.5, "the first judgement counts for the agreement with others"


def test_criteria_are_reported_apart() -> None:
    scored: list[Judgement] = [
        CriteriaRating(PROMPT, response(text), {"kind": score, "true": 6 - score}, who)
        for who, scores in {"ann": (1, 5, 3), "bob": (1, 5, 2)}.items()
        for text, score in zip("xyz", scores, strict=True)
    ]
    kind, true = agreement_of(scored, np.random.default_rng(0))
    assert (kind.kind, kind.criterion, true.criterion) == ("criteria", "kind", "true")
    ratings = np.array([[1.0, 1.0], [5.0, 5.0], [3.0, 2.0]])
    assert kind.alpha.value == krippendorff_alpha(ratings, "ordinal")
    assert abs(kind.alpha.value - true.alpha.value) < 1e-12, "turning the scale around changes nothing"
    assert kind.alpha.low <= kind.alpha.value <= kind.alpha.high


def test_a_few_units_that_are_all_alike_are_no_certainty() -> None:
    """Three pairs, two annotators of one mind: Wilson's interval of 3 in 3 begins at 3 / (3 + 1.96^2) = 0.4385."""
    votes: list[Judgement] = []
    for pair, verdict in enumerate(("first", "second", "first")):
        a, b = response(f"a{pair}"), response(f"b{pair}")
        votes += [Comparison(PROMPT, a, b, verdict, who) for who in ("ann", "bob")]  # type: ignore[arg-type]
    found = only(votes)
    assert (found.agreement.value, found.agreement.high) == (1.0, 1.0)
    assert found.agreement.low == pytest.approx(3 / (3 + 1.959964**2), abs=1e-6)
    assert found.cohen.value == 1.0 and np.isnan(found.cohen.low)
    assert str(found.cohen) == "1.000 (all alike)"
