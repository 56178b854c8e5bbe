"""Sums, and a count that pays for one response alone: by hand."""

from __future__ import annotations

import pytest

from rlhf_env.envs.addition_task import Addition
from rlhf_env.envs.tokenizers import AlphabetTokenizer
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import ConfigError
from rlhf_env.testing import check_task, make_episode


def test_every_sum_is_on_one_side_and_scored_by_how_far_off_the_answer_is() -> None:
    task = Addition()
    check_task(task, AlphabetTokenizer("0123456789+="))
    aside = task.held_out()
    prompts = {side.prompt(index, {}).text for side in (task, aside) for index in range(side.size)}
    assert (task.size + aside.size, len(prompts)) == (100, 100) and 15 <= aside.size <= 35
    place = next(index for index in range(task.size) if task.prompt(index, {}).text == "3+9=")
    asked = task.prompt(place, {})
    worth = {"12": 1.0, "11": 1 / 2, "14": 1 / 3, "0": 1 / 13, "012": 0.0, "": 0.0, "+12": 0.0, "1=": 0.0, "120": 0.0}
    for response, score in worth.items():
        episode = make_episode(asked.text, response, meta=asked.meta)
        assert task.score(episode) == pytest.approx(score, abs=1e-12), response
        assert task.well_formed(episode) is (score > 0.0)
    with pytest.raises(ConfigError, match="largest must be at least 1"):
        Addition(largest=0)


def test_an_exact_count_pays_for_one_response_alone() -> None:
    task = Count("a", 3, exact=True)
    check_task(task)
    scores = {response: task.score(make_episode("a:", response)) for response in ("aaa", "aa", "aaaa", "aab", "")}
    assert scores == {"aaa": 1.0, "aa": 0.0, "aaaa": 0.0, "aab": 0.0, "": 0.0}
