"""Which task of a mixture comes how often, around any agent: by learning progress (Matiisen et al. 2017, arXiv
1707.00183), by a temperature (Conneau et al. 2020, arXiv 1911.02116), or as they are given.

The agent inside writes and learns as ever; the shares of the mixture's tasks are set before each rollout.

- "temperature": share_i^(1 / temperature), normalised. 1 is the mixture as it is, larger ones are nearer to equal
  shares.
- "progress": in proportion to the change of each task's scores (`learning_progress`): tasks that get better or worse
  come often, those that are learned, or cannot be learned yet, seldom.
- "shares": those of the table `shares`, in training alone: one task by itself, to see what the others do to it.

    [task]
    name = "mixture"
    tasks = [{ name = "echo", length = 2 }, { name = "echo", length = 6 }]

    [agent]
    name = "task_sampling"
    agent = { name = "grpo", group_size = 8, lr = 1e-3 }

Evaluations ask in the shares of the mixture itself. Tasks of share 0 stay out (but for "shares").

When: a mixture's tasks are unequal, in share or difficulty, and help each other. When not: the shares are what is
wanted.

Left out: mixtures within the mixture (they keep their shares), Thompson sampling, gradients as the measure of progress.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import Literal

import numpy as np

from rlhf_env.envs.task_labels import mixture_of, task_label
from rlhf_env.errors import ConfigError, Problem, did_you_mean
from rlhf_env.learning.agent import Agent, Around, Metrics, Setup
from rlhf_env.learning.learning_progress import LearningProgress, ProgressSettings
from rlhf_env.learning.rollout import Rollout
from rlhf_env.learning.unequal_draws import draw_probabilities
from rlhf_env.settings import NonNegative, fault, settings
from rlhf_env.types import Float, ResetOptions, State


class TaskSampling(Around):
    """Sets the shares of tasks for `agent`. What else it is asked (`trains`, `policy`), that one answers."""

    reads_every_text = True

    @settings
    class Config:
        """What the shares are set by. The agent to wrap is built first, and handed in."""

        by: Literal["progress", "temperature", "shares"] = "progress"
        """The change of scores, the mixture's own shares at a temperature, or the `shares` that are given."""
        shares: dict[str, NonNegative] = field(default_factory=dict)
        """With "shares", how often each task of the mixture comes, by label; one that is not named stays out."""
        progress: ProgressSettings = ProgressSettings()
        """How shares come from what `by` says; of a mixture's own shares, only `temperature`."""
        part: str = "task"
        """The reward part that says how well a text did, unweighted."""

        def problems(self) -> Iterator[Problem]:
            if (self.by == "shares") != bool(self.shares):
                yield fault("shares", 'and by = "shares" go together: the one says that the other is meant')
            elif self.shares and not sum(self.shares.values()) > 0:
                yield fault("shares", f"must not all be 0, got {self.shares}")

    def __init__(self, setup: Setup, config: Config, agent: Agent) -> None:
        task = mixture_of(setup.task)
        if task is None:
            what = "a run without a task" if setup.task is None else f"the task {type(setup.task).__name__}"
            raise ConfigError(
                Problem(f'{what} has no tasks to choose from: task_sampling needs [task] name = "mixture"')
            )
        if config.part not in setup.reward.parts:
            raise ConfigError(
                fault("part", f"must be one of the reward's ({', '.join(setup.reward.parts)}), got {config.part!r}")
            )
        if unknown := [label for label in config.shares if label not in task.tasks]:
            known = tuple(task.tasks)
            said = f"names no task of the mixture with {unknown[0]!r}{did_you_mean(unknown[0], known)}"
            raise ConfigError(fault("shares", f"{said}; there are {', '.join(known)}"))
        self.setup = setup
        self.config = config
        self.agent = agent
        self.labels = tuple(task.tasks)
        self._given = np.asarray(task.weights, dtype=np.float64)
        self._progress = LearningProgress(len(self.labels), config.progress)

    @property
    def shares(self) -> Float:
        """float64[tasks], sum 1: how often each comes in the next rollout."""
        if self.config.by == "shares":
            wanted = np.array([self.config.shares.get(label, 0.0) for label in self.labels])
            return np.asarray(wanted / wanted.sum(), dtype=np.float64)
        if self.config.by == "temperature":
            return draw_probabilities(self._given, 1.0 / self.config.progress.temperature)
        return self._progress.shares(self._given > 0)

    def begin(self) -> ResetOptions:
        return {**super().begin(), "weights": self.shares.tolist()}

    def update(self, rollout: Rollout, /) -> Metrics:
        """The agent's update; then the scores of the tasks that came are known better."""
        shares = self.shares
        metrics = self.agent.update(rollout)
        scores: dict[str, list[float]] = {label: [] for label in self.labels}
        for episode, score in zip(rollout.episodes, rollout.scores, strict=True):
            label = task_label(episode.prompt)
            if label in scores and self.config.part in score.raw:
                scores[label].append(score.raw[self.config.part])
        for place, label in enumerate(self.labels):
            metrics |= {f"tasks/{label}/share": float(shares[place])}
            if scores[label]:
                mean = float(np.mean(scores[label]))
                self._progress.learn(place, mean)
                metrics |= {f"tasks/{label}/score": mean}
        return metrics

    def state_dict(self) -> State:
        return {"agent": self.agent.state_dict(), **self._progress.state_dict()}

    def load_state_dict(self, state: State, /) -> None:
        self.agent.load_state_dict(state["agent"])
        self._progress.load_state_dict(state)
