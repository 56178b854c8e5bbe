"""`info["score"]`: the Score that the environment made, in every autoreset mode, whatever its parts are called."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from rlhf_env.envs.asked_part import Failures
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.types import Episode, Float, Score

END = 2  # of the alphabet "ab"
NAMES = ("_short", "a.b", "a b", "x/y", 'it\'s "q"', "_a", "a", "ü")


class Letters:
    def __init__(self, worth: float) -> None:
        self.worth = worth

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.array([self.worth * len(episode.response) for episode in episodes])


class Places:
    """A token reward: its place in the response, for each token."""

    def token_rewards(self, episodes: Sequence[Episode], /) -> list[Float]:
        return [np.arange(1.0, len(episode.response_ids) + 1) for episode in episodes]


class FailsOn:
    def __init__(self, response: str) -> None:
        self.response = response

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        return np.array([math.nan if episode.response == self.response else 1.0 for episode in episodes])


class Kept(RewardMix):
    """A mix that keeps every Score it has given."""

    def score(self, episodes: Sequence[Episode], group_size: int = 1, *, rows: int = 0) -> list[Score]:
        self.given = super().score(episodes, group_size, rows=rows)
        return self.given


def settings(**more: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {name: (1.0 + place, Letters(place)) for place, name in enumerate(NAMES)}
    return {
        "task": {"name": "prompts", "prompts": ["ab"]},
        "tokenizer": "alphabet:ab",
        "max_new_tokens": 3,
        "max_prompt_tokens": 4,
        "reward": Kept({**parts, "_places": (0.5, Places())}),
        **more,
    }


def test_the_score_of_a_text_is_the_object_that_the_mix_gave() -> None:
    env = TextEnv(**settings())
    env.reset(seed=0)
    assert "score" not in env.step(0)[4]
    _, reward, terminated, _, info = env.step(END)
    (given,) = env.reward.given  # type: ignore[attr-defined]
    assert terminated and info["score"] is given
    assert tuple(given.raw) == (*NAMES, "_places")
    assert reward == given.total == sum((1.0 + place) * place for place in range(len(NAMES))) + 0.5 * 3.0
    assert given.tokens["_places"].tolist() == [1.0, 2.0]
    assert (info["reward_parts"], info["reward_weights"]) == (given.raw, given.weights)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_every_row_of_a_vector_has_its_own_score_in_every_autoreset_mode(mode: str) -> None:
    envs = TextVectorEnv(3, autoreset_mode=mode, **settings())
    envs.reset(seed=0)
    envs.step(np.array([0, END, 0]))
    given = {1: envs.reward.given[0]}  # type: ignore[attr-defined]
    _, rewards, _, _, infos = envs.step(np.array([END, 0, 0]))
    last = infos["final_info"] if mode == "SameStep" else infos
    given[0] = envs.reward.given[0]  # type: ignore[attr-defined]
    assert last["_score"].tolist()[0] is True and not last["_score"][2]
    assert last["score"][0] is given[0] and last["score"][2] is None
    assert given[0] is not given[1] and rewards[0] == given[0].total
    assert last["reward_parts"]["_short"].tolist()[0] == 0.0 == given[0].raw["_short"]
    # A part that is called like Gymnasium's mask of another has its own numbers.
    assert last["reward_parts"]["_a"][0] == given[0].raw["_a"] == 5.0


@pytest.mark.parametrize("vectors", [SyncVectorEnv, AsyncVectorEnv])
def test_gymnasiums_own_vectors_carry_the_score(vectors: Any) -> None:
    envs = vectors([lambda: TextEnv(**settings()) for _ in range(2)])
    try:
        envs.reset(seed=0)
        _, rewards, _, _, infos = envs.step(np.array([END, 0]))
        score = infos["score"][0]
        assert isinstance(score, Score) and infos["score"][1] is None
        assert rewards[0] == score.total and list(score.raw) == [*NAMES, "_places"]
        assert infos["_score"].tolist() == [True, False]
    finally:
        envs.close()


def test_a_text_without_a_score_has_an_empty_one() -> None:
    mix = RewardMix({"odd": FailsOn("a")}, failures={"odd": Failures(on_error="skip", max_bad_fraction=1.0)})
    env = TextEnv(**settings(reward=mix))
    env.reset(seed=0)
    env.step(0)
    _, _, terminated, truncated, info = env.step(END)
    assert (terminated, truncated) == (False, True)
    assert info["score"] == Score(raw={}, weights={}, failed={"odd": "returned nan"})
    env = TextEnv(**settings(max_episode_steps=1))
    env.reset(seed=0)
    _, _, _, truncated, info = env.step(0)
    assert truncated and info["score"] == Score(raw={}, weights={})


@pytest.mark.filterwarnings("error")
def test_the_info_stays_deterministic_and_finite_for_gymnasiums_checker() -> None:
    env = gym.make("rlhf_env/Token-v0", **settings())
    check_env(env.unwrapped, skip_render_check=True)
    found = []
    for _ in range(2):
        env.reset(seed=1)
        env.step(0)
        found.append(env.step(END)[4])
    assert data_equivalence(*found, exact=True)


def test_scores_are_equal_when_every_number_is() -> None:
    def score(**more: Any) -> Score:
        fields: dict[str, Any] = {"raw": {"a": 1.0}, "weights": {"a": 2.0}, "tokens": {"a": np.array([0.5, 0.5])}}
        return Score(**{**fields, **more})

    assert score() == score() and hash(score()) == hash(score()) and score() == pickle.loads(pickle.dumps(score()))
    others = [{"raw": {"a": 1.5}}, {"weights": {"a": 1.0}}, {"failed": {"a": "died"}}]
    others += [{"tokens": {}}, {"tokens": {"b": np.array([0.5, 0.5])}}, {"tokens": {"a": np.array([0.5, 0.4])}}]
    assert all(score() != score(**other) for other in others) and score() != 1.0


def test_an_old_score_keeps_its_weights() -> None:
    mix = RewardMix({"a": (2.0, Letters(1.0))})
    (score,) = mix.score([episode("bb")])
    mix.weights["a"] = 0.0
    assert score.total == 4.0


@pytest.mark.parametrize("name", ["", "a\nb", "\x00", "a\u200bb", 3])
def test_a_part_without_a_printable_name_is_refused_in_one_line(name: Any) -> None:
    from rlhf_env.errors import ConfigError

    with pytest.raises(ConfigError) as refused:
        RewardMix({name: Letters(1.0), "b": Letters(1.0)})
    assert refused.value.problems == (f"a reward part has a name of printable characters, got {name!r}",)


def episode(response: str) -> Episode:
    from rlhf_env.testing import make_episode

    return make_episode("ab", response)
