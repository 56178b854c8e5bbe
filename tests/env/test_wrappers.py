"""Gymnasium's wrappers, and Stable-Baselines3's helper, around the environment: as around Gymnasium's own."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.wrappers import vector as vector_wrappers

import rlhf_env  # noqa: F401  # registers the environments
from rlhf_env.envs.picture import COLUMNS, LINES, picture_of
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv

TOKEN = "rlhf_env/Token-v0"
CUT_KEYS = {"text_episode", "score", "finish_reason"}


def until_the_end(env: gym.Env[Any, Any], longest: int = 20) -> tuple[int, bool, bool, dict[str, Any]]:
    """Steps taken, terminated, truncated and the last info; `a` is written all the time."""
    env.reset(seed=0)
    for step in range(1, longest + 1):
        _, _, terminated, truncated, info = env.step(ord("a"))
        if terminated or truncated:
            return step, terminated, truncated, info
    raise AssertionError("it never ended")


WRAPPED: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "make": lambda: gym.make(TOKEN, max_episode_steps=3),
    "make of its spec": lambda: gym.make(gym.make(TOKEN, max_episode_steps=3).spec),  # type: ignore[arg-type]
    "without the checker": lambda: gym.make(TOKEN, max_episode_steps=3, disable_env_checker=True),
    "TimeLimit by hand": lambda: wrappers.TimeLimit(TextEnv(), 3),
    "TimeLimit around a limit": lambda: wrappers.TimeLimit(gym.make(TOKEN, max_episode_steps=9), 3),
    "its own limit": lambda: TextEnv(max_episode_steps=3),
    "RecordEpisodeStatistics": lambda: wrappers.RecordEpisodeStatistics(gym.make(TOKEN, max_episode_steps=3)),
    "FlattenObservation": lambda: wrappers.FlattenObservation(gym.make(TOKEN, max_episode_steps=3)),
    "TimeAwareObservation": lambda: wrappers.TimeAwareObservation(gym.make(TOKEN, max_episode_steps=3)),
    "Autoreset": lambda: wrappers.Autoreset(gym.make(TOKEN, max_episode_steps=3)),
    "TransformReward inside": lambda: wrappers.TimeLimit(wrappers.TransformReward(TextEnv(), lambda r: 2 * r), 3),
    "a copy": lambda: copy.deepcopy(gym.make(TOKEN, max_episode_steps=3)),
    "a pickle": lambda: pickle.loads(pickle.dumps(gym.make(TOKEN, max_episode_steps=3))),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_time_limit_says_what_the_environments_own_limit_says(name: str) -> None:
    env = WRAPPED[name]()
    for _ in range(2):  # the second text as the first
        steps, terminated, truncated, info = until_the_end(env)
        assert (steps, terminated, truncated) == (3, False, True)
        assert set(info) >= CUT_KEYS and set(info) <= CUT_KEYS | {"episode"}
        assert info["finish_reason"] == info["text_episode"].finish_reason == "truncated"
        assert info["text_episode"].response == "aaa" and info["score"].raw == {}


def test_repeated_actions_under_a_limit_end_with_the_text_too() -> None:
    env = wrappers.TimeLimit(wrappers.RepeatAction(TextEnv(), 2), 3)
    steps, terminated, truncated, info = until_the_end(env)
    assert (steps, terminated, truncated) == (3, False, True)
    assert info["finish_reason"] == "truncated" and info["text_episode"].response.startswith("aaaa")


def test_a_text_that_ends_in_the_last_step_is_both_and_has_its_score() -> None:
    for env in (gym.make(TOKEN, max_episode_steps=3), TextEnv(max_episode_steps=3)):
        env.reset(seed=0)
        env.step(ord("a"))
        env.step(ord("a"))
        _, reward, terminated, truncated, info = env.step(258)
        assert (reward, terminated, truncated, info["finish_reason"]) == (2 / 8, True, True, "stop")


def test_an_environment_that_left_its_limit_behind_is_free_of_it() -> None:
    env = gym.make(TOKEN, max_episode_steps=3)
    until_the_end(env)
    steps, terminated, _, _ = until_the_end(env.unwrapped)
    assert steps == 16 and terminated


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
def test_vectors_of_every_mode_say_the_same_of_a_cut_text(mode: str) -> None:
    envs = gym.make_vec(TOKEN, num_envs=2, vectorization_mode=mode, max_episode_steps=3)
    envs.reset(seed=0)
    for _ in range(3):
        _, _, terminated, truncated, infos = envs.step(np.full(2, ord("a")))
    envs.close()
    assert truncated.all() and not terminated.any()
    assert {key for key in infos if not key.startswith("_")} == CUT_KEYS
    assert [episode.response for episode in infos["text_episode"]] == ["aaa", "aaa"]
    assert list(infos["finish_reason"]) == ["truncated"] * 2


def test_vector_wrappers_go_around_it() -> None:
    envs: Any = gym.make_vec(TOKEN, num_envs=2, max_episode_steps=3)
    envs = vector_wrappers.DictInfoToList(
        vector_wrappers.FlattenObservation(vector_wrappers.RecordEpisodeStatistics(envs))
    )
    envs.reset(seed=0)
    for _ in range(3):
        observation, _, _, truncated, infos = envs.step(np.full(2, ord("a")))
    assert truncated.all() and observation.shape == (2, 2 * 48)
    assert [info["episode"]["l"] for info in infos] == [3, 3]


# ---------------------------------------------------------------- pictures


def test_stable_baselines3_makes_a_vector_of_it_and_shows_it() -> None:
    env_util = pytest.importorskip("stable_baselines3.common.env_util")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = env_util.make_vec_env(TOKEN, n_envs=2, seed=0, env_kwargs={"max_episode_steps": 3})
    envs.reset()
    for _ in range(3):
        _, _, dones, infos = envs.step(np.full(2, ord("a")))
    assert dones.all()
    assert [info["finish_reason"] for info in infos] == ["truncated"] * 2
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert envs.render_mode == "rgb_array"
    height, width, _ = picture_of("").shape
    assert envs.render().shape == (2 * height, width, 3)
    response = env_util.make_vec_env("rlhf_env/Response-v0", n_envs=1)
    assert response.reset()["input_ids"].shape == (1, 48)


def test_a_picture_shows_the_text_and_keeps_its_size() -> None:
    shapes = {picture_of(text).shape for text in ("", "a", "\t\x00é" * 9, "long " * 999, "a\nb\n" * 99)}
    assert len(shapes) == 1
    assert picture_of("a").dtype == np.uint8 and not (picture_of("a") == picture_of("b")).all()
    letters = {picture_of(chr(code)).tobytes() for code in range(33, 127)}
    assert len(letters) == 94  # every letter of ASCII has its own shape, and none is blank
    assert picture_of(" ").min() == 255 and (picture_of("é") == picture_of("中")).all()
    lines = [chr(ord("A") + line) * COLUMNS for line in range(LINES + 1)]
    assert (picture_of("\n".join(lines)) == picture_of("\n".join(lines[1:]))).all()  # the last lines of many
    wrapped = picture_of("A" * COLUMNS + "B" * 3)
    assert (wrapped == picture_of("A" * COLUMNS + "\nBBB")).all()


def test_the_letter_is_drawn_as_it_is_written() -> None:
    """`L`: a stem of seven dots on the left, a foot of five below, two pixels each."""
    dots = picture_of("L")[4:, 4:, 0][::2, ::2] == 0
    expected = np.zeros((7, 5), dtype=np.bool_)
    expected[:, 0] = expected[6, :] = True
    start = int(dots.any(axis=1).argmax())
    assert (dots[start : start + 7, :5] == expected).all() and dots.sum() == expected.sum()


def test_rows_are_drawn_one_by_one_and_collected() -> None:
    envs = TextVectorEnv(2, render_mode="rgb_array", task="echo")
    envs.reset(seed=0, options={"indices": [0, 1]})
    pictures: Any = envs.render()
    assert [(picture == picture_of(envs.describe(row))).all() for row, picture in enumerate(pictures)] == [True, True]
    collected = gym.make(TOKEN, render_mode="rgb_array_list")
    collected.reset(seed=0)
    collected.step(ord("a"))
    frames: Any = collected.render()
    assert [frame.shape for frame in frames] == [picture_of("").shape] * 2
