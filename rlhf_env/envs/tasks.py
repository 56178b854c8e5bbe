"""Tasks: where prompts come from. Each is an indexed source; `prompt(index, options)` is a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.types import Episode, Options, Prompt, Task


@plugins.hookimpl
def register_tasks(register: plugins.Register) -> None:
    register("prompts", "rlhf_env.envs.tasks:Prompts")
    register("echo", "rlhf_env.envs.tasks:Echo")
    register("count", "rlhf_env.envs.tasks:Count")
    register("chitchat", "rlhf_env.envs.chitchat:Chitchat", needs="demo")


def load_task(spec: str | Mapping[str, Any] | Task) -> Task:
    """A task as it is, `"echo"`, or `{"name": "echo", "length": 3}`."""
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        return spec
    parameters = dict(spec)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"a task table needs a name, got {dict(spec)!r}")
    task: Task = plugins.build("task", name, parameters)
    return task


def held_out(task: Task) -> Task:
    """The task's evaluation prompts, which training never sees; a task that has none is evaluated on its own."""
    split = getattr(task, "held_out", None)
    return split() if split is not None else task


@dataclass(frozen=True)
class Prompts:
    """A list of prompts. The last `held_out_fraction` of them (at least one, if more than one) is for evaluation."""

    prompts: Sequence[str]
    held_out_fraction: float = 0.0
    first: int = 0  # the place of prompts[0] in the whole list, so that no held-out prompt has a training prompt's id

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or not self.prompts:
            raise ConfigError("prompts: a list of one or more strings is needed")
        problems = [
            f"prompts[{i}] is {type(text).__name__}, not a string"
            for i, text in enumerate(self.prompts)
            if not isinstance(text, str)
        ]
        if problems:
            raise DataError(*problems[:20])
        if not 0.0 <= self.held_out_fraction < 1.0:
            raise ConfigError(f"held_out_fraction is a share in [0, 1), got {self.held_out_fraction}")

    @property
    def _first_held_out(self) -> int:
        count = len(self.prompts)
        held = round(count * self.held_out_fraction)
        return count - (max(held, 1) if self.held_out_fraction > 0 and count > 1 else 0)

    @property
    def size(self) -> int:
        return self._first_held_out

    def prompt(self, index: int, _options: Options, /) -> Prompt:
        place = index % self.size
        return Prompt(id=f"prompts/{self.first + place}", text=self.prompts[place])

    def held_out(self) -> Prompts:
        """The prompts set aside; all of them where none were."""
        first = self._first_held_out
        return Prompts(self.prompts[first:], first=first) if first < len(self.prompts) else self


@dataclass(frozen=True)
class Echo:
    """Say the prompt back. Reward: the share of characters that agree, place by place, over the longer of the two.

    Prompts are `length` symbols of `alphabet` followed by "=". The option `level` replaces `length` (a curriculum).
    """

    length: int = 3
    alphabet: str = "ab"
    first: int = 0

    option_names = ("level",)

    def __post_init__(self) -> None:
        if self.length < 1 or not self.alphabet:
            raise ConfigError(f"echo needs length >= 1 and a non-empty alphabet, got {self.length}, {self.alphabet!r}")

    @property
    def size(self) -> None:
        return None

    def prompt(self, index: int, options: Options, /) -> Prompt:
        length = options.get("level", self.length)
        if not isinstance(length, (int, np.integer)) or length < 1:
            raise ConfigError(f"level: the number of symbols to echo, at least 1, got {length!r}")
        length = int(length)
        stream = np.random.default_rng([2 * index + self.first, length])
        word = "".join(self.alphabet[i] for i in stream.integers(len(self.alphabet), size=length))
        return Prompt(id=f"echo/{length}/{2 * index + self.first}", text=word + "=", meta={"answer": word})

    def held_out(self) -> Echo:
        """Draws from other random streams. With few words possible, texts still repeat: there are only so many."""
        return Echo(self.length, self.alphabet, first=1)

    def score(self, episode: Episode, /) -> float:
        answer, response = str(episode.prompt.meta["answer"]), episode.response
        longest = max(len(answer), len(response))
        return sum(a == b for a, b in zip(answer, response, strict=False)) / longest


@dataclass(frozen=True)
class Count:
    """Write many of one letter: the share of the response's characters that are `letter`, times how full it is.

    Reward: (number of `letter`s in the response) / `target`, at most 1, minus the share of other characters. Every
    policy finds a gradient here at once, which is what an environment's default task is for.
    """

    letter: str = "a"
    target: int = 8

    def __post_init__(self) -> None:
        if len(self.letter) != 1 or self.target < 1:
            raise ConfigError(f"count needs one letter and target >= 1, got {self.letter!r}, {self.target}")

    @property
    def size(self) -> int:
        return 1

    def prompt(self, _index: int, _options: Options, /) -> Prompt:
        return Prompt(id=f"count/{self.letter}", text=f"{self.letter}:", meta={"letter": self.letter})

    def score(self, episode: Episode, /) -> float:
        hits = episode.response.count(self.letter)
        others = len(episode.response) - hits
        return min(hits / self.target, 1.0) - others / max(len(episode.response), 1)
