"""A task may forbid tokens: the mask is offered before each action, and what it forbids is not written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import DataError, EnvironmentMisuse
from rlhf_env.types import Bool, Episode, Int, Prompt, ResetOptions

# Alphabet "abc?": a 0, b 1, c 2, ? 3, the end token 4, pad 5; 6 in an action means "nothing here".
A, B, C, END, V, NOTHING = 0, 1, 2, 4, 6, 6


class NoTwins:
    """a, b and c in any order, but no letter twice in a row; the end after at least one. `asked` counts the masks."""

    size = 1

    def __init__(self) -> None:
        self.asked = 0

    def prompt(self, _index: int, _options: ResetOptions, /) -> Prompt:
        return Prompt(id="no twins", text="?")

    def score(self, episode: Episode, /) -> float:
        return len(episode.response) / 4

    def action_mask(self, _prompt: Prompt, response_ids: Int, /) -> Bool:
        self.asked += 1
        said = response_ids.tolist()
        allowed = [i in (A, B, C) and said[-1:] != [i] for i in range(V)]
        allowed[END] = bool(said)
        response_ids[:] = A  # whatever a task does to what it is handed, the text stays
        return np.array(allowed)


def settings(length: int | None = 1, **others: Any) -> dict[str, Any]:
    return {
        "task": NoTwins(),
        "tokenizer": "alphabet:abc?",
        "max_new_tokens": 4,
        "max_prompt_tokens": 1,
        "action_length": length,
        **others,
    }


def which(mask: Any) -> list[int]:
    return [int(i) for i in np.flatnonzero(mask)]


def test_the_mask_is_in_every_info_until_the_end() -> None:
    env = TextEnv(**settings())
    _, info = env.reset(seed=0)
    assert info["action_mask"].dtype == np.bool_ and info["action_mask"].shape == (V,)
    assert which(info["action_mask"]) == which(env.action_masks()) == [A, B, C]
    for token, allowed in ((B, [A, C, END]), (A, [B, C, END])):
        *_, info = env.step(token)
        assert which(info["action_mask"]) == which(env.action_masks()) == allowed
    info["action_mask"][:] = True  # the caller's copy
    with pytest.raises(EnvironmentMisuse, match="token id 0 in row 0 is forbidden"):
        env.step(A)
    *_, info = env.step(END)
    assert "action_mask" not in info and info["text_episode"].response == "ba"
    assert env.action_masks().all(), "at rest every action is ignored"


def test_a_task_without_masks_allows_everything() -> None:
    env = TextEnv()
    _, info = env.reset(seed=0)
    assert env.action_masks().all() and "action_mask" not in info


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_a_forbidden_token_is_refused_and_nothing_is_written(mode: AutoresetMode) -> None:
    envs = TextVectorEnv(3, **settings(), autoreset_mode=mode)
    envs.reset(seed=0)
    before = envs.step(np.array([A, B, C]))[0]
    with pytest.raises(EnvironmentMisuse, match=r"token id 1 in row 1 is forbidden: .* allows 3 of 6 there\. Choose"):
        envs.step(np.array([B, B, B]))
    assert np.array_equal(envs.observation()["input_ids"], before["input_ids"])
    observation, *_ = envs.step(np.array([B, A, A]))
    assert observation["attention_mask"].sum(axis=1).tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    ("action", "place"),
    [
        ([END, A, B, C], 0),
        ([A, A, B, C], 1),
        ([A, NOTHING, A, B], 2),
        ([A, B, 3, C], 2),
        ([A, B, A, 5], 3),
    ],
)
def test_every_place_of_a_long_action_counts(action: Sequence[int], place: int) -> None:
    env = TextEnv(**settings(None))
    env.reset(seed=0)
    with pytest.raises(EnvironmentMisuse, match=f"token id {action[place]} in row 0 is forbidden"):
        env.step(action)
    assert env.step([A, B, C, END])[2]


@pytest.mark.parametrize(
    ("action", "response"),
    [
        ([A, B, END, END], "ab"),  # what follows the end token is ignored, and so is what it would have been
        ([A, END, NOTHING, NOTHING], "a"),
        ([A, B, A, B], "abab"),
        ([NOTHING, NOTHING, A, END], "a"),
    ],
)
def test_what_is_not_written_is_not_held_to_the_mask(action: Sequence[int], response: str) -> None:
    env = TextEnv(**settings(None))
    env.reset(seed=0)
    *_, terminated, _, info = env.step(action)
    assert terminated and info["text_episode"].response == response


def test_places_past_the_length_limit_are_not_held_to_the_mask() -> None:
    env = TextEnv(**settings(3))
    env.reset(seed=0)
    env.step([A, B, A])
    *_, terminated, _, info = env.step([B, B, B])
    assert terminated and info["text_episode"].response == "abab"


def test_rows_at_rest_may_say_anything() -> None:
    envs = TextVectorEnv(2, **settings(), autoreset_mode="NextStep")
    envs.reset(seed=0)
    envs.step(np.array([A, A]))
    assert envs.step(np.array([END, B]))[2].tolist() == [True, False]
    assert [which(mask) for mask in envs.action_masks()] == [list(range(V)), [A, C, END]]
    *_, infos = envs.step(np.array([5, A]))  # row 0 only starts anew
    assert [which(mask) for mask in infos["action_mask"]] == [[A, B, C], [B, C, END]]
    assert infos["_action_mask"].all()


def test_the_task_is_asked_once_for_each_place() -> None:
    task = NoTwins()
    env = TextEnv(**settings(task=task))
    env.reset(seed=0)
    for token in (A, B, A):
        env.action_masks()
        env.step(token)
    assert task.asked == 4


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=lambda mode: mode.name)
def test_masks_are_the_same_in_a_vector_of_singles(mode: AutoresetMode) -> None:
    singles = SyncVectorEnv([lambda: TextEnv(**settings())] * 3, autoreset_mode=mode)
    native = TextVectorEnv(3, **settings(), autoreset_mode=mode)
    stream = np.random.default_rng(0)
    answers = [envs.reset(seed=0) for envs in (singles, native)]
    for _ in range(40):
        theirs, ours = (answer[-1] for answer in answers)
        assert {key: repr(theirs[key]) for key in theirs} == {key: repr(ours[key]) for key in ours}
        masks = native.action_masks()
        for row in np.flatnonzero(ours.get("_action_mask", np.zeros(3))):
            assert np.array_equal(masks[row], ours["action_mask"][row])
        tokens = np.array([stream.choice(which(mask)) for mask in masks])
        answers = [envs.step(tokens) for envs in (singles, native)]


def test_sampling_with_the_mask_plays_for_ever() -> None:
    env: Any = gym.make("rlhf_env/Token-v0", **settings())
    env.action_space.seed(0)
    _, info = env.reset(seed=0)
    ended = 0
    while ended < 20:
        *_, terminated, _, info = env.step(env.action_space.sample(info["action_mask"].astype(np.int8)))
        if terminated:
            ended += 1
            _, info = env.reset()


@pytest.mark.parametrize("mask", [np.ones(5, bool), np.ones(V), np.zeros(V, bool), None], ids=str)
def test_what_is_no_mask_is_the_tasks_fault(mask: Any) -> None:
    class Wrong(NoTwins):
        def action_mask(self, _prompt: Prompt, _response_ids: Int, /) -> Any:
            return mask

    env = TextEnv(**settings(task=Wrong()))
    with pytest.raises(DataError, match=r"task Wrong for prompt 'no twins' after 0 tokens must be bool\[6\]"):
        env.reset(seed=0)


def test_stable_baselines3s_own_vector_hands_the_masks_on() -> None:
    env_util = pytest.importorskip("stable_baselines3.common.env_util")
    masking = pytest.importorskip("sb3_contrib.common.maskable.utils")  # what MaskablePPO asks with
    envs = env_util.make_vec_env("rlhf_env/Token-v0", 2, seed=0, env_kwargs=settings())
    envs.reset()
    assert masking.is_masking_supported(envs)
    assert [which(mask) for mask in masking.get_action_masks(envs)] == [[A, B, C], [A, B, C]]
    envs.step(np.array([A, B]))
    assert [which(mask) for mask in masking.get_action_masks(envs)] == [[B, C, END], [A, C, END]]
    envs.step(np.array([END, C]))  # the first text has ended: the mask is the next one's
    assert [which(mask) for mask in masking.get_action_masks(envs)] == [[A, B, C], [A, B, END]]
