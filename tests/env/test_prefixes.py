"""The reset option `prefix`: texts begin with a part of a demonstrated answer, which the agent did not write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.types import Episode, Prompt

TOKENIZER, END, NOTHING = "alphabet:ab=", 3, 5


class Words:
    """Two prompts with a demonstrated answer, and one without."""

    size = 3

    def prompt(self, index: int, _options: Any, /) -> Prompt:
        return Prompt(f"word/{index}", "=", {"answer": ["abab", "bbb", None][index]})

    def score(self, episode: Episode, /) -> float:
        return float(episode.response == episode.prompt.meta["answer"])


class Alternating(Words):
    """Allows the letter that was not written last."""

    def action_mask(self, _prompt: Prompt, response_ids: Any, /) -> Any:
        allowed = np.array([True, True, False, True, False])
        if len(response_ids):
            allowed[response_ids[-1]] = False
        return allowed


def environment(task: Any = None, **settings: Any) -> TextVectorEnv:
    given = {"max_new_tokens": 5, "max_prompt_tokens": 1, "action_length": None, "autoreset_mode": "Disabled"}
    return TextVectorEnv(6, task=task or Words(), tokenizer=TOKENIZER, **{**given, **settings})


def begun(shares: list[float], column: str = "answer") -> dict[str, Any]:
    return {"group_size": 2, "indices": [0, 1, 2], "prefix": {"column": column, "shares": shares}}


def test_a_text_begins_with_its_share_of_the_answer_and_the_agent_writes_the_rest() -> None:
    env = environment()
    observation, _ = env.reset(seed=0, options=begun([0.5, 1 / 3, 0.9]))
    # "=" and "ab" of four letters; "=" and "b" of three; a prompt without an answer has no prefix.
    assert observation["attention_mask"].sum(axis=1).tolist() == [3, 3, 2, 2, 1, 1]
    ends = [[0, 1, END, NOTHING, NOTHING], [0, 0, 1, NOTHING, NOTHING], [1, 1, END, NOTHING, NOTHING]]
    actions = np.array([*ends, [END] + [NOTHING] * 4, ends[0], ends[0]])
    _, rewards, terminated, _, infos = env.step(actions)
    assert terminated.tolist() == [True, True, True, True, True, True]
    episodes = list(infos["text_episode"])
    assert [episode.response for episode in episodes] == ["abab", "abaab", "bbb", "b", "ab", "ab"]
    assert rewards.tolist() == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert episodes[0].actions.tolist() == [False, False, True, True, True]
    assert episodes[1].finish_reason == "length", "the prefix takes room"
    assert episodes[2].actions.tolist() == [False, True, True, True] and episodes[4].actions.all()


def test_a_whole_answer_is_the_largest_prefix_and_a_third_of_three_is_one() -> None:
    env = environment()
    observation, _ = env.reset(seed=0, options=begun([1.0, 3 * (1 / 3) - 1e-16, 0.0]))
    assert observation["attention_mask"].sum(axis=1).tolist() == [5, 5, 4, 4, 1, 1]


def test_the_same_tokens_give_the_same_episodes_token_by_token() -> None:
    whole, single = environment(), environment(action_length=1)
    for env in (whole, single):
        env.reset(seed=0, options=begun([0.5, 0.0, 0.0]))
    _, rewards, _, _, infos = whole.step(np.array([[0, 1, END, NOTHING, NOTHING]] * 6))
    for token in (0, 1, END):
        _, by_token, _, _, last = single.step(np.full(6, token))
    assert by_token.tolist() == rewards.tolist()
    for one, other in zip(infos["text_episode"], last["text_episode"], strict=True):
        assert one == other


def test_it_holds_until_a_reset_gives_other_options() -> None:
    env = environment()
    env.reset(seed=0, options=begun([0.5, 0.0, 0.0]))
    assert env.reset()[0]["attention_mask"].sum(axis=1).tolist() == [3, 3, 1, 1, 1, 1]
    assert env.reset(options={"group_size": 2})[0]["attention_mask"].sum() == 6


def test_what_a_task_allows_is_what_it_allows_after_the_prefix() -> None:
    env = environment(Alternating())
    _, infos = env.reset(seed=0, options=begun([0.5, 0.0, 0.0]))
    assert infos["action_mask"][0].tolist() == [True, False, False, True, False]
    assert infos["action_mask"][2].tolist() == [True, True, False, True, False]


def test_what_is_no_prefix_is_refused_and_changes_nothing() -> None:
    env = environment()
    before = env.reset(seed=0)[0]["input_ids"]
    for option, said in {
        "0.5": "prefix is a table of column and shares, got 0.5",
        "{'column': 'answer'}": "prefix is a table of column and shares",
        "{'column': 'answer', 'shares': [0.5]}": "shares of prefix are one for each of 3 groups",
        "{'column': 'answer', 'shares': [0.5, 2.0, 0.0]}": "must be in .0, 1., got 2.0",
    }.items():
        with pytest.raises(ConfigError, match=said):
            env.reset(options={"group_size": 2, "prefix": eval(option)})
    with pytest.raises(DataError, match="word/0: a prefix of 4 tokens leaves no room for another one: set max_new_tok"):
        small = environment(max_new_tokens=4)
        small.reset(seed=0, options=begun([1.0, 0.0, 0.0]))
    assert np.array_equal(env.observation()["input_ids"], before)
    with pytest.raises(ConfigError, match="the texts of a conversation begin with the agent's first turn"):
        environment("guess").reset(seed=0, options=begun([0.5, 0.0, 0.0]))
