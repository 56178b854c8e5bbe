"""What a user may write for a reward, and functions in TRL's convention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rlhf_rewards.length import Length
from rlhf_rewards.repetition import Repetition

from rlhf_env import plugins
from rlhf_env.envs.reward_functions import FunctionReward
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.envs.tasks import Prompts
from rlhf_env.envs.toy_tasks import Count
from rlhf_env.errors import ConfigError, UnknownName
from rlhf_env.testing import make_episode

TASK = Count("a", 4)
BATCH = [
    make_episode("q1", "aa", meta={"answer": "x", "level": 1}),
    make_episode("q2", "b", meta={"answer": "y"}),
]


def total(mix: RewardMix) -> list[float]:
    return [score.total for score in mix.score(BATCH)]


# ---------------------------------------------------------------- load_rewards


def test_nothing_is_the_tasks_own_score() -> None:
    mix = load_rewards(None, TASK)
    assert mix.weights == {"task": 1.0} and total(mix) == [0.5, -1.0]


def test_names_tables_and_objects() -> None:
    def per_prompt(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(completion)) for completion in completions]

    mix = load_rewards(
        {
            "task": 2,
            "repetition": 0.5,
            "length": {"weight": 0.25, "target": 4, "tolerance": 1},
            "short": {"plugin": "length", "target": 1},
            "object": (3.0, Length(2)),
            "bare": Repetition(1),
            "function": per_prompt,
            "weighed": (0.1, per_prompt),
        },
        TASK,
    )
    assert mix.weights == {
        "task": 2, "repetition": 0.5, "length": 0.25, "short": 1.0, "object": 3.0, "bare": 1.0, "function": 1.0,
        "weighed": 0.1,
    }  # fmt: skip
    assert mix.parts["length"] == Length(4, 1) and mix.parts["short"] == Length(1)
    assert isinstance(mix.parts["function"], FunctionReward) and isinstance(mix.parts["weighed"], FunctionReward)
    assert [score.raw["weighed"] for score in mix.score(BATCH)] == [2.0, 1.0]
    assert load_rewards(mix, TASK) is mix
    assert load_rewards("repetition", TASK).weights == {"repetition": 1.0}
    assert list(load_rewards(Length(3), TASK).parts) == ["length"]
    assert list(load_rewards(per_prompt, TASK).parts) == ["per_prompt"]


def test_a_run_lends_what_a_reward_asks_for() -> None:
    class Reference:
        def response_logprobs(self, episodes: Any) -> Any:
            return [np.zeros(len(episode.response_ids)) for episode in episodes]

    lent = Reference()
    mix = load_rewards({"kl": 0.1, "repetition": 1.0}, TASK, {"reference": lent, "tokenizer": None})
    assert mix.parts["kl"].reference is lent  # type: ignore[union-attr]


def test_functions_registered_by_name_take_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def shouting(prompts: list[str], completions: list[str], *, mark: str = "!") -> list[float]:
        return [float(completion.count(mark)) for completion in completions]

    host = plugins.PluginHost([])
    monkeypatch.setattr(plugins, "host", lambda: host)
    plugins.register_reward("shouting", shouting)
    assert total(load_rewards({"shouting": {"mark": "a", "weight": 0.5}}, TASK)) == [1.0, 0.0]
    with pytest.raises(ConfigError, match="no setting 'makr': did you mean 'mark'"):
        load_rewards({"shouting": {"makr": "a"}}, TASK)


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("lenght", UnknownName, "unknown reward 'lenght': did you mean 'length'"),
        ({"repetitoin": 1.0}, UnknownName, "did you mean 'repetition'"),
        ({"mine": {"plugin": "divresity"}}, UnknownName, "unknown reward 'divresity': did you mean 'diversity'"),
        ({"length": {"targte": 3}}, ConfigError, "reward 'length': no setting 'targte': did you mean 'target'"),
        ({"length": {}}, ConfigError, "reward 'length': the setting 'target' is required"),
        ("length", ConfigError, "reward 'length': the setting 'target' is required"),
        ({"length": {"target": -1}}, ConfigError, "target must be at least 1, got -1"),
        ({"length": {"target": 3, "weight": "much"}}, ConfigError, "'length': weight must be a finite number"),
        ({"repetition": True}, ConfigError, "reward 'repetition': weight must be a finite number, got True"),
        ({}, ConfigError, "at least one part"),
        ({"repetition": [1.0]}, ConfigError, "reward 'repetition' is no reward"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(spec: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        load_rewards(spec, TASK)


def test_a_task_without_a_score_is_named() -> None:
    with pytest.raises(ConfigError, match="the task Prompts has no score of its own"):
        load_rewards({"task": 1.0}, Prompts(["a"]))
