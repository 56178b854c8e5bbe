"""A reward mix for each task of a mixture: who is asked, what counts how much, and that evaluations say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from rlhf_env.envs.mixture import Mixture
from rlhf_env.envs.reward_tables import load_rewards
from rlhf_env.envs.rewards import RewardMix
from rlhf_env.errors import ConfigError
from rlhf_env.testing import make_episode
from rlhf_env.types import Episode

TEXTS = [make_episode("p", response, meta={"task": task}) for task, response in zip("abcab", "12345", strict=True)]
MIXTURE = Mixture({label: {"name": "echo", "length": size} for size, label in enumerate(("short", "long"), 1)})


@dataclass
class Asked:
    """Each text's number; remembers what it was asked about."""

    log: list[str] = field(default_factory=list)

    def __call__(self, episodes: Sequence[Episode], /) -> Any:
        self.log += [it.response for it in episodes]
        return np.array([float(it.response) for it in episodes])


class AskedPerToken(Asked):
    __call__ = None  # type: ignore[assignment]

    def token_rewards(self, episodes: Sequence[Episode], /) -> Any:
        numbers = Asked.__call__(self, episodes)
        return [np.full(len(it.response_ids), n) for it, n in zip(episodes, numbers, strict=True)]


def test_a_part_is_asked_about_its_tasks_and_counts_there_as_said() -> None:
    some, every, tokens = Asked(), Asked(), AskedPerToken()
    mix = RewardMix(
        {"some": (0.5, some), "every": (0.1, every), "tokens": (1.0, tokens)},
        of_tasks={"some": {"a": 1.0, "b": -4.0}, "tokens": {"c": 1.0}},
    )
    scores = mix.score(TEXTS)
    assert (some.log, every.log, tokens.log) == (["1", "2", "4", "5"], ["1", "2", "3", "4", "5"], ["3"])
    assert [score.total for score in scores] == [0.5 + 0.1, -4.0 + 0.2, 0.1 * 3.0 + 6.0, 2.0 + 0.4, -10.0 + 0.5]
    assert scores[2].raw == {"every": 3.0, "tokens": 6.0} and scores[2].abstained == (), "nobody has abstained"
    assert scores[1].weights["some"] == -2.0


def test_a_failure_is_that_of_the_text_it_was_about() -> None:
    class Odd:
        def __call__(self, episodes: Sequence[Episode], /) -> Any:
            return [float("nan") if it.response == "4" else 1.0 for it in episodes]

    mix = RewardMix({"odd": Odd(), "one": (0.0, Asked())}, of_tasks={"odd": {"a": 1.0}})
    with pytest.raises(Exception, match=r"reward 'odd' .*episode 1 of 0\.\.1"):
        mix.score(TEXTS)


def test_without_a_part_of_its_task_a_text_has_no_score() -> None:
    mix = RewardMix({"some": Asked()}, of_tasks={"some": {"a": 1.0}})
    assert [bool(score.raw) for score in mix.score(TEXTS)] == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"task": {"tasks": {"shrt": 1.0, "long": 1.0}}}, "names no task of the mixture with 'shrt': did you mean 'sh"),
        ({"task": {"tasks": {"long": 1.0}}}, "no part of the reward counts in the task 'short' of the mixture"),
        ({"task": {"tasks": {}}}, "tasks must have one or more entries"),
        ({"task": {"tasks": {"long": "x"}}}, "tasks.long must be a finite number, got 'x'"),
    ],
)
def test_what_cannot_be_meant_is_refused(spec: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_rewards(spec, MIXTURE)
    with pytest.raises(ConfigError, match="is of the tasks of a mixture, and Echo is none"):
        load_rewards({"task": {"tasks": {"short": 1.0}}}, MIXTURE.tasks["short"])
