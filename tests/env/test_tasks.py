"""Built-in tasks keep the contract, and `check_task` catches tasks that do not."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env.envs.tasks import Prompts, held_out, load_task
from rlhf_env.envs.tokenizers import AlphabetTokenizer, load_tokenizer
from rlhf_env.envs.toy_tasks import Count, Echo, Enumerable, Guess, Increasing
from rlhf_env.errors import ConfigError, ContractError
from rlhf_env.plugins import host
from rlhf_env.testing import check_task, make_episode
from rlhf_env.types import Episode, Prompt, ResetOptions

TOOLS = Path(__file__).parents[2] / "examples/tools"

# What each built-in task needs to be made: a task that is registered and not listed here fails a test.
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "chitchat": [{}, {"split": "judge"}],
    "count": [{}, {"letter": "z", "target": 3}],
    "echo": [{}, {"length": 1}, {"length": 12, "alphabet": "xyz"}],
    "addition": [{}, {"largest": 3}, {"base": 1, "exact": True}],
    "segments": [{}, {"segments": 4, "length": 1, "shuffled": True}],
    "validation": [{"task": "count"}, {"task": {"name": "addition"}, "share": 0.3}],
    "enumerable": [{}, {"symbols": "xy", "longest": 5, "seed": 3}],
    "file": [{"path": "prompts.jsonl"}, {"path": "prompts.csv", "held_out_fraction": 0.3}],
    "guess": [{}, {"alphabet": "xyz", "turns": 1}],
    "increasing": [{}, {"alphabet": "abcdefgh", "length": 7}],
    "mixture": [{"tasks": ["echo", "count", "guess"]}, {"tasks": {"a": "echo", "b": "increasing"}, "weights": [1, 3]}],
    "prompts": [
        {"prompts": ["Hi.", "How are you?", "emoji 😀 שלום \x00 \ud800"]},
        {"prompts": [f"Prompt {i % 7}." for i in range(10)], "held_out_fraction": 0.3},
    ],
    "reasoning_gym": [{"dataset": "leg_counting"}, {"dataset": "chain_sum", "level": 2}],
    "textarena": [{"game": "GuessTheNumber-v0"}, {"game": "LightsOut-v0"}],
    "tools": [{"task": "addition", "tools": [f"{TOOLS / 'calculator.py'}:calculate"]}],
}
TOKENIZERS = {"tools": str(TOOLS / "tokenizer")}  # whose template tells the model of its tools
PACKAGES = {"chitchat": "chitchat_dataset", "reasoning_gym": "reasoning_gym", "textarena": "textarena"}


def build(name: str, arguments: dict[str, Any]) -> Any:
    pytest.importorskip(PACKAGES.get(name, "rlhf_env"))
    return load_task({"name": name, **arguments})


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prompts.jsonl` and `prompts.csv` in the working directory."""
    monkeypatch.chdir(tmp_path)
    rows = [f"What is {i % 13} + {i % 7}?" for i in range(40)]
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows), "utf-8")
    Path("prompts.csv").write_text("prompt\n" + "\n".join(rows) + "\n", "utf-8")


def test_the_list_of_built_in_tasks_is_complete() -> None:
    ours = {entry.name for entry in host() if entry.kind == "task" and entry.origin == "rlhf-env"}
    assert ours == set(ARGUMENTS)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("name", "arguments"), [(name, one) for name, several in ARGUMENTS.items() for one in several], ids=str
)
def test_built_in_tasks_keep_the_contract(name: str, arguments: dict[str, Any]) -> None:
    check_task(build(name, arguments), load_tokenizer(TOKENIZERS.get(name, "bytes")))


@pytest.mark.parametrize(
    ("task", "alphabet"),
    [(Enumerable(), "abcd"), (Guess(), "abcdefg?<>!"), (Increasing(), "0123456789<"), (Echo(), "ab="), (Count(), "a:")],
    ids=str,
)
def test_toy_tasks_keep_the_contract_in_the_smallest_world(task: Any, alphabet: str) -> None:
    check_task(task, AlphabetTokenizer(alphabet))


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_tasks_survive_the_way_to_a_worker_process(name: str) -> None:
    task = build(name, ARGUMENTS[name][-1])
    before = [task.prompt(index, {}) for index in range(5)]
    there = pickle.loads(pickle.dumps(task))
    assert [there.prompt(index, {}) for index in range(5)] == before


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


def test_echo_sets_words_aside_at_every_length() -> None:
    for length in (1, 2, 3, 11):
        asked, aside = (
            {task.prompt(index, {"level": length}).text for index in range(300)} for task in (Echo(), Echo().held_out())
        )
        assert asked and aside and not asked & aside
        if length < 4:
            assert len(asked | aside) == 2**length
    assert Echo(2, "a").held_out().prompt(0, {}).text == "aa=", "of one word none can be set aside"


def test_increasing_by_hand() -> None:
    def score(response: str) -> float:
        return Increasing(4).score(make_episode("3<", response, meta={"start": "3"}))

    assert [score("4578"), score("4"), score("45"), score("")] == [1.0, 0.25, 0.5, 0.0]
    assert score("3") == score("2789") == score("x456") == 0.0, "the first is not above the start"
    assert [score("4554"), score("44"), score("45789")] == [0.5, 0.25, 0.8]
    starts = {task.prompt(i, {}).text for task in (Increasing(), Increasing().held_out()) for i in range(6)}
    assert starts == {"0<", "1<", "2<", "3<", "4<", "5<"}, "each leaves room for four above it"
    letters = Increasing(2, "abcd")
    assert letters.score(make_episode("a<", "cd", meta={"start": "a"})) == 1.0


def test_enumerable_by_hand() -> None:
    task = Enumerable()
    assert len(task.responses) == len(set(task.responses)) == 85
    assert task.responses[:7] == ("", "a", "b", "c", "d", "aa", "ab") and task.responses[-1] == "ddd"
    assert task.rewards.dtype == np.float64 and len(set(task.rewards)) == 85
    world = AlphabetTokenizer("abcd")
    assert [task.score(make_episode("a", text, world)) for text in task.responses] == task.rewards.tolist()
    assert task.score(make_episode("a", "aaaa", world)) == 0.0
    assert Enumerable(seed=1).rewards.tolist() != task.rewards.tolist() == Enumerable(seed=0).rewards.tolist()
    assert len(Enumerable("xy", 2).responses) == 7


def test_a_text_decides_on_which_side_it_is() -> None:
    texts = [f"Prompt {i}." for i in range(40)]
    task = Prompts(texts, held_out_fraction=0.25)
    aside = {task.held_out().prompt(i, {}).text for i in range(task.held_out().size)}
    assert task.size + task.held_out().size == 40 and 5 <= len(aside) <= 15
    assert [task.prompt(task.size, {}), task.prompt(0, {})] == [task.prompt(0, {})] * 2

    twice = Prompts([text for text in texts for _ in range(2)], held_out_fraction=0.25)
    assert twice.held_out().size == 2 * len(aside), "copies stay together"
    assert {twice.held_out().prompt(i, {}).text for i in range(twice.held_out().size)} == aside
    longer = Prompts([*texts, *(f"More {i}." for i in range(9))], held_out_fraction=0.25).held_out()
    assert aside <= {longer.prompt(i, {}).text for i in range(longer.size)}, "a longer list moves nothing"

    assert Prompts(["a", "b"], held_out_fraction=0.01).held_out().size == 1, "at least one"
    assert Prompts(["a", "b"], held_out_fraction=0.99).size == 1, "and never all"
    same = Prompts(["a", "a"], held_out_fraction=0.5)
    assert held_out(same) is same, "one text cannot be parted"
    assert held_out(Count()) == Count()


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ({"name": "prompts", "prompts": []}, ConfigError, "prompts must have one or more entries"),
        ({"name": "prompts", "prompts": "Hi."}, ConfigError, "prompts must be a list, each a string"),
        ({"name": "prompts", "prompts": ["a", None, 3]}, ConfigError, r"prompts\[1\] must .*prompts\[2\] must"),
        ({"name": "prompts", "prompts": ["a"], "held_out_fraction": 1.0}, ConfigError, "held_out_fraction"),
        ({"name": "count", "letter": "ab"}, ConfigError, "letter must have one character"),
        ({"name": "count", "target": 0}, ConfigError, "target must be at least 1"),
        ({"name": "echo", "alphabet": ""}, ConfigError, "alphabet must have one or more characters"),
        ({"name": "increasing", "alphabet": "abca"}, ConfigError, "different symbols"),
        ({"name": "increasing", "length": 10}, ConfigError, "length must be below the 10 symbols"),
        ({"name": "enumerable", "symbols": "aa"}, ConfigError, "different symbols"),
        ({"name": "enumerable", "longest": 0}, ConfigError, "longest must be at least 1"),
        ({"name": "guess", "alphabet": "ba"}, ConfigError, "rising order"),
        ({"name": "guess", "turns": 0}, ConfigError, "turns must be at least 1"),
    ],
)
def test_settings_that_are_wrong(spec: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        load_task(spec)


# ---------------------------------------------------------------- tasks that break one rule each


class Sound:
    """Keeps every rule; the tasks below break one."""

    size: Any = 3

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        return Prompt(id=f"sound/{index}", text=f"say {index}")


class NoSize(Sound):
    size = 0


class NotAPrompt(Sound):
    def prompt(self, index: int, options: ResetOptions, /) -> Any:
        return f"say {index}"


class Moody(Sound):
    def __init__(self) -> None:
        self.counter: Iterator[int] = iter(range(10**6))

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        return Prompt(id=f"moody/{index}", text=f"say {next(self.counter)}")


class Rolls(Sound):
    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        random.random()
        return super().prompt(index, options)


class WritesOptions(Sound):
    def prompt(self, index: int, options: Any, /) -> Prompt:
        options["seen"] = index
        return super().prompt(index, options)


class OneId(Sound):
    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        return Prompt(id="one", text=f"say {index}")


class EmptyText(Sound):
    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
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
        (NanScore(), "score", "or None, got nan, for prompt 'say 0', response ''"),
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
