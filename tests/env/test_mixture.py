"""A mixture draws by weight, says where a prompt came from, and lets that task score, answer and set aside."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlhf_env.envs.mixture import Mixture
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.tasks import Prompts, load_task
from rlhf_env.envs.text_env import TextEnv
from rlhf_env.envs.toy_tasks import Count, Echo, Guess, Increasing
from rlhf_env.errors import ConfigError
from rlhf_env.testing import make_episode
from rlhf_env.types import Prompt

END = 258


def labels(task: Any, options: dict[str, Any] | None = None, count: int = 2000) -> Counter[str]:
    return Counter(task.prompt(index, options or {}).meta["task"] for index in range(count))


def test_prompts_come_by_weight_and_say_from_where() -> None:
    task = load_task(
        {"name": "mixture", "tasks": ["echo", {"name": "echo", "length": 5}, "count"], "weights": [1, 2, 1]}
    )
    drawn = labels(task)
    assert set(drawn) == {"echo", "echo-2", "count"}
    for label, share in {"echo": 0.25, "echo-2": 0.5, "count": 0.25}.items():
        assert abs(drawn[label] / 2000 - share) < 4 * np.sqrt(share * (1 - share) / 2000), label
    for index in range(50):
        prompt = task.prompt(index, {})
        if prompt.meta["task"] == "count":
            assert prompt == Prompt("count/count/a", "a:", {"letter": "a", "task": "count"})
        else:
            word, label = prompt.meta["answer"], prompt.meta["task"]
            assert len(word) == {"echo": 3, "echo-2": 5}[label]
            assert prompt == Prompt(f"{label}/echo/{word}", f"{word}=", {"answer": word, "task": label})
    neighbours = [Mixture({"all": Prompts(list("abcdef"))}).prompt(index, {}).text for index in range(6)]
    assert sorted(neighbours) == list("abcdef"), "no prompt twice before every one was asked"


def test_weights_are_a_reset_option_and_other_options_reach_the_tasks() -> None:
    task = Mixture(["echo", "count"])
    assert set(labels(task, {"weights": [0, 1]}, 50)) == {"count"}
    assert set(labels(task, {"weights": {"echo": 0.3}}, 50)) == {"echo"}
    assert task.option_names == ("weights", "level")
    env = TextEnv(task=task)
    _, info = env.reset(seed=0, options={"weights": {"echo": 1.0}, "level": 7})
    assert info["prompt_id"].startswith("echo/") and len(info["prompt"]) == len("abababa=")
    assert len(env.reset()[1]["prompt"]) == len("abababa="), "options stay in force"
    with pytest.raises(ConfigError, match="weights must be one number for each of echo, count"):
        env.reset(options={"weights": [1.0]})


def test_score_and_reply_are_those_of_the_task_a_prompt_came_from() -> None:
    task = Mixture({"toys": Mixture(["echo", "increasing"]), "game": Guess(), "names": Prompts(["Who?"])}, [1, 1, 0])
    assert not hasattr(task, "score"), "a list of prompts has none"
    task = Mixture({"toys": Mixture(["echo", "increasing"]), "game": Guess()})
    seen = set()
    for index in range(40):
        prompt = task.prompt(index, {})
        episode = make_episode(prompt.text, "a")
        episode = replace(episode, prompt=prompt)
        label = prompt.meta["task"]
        seen.add(label)
        if label == "game":
            assert task.reply(episode) == (None if prompt.meta["secret"] == "a" else ">")
            assert task.score(episode) == float(prompt.meta["secret"] == "a")
        elif label == "toys/echo":
            assert task.reply(episode) is None
            assert task.score(episode) == (prompt.meta["answer"][0] == "a") / 3
        else:
            assert (label, task.score(episode)) == ("toys/increasing", 0.0)
    assert seen == {"game", "toys/echo", "toys/increasing"}
    played = TextEnv(task=task)
    ends = set()
    for seed in range(8):
        _, info = played.reset(seed=seed)
        played.step(ord("d"))
        *_, terminated, _, info = played.step(END)
        ends.add(info["finish_reason"] if terminated else "goes on")
    assert ends == {"task", "goes on"}


def test_evaluation_mixes_what_was_set_aside_and_leaves_out_who_set_nothing_aside() -> None:
    task = Mixture({"a": Echo(3), "b": Increasing(), "c": Count()}, [3, 1, 4])
    aside = task.held_out()
    assert set(labels(aside)) == {"a", "b"} and abs(labels(aside)["a"] / 2000 - 0.75) < 0.05
    trained, measured = ({of.prompt(i, {}).text for i in range(500)} for of in (task, aside))
    assert not trained & measured
    scored = load_rewards(None, task)
    prompt = aside.prompt(0, {})
    answer = make_episode(prompt.text, "aaa")
    held = replace(answer, prompt=prompt)
    assert np.isfinite(scored.score([held])[0].total), "the training mixture scores what evaluation asked"
    assert not hasattr(Mixture(["count"]), "held_out")


class Masked(Count):
    def action_mask(self, prompt: Prompt, response_ids: Any, /) -> Any:
        return np.arange(259) == ord("a")


def test_masks_come_from_all_tasks_or_from_none() -> None:
    task = Mixture([Masked(), Masked("b")])
    assert task.action_mask(task.prompt(0, {}), np.zeros(0, dtype=np.int64)).sum() == 1
    with pytest.raises(ConfigError, match="either all of the tasks or none"):
        Mixture([Masked(), Count()])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tasks": []}, "tasks must be one or more"),
        ({"tasks": "echo"}, "tasks must be a list .* or a table"),
        ({"tasks": ["ecko"]}, "did you mean 'echo'"),
        ({"tasks": {"a/b": "echo"}}, "without a slash"),
        ({"tasks": ["echo"], "weights": [-1]}, "none below 0"),
        ({"tasks": ["echo"], "weights": [0]}, "not all 0"),
        ({"tasks": ["echo"], "weights": [1, 1]}, "one number for each"),
        ({"tasks": ["echo"], "weights": {"count": 1}}, "no task 'count'"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_task({"name": "mixture", **settings})
