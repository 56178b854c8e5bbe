"""Tasks: where prompts come from. Each is an indexed source; `prompt(index, options)` is a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any

from annotated_types import MinLen

from rlhf_env import plugins
from rlhf_env.envs.splits import Part, held_out_texts
from rlhf_env.errors import ConfigError, Problem
from rlhf_env.settings import Chooses, ShareBelowOne, settings
from rlhf_env.types import Episode, Options, Prompt, Task

TaskSpec = Annotated[str | Mapping[str, Any] | Task, Chooses("task")]


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
        raise ConfigError(Problem(f"a task table needs a name, got {dict(spec)!r}", ("name",)))
    task: Task = plugins.build("task", name, parameters)
    return task


def held_out(task: Task) -> Task:
    """The task's evaluation prompts, which training never sees; a task that has none is evaluated on its own."""
    split = getattr(task, "held_out", None)
    return split() if split is not None else task


@settings(kw_only=False)
class Prompts:
    """A list of prompts.

    The text of a prompt decides whether it is for training or for evaluation: equal prompts are on the same side, and a
    prompt is there again when the list has grown.
    """

    prompts: Annotated[Sequence[str], MinLen(1)]
    """The texts."""
    held_out_fraction: ShareBelowOne = 0.0
    """The share set aside for evaluation (at least one prompt, if there are two and the share is above 0)."""
    part: Part = "training"
    """Which prompts: those of training, or those set aside for evaluation."""

    @cached_property
    def _places(self) -> list[int]:
        return places_of(self.part, self.prompts, self.held_out_fraction)

    @property
    def size(self) -> int:
        return len(self._places)

    def prompt(self, index: int, _options: Options, /) -> Prompt:
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
    declared = getattr(task, "well_formed", None)
    return episode.finish_reason != "length" if declared is None else bool(declared(episode))


def places_of(part: Part, texts: Sequence[str], held_out_fraction: float) -> list[int]:
    """The indices into `texts` of one part; all of them where nothing can be set aside."""
    held = held_out_texts(texts, held_out_fraction)
    return [i for i, text in enumerate(texts) if not held or (text in held) == (part == "held_out")]
