"""Answers in mathematics: equal is right however it is written, and what takes too long is wrong."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from rlhf_rewards.math_answers import MathAnswers

from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.testing import check_reward, make_episode
from rlhf_env.types import Episode


def said(response: str, right: object) -> Episode:
    return make_episode("q", response, meta={"answer": right})


@pytest.fixture(scope="module")
def reward() -> MathAnswers:
    pytest.importorskip("math_verify")
    return MathAnswers(seconds=20.0)


@pytest.mark.parametrize(
    ("response", "right", "score"),
    [
        (r"It is $\frac{1}{2}$.", "0.5", 1.0),
        ("0.5", r"\frac{1}{2}", 1.0),
        (r"so \boxed{x = 3}", 3, 1.0),
        ("It is 40, no, 36.", "$36$", 1.0),
        (r"$1.6\times 10^{-19}$", r"1.6\times 10^{-19}", 1.0),
        (r"$\frac{16}{10^{20}}$", r"1.6\times 10^{-19}", 1.0),
        (r"$9.1\times 10^{-31}$", r"1.6\times 10^{-19}", 0.0),
        (r"$10^{-20}$", r"10^{-19}", 0.0),
        ("0.0000003", "0.0000001", 0.0),
        (r"$10^{-7}$", "0.0000001", 1.0),
        (r"$x = 10^{-20}$", r"x = 10^{-19}", 0.0),
        (r"$\{2, 10^{-20}\}$", r"\{2, 10^{-19}\}", 0.0),
        (r"$\{2, 10^{-19}\}$", r"\{2, 10^{-19}\}", 1.0),
        ("0.333333", r"\frac{1}{3}", 1.0),
        ("0", "0", 1.0),
        ("37", "36", 0.0),
        ("2", r"2\pi", 0.0),
        (r"$2\pi$", r"2\pi", 1.0),
        ("3", r"3\sqrt{2}", 0.0),
        (r"\boxed{3\sqrt{2}}", r"3\sqrt{2}", 1.0),
        ("2", "2^{10}", 0.0),
        ("1024", "2^{10}", 1.0),
        ("$1, 2$", "1,2", 1.0),
        ("1.2", "1,2", 0.0),
        ("1000", "1,000", 1.0),
        ("$2x$", "y = 2x", 1.0),
        ("3", r"3 \text{ or } 4", 0.0),
        ("0.0000001", 1e-07, 1.0),
        ("0.0035", "3.5e-3", 1.0),
        ("36", "The answer is 36", 1.0),
        ("72", "#### 72", 1.0),
        ("5", "5 apples", 1.0),
        ("so x = 3", "x = 3", 1.0),
        ("no idea", "36", 0.0),
        ("", "36", 0.0),
        ("\ud800\0", "36", 0.0),
    ],
    ids=range(36),
)
def test_what_is_right(reward: MathAnswers, response: str, right: object, score: float) -> None:
    assert reward([said(response, right)]).tolist() == [score]


def test_it_passes_what_every_reward_must(reward: MathAnswers) -> None:
    check_reward(reward, meta={"answer": "2"}, longest=100)
    reward.take_logged()
    reward([said("36", "36")])
    assert reward.take_logged() == {"math/too_long": [0.0]} and reward.take_logged() == {}


def test_an_answer_that_cannot_be_verified_in_time_is_wrong() -> None:
    pytest.importorskip("math_verify")
    reward = MathAnswers(seconds=0.5)
    assert reward([said("$9^{9^{9^{9}}}$", "3"), said("3", "3")]).tolist() == [0.0, 1.0]
    assert reward.take_logged() == {"math/too_long": [1.0, 0.0]}


def test_a_right_answer_that_is_none_is_said(reward: MathAnswers) -> None:
    with pytest.raises(RewardError, match=r"column 'answer': '', of prompt .*, is no mathematics"):
        reward([said("3", "")])
    with pytest.raises(RewardError, match=r"column 'answer': prompt .* has none of that name: it has other"):
        reward([make_episode("q", "3", meta={"other": 1})])


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "math_verify" else find(name, *a))
    with pytest.raises(ConfigError, match=r'math-verify .* is not installed: pip install "rlhf-env\[math\]"'):
        load_rewards({"math": {"seconds": 1.0}}, Count("a", 4))
    assert np.isfinite(MathAnswers.low)
