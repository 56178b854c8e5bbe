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


def test_a_level_is_the_number_of_digits() -> None:
    task = Addition(base=2, largest=7, exact=True)
    check_task(task, AlphabetTokenizer("01+="))
    assert (task.size + task.held_out().size) == 64
    asked = {level: {task.prompt(index, {"level": level}).text for index in range(64)} for level in (1, 2, 3)}
    for level, sums in asked.items():
        terms = [sum_[:-1].split("+") for sum_ in sums]
        assert max(len(term) for pair in terms for term in pair) == level
        for text, (a, b) in zip(sums, terms, strict=True):
            place = next(index for index in range(64) if task.prompt(index, {"level": level}).text == text)
            assert task.prompt(place, {"level": level}).meta == {"answer": f"{int(a, 2) + int(b, 2):b}", "level": level}
    assert asked[3] == {task.prompt(index, {}).text for index in range(task.size)}
    assert asked[1] < asked[2] < asked[3]  # nothing that is held out comes at a lower level
    with pytest.raises(ConfigError, match="level: the digits of the largest term, 1 to 9, got 0"):
        task.prompt(0, {"level": 0})


def test_the_longest_answer_is_that_of_the_level() -> None:
    task = Addition(base=2, exact=True, largest=7)
    asked = next(it for index in range(4) if (it := task.prompt(index, {"level": 1})).text == "1+1=")
    worth = {"10": (1.0, True), "11": (0.0, True), "1": (0.0, True), "010": (0.0, False), "2": (0.0, False)}
    worth |= {"100": (0.0, False), "": (0.0, False)}
    for response, (score, well_formed) in worth.items():
        episode = make_episode(asked.text, response, meta=asked.meta)
        assert (task.score(episode), task.well_formed(episode)) == (score, well_formed), response


def test_strokes_are_numbers_too() -> None:
    task = Addition(base=1, largest=2, held_out_fraction=0.0)
    check_task(task, AlphabetTokenizer("1+="))
    assert task.held_out() is task and task.size == 9
    assert {task.prompt(index, {}).text for index in range(3)} == {"+=", "+1=", "+11="}
    asked = task.prompt(8, {})
    worth = {"1111": 1.0, "111": 1 / 2, "": 1 / 5, "11111": 0.0, "11+": 0.0}
    for response, score in worth.items():
        assert task.score(make_episode(asked.text, response, meta=asked.meta)) == pytest.approx(score), response
    assert {len(task.prompt(index, {"level": 3}).meta["answer"]) for index in range(16)} == set(range(7))


def test_sums_that_are_too_many_to_list_are_drawn() -> None:
    task = Addition(largest=5000)
    assert task.size is None
    trained, asked = ({side.prompt(index, {}).text for index in range(300)} for side in (task, task.held_out()))
    assert len(trained) > 290 and len(asked) > 290 and not trained & asked
    assert task.prompt(7, {}) == task.prompt(7, {})
    assert max(len(text) for text in trained) == 10


def test_an_exact_count_pays_for_one_response_alone() -> None:
    task = Count("a", 3, exact=True)
    check_task(task)
    scores = {response: task.score(make_episode("a:", response)) for response in ("aaa", "aa", "aaaa", "aab", "")}
    assert scores == {"aaa": 1.0, "aa": 0.0, "aaaa": 0.0, "aab": 0.0, "": 0.0}
