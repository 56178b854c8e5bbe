"""What is called wrongly says so, with the remedy, and leaves the texts as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlhf_env import plugins
from rlhf_env.envs.tasks import held_out, load_task
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.text_vector_env import TextVectorEnv
from rlhf_env.errors import ConfigError, DataError, EnvironmentMisuse, PluginError, RewardError, UnknownName
from rlhf_env.types import Episode, Prompt


class Flat:
    def response_logprobs(self, episodes: Any) -> list[Any]:
        return [np.full(len(episode.response_ids), -2.0) for episode in episodes]


WITH_PROBS: dict[str, Any] = {"reward": {"kl": 1.0}, "provided": {"reference": Flat()}}


@pytest.mark.parametrize("make", [TextEnv, lambda: TextVectorEnv(1)], ids=["single", "vector"])
def test_step_before_reset(make: Callable[[], Any]) -> None:
    env = make()
    with pytest.raises(EnvironmentMisuse, match=r"call reset\(\) first"):
        env.step(np.array([97]) if isinstance(env, TextVectorEnv) else 97)
    with pytest.raises(EnvironmentMisuse, match=r"call reset\(\) first"):
        env.action_masks()


def test_step_after_the_end() -> None:
    env = TextEnv()
    env.reset(seed=0)
    env.step(258)
    with pytest.raises(EnvironmentMisuse, match=r"after the text ended: call reset\(\)"):
        env.step(97)
    assert env.reset()[1]["prompt"] == "a:"


@pytest.mark.parametrize("make", [TextEnv, lambda: TextVectorEnv(1)], ids=["single", "vector"])
def test_after_close(make: Callable[[], Any]) -> None:
    env = make()
    env.reset(seed=0)
    env.close()
    for call in (env.reset, lambda: env.step(np.array([97]) if isinstance(env, TextVectorEnv) else 97)):
        with pytest.raises(EnvironmentMisuse, match="closed: make a new one"):
            call()


@pytest.mark.parametrize(
    ("action_length", "action", "says"),
    [
        (1, [97], r"an action has shape \(2,\), got \(1,\)"),
        (1, [[97], [97]], r"shape \(2,\), got \(2, 1\)"),
        (1, [97.0, 97.0], "token ids are integers, got an action of dtype float64"),
        (1, [True, False], "dtype bool"),
        (1, ["a", "b"], "token ids are integers"),
        (1, {"tokens": [97, 97]}, "token ids are integers"),
        (1, [97, -1], r"token id -1 in row 1 is outside 0\.\.258"),
        (1, [259, 97], r"token id 259 in row 0 is outside 0\.\.258"),
        (3, [[97, 97], [97, 97]], r"shape \(2, 3\), got \(2, 2\)"),
        (3, [[97, 97, 260], [97, 97, 97]], r"token id 260 in row 0 is outside 0\.\.259"),
        (1, np.array([2**63 + 5, 97], dtype=np.uint64), "in row 0 is outside"),
    ],
)
def test_an_action_that_is_none(action_length: int, action: Any, says: str) -> None:
    envs = TextVectorEnv(2, action_length=action_length)
    before, _ = envs.reset(seed=0)
    with pytest.raises(EnvironmentMisuse, match=says):
        envs.step(action if isinstance(action, dict) else np.array(action))
    assert np.array_equal(envs.observation()["input_ids"], before["input_ids"]), "nothing was written"


@pytest.mark.parametrize(
    ("action", "says"),
    [
        (np.array([97, 97]), "pass {'tokens': ids, 'probs'"),
        ({"tokens": np.array([97, 97])}, "pass {'tokens': ids, 'probs'"),
        ({"tokens": np.array([97, 97]), "probs": np.array([0.5, 0.5]), "more": 1}, "pass {'tokens': ids"),
        ({"tokens": np.array([97, 97]), "probs": np.array([0.5])}, r"probs have shape \(1,\), tokens \(2,\)"),
        ({"tokens": np.array([97, 97]), "probs": np.array([0.5, 0.0])}, r"probs must lie in \(0, 1\]"),
        ({"tokens": np.array([97, 97]), "probs": np.array([1.5, 0.5])}, r"probs must lie in \(0, 1\]"),
        ({"tokens": np.array([97, 97]), "probs": np.array([-1.0, 0.5])}, r"probs must lie in \(0, 1\]"),
        ({"tokens": np.array([97, 97]), "probs": np.array([np.nan, 0.5])}, r"probs must lie in \(0, 1\]"),
        ({"tokens": np.array([97, 97]), "probs": np.array([None, 0.5])}, "probs are numbers, got dtype object"),
        ({"tokens": np.array([97, 97]), "probs": np.array(["x", "y"])}, "probs are numbers"),
    ],
    ids=str,
)
def test_probabilities_that_are_none(action: Any, says: str) -> None:
    envs = TextVectorEnv(2, **WITH_PROBS)
    envs.reset(seed=0)
    with pytest.raises(EnvironmentMisuse, match=says):
        envs.step(action)


@pytest.mark.parametrize("action", [[97, [98]], [[97], [97, 98]]], ids=str)
def test_a_ragged_action(action: Any) -> None:
    envs = TextVectorEnv(2)
    envs.reset(seed=0)
    with pytest.raises(EnvironmentMisuse, match="the same number of tokens in each row"):
        envs.step(action)
    env = TextEnv(action_length=2)
    env.reset(seed=0)
    with pytest.raises(EnvironmentMisuse, match="the same number of tokens in each row"):
        env.step(action)


def test_a_prompt_that_does_not_fit_leaves_the_texts_as_they_were() -> None:
    envs = TextVectorEnv(2, task={"name": "echo", "length": 2}, max_prompt_tokens=4, reward={"length": {"target": 3}})
    before, _ = envs.reset(seed=0)
    with pytest.raises(
        DataError, match=r"'echo/[ab]{9}' has 10 tokens, the environment takes 4: raise max_prompt_tokens"
    ):
        envs.reset(options={"level": 9})
    assert np.array_equal(envs.observation()["input_ids"], before["input_ids"])


def test_a_first_reset_that_fails_is_no_reset() -> None:
    env = TextEnv(task="echo", max_prompt_tokens=2)
    with pytest.raises(DataError, match="raise max_prompt_tokens"):
        env.reset(seed=0)
    with pytest.raises(EnvironmentMisuse, match="before reset"):
        env.step(97)
    envs = TextVectorEnv(2, autoreset_mode="Disabled")
    with pytest.raises(EnvironmentMisuse, match="the first reset starts all rows"):
        envs.reset(seed=0, options={"reset_mask": np.array([True, False])})


def test_an_empty_prompt_is_refused() -> None:
    env = TextEnv(task={"name": "prompts", "prompts": [""]}, reward={"length": {"target": 3}})
    with pytest.raises(DataError, match="'prompts/0' has no token"):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("seed", "says"),
    [
        ([1], "1 seeds for 2 rows"),
        (-1, "a seed is None or a whole number of at least 0"),
        (1.5, "a seed is None or a whole number"),
        ("ab", "a seed is None or a whole number"),
        ([1, -2], "a seed is None or a whole number"),
        ([1, 2.5], "a seed is None or a whole number"),
    ],
    ids=str,
)
def test_a_seed_that_is_none(seed: Any, says: str) -> None:
    envs = TextVectorEnv(2, task="echo")
    envs.reset(seed=0, options={"level": 5})
    with pytest.raises(EnvironmentMisuse, match=says):
        envs.reset(seed=seed, options={"level": 2})
    assert all(len(text) == 6 for text in envs.reset()[1]["prompt"]), "a reset that was refused changes no option"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"indices": [-1, 0]}, "indices are whole numbers of at least 0"),
        ({"indices": ["a", 0]}, "indices are whole numbers"),
        ({"indices": [1.5, 0]}, "indices are whole numbers"),
        ({"indices": 5}, "indices are whole numbers"),
        ({"indices": None}, "indices are whole numbers"),
        ({"indices": [1, 2, 3]}, "indices names 3 prompts, the environment has 2 groups"),
        ({"levle": 1}, "reset option 'levle' is unknown: did you mean 'level'"),
        ({1: 2}, "reset option 1 is unknown"),
        (5, "reset options are a table"),
        ([("level", 2)], "reset options are a table"),
    ],
    ids=str,
)
def test_options_that_are_none(options: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TextVectorEnv(2, task="echo").reset(seed=0, options=options)


@pytest.mark.parametrize("mask", [[True, False], np.array([1, 0]), np.array([False, False]), np.array([True])])
def test_a_reset_mask_that_is_none(mask: Any) -> None:
    envs = TextVectorEnv(2, autoreset_mode="Disabled")
    envs.reset(seed=0)
    if isinstance(mask, list):
        envs.reset(options={"reset_mask": mask})  # a list of bools says it as well
        return
    with pytest.raises(EnvironmentMisuse, match=r"reset_mask must be bool\[2\]"):
        envs.reset(options={"reset_mask": mask})


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"num_envs": 0}, ConfigError, "num_envs must be a whole number of at least 1"),
        ({"max_new_tokens": -5}, ConfigError, "max_new_tokens must be a whole number"),
        ({"max_prompt_tokens": 2.5}, ConfigError, "max_prompt_tokens must be a whole number"),
        ({"action_length": 0}, ConfigError, "action_length must be"),
        ({"action_length": 17}, ConfigError, "action_length 17 is more than max_new_tokens 16"),
        ({"max_episode_steps": 0}, ConfigError, "max_episode_steps must be"),
        ({"autoreset_mode": "never"}, ConfigError, "autoreset_mode 'never' is not one of"),
        ({"render_mode": "depth_array"}, ConfigError, "render_mode 'depth_array' is not one of"),
        ({"task": "ecko"}, UnknownName, "unknown task 'ecko': did you mean 'echo'"),
        ({"task": {"length": 3}}, ConfigError, "a task table needs a name"),
        ({"task": 5}, ConfigError, "5 is not a task: it has no size and no prompt"),
        ({"tokenizer": 5}, ConfigError, "5 is not a tokenizer: it has no vocab_size, end_id, pad_id, encode, decode"),
        ({"task": {"name": "echo", "lenght": 3}}, ConfigError, "no setting 'lenght': did you mean 'length'"),
        ({"task": {"name": "echo", "length": 0}}, ConfigError, "length must be at least 1"),
        ({"tokenizer": "alphabet:aa"}, ConfigError, "an alphabet is one or more different symbols"),
        ({"reward": {"lenght": 1.0}}, UnknownName, "unknown reward 'lenght': did you mean 'length'"),
        ({"reward": {"kl": 0.1}}, ConfigError, "reward 'kl': the setting 'reference' is required"),
    ],
    ids=str,
)
def test_settings_that_are_wrong(settings: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        TextVectorEnv(**{"num_envs": 1, **settings})


def test_a_task_without_a_score_needs_a_reward() -> None:
    with pytest.raises(ConfigError, match="the task Prompts has no score of its own: name a reward"):
        TextEnv(task={"name": "prompts", "prompts": ["Hi."]})


class Questions:
    """A task that says what it is told to; what is an error, it raises."""

    def __init__(self, asks: Any = None, size: Any = 3, aside: Any = None) -> None:
        self.asks, self.told, self.aside = asks, size, aside

    @property
    def size(self) -> Any:
        return _said(self.told)

    def prompt(self, _index: int, _options: Any, /) -> Any:
        return _said(self.asks)

    def held_out(self) -> Any:
        return _said(self.aside)


def _said(answer: Any) -> Any:
    if isinstance(answer, BaseException):
        raise answer
    return answer


@pytest.mark.parametrize(
    ("asks", "says"),
    [
        (
            ValueError("no\nsuch"),
            r"prompt\(2\) raised ValueError: no such: `prompt\(self, index, options\)` must give a",
        ),
        (KeyError(), r"prompt\(2\) raised KeyError: `prompt"),
        (SystemExit(), r"prompt\(2\) raised SystemExit: `prompt"),
        ("hello", r"prompt\(2\) gave a str: give a rlhf_env\.Prompt\(id="),
        (None, r"prompt\(2\) gave None: give a rlhf_env\.Prompt"),
        (Prompt("x", 5), r"prompt\(2\) gave a Prompt whose text is an int: a str is needed"),  # type: ignore[arg-type]
        (Prompt(7, "x"), r"prompt\(2\) gave a Prompt whose id is an int"),  # type: ignore[arg-type]
        (Prompt("x", "x", ()), r"prompt\(2\) gave a Prompt whose meta is a tuple: a dict is needed"),  # type: ignore[arg-type]
    ],
    ids=["raises", "raises without a word", "exits", "str", "None", "text", "id", "meta"],
)
@pytest.mark.parametrize("within", ["alone", "in a mixture"])
def test_a_prompt_that_is_none_is_the_tasks_fault(asks: Any, says: str, within: str) -> None:
    task: Any = Questions(asks)
    task.aside = task
    if within == "in a mixture":
        task, says = load_task({"name": "mixture", "tasks": {"a": task}}), says.replace("2", r"\d")
    envs = TextVectorEnv(1, task=task, reward={"length": {"target": 3}})
    with pytest.raises(DataError, match=rf"^the task Questions: {says}") as refused:
        envs.reset(options={"indices": [2]})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (0, r"has the size 0: the number of its prompts, a whole number of at least 1, is needed, or None"),
        (-1, "has the size -1:"),
        (3.0, r"has the size 3\.0:"),
        ("many", "has the size 'many':"),
        (True, "has the size True:"),
        (ValueError("not yet"), "size raised ValueError: not yet: the number of its prompts"),
    ],
    ids=str,
)
def test_a_size_that_is_none_is_the_tasks_fault(size: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "build_plugin", lambda *_, **__: Questions(size=size))
    wrong: Any = Questions(size=size)
    for look in (lambda: load_task(wrong), lambda: load_task("echo"), lambda: held_out(Questions(aside=wrong))):  # type: ignore[arg-type]
        with pytest.raises(PluginError, match=f"^the task Questions:? {says}"):
            look()


@pytest.mark.parametrize(
    ("aside", "says"),
    [
        (
            None,
            "gave None, which is no task .it has no size and no prompt.: give the task of",
        ),
        ([], "gave a list, which is no task"),
        (RuntimeError("lost"), "raised RuntimeError: lost: give the task"),
    ],
    ids=str,
)
def test_held_out_prompts_that_are_none_are_the_tasks_fault(aside: Any, says: str) -> None:
    with pytest.raises(PluginError, match=rf"^the task Questions: held_out\(\) {says}"):
        held_out(Questions(aside=aside))


def test_what_a_registered_plugin_makes_is_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "build_plugin", lambda *_, **__: SimpleNamespace(size=3))
    with pytest.raises(PluginError, match=r"^task 'echo' is a SimpleNamespace, which is no task: it has no prompt$"):
        load_task("echo")


def test_a_failing_reward_loses_nothing() -> None:
    class Moody:
        mood = float("nan")

        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            return np.full(len(episodes), self.mood)

    moody = Moody()
    envs = TextVectorEnv(2, reward={"moody": moody}, autoreset_mode="Disabled")
    envs.reset(seed=0)
    envs.step(np.array([97, 97]))
    with pytest.raises(RewardError, match="reward 'moody' returned nan for episode 0"):
        envs.step(np.array([258, 98]))
    moody.mood = 0.5
    _, paid, terminated, _, infos = envs.step(np.array([0, 258]))  # the text that had ended is scored now
    assert paid.tolist() == [0.5, 0.5] and terminated.all()
    assert [episode.response for episode in infos["text_episode"]] == ["a", "ab"]


def test_probabilities_in_single_precision_are_read_as_they_are() -> None:
    envs = TextVectorEnv(1, **WITH_PROBS)
    envs.reset(seed=0)
    stated = np.array([0.1], dtype=np.float32)
    *_, infos = envs.step({"tokens": np.array([258]), "probs": stated})
    assert infos["text_episode"][0].logprobs.tolist() == [np.log(np.float64(stated[0]))]
