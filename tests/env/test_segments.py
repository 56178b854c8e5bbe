"""Segments with goals in order, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_env.envs.segments_task import Segments
from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.errors import ConfigError
from rlhf_env.testing import check_task, make_episode


def test_goals_are_met_in_order_or_not_at_all() -> None:
    task = Segments()
    check_task(task, AlphabetTokenizer("abcdef123:"))
    assert (task.size, task.prompt(0, {}).text, task.held_out()) == (1, "123:", task)
    worth = {
        "abdcee": 1.0,  # every letter of its goal, in whatever order
        "abdc": 2 / 3,
        "abdce": 2 / 3,  # the last segment is not finished
        "abdcea": 2 / 3,
        "abceff": 1 / 3,  # the third is met, but after one that is not
        "cdabef": 0.0,
        "a": 0.0,
        "": 0.0,
        "abdceeab": 3 / 4,  # nobody asked for a fourth
    }
    for response, score in worth.items():
        episode = make_episode("123:", response, meta={"order": "123"})
        assert task.score(episode) == pytest.approx(score, abs=1e-12), response
        assert task.well_formed(episode) is (len(response) == 6)
    assert not task.well_formed(make_episode("123:", "abdce:", meta={"order": "123"}))


def test_goals_begin_again_after_the_last() -> None:
    assert Segments(segments=5).prompt(0, {}).text == "12312:"


def test_shuffled_every_order_is_on_one_side() -> None:
    task = Segments(goals=("a", "b"), segments=3, length=1, shuffled=True)
    check_task(task, AlphabetTokenizer("ab12:"))
    sides = [{side.prompt(index, {}).text for index in range(side.size)} for side in (task, task.held_out())]
    assert len(sides[0] | sides[1]) == 8 and not sides[0] & sides[1] and min(map(len, sides)) >= 1
    assert task.score(make_episode("211:", "baa", meta={"order": "211"})) == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"goals": ()}, "goals must have 1 to 9 entries"),
        ({"goals": ("ab", "bc")}, "goals must have no letter twice, got 'b' twice"),
        ({"goals": tuple("abcdefghij")}, "goals must have 1 to 9 entries"),
        ({"segments": 11, "shuffled": True}, "segments must leave at most 65536 orders of 3 goals, got 11"),
        ({"length": 0}, "length must be at least 1"),
    ],
)
def test_what_makes_no_goals_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Segments(**settings)
