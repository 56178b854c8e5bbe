"""Several tasks as one: each prompt comes from one of them, drawn by weight, and goes back to it to be scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlhf_env.envs.tasks import TaskSpec, held_out, load_task, well_formed
from rlhf_env.errors import ConfigError, under
from rlhf_env.settings import fault
from rlhf_env.types import Bool, Episode, Float, Int, Options, Prompt, Task

Weights = Sequence[float] | Mapping[str, float]


class Mixture:
    """A mixture of tasks.

    `prompt.meta["task"]` is the label of the task a prompt came from; a mixture within one puts its own before it,
    with a slash. Prompts are drawn at random, not in epochs; of a task that has so many, neighbouring indices give
    different ones.

    The mixture has a `score` if all tasks have one, and a `reply` if any has (a text of the others then ends with the
    finish reason "task" as well). Evaluation mixes the held-out prompts of those tasks that have any.

    Args:
        tasks: names, tables or tasks; as a table, its keys are the labels. In a list the names are, from the second
            "echo" on with a number: "echo-2".
        weights: shares, in the order of `tasks` or by label, scaled to a sum of 1; default equal. The reset option
            `weights` replaces them. Other options go to every task.
    """

    score: Callable[[Episode], float]
    reply: Callable[[Episode], str | None]
    action_mask: Callable[[Prompt, Int], Bool]
    held_out: Callable[[], Mixture]

    def __init__(self, tasks: Sequence[TaskSpec] | Mapping[str, TaskSpec], weights: Weights | None = None) -> None:
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
        inner = {name for task in self.tasks.values() for name in getattr(task, "option_names", ())}
        self.option_names = ("weights", *sorted(inner - {"weights"}))
        # Whoever uses a task asks whether it has a score, a reply, a mask: the mixture has what it can stand for.
        have = {
            name: [hasattr(task, name) for task in self.tasks.values()]
            for name in ("score", "reply", "action_mask", "well_formed")
        }
        if all(have["score"]):
            self.score = self._score
        if any(have["reply"]):
            self.reply = self._reply
        if any(have["well_formed"]):
            self.well_formed = self._well_formed
        if all(have["action_mask"]):
            self.action_mask = self._action_mask
        elif any(have["action_mask"]):
            raise ConfigError("mixture: either all of the tasks or none of them say which tokens are allowed")
        if any(held_out(task) is not task for task in self.tasks.values()):
            self.held_out = self._held_out

    @property
    def size(self) -> None:
        return None

    def prompt(self, index: int, options: Options, /) -> Prompt:
        shares = self._shares(options["weights"]) if "weights" in options else self.weights
        stream = np.random.default_rng(index)
        label = list(self.tasks)[int((np.cumsum(shares)[:-1] <= stream.random()).sum())]
        task = self.tasks[label]
        # Without end: an index of its own, or a mixture within would draw the very number that was drawn here.
        place = int(stream.integers(2**31)) if task.size is None else index % task.size
        inner = task.prompt(place, {name: value for name, value in options.items() if name != "weights"})
        path = f"{label}/{inner.meta['task']}" if "task" in inner.meta else label
        return Prompt(id=f"{label}/{inner.id}", text=inner.text, meta={**inner.meta, "task": path})

    def _held_out(self) -> Mixture:
        # A task without held-out prompts takes no part: its prompts are those that training sees.
        aside = {label: held_out(task) for label, task in self.tasks.items()}
        shares = dict(zip(self.tasks, self.weights.tolist(), strict=True))
        aside = {label: task for label, task in aside.items() if task is not self.tasks[label] and shares[label] > 0}
        return Mixture(aside, {label: shares[label] for label in aside}) if aside else self

    def _score(self, episode: Episode, /) -> float:
        task, own = self._own(episode.prompt)
        return float(task.score(replace(episode, prompt=own)))

    def _reply(self, episode: Episode, /) -> str | None:
        task, own = self._own(episode.prompt)
        answer: str | None = task.reply(replace(episode, prompt=own)) if hasattr(task, "reply") else None
        return answer

    def _well_formed(self, episode: Episode, /) -> bool:
        task, own = self._own(episode.prompt)
        return well_formed(task, replace(episode, prompt=own))

    def _action_mask(self, prompt: Prompt, response_ids: Int, /) -> Bool:
        task, own = self._own(prompt)
        return np.asarray(task.action_mask(own, response_ids), dtype=np.bool_)

    def _own(self, prompt: Prompt) -> tuple[Any, Prompt]:
        """The task a prompt came from, and the prompt as that task gave it."""
        label, _, rest = str(prompt.meta["task"]).partition("/")
        meta = {name: value for name, value in prompt.meta.items() if name != "task"}
        if rest:
            meta["task"] = rest
        return self.tasks[label], Prompt(id=prompt.id.removeprefix(f"{label}/"), text=prompt.text, meta=meta)

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
        name = spec.get("name") if isinstance(spec, Mapping) else spec
        label = name if isinstance(name, str) else type(spec).__name__.lower()
        taken = sum(known == label or known.startswith(f"{label}-") for known in labels)
        labels.append(f"{label}-{taken + 1}" if taken else label)
    return labels
