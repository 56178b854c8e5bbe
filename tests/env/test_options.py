"""Reset options: groups, chosen prompts, the task's own; how long they hold, and that the caller's dict stays his."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlhf_env.envs.tasks import Prompts
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError, EnvironmentMisuse

DISABLED = AutoresetMode.DISABLED
END = 258
LETTERS = Prompts([f"{letter}?" for letter in "abcdefg"])
LENGTH = {"length": {"target": 4}}


def texts(infos: dict[str, np.ndarray]) -> list[str]:
    return [str(text) for text in infos["prompt"]]


def test_group_size_gives_neighbours_one_prompt() -> None:
    envs = TextVectorEnv(6, task=LETTERS, reward=LENGTH, autoreset_mode=DISABLED)
    for _ in range(7):  # the second reset begins nothing anew: an epoch holds every prompt once
        asked = texts(envs.reset(seed=1, options={"group_size": 3})[1])
        assert asked[0] == asked[1] == asked[2] and asked[3] == asked[4] == asked[5]
    assert len({texts(envs.reset()[1])[0] for _ in range(6)} | {asked[0]}) == 7


def test_every_epoch_of_a_row_holds_each_prompt_once_in_an_order_of_its_own() -> None:
    envs = TextVectorEnv(2, task=LETTERS, reward=LENGTH)
    first = [texts(envs.reset(seed=5)[1])] + [texts(envs.reset()[1]) for _ in range(13)]
    rows = list(zip(*first, strict=True))
    for row in rows:
        assert sorted(row[:7]) == sorted(row[7:]) == list(LETTERS.prompts)
        assert row[:7] != row[7:]
    assert rows[0] != rows[1]
    again = [texts(envs.reset(seed=5)[1])] + [texts(envs.reset()[1]) for _ in range(13)]
    assert again == first


def test_indices_choose_the_prompts() -> None:
    envs = TextVectorEnv(4, task=LETTERS, reward=LENGTH, autoreset_mode=DISABLED)
    _, infos = envs.reset(seed=0, options={"group_size": 2, "indices": [6, 1]})
    assert texts(infos) == ["g?", "g?", "b?", "b?"]
    indices = [2]
    env = TextEnv(task=LETTERS, reward=LENGTH)
    assert env.reset(options={"indices": indices})[1]["prompt"] == "c?"
    indices[0] = 3
    assert env.reset()[1]["prompt"] == "c?", "the environment keeps what it was told, not the caller's list"


def test_options_stay_in_force_when_rows_are_reset_by_mask() -> None:
    """Gymnasium's own vectors take the mask out and hand an empty table to the singles."""
    settings: dict[str, Any] = {"task": "echo", "max_new_tokens": 8}
    views = [
        SyncVectorEnv([lambda: TextEnv(**settings)] * 2, autoreset_mode=DISABLED),
        TextVectorEnv(2, **settings, autoreset_mode=DISABLED),
    ]
    asked = []
    for envs in views:
        envs.reset(seed=3, options={"level": 6})
        envs.step(np.array([END, 97]))
        _, infos = envs.reset(options={"reset_mask": np.array([True, False])})
        asked.append(texts(infos)[0])
        assert len(asked[-1]) == 7
        envs.reset(seed=3)
        assert len(texts(envs.reset()[1])[0]) == 4, "a seed begins anew"
    assert asked[0] == asked[1]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=lambda mode: mode.name)
def test_options_stay_in_force_across_autoreset(mode: AutoresetMode) -> None:
    def level_of(envs: object) -> list[int]:
        lengths = []
        envs.reset(seed=0, options={"level": 5})  # type: ignore[attr-defined]
        for _ in range(6):
            observation, *_ = envs.step(np.array([END, END]))  # type: ignore[attr-defined]
            lengths += [len(bytes(row[row < 256].tolist()).split(b"=")[0]) for row in observation["input_ids"]]
        return lengths

    native = TextVectorEnv(2, task="echo", autoreset_mode=mode)
    singles = SyncVectorEnv([lambda: TextEnv(task="echo")] * 2, autoreset_mode=mode)
    assert level_of(native) == level_of(singles) == [5] * 12


def test_new_options_or_a_seed_replace_the_old() -> None:
    env = TextEnv(task="echo")
    assert len(env.reset(seed=0, options={"level": 6})[1]["prompt"]) == 7
    assert len(env.reset()[1]["prompt"]) == 7
    assert len(env.reset(options={"level": 2})[1]["prompt"]) == 3
    assert len(env.reset(seed=0)[1]["prompt"]) == 4


def test_the_callers_dict_is_never_changed() -> None:
    envs = TextVectorEnv(2, task="echo", autoreset_mode=DISABLED)
    options: dict[str, Any] = {"group_size": 2, "level": 4, "reset_mask": np.array([True, True])}
    before = copy.deepcopy(options)
    envs.reset(seed=0, options=options)
    envs.step(np.array([END, END]))
    assert options.keys() == before.keys() and options["level"] == 4
    assert np.array_equal(options["reset_mask"], before["reset_mask"])


def test_a_mask_alone_keeps_the_options() -> None:
    envs = TextVectorEnv(2, task="echo", autoreset_mode=DISABLED)
    envs.reset(seed=0, options={"level": 6})
    observation, _ = envs.reset(options={"reset_mask": np.array([True, False])})
    assert observation["attention_mask"].sum(axis=1).tolist() == [7, 7]


def test_a_seed_list_seeds_each_row() -> None:
    envs = TextVectorEnv(3, task="echo", autoreset_mode=DISABLED)
    asked = texts(envs.reset(seed=[4, 9, 4])[1])
    assert asked[0] == asked[2] == TextEnv(task="echo").reset(seed=4)[1]["prompt"]
    assert TextEnv(task="echo").reset(seed=9)[1]["prompt"] == asked[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"grup_size": 2}, "'grup_size' is unknown: did you mean 'group_size'"),
        ({"levl": 2}, "did you mean 'level'"),
        ({"group_size": 3}, "group_size 3 does not divide the 4 rows"),
        ({"group_size": 0}, "group_size 0"),
        ({"group_size": "2"}, "group_size '2'"),
        ({"indices": [1, 2]}, "indices names 2 prompts, the environment has 4 groups"),
        ({"level": 0}, "level"),
        ({"level": "high"}, "level"),
    ],
)
def test_an_option_that_is_none_says_so(options: dict[str, object], says: str) -> None:
    envs = TextVectorEnv(4, task="echo")
    with pytest.raises(ConfigError, match=says):
        envs.reset(seed=0, options=options)


# ---------------------------------------------------------------- groups that are scored together


def test_a_group_reward_waits_for_the_last_of_the_group() -> None:
    envs = TextVectorEnv(
        4,
        task=LETTERS,
        reward={"diversity": {"weight": 1.0, "n": 1}},
        action_length=2,
        max_new_tokens=8,
        autoreset_mode=DISABLED,
    )
    envs.reset(seed=0, options={"group_size": 2})
    a, b, space, none = ord("a"), ord("b"), ord(" "), 259
    _, paid, terminated, _, infos = envs.step(np.array([[a, END], [a, space], [b, END], [b, space]]))
    assert not terminated.any() and not paid.any() and infos == {}
    # Row 0 has ended and waits: its action, in the vocabulary or not, changes nothing.
    observation, paid, terminated, _, _ = envs.step(np.array([[-1, 10**6], [b, END], [none, none], [b, space]]))
    assert terminated.tolist() == [True, True, False, False]
    assert paid.tolist() == [0.0, 0.5, 0.0, 0.0]  # "a" has nothing of its own; "a b" has one of two
    assert observation["attention_mask"][0].sum() == 4
    _, paid, terminated, _, infos = envs.step(np.array([[0, 0], [0, 0], [0, 0], [b, END]]))
    assert terminated.all() and paid.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert infos["_text_episode"].tolist() == [False, False, True, True]
    assert [episode.response for episode in infos["text_episode"][2:]] == ["b", "b b b"]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP], ids=lambda mode: mode.name)
def test_groups_start_again_together(mode: AutoresetMode) -> None:
    envs = TextVectorEnv(2, task=LETTERS, reward={"diversity": 1.0}, max_new_tokens=4, autoreset_mode=mode)
    _, infos = envs.reset(seed=0, options={"group_size": 2})
    prompts = [texts(infos)]
    stream = np.random.default_rng(0)
    for _ in range(40):
        infos = envs.step(np.where(stream.random(2) < 0.4, END, 97))[4]
        if "prompt" in infos:
            assert infos["_prompt"].all()
            prompts.append(texts(infos))
    assert len(prompts) > 5
    assert all(first == second for first, second in prompts)


def test_without_a_group_part_nobody_waits() -> None:
    envs = TextVectorEnv(2, task=LETTERS, reward=LENGTH, autoreset_mode=DISABLED)
    envs.reset(seed=0, options={"group_size": 2})
    assert envs.step(np.array([END, 97]))[2].tolist() == [True, False]


def test_a_group_cannot_be_torn_apart() -> None:
    envs = TextVectorEnv(4, task=LETTERS, reward={"diversity": 1.0}, autoreset_mode=DISABLED)
    envs.reset(seed=0, options={"group_size": 2})
    with pytest.raises(EnvironmentMisuse, match="splits a group of 2 rows"):
        envs.reset(options={"reset_mask": np.array([True, False, True, True])})
    with pytest.raises(EnvironmentMisuse, match="group_size can change only when all rows are reset"):
        envs.reset(options={"reset_mask": np.array([True, True, False, False]), "group_size": 4})
    envs.reset(options={"reset_mask": np.array([True, True, False, False])})
    assert envs.group_size == 2


def test_a_text_that_waited_for_its_group_is_forgotten_when_it_is_reset() -> None:
    envs = TextVectorEnv(2, task=LETTERS, reward={"diversity": 1.0}, max_new_tokens=4, autoreset_mode=DISABLED)
    envs.reset(seed=0, options={"group_size": 2})
    envs.step(np.array([END, 97]))  # row 0 has ended and waits
    envs.reset()
    *_, infos = envs.step(np.array([97, END]))
    assert infos == {}
    *_, infos = envs.step(np.array([END, 97]))
    assert [episode.response for episode in infos["text_episode"]] == ["a", ""]
