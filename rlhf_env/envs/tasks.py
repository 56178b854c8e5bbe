"""Tasks: where prompts come from. Each is an indexed source; `prompt(index, options)` is a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rlhf_env import plugins
from rlhf_env.envs.splits import Part, held_out_texts
from rlhf_env.errors import ConfigError, DataError, Problem
from rlhf_env.types import Episode, HoldsOut, JudgesForm, Prompt, ReadsOptions, ResetOptions, Task


@plugins.hookimpl
def register_tasks(register: plugins.Register) -> None:
    register("prompts", "rlhf_env.envs.tasks:Prompts")
    register("file", "rlhf_env.envs.file_task:File")
    register("mixture", "rlhf_env.envs.mixture:Mixture")
    register("validation", "rlhf_env.envs.validation_task:Validation")
    register("count", "rlhf_env.envs.toy_tasks:Count")
    register("echo", "rlhf_env.envs.toy_tasks:Echo")
    register("increasing", "rlhf_env.envs.toy_tasks:Increasing")
    register("addition", "rlhf_env.envs.addition_task:Addition")
    register("enumerable", "rlhf_env.envs.toy_tasks:Enumerable")
    register("guess", "rlhf_env.envs.toy_tasks:Guess")
    register("chitchat", "rlhf_env.envs.chitchat:Chitchat", needs="demo")
    register("reasoning_gym", "rlhf_env.envs.reasoning_gym_task:ReasoningGym", needs="reasoning")
    register("textarena", "rlhf_env.envs.textarena_task:TextArena", needs="textarena")


# A task as a user writes it: a name, a table with a name and settings, or the task itself.
TaskSpec = str | Mapping[str, object] | Task


def load_task(spec: TaskSpec) -> Task:
    """A task as it is, `"echo"`, or `{"name": "echo", "length": 3}`."""
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        missing = [name for name in ("size", "prompt") if not hasattr(spec, name)]
        if missing:
            raise ConfigError(f"{spec!r} is no task: it has no {' and no '.join(missing)}")
        return spec
    parameters = dict(spec)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(Problem(f"a task table needs a name, got {dict(spec)!r}", ("name",), ""))
    task: Task = plugins.build_plugin("task", name, parameters)
    return task


def held_out(task: Task) -> Task:
    """The task's evaluation prompts, which training never sees; a task that has none is evaluated on its own."""
    return task.held_out() if isinstance(task, HoldsOut) else task


@dataclass(frozen=True)
class Prompts:
    """A list of prompts, about `held_out_fraction` of them (at least one, if more than one) for evaluation.

    The text of a prompt decides on which side it is: equal prompts are on the same one, and it is there again when the
    list has grown.
    """

    prompts: Sequence[str]
    held_out_fraction: float = 0.0
    part: Part = "training"

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
        check_fraction(self.held_out_fraction)

    @cached_property
    def _places(self) -> list[int]:
        return places_of(self.part, self.prompts, self.held_out_fraction)

    @property
    def size(self) -> int:
        return len(self._places)

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        place = self._places[index % self.size]
        return Prompt(id=f"prompts/{place}", text=self.prompts[place])

    def held_out(self) -> Prompts:
        """The prompts set aside; all of them where none were."""
        aside = replace(self, part="held_out")
        return aside if aside.size < len(self.prompts) else self


def well_formed(task: Task, episode: Episode) -> bool:
    """Whether the answer has the form that the task asks for, right or wrong.

    A task may say so (`well_formed(episode) -> bool`); for any other an answer is in form that ended by itself.
    """
    return bool(task.well_formed(episode)) if isinstance(task, JudgesForm) else episode.finish_reason != "length"


def option_names(task: Task) -> tuple[str, ...]:
    """The reset options that the task reads."""
    return tuple(task.option_names) if isinstance(task, ReadsOptions) else ()


def places_of(part: Part, texts: Sequence[str], held_out_fraction: float) -> list[int]:
    """The indices into `texts` of one part; all of them where nothing can be set aside."""
    held = held_out_texts(texts, held_out_fraction)
    return [i for i, text in enumerate(texts) if not held or (text in held) == (part == "held_out")]


def check_fraction(held_out_fraction: float) -> None:
    if not 0.0 <= held_out_fraction < 1.0:
        raise ConfigError(f"held_out_fraction is a share in [0, 1), got {held_out_fraction}")
