"""Which task of a mixture a prompt is of, and what parts of the reward count there."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_env.errors import ConfigError, did_you_mean
from rlhf_env.settings import fault
from rlhf_env.types import MixesTasks, Prompt

TaskWeights = Mapping[str, float]
"""By label of a mixture's task, what a part's weight is multiplied by there; where it is not named, it is not asked."""


def mixture_of(task: object) -> MixesTasks | None:
    """The mixture that a task is, or has within it: another may cut its prompts, or hold some apart."""
    while not isinstance(task, MixesTasks) and hasattr(task, "task"):
        task = task.task
    return task if isinstance(task, MixesTasks) else None


def task_label(prompt: Prompt) -> str:
    """The label of the outermost mixture's task that a prompt is of; "" where it is of none."""
    return str(prompt.meta.get("task", "")).partition("/")[0]


def require_tasks(part: str, weights: TaskWeights, task: object) -> None:
    """Raises ConfigError for labels that are none of the task's."""
    mixture = mixture_of(task)
    if mixture is None:
        said = f'is of the tasks of a mixture, and {type(task).__name__} is none: [task] name = "mixture"'
        raise ConfigError(fault("tasks", f"of reward {part!r} {said}"))
    labels = tuple(mixture.tasks)
    unknown = [label for label in weights if label not in labels]
    if unknown:
        said = f"names no task of the mixture with {unknown[0]!r}{did_you_mean(unknown[0], labels)}"
        raise ConfigError(fault("tasks", f"of reward {part!r} {said}; there are {', '.join(labels)}"))
