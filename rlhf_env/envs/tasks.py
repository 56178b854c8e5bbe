"""Tasks: where prompts come from. Each is an indexed source; `prompt(index, options)` is a pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Annotated

import numpy as np
from annotated_types import MinLen

from rlhf_env import plugins
from rlhf_env.envs.splits import Part, held_out_texts
from rlhf_env.errors import ConfigError, DataError, PluginError, Problem, RlhfEnvError
from rlhf_env.own_code import OwnCode, error_in_words
from rlhf_env.settings import Chooses, ShareBelowOne, settings
from rlhf_env.shown_text import type_in_words
from rlhf_env.types import Episode, HoldsOut, JudgesForm, Prompt, ReadsOptions, ResetOptions, Task

# A task as a user writes it: a name, a table with a name and settings, or the task itself.
TaskSpec = Annotated[str | Mapping[str, object] | Task, Chooses("task")]


def load_task(spec: TaskSpec) -> Task:
    """The task of a name, `"echo"`, or of a table, `{"name": "echo", "length": 3}`; a task is returned unchanged.

    Code of one's own stands in place of the name: `{"function": "questions.py:Questions"}`.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping):
        if missing := _missing(spec):
            raise ConfigError(f"{spec!r} is not a task: it has no {' and no '.join(missing)}")
        return _sized(spec)
    parameters = dict(spec)
    name = plugins.name_in(parameters, "task")
    if name is None:
        raise ConfigError(Problem(f"a task table needs a name, got {dict(spec)!r}", ("name",)))
    task: Task = plugins.build_plugin("task", name, parameters)
    if missing := _missing(task):
        if isinstance(name, OwnCode):
            raise plugins.wrong_kind("task", name, task)
        raise PluginError(
            f"task {name!r} is {type_in_words(task)}, which is no task: it has no {' and no '.join(missing)}"
        )
    return _sized(task)


def _missing(task: object) -> list[str]:
    """What something lacks to be a task."""
    return [name for name in ("size", "prompt") if not _has(task, name)]


def _has(task: object, name: str) -> bool:
    try:
        getattr(task, name)
    except AttributeError:
        return False
    except (Exception, SystemExit):  # it is there; `_sized` says what is wrong with it
        return True
    return True


def _sized(task: Task) -> Task:
    """The same. Raises PluginError where its size is not that of a task."""
    try:
        size: object = task.size
    except RlhfEnvError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{_called(task)}: size raised {error_in_words(error)}: {_SIZE}") from error
    if size is None or (isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 1):
        return task
    raise PluginError(f"{_called(task)} has the size {' '.join(repr(size).split()):.60}: {_SIZE}")


def held_out(task: Task) -> Task:
    """The task's held-out prompts, which training never sees; the task itself if it has none.

    Raises PluginError where `held_out()` gives something else than a task.
    """
    if not isinstance(task, HoldsOut):
        return task
    remedy = "give the task of the prompts for evaluation, or `self` where none are held out"
    try:
        aside: Task = task.held_out()
    except RlhfEnvError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{_called(task)}: held_out() raised {error_in_words(error)}: {remedy}") from error
    if aside is task:
        return task
    if missing := _missing(aside):
        said = f"gave {type_in_words(aside)}, which is no task (it has no {' and no '.join(missing)})"
        raise PluginError(f"{_called(task)}: held_out() {said}: {remedy}")
    return _sized(aside)


def prompt_at(task: Task, index: int, options: ResetOptions) -> Prompt:
    """What the task asks at this index. Raises DataError where it raises, or gives something else than a prompt."""
    try:
        prompt: object = task.prompt(index, options)
    except RlhfEnvError:
        raise
    except (Exception, SystemExit) as error:
        remedy = "`prompt(self, index, options)` must give a Prompt for every index"
        raise DataError(f"{_called(task)}: prompt({index}) raised {error_in_words(error)}: {remedy}") from error
    if not isinstance(prompt, Prompt):
        remedy = 'give a rlhf_env.Prompt(id="...", text="...")'
        raise DataError(f"{_called(task)}: prompt({index}) gave {type_in_words(prompt)}: {remedy}")
    for name, kind, needed in _FIELDS:
        if not isinstance(value := getattr(prompt, name), kind):
            said = f"gave a Prompt whose {name} is {type_in_words(value)}"
            raise DataError(f"{_called(task)}: prompt({index}) {said}: {needed} is needed")
    return prompt


_SIZE = "the number of its prompts, a whole number of at least 1, is needed, or None for prompts without end"
_FIELDS: Sequence[tuple[str, type, str]] = (("id", str, "a str"), ("text", str, "a str"), ("meta", Mapping, "a dict"))


def _called(task: Task) -> str:
    return f"the task {type(task).__name__}"


@settings(kw_only=False)
class Prompts:
    """A list of prompts.

    A hash of a prompt's text decides on which side it is. So equal prompts are on the same side, and a prompt stays on
    its side when the list grows.
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

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        place = self._places[index % self.size]
        return Prompt(id=f"prompts/{place}", text=self.prompts[place])

    def held_out(self) -> Prompts:
        """The held-out prompts; all prompts if none were held out."""
        aside = replace(self, part="held_out")
        return aside if aside.size < len(self.prompts) else self


def well_formed(task: Task, episode: Episode) -> bool:
    """Whether the answer has the form that the task asks for, right or wrong.

    A task may decide this itself (`well_formed(episode) -> bool`). For other tasks, an answer must end before the
    limit.
    """
    return bool(task.well_formed(episode)) if isinstance(task, JudgesForm) else episode.finish_reason != "length"


def option_names(task: Task) -> tuple[str, ...]:
    """The reset options that the task reads."""
    return tuple(task.option_names) if isinstance(task, ReadsOptions) else ()


def places_of(part: Part, texts: Sequence[str], held_out_fraction: float) -> list[int]:
    """The indices into `texts` of one part; all of them if nothing can be held out."""
    held = held_out_texts(texts, held_out_fraction)
    return [i for i, text in enumerate(texts) if not held or (text in held) == (part == "held_out")]
