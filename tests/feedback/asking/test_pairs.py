"""Which responses are compared, and that nothing about the order tells who wins."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.asking.annotators import SimulatedAnnotator
from rlhf_env.feedback.asking.pairs import collect_pairs
from rlhf_env.feedback.judgements import Author
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Episode, Float

Build = Callable[..., Episode]


def first_id(episodes: Sequence[Episode], /) -> Float:
    return np.array([float(episode.response_ids[0]) for episode in episodes])


NEVER_WRONG = SimulatedAnnotator(gold=first_id, temperature=0.0, name="oracle")


def candidates(episode: Build, prompts: int, responses: int) -> list[tuple[Episode, Author]]:
    """One response of each prompt after the other, as sampling at several temperatures gives them."""
    return [
        (episode([k], prompt=[100 + i], name=f"p{i}"), Author("policy", "sft", 0.5 + k / 10))
        for k in range(responses)
        for i in range(prompts)
    ]


def ids(it: Comparison) -> tuple[int, int]:
    assert it.first.ids is not None
    assert it.second.ids is not None
    return it.first.ids[0], it.second.ids[0]


def test_all_pairs_of_each_prompt_and_none_across(episode: Build, tmp_path: Path) -> None:
    with PreferenceStore(tmp_path / "store.sqlite") as store:
        made = collect_pairs(
            candidates(episode, 3, 4),
            NEVER_WRONG,
            np.random.default_rng(0),
            store=store,
            pairs_per_prompt=None,
            created="now",
        )
        assert list(store.comparisons()) == made
        assert store.counts().responses == 12
    for i in range(3):
        of_prompt = [it for it in made if it.prompt.id == f"p{i}"]
        assert sorted(tuple(sorted(ids(it))) for it in of_prompt) == list(combinations(range(4), 2))
        assert all(side.prompt_ids == (100 + i,) for it in of_prompt for side in (it.first, it.second))
    for it in made:
        assert it.annotator == "oracle"
        assert it.preference is not None
        assert it.preference.chosen.ids == (max(ids(it)),)
        assert it.preference.chosen.author == Author("policy", "sft", 0.5 + max(ids(it)) / 10)


def test_one_random_pair_of_each_prompt(episode: Build) -> None:
    made = collect_pairs(candidates(episode, 3000, 3), NEVER_WRONG, np.random.default_rng(0))
    assert len({it.prompt.id for it in made}) == len(made) == 3000
    seen = Counter(ids(it) for it in made)  # ordered pairs: 6 equally likely
    assert len(seen) == 6
    assert all(abs(count - 500) < 4 * math.sqrt(3000 / 6 * 5 / 6) for count in seen.values())


def test_equal_responses_are_one_and_a_single_one_is_not_compared(episode: Build) -> None:
    sft = Author("policy", "sft", 1.0)
    same = [(episode([5]), sft)] * 3
    assert collect_pairs(same, NEVER_WRONG, np.random.default_rng(0), pairs_per_prompt=None) == []
    (only,) = collect_pairs([*same, (episode([6]), sft)], NEVER_WRONG, np.random.default_rng(0), pairs_per_prompt=None)
    assert set(ids(only)) == {5, 6}
    assert collect_pairs([], NEVER_WRONG, np.random.default_rng(0)) == []


def test_more_pairs_than_there_are(episode: Build) -> None:
    made = collect_pairs(candidates(episode, 2, 3), NEVER_WRONG, np.random.default_rng(0), pairs_per_prompt=99)
    assert len(made) == 6
    with pytest.raises(ConfigError, match="pairs_per_prompt"):
        collect_pairs([], NEVER_WRONG, np.random.default_rng(0), pairs_per_prompt=0)


def test_the_seed_decides(episode: Build) -> None:
    given = candidates(episode, 20, 4)
    one, two, other = (collect_pairs(given, NEVER_WRONG, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == two != other
