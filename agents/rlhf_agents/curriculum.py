"""A curriculum around any agent: easy prompts first (Bengio et al. 2009, "Curriculum learning", ICML), or those that
are being learned (Portelas et al. 2019, arXiv 1910.07224).

It writes and learns like the agent inside, and adds one thing: the reset option `level`, by which tasks such as
`addition`, `echo`, `guess` and `reasoning_gym` set the difficulty of their prompts. The level rises with success, or
with the share of the budget that is spent. By "progress" it neither rises nor falls: each rollout draws its level, the
more often the more the scores of that level change (`learning_progress`), so that levels that are learned, or cannot be
learned yet, come seldom. Environment and objective stay the same.

    [agent]
    name = "curriculum"
    levels = [1, 2, 4, 8]
    agent = { name = "ppo", lr = 1e-3 }

Levels apply to rollouts only. The evaluator resets without options: it measures at the level of the task's own settings
(`length` of `echo`), whatever level training has reached. Let the last level be that one.

When: an answer earns nothing until nearly all of it is right, and the task has levels. When not: parts of an answer
earn a reward, as in `echo`: there is a gradient from the first update on, and easy levels can cost more than they gain.

Left out: going back to an easier level by success, mixing levels within a rollout (a mixture of tasks and
`task_sampling` do that), levels that are no whole numbers (ALP-GMM's regions of parameters).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
from annotated_types import MinLen

from rlhf_env.envs.tasks import option_names, prompt_at
from rlhf_env.errors import ConfigError, Problem, under
from rlhf_env.learning.agent import Agent, Around, Metrics, Setup
from rlhf_env.learning.learning_progress import LearningProgress, ProgressSettings
from rlhf_env.learning.rollout import Rollout
from rlhf_env.settings import AtLeastOne, fault, settings
from rlhf_env.types import Float, ResetOptions, State


class Curriculum(Around):
    """Raises the task's level while `agent` learns. What else it is asked (`trains`, `policy`), that one answers."""

    reads_every_text = True

    @settings
    class Config:
        """Which levels, and what raises them. The agent to wrap is no setting: it is built first, and handed in."""

        levels: Annotated[tuple[int, ...], MinLen(1)]
        """The task's levels, from the first to the last, rising."""
        by: Literal["success", "budget", "updates", "progress"] = "success"
        """"success" goes up when a level has been learned; "budget" and "updates" go up at the places in `starts`;
        "progress" draws a level for each rollout, in proportion to how its scores change."""
        threshold: float = 0.8
        """A level is learned when the mean of `part` over the last `window` episodes was at least this, `patience`
        times in a row."""
        window: AtLeastOne = 128
        """Episodes of a level that success is the mean of."""
        patience: AtLeastOne = 1
        """Updates in a row after which success must have been at least `threshold`."""
        part: str = "task"
        """The reward part that says how well a text did, unweighted."""
        starts: tuple[float, ...] = ()
        """Where each level begins: shares of the budget in [0, 1), or numbers of updates; the first is 0. Empty, with
        "budget": every level has the same share."""
        progress: ProgressSettings = ProgressSettings()
        """With "progress", how the scores of levels become their shares."""

        def problems(self) -> Iterator[Problem]:
            if not _rise(self.levels):
                yield fault("levels", f"must be whole numbers that rise, got {list(self.levels)}")
            if self.by in ("success", "progress") and self.starts:
                yield fault("starts", f"are for by = budget and by = updates, not {self.by}")
            if self.by != "updates" and not (self.by == "budget" and self.starts):
                return
            if len(self.starts) != len(self.levels) or self.starts[0] != 0 or not _rise(self.starts):
                yield fault(
                    "starts",
                    f"must be one number for each of the {len(self.levels)} levels, 0 first and rising, "
                    f"got {list(self.starts)}",
                )
            elif self.by == "budget" and not self.starts[-1] < 1:
                yield fault("starts", f"are shares of the budget, below 1, got {list(self.starts)}")

    def __init__(self, setup: Setup, config: Config, agent: Agent) -> None:
        self.setup = setup
        self.config = config
        self.agent = agent
        task = setup.task
        if task is None or "level" not in option_names(task):
            what = "a run without a task" if task is None else f"the task {type(task).__name__}"
            raise ConfigError(
                f"{what} has no levels: a curriculum needs a task that reads the reset option 'level' "
                "(addition, echo, guess, reasoning_gym)"
            )
        if config.part not in setup.reward.parts:
            raise ConfigError(
                fault("part", f"must be one of the reward's ({', '.join(setup.reward.parts)}), got {config.part!r}")
            )
        for level in config.levels:  # a level that the task refuses is an error now, not hours later
            with under("levels"):
                prompt_at(task, 0, {"level": level})
        self._index = 0  # of the present level in `levels`
        self._updates = 0
        self._recent: list[float] = []  # successes of the last episodes at this level
        self._streak = 0  # the number of updates in a row after which success was high enough
        self._progress = LearningProgress(len(config.levels), config.progress)
        self._draws = setup.stream("curriculum levels")
        if config.by == "progress":
            self._draw()

    def begin(self) -> ResetOptions:
        config = self.config
        if config.by == "budget":
            starts = config.starts or [index / len(config.levels) for index in range(len(config.levels))]
            self._index = _last_begun(starts, self.setup.engine.progress)
        elif config.by == "updates":
            self._index = _last_begun(config.starts, self._updates)
        return {**super().begin(), "level": config.levels[self._index]}

    def update(self, rollout: Rollout, /) -> Metrics:
        """The agent's update, and then perhaps another level. Texts that were cut do not count."""
        metrics = {**self.agent.update(rollout), "curriculum/level": float(self.config.levels[self._index])}
        self._updates += 1
        scores = [score.raw[self.config.part] for score in rollout.scores if self.config.part in score.raw]
        if self.config.by == "success":
            self._recent = [*self._recent, *scores][-self.config.window :]
            metrics["curriculum/success"] = sum(self._recent) / max(len(self._recent), 1)
            self._perhaps_rise(metrics["curriculum/success"])
        elif scores:
            metrics["curriculum/success"] = sum(scores) / len(scores)
        if self.config.by == "progress":
            shares = zip(self.config.levels, self._shares.tolist(), strict=True)
            metrics |= {f"curriculum/share_of_level_{level}": share for level, share in shares}
            if scores:
                self._progress.learn(self._index, metrics["curriculum/success"])
            self._draw()
        return metrics

    @property
    def _shares(self) -> Float:
        """How likely each level is to be drawn."""
        return self._progress.shares(np.ones(len(self.config.levels), dtype=np.bool_))

    def _draw(self) -> None:
        """The level of the next rollout: drawn once for each update, however often the environment is reset."""
        self._index = int(self._draws.choice(len(self.config.levels), p=self._shares))

    def _perhaps_rise(self, success: float) -> None:
        learned = len(self._recent) == self.config.window and success >= self.config.threshold
        self._streak = self._streak + 1 if learned else 0
        if self._streak >= self.config.patience and self._index + 1 < len(self.config.levels):
            self._index, self._streak, self._recent = self._index + 1, 0, []

    def state_dict(self) -> State:
        return {
            "agent": self.agent.state_dict(),
            "place": self._index,
            "updates": self._updates,
            "recent": list(self._recent),
            "streak": self._streak,
            **(self._drawing() if self.config.by == "progress" else {}),
        }

    def _drawing(self) -> State:
        return {"progress": self._progress.state_dict(), "draws": dict(self._draws.bit_generator.state)}

    def load_state_dict(self, state: State, /) -> None:
        self.agent.load_state_dict(state["agent"])
        self._index, self._updates = int(state["place"]), int(state["updates"])
        self._recent, self._streak = list(state["recent"]), int(state["streak"])
        if self.config.by == "progress":
            self._progress.load_state_dict(state["progress"])
            self._draws.bit_generator.state = dict(state["draws"])


def _rise(numbers: Sequence[float]) -> bool:
    return all(low < high for low, high in itertools.pairwise(numbers))


def _last_begun(starts: Sequence[float], now: float) -> int:
    """The index of the last start at or before `now`."""
    return sum(start <= now for start in starts) - 1
