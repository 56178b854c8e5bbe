"""Prompts that differ, and pairs worth asking about."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.asking.selection import (
    covering_radius,
    disagreement_priority,
    diversity,
    k_centre,
    ngram_vectors,
    random_priority,
    uncertainty_priority,
)


def test_each_choice_is_farthest_from_those_before() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 3))
    selected = k_centre(vectors, 10, first=7)
    assert selected[0] == 7
    assert len(set(selected.tolist())) == 10
    for place in range(1, 10):
        gap = np.linalg.norm(vectors[:, None] - vectors[selected[:place]], axis=2).min(axis=1)
        assert gap[selected[place]] == gap.max()


def test_the_radius_is_at_most_twice_the_best() -> None:
    """Gonzalez' theorem, against all choices of 3 of 9."""
    for seed in range(20):
        vectors = np.random.default_rng(seed).standard_normal((9, 2))
        best = min(covering_radius(vectors, np.array(rows)) for rows in combinations(range(9), 3))
        assert covering_radius(vectors, k_centre(vectors, 3)) <= 2 * best


def test_selection_finds_every_kind_of_prompt() -> None:
    texts = ["how is the weather today"] * 30 + ["write a poem about cats", "what is two and two", "How Is The Weather"]
    vectors = ngram_vectors(texts)
    selected = k_centre(vectors, 4)
    assert {texts[i] for i in selected} == set(texts)
    first = diversity(vectors[:4])
    assert (first.mean_distance, first.nearest) == (0.0, 0.0)
    assert diversity(vectors[selected]).nearest > 0.5
    everything = k_centre(vectors, len(texts))
    assert sorted(everything.tolist()) == list(range(len(texts))), "duplicates come last, and once"


def test_vectors_of_ngrams_by_hand() -> None:
    one, turned, upper, empty = ngram_vectors(["a b", "b a", "A  B", " "], size=2**16)
    # {a, b, "a b"} and {b, a, "b a"}: two of three runs in common
    np.testing.assert_allclose([one @ turned, one @ one, one @ upper], [2 / 3, 1, 1], rtol=1e-12)
    assert not empty.any()
    found = diversity(np.array([[0.0], [3.0], [4.0]]))
    np.testing.assert_allclose([found.mean_distance, found.nearest], [8 / 3, 5 / 3], rtol=1e-12)
    assert math.isnan(diversity(np.zeros((1, 2))).nearest)


def test_impossible_selections_are_refused() -> None:
    assert k_centre(np.zeros((0, 2)), 0).tolist() == []
    for count, first in ((4, 0), (-1, 0), (2, 3)):
        with pytest.raises(ConfigError, match="cannot choose"):
            k_centre(np.zeros((3, 2)), count, first=first)


def test_uncertainty_is_the_entropy_of_the_verdict() -> None:
    first, second = np.array([0.0, 2.0, -2.0, 1e4]), np.zeros(4)
    p = 1 / (1 + math.exp(-2.0))
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    np.testing.assert_allclose(
        uncertainty_priority(first, second), [math.log(2), entropy, entropy, 0.0], rtol=1e-12, atol=1e-300
    )


def test_disagreement_is_high_where_members_differ_and_zero_where_all_are_unsure() -> None:
    second = np.zeros((2, 3))
    first = np.array([[0.0, 50.0, 2.0], [0.0, -50.0, 2.0]])
    found = disagreement_priority(first, second)
    np.testing.assert_allclose(found, [0.0, math.log(2), 0.0], atol=1e-12)
    assert (uncertainty_priority(first.mean(axis=0), second[0])[:2] == math.log(2)).all(), "uncertainty sees none of it"


def test_random_order_is_the_generators() -> None:
    one, two = (random_priority(5, np.random.default_rng(3)) for _ in range(2))
    assert one.tolist() == two.tolist()
    assert len(set(one.tolist())) == 5
