"""Gymnasium's and Stable-Baselines3's own tools accept the environment."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import rlhf_env  # noqa: F401  # registers the environments
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.types import Episode

IDS = ["rlhf_env/Token-v0", "rlhf_env/Response-v0"]
TASKS: list[Any] = ["count", "echo", {"name": "prompts", "prompts": ["How are you?", "Hi."]}]


class Uniform:
    """A reference that finds every byte equally likely."""

    def response_logprobs(self, episodes: Any) -> list[Any]:
        return [np.full(len(episode.response_ids), -math.log(259)) for episode in episodes]


WITH_KL: dict[str, Any] = {"reward": {"length": {"target": 4}, "kl": 0.1}, "provided": {"reference": Uniform()}}


@pytest.mark.parametrize("task", TASKS, ids=str)
@pytest.mark.parametrize("name", IDS)
def test_check_env_has_nothing_to_say(name: str, task: Any) -> None:
    reward: dict[str, Any] = {} if task in ("count", "echo") else {"reward": {"length": {"target": 4}}}
    env = gym.make(name, task=task, render_mode="ansi", **reward)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_check_env_accepts_actions_that_carry_probabilities(name: str) -> None:
    env = gym.make(name, **WITH_KL)
    assert isinstance(env.action_space, gym.spaces.Dict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", IDS)
def test_stable_baselines3_accepts_the_plain_action_space(name: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(gym.make(name).unwrapped)


def test_make_works_at_once_and_an_episode_ends_with_its_ledger() -> None:
    env = gym.make("rlhf_env/Token-v0")
    observation, info = env.reset(seed=3)
    assert observation in env.observation_space
    assert info["prompt"] == "a:"
    for _ in range(3):
        observation, reward, terminated, truncated, info = env.step(ord("a"))
        assert (reward, terminated, truncated, info) == (0.0, False, False, {})
    observation, reward, terminated, truncated, info = env.step(258)
    assert terminated and not truncated and observation in env.observation_space
    assert reward == 3 / 8 == info["reward_parts"]["task"]
    assert info["finish_reason"] == "stop"
    assert info["prompt_length"] == 2 and info["response_length"] == 4
    episode = info["text_episode"]
    assert isinstance(episode, Episode)
    assert episode.response == "aaa" and episode.response_ids.tolist() == [97, 97, 97, 258]
    assert observation["input_ids"][:6].tolist() == [97, 58, 97, 97, 97, 258]
    assert observation["attention_mask"].sum() == 6


@pytest.mark.parametrize("mode", ["sync", "async", "vector_entry_point"])
@pytest.mark.parametrize("name", IDS)
def test_make_vec_in_every_mode(name: str, mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gym.make_vec(name, num_envs=2, vectorization_mode=mode, task="echo", max_new_tokens=4)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observation, infos = envs.reset(seed=0)
    assert observation["input_ids"].shape == (2, 36) and observation in envs.observation_space
    assert list(infos["_prompt"]) == [True, True]
    envs.action_space.seed(0)
    for _ in range(6):
        observation, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert observation in envs.observation_space
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
    envs.close()


def test_a_vector_keeps_its_mode_when_another_is_made() -> None:
    modes = list(AutoresetMode)
    made = [gym.make_vec(IDS[0], 1, vectorization_mode="sync", vector_kwargs={"autoreset_mode": it}) for it in modes]
    assert [envs.metadata["autoreset_mode"] for envs in made] == modes
    assert "autoreset_mode" not in TextEnv.metadata


def test_make_vec_is_native_by_default() -> None:
    envs = gym.make_vec("rlhf_env/Response-v0", num_envs=3, max_episode_steps=1)
    assert isinstance(envs, TextVectorEnv)
    assert envs.action_length == envs.max_new_tokens and envs.max_episode_steps == 1


def test_a_spec_of_plain_data_survives_json() -> None:
    plain: dict[str, Any] = {
        "task": {"name": "echo", "length": 2, "alphabet": "xyz"},
        "reward": {"task": 1.0, "length": {"weight": 0.5, "target": 4}},
        "max_new_tokens": 5,
    }
    env = gym.make("rlhf_env/Token-v0", **plain)
    assert env.spec is not None
    text = env.spec.to_json()
    json.loads(text)
    again = gym.make(EnvSpec.from_json(text))
    first, _ = env.reset(seed=5)
    second, _ = again.reset(seed=5)
    assert first["input_ids"].tobytes() == second["input_ids"].tobytes()
    assert again.unwrapped.reward.weights == {"task": 1.0, "length": 0.5}  # type: ignore[attr-defined]


def test_time_limit_truncates_from_outside() -> None:
    env = gym.make("rlhf_env/Token-v0", max_episode_steps=2)
    env.reset(seed=0)
    assert env.step(97)[2:4] == (False, False)
    _, reward, terminated, truncated, _ = env.step(97)
    assert (reward, terminated, truncated) == (0.0, False, True)


def test_wrappers_work() -> None:
    env = gym.wrappers.RecordEpisodeStatistics(gym.make("rlhf_env/Token-v0", max_new_tokens=2))
    env.reset(seed=0)
    env.step(97)
    info = env.step(97)[4]
    assert info["episode"]["r"] == 2 / 8 and info["episode"]["l"] == 2
    envs = gym.wrappers.vector.ClipReward(TextVectorEnv(2, max_new_tokens=2), 0.0, 0.2)
    listed = gym.wrappers.vector.DictInfoToList(gym.wrappers.vector.RecordEpisodeStatistics(envs))
    listed.reset(seed=0)
    listed.step(np.array([97, 97]))
    _, rewards, _, _, infos = listed.step(np.array([97, 98]))
    assert rewards.tolist() == [0.2, 0.0]
    assert [info["text_episode"].response for info in infos] == ["aa", "ab"]


def _all_numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _all_numbers(item)]
    if isinstance(value, (int, float, np.number)):
        return [float(value)]
    return [float(x) for x in value.ravel()] if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else []


@pytest.mark.parametrize("name", IDS)
def test_infos_are_finite_and_the_same_at_another_time(name: str) -> None:
    def numbers() -> list[list[float]]:
        env = gym.make(name, **WITH_KL)
        found = [_all_numbers(env.reset(seed=1)[1])]
        env.action_space.seed(2)
        for _ in range(40):
            *_, terminated, _, info = env.step(env.action_space.sample())
            found.append(_all_numbers(info))
            if terminated:
                found.append(_all_numbers(env.reset()[1]))
        return found

    first = numbers()
    assert first == numbers()
    assert any(first) and all(math.isfinite(number) for step in first for number in step)


def test_a_pickled_environment_goes_on_the_same_from_the_middle_of_a_text() -> None:
    env: Any = gym.make("rlhf_env/Token-v0", task="echo", **WITH_KL)
    env.reset(seed=4)
    env.step({"tokens": 97, "probs": 0.25})
    twin = pickle.loads(pickle.dumps(env))
    for token in (98, 99, 258):
        one, two = (each.step({"tokens": token, "probs": 0.5}) for each in (env, twin))
        assert one[0]["input_ids"].tobytes() == two[0]["input_ids"].tobytes()
        assert one[1:4] == two[1:4]
    assert one[4]["text_episode"] == two[4]["text_episode"]
    assert one[4]["reward_parts"] == two[4]["reward_parts"]
    for _ in range(3):
        assert env.reset()[1] == twin.reset()[1]


def test_a_pickled_vector_environment_goes_on_the_same() -> None:
    envs = TextVectorEnv(3, task="echo", max_new_tokens=3)
    envs.reset(seed=4)
    envs.step(np.array([97, 258, 98]))
    twin = pickle.loads(pickle.dumps(envs))
    for tokens in ([97, 97, 98], [97, 258, 98], [98, 98, 98]):
        one, two = (each.step(np.array(tokens)) for each in (envs, twin))
        assert one[0]["input_ids"].tobytes() == two[0]["input_ids"].tobytes()
        assert one[1].tobytes() == two[1].tobytes() and one[4].keys() == two[4].keys()


def test_ansi_shows_prompt_response_and_parts() -> None:
    env = gym.make("rlhf_env/Token-v0", render_mode="ansi", reward={"task": 1.0, "length": {"weight": 2, "target": 4}})
    env.reset(seed=0)
    env.step(97)
    assert env.render() == "a: -> a"
    env.step(258)
    assert env.render() == "a: -> a  [stop]  reward -1.375 = +1*task(0.125) +2*length(-0.750)"


def test_human_prints_and_vectors_render_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    env = TextEnv(render_mode="human")
    env.reset(seed=0)
    env.step(98)
    assert capsys.readouterr().out == "a: -> \na: -> b\n"
    envs = TextVectorEnv(2, render_mode="ansi")
    assert envs.render() == ("(not started: call reset)",) * 2
    envs.reset(seed=0)
    assert envs.render() == ("a: -> ", "a: -> ")
