"""Built-in tasks keep the contract, and `check_task` catches tasks that do not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rlhf_env.envs.tasks import Count, Echo, Prompts, held_out, load_task
from rlhf_env.errors import ConfigError, ContractError, DataError
from rlhf_env.testing import check_task, make_episode
from rlhf_env.types import Episode, Options, Prompt

BUILT_IN = [
    Count(),
    Count("z", 3),
    Echo(),
    Echo(5, "xyz"),
    Prompts(["Hi.", "How are you?", "emoji 😀 שלום \x00 \ud800"]),
    Prompts([f"Prompt {i}." for i in range(10)], held_out_fraction=0.3),
]


@pytest.mark.parametrize("task", BUILT_IN, ids=repr)
def test_built_in_tasks_keep_the_contract(task: Any) -> None:
    check_task(task)


def test_count_by_hand() -> None:
    def score(response: str) -> float:
        return Count("a", 4).score(make_episode("a:", response))

    assert [score(""), score("aa"), score("aaaa"), score("aaaaaa")] == [0.0, 0.5, 1.0, 1.0]
    assert [score("b"), score("ab"), score("aaab")] == [-1.0, 0.25 - 0.5, 0.75 - 0.25]


def test_echo_by_hand() -> None:
    prompt = Echo(4, "ab").prompt(3, {})
    word = prompt.meta["answer"]
    assert prompt.text == word + "=" and len(word) == 4 and set(word) <= {"a", "b"}

    def score(response: str) -> float:
        return Echo().score(make_episode(prompt.text, response, meta={"answer": "abba"}))

    assert [score("abba"), score("abb"), score("abbb"), score("abbaaaaa"), score("")] == [1.0, 0.75, 0.75, 0.5, 0.0]
    assert Echo().prompt(3, {"level": 2}).text == Echo(2).prompt(3, {}).text


def test_prompts_hold_the_last_ones_out() -> None:
    task = Prompts(["a", "b", "c", "d"], held_out_fraction=0.25)
    evaluation = held_out(task)
    assert (task.size, evaluation.size) == (3, 1)
    assert [task.prompt(i, {}).text for i in range(4)] == ["a", "b", "c", "a"]
    assert evaluation.prompt(0, {}) == Prompt(id="prompts/3", text="d")
    assert Prompts(["a", "b"], held_out_fraction=0.01).held_out().size == 1, "at least one"
    alone = Prompts(["a"], held_out_fraction=0.5)
    assert held_out(alone) is alone, "one prompt cannot be split"
    assert held_out(Count()) == Count()


def test_a_training_run_never_sees_a_held_out_prompt() -> None:
    from rlhf_env.envs.text_vector_env import TextVectorEnv

    task = Prompts([f"{letter}?" for letter in "abcdefgh"], held_out_fraction=0.25)
    evaluation = {task.held_out().prompt(i, {}).text for i in range(2)}
    envs = TextVectorEnv(4, task=task, reward={"length": {"target": 3}})
    seen = {text for seed in range(60) for text in envs.reset(seed=seed)[1]["prompt"]}
    assert evaluation == {"g?", "h?"} and len(seen) == 6 and not seen & evaluation


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ({"name": "prompts", "prompts": []}, ConfigError, "a list of one or more strings"),
        ({"name": "prompts", "prompts": "Hi."}, ConfigError, "a list of one or more strings"),
        ({"name": "prompts", "prompts": ["a", None, 3]}, DataError, r"prompts\[1\] is NoneType.*prompts\[2\] is int"),
        ({"name": "prompts", "prompts": ["a"], "held_out_fraction": 1.0}, ConfigError, "held_out_fraction"),
        ({"name": "count", "letter": "ab"}, ConfigError, "one letter"),
        ({"name": "count", "target": 0}, ConfigError, "target >= 1"),
        ({"name": "echo", "alphabet": ""}, ConfigError, "non-empty alphabet"),
    ],
)
def test_settings_that_are_wrong(spec: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        load_task(spec)


# ---------------------------------------------------------------- tasks that break one rule each


class Sound:
    """Keeps every rule; the tasks below break one."""

    size: Any = 3

    def prompt(self, index: int, options: Options, /) -> Prompt:
        return Prompt(id=f"sound/{index}", text=f"say {index}")


class NoSize(Sound):
    size = 0


class NotAPrompt(Sound):
    def prompt(self, index: int, options: Options, /) -> Any:
        return f"say {index}"


class Moody(Sound):
    def __init__(self) -> None:
        self.counter: Iterator[int] = iter(range(10**6))

    def prompt(self, index: int, options: Options, /) -> Prompt:
        return Prompt(id=f"moody/{index}", text=f"say {next(self.counter)}")


class Rolls(Sound):
    def prompt(self, index: int, options: Options, /) -> Prompt:
        random.random()
        return super().prompt(index, options)


class WritesOptions(Sound):
    def prompt(self, index: int, options: Any, /) -> Prompt:
        options["seen"] = index
        return super().prompt(index, options)


class OneId(Sound):
    def prompt(self, index: int, options: Options, /) -> Prompt:
        return Prompt(id="one", text=f"say {index}")


class EmptyText(Sound):
    def prompt(self, index: int, options: Options, /) -> Prompt:
        return Prompt(id=f"empty/{index}", text="")


class Leaks(Sound):
    def held_out(self) -> Sound:
        return Sound()


class NanScore(Sound):
    def score(self, episode: Episode, /) -> float:
        return len(episode.response) / len(episode.response) if episode.response else float("nan")


class DividesByLength(Sound):
    def score(self, episode: Episode, /) -> float:
        return 1 / len(episode.response)


class RepliesInNumbers(Sound):
    def reply(self, episode: Episode, /) -> Any:
        return 3


class ForbidsEverything(Sound):
    def action_mask(self, prompt: Prompt, response_ids: Any, /) -> Any:
        return np.zeros(259, dtype=np.bool_)


class OneName(Sound):
    option_names = "level"


@pytest.mark.parametrize(
    ("task", "rule", "says"),
    [
        (NoSize(), "size", "got 0"),
        (NotAPrompt(), "prompt", "'say 0'"),
        (Moody(), "pure", "and then"),
        (Rolls(), "global random state", "random"),
        (WritesOptions(), "pure", "changed the options"),
        (OneId(), "ids", "prompts 0 and 1 share the id 'one'"),
        (EmptyText(), "encodes", "'empty/0'"),
        (Leaks(), "held_out", "sound/0"),
        (NanScore(), "score", "finite float, got nan, for prompt 'say 0', response ''"),
        (DividesByLength(), "score", "ZeroDivisionError"),
        (RepliesInNumbers(), "reply", "got 3"),
        (ForbidsEverything(), "action_mask", "allows a token"),
        (OneName(), "option_names", "'level'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Sound) else "",
)
def test_a_task_that_breaks_a_rule_is_caught_by_name(task: Any, rule: str, says: str) -> None:
    check_task(Sound())
    with pytest.raises(ContractError, match=says) as caught:
        check_task(task)
    assert caught.value.rule == rule and isinstance(caught.value, AssertionError)
