"""Several tasks as one: each prompt comes from a task drawn by weight, and the same task scores the response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np

from rlhf_env.envs.tasks import TaskSpec, held_out, load_task, option_names, prompt_at, well_formed
from rlhf_env.errors import ConfigError, under
from rlhf_env.own_code import KEY, OwnCode
from rlhf_env.settings import Example, fault
from rlhf_env.types import (
    Bool,
    Episode,
    Float,
    FollowsTraining,
    Int,
    JudgesForm,
    MasksActions,
    Prompt,
    Replies,
    ResetOptions,
    ScoresItself,
    Task,
    TaskReply,
    TrainerState,
)

Weights = Sequence[float] | Mapping[str, float]


class Mixture:
    """A mixture of tasks.

    `prompt.meta["task"]` is the label of the task that a prompt came from ("outer/inner" for a mixture in a mixture).
    Prompts are drawn at random, not in epochs. Neighbouring indices give different prompts of a task, if it has enough.

    The mixture has a `score` if all tasks have one, and a `reply` if any task has one (texts of the other tasks then
    also end with the finish reason "task"). Evaluation mixes the held-out prompts of the tasks that have any.

    Args:
        tasks: names, tables or tasks; as a table, its keys are the labels. In a list the names are, from the second
            "echo" on with a number: "echo-2".
        weights: shares, in the order of `tasks` or by label, scaled to a sum of 1; default equal. The reset option
            `weights` replaces them. Other options go to every task.
    """

    score: Callable[[Episode], float | None]
    reply: Callable[[Episode], TaskReply]
    well_formed: Callable[[Episode], bool]
    action_mask: Callable[[Prompt, Int], Bool]
    held_out: Callable[[], Mixture]

    def __init__(
        self,
        tasks: Annotated[Sequence[TaskSpec] | Mapping[str, TaskSpec], Example({"a": "echo", "b": "addition"})],
        weights: Weights | None = None,
    ) -> None:
        named = dict(tasks) if isinstance(tasks, Mapping) else dict(zip(_labels(tasks), tasks, strict=True))
        self.tasks: dict[str, Task] = {}
        for place, (label, spec) in enumerate(named.items()):
            with under("tasks", label if isinstance(tasks, Mapping) else place):
                self.tasks[label] = load_task(spec)
        if not self.tasks:
            raise ConfigError(fault("tasks", "must be one or more"))
        wrong = [label for label in self.tasks if not label or "/" in label]
        if wrong:
            raise ConfigError(fault("tasks", f"must have labels without a slash, got {', '.join(map(repr, wrong))}"))
        self.weights = self._shares(dict.fromkeys(self.tasks, 1.0) if weights is None else weights)
        inner = {name for task in self.tasks.values() for name in option_names(task)}
        self.option_names = ("weights", *sorted(inner - {"weights"}))
        # Users of a task look whether it has a score, a reply or a mask: the mixture has those that its tasks support.
        tasks = self.tasks
        self._scoring = {label: task for label, task in tasks.items() if isinstance(task, ScoresItself)}
        self._replying = {label: task for label, task in tasks.items() if isinstance(task, Replies)}
        self._masking = {label: task for label, task in tasks.items() if isinstance(task, MasksActions)}
        if len(self._scoring) == len(tasks):
            self.score = self._score
        if self._replying:
            self.reply = self._reply
        self._following = [task for task in tasks.values() if isinstance(task, FollowsTraining)]
        if self._following:
            self.follow, self.take_logged = self._follow, self._take_logged
        if any(isinstance(task, JudgesForm) for task in tasks.values()):
            self.well_formed = self._well_formed
        if len(self._masking) == len(tasks):
            self.action_mask = self._action_mask
        elif self._masking:
            raise ConfigError("mixture: either all of the tasks or none of them say which tokens are allowed")
        if any(held_out(task) is not task for task in self.tasks.values()):
            self.held_out = self._held_out

    @property
    def size(self) -> None:
        return None

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        shares = self._shares(options["weights"]) if "weights" in options else self.weights
        stream = np.random.default_rng(index)
        label = list(self.tasks)[int((np.cumsum(shares)[:-1] <= stream.random()).sum())]
        task = self.tasks[label]
        # An unbounded task gets a newly drawn index: with this one, an inner mixture would repeat the draw made here.
        place = int(stream.integers(2**31)) if task.size is None else index % task.size
        inner = prompt_at(task, place, {name: value for name, value in options.items() if name != "weights"})
        path = f"{label}/{inner.meta['task']}" if "task" in inner.meta else label
        return replace(inner, id=f"{label}/{inner.id}", meta={**inner.meta, "task": path})

    def _held_out(self) -> Mixture:
        # Tasks without held-out prompts are left out: training sees all their prompts.
        aside = {label: held_out(task) for label, task in self.tasks.items()}
        shares = dict(zip(self.tasks, self.weights.tolist(), strict=True))
        aside = {label: task for label, task in aside.items() if task is not self.tasks[label] and shares[label] > 0}
        return Mixture(aside, {label: shares[label] for label in aside}) if aside else self

    def _score(self, episode: Episode, /) -> float | None:
        label, own = self._own(episode.prompt)
        return self._scoring[label].score(replace(episode, prompt=own))

    def _follow(self, state: TrainerState, /) -> None:
        for task in self._following:
            task.follow(state)

    def _take_logged(self) -> dict[str, list[float]]:
        logged: dict[str, list[float]] = {}
        for task in self._following:
            for name, values in task.take_logged().items():
                logged.setdefault(name, []).extend(values)
        return logged

    def _reply(self, episode: Episode, /) -> TaskReply:
        label, own = self._own(episode.prompt)
        return self._replying[label].reply(replace(episode, prompt=own)) if label in self._replying else None

    def _well_formed(self, episode: Episode, /) -> bool:
        label, own = self._own(episode.prompt)
        return well_formed(self.tasks[label], replace(episode, prompt=own))

    def _action_mask(self, prompt: Prompt, response_ids: Int, /) -> Bool:
        label, own = self._own(prompt)
        return np.asarray(self._masking[label].action_mask(own, response_ids), dtype=np.bool_)

    def _own(self, prompt: Prompt) -> tuple[str, Prompt]:
        """The label of the task a prompt came from, and the prompt as that task gave it."""
        label, _, rest = str(prompt.meta["task"]).partition("/")
        meta = {name: value for name, value in prompt.meta.items() if name != "task"}
        if rest:
            meta["task"] = rest
        return label, replace(prompt, id=prompt.id.removeprefix(f"{label}/"), meta=meta)

    def _shares(self, weights: Weights) -> Float:
        """float64[tasks], sum 1."""
        if isinstance(weights, Mapping):
            unknown = [label for label in weights if label not in self.tasks]
            if unknown:
                said = f"must be of {', '.join(self.tasks)}, and there is no task {', '.join(map(repr, unknown))}"
                raise ConfigError(fault("weights", said))
            weights = [weights.get(label, 0.0) for label in self.tasks]
        shares = np.asarray(weights, dtype=np.float64)
        if (
            shares.shape != (len(self.tasks),)
            or not np.isfinite(shares).all()
            or (shares < 0).any()
            or not shares.any()
        ):
            said = (
                f"must be one number for each of {', '.join(self.tasks)}, none below 0 and not all 0, got {weights!r}"
            )
            raise ConfigError(fault("weights", said))
        return np.asarray(shares / shares.sum(), dtype=np.float64)


def _labels(tasks: Sequence[TaskSpec]) -> list[str]:
    if isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise ConfigError(fault("tasks", f"must be a list or a table of tasks, got {tasks!r}"))
    labels: list[str] = []
    for spec in tasks:
        name = spec.get("name", spec.get(KEY)) if isinstance(spec, Mapping) else spec
        label = name if isinstance(name, str) else type(spec).__name__.lower()
        label = OwnCode(label).label
        taken = sum(known == label or known.startswith(f"{label}-") for known in labels)
        labels.append(f"{label}-{taken + 1}" if taken else label)
    return labels
