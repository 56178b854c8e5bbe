"""A backward curriculum around any agent: it begins near the end of demonstrated answers, and ever earlier (Salimans &
Chen 2018, arXiv 1812.03381; for language models R3, Xi et al. 2024, arXiv 2402.05808).

The first tokens of a prompt's demonstrated answer stand in its text already, and the agent writes the rest. They are
the environment's tokens: nothing is learned from them as if the agent had chosen them. Where nearly every answer earns
nothing, the last step of a right one is found by chance; once the agent has learned that, the prefix becomes shorter.

    [agent]
    name = "backward_curriculum"
    stages = 6
    agent = { name = "grpo", group_size = 8, lr = 1e-3 }

At stage s of `stages`, the share 1 - s / stages of an answer's tokens is given, and at the last stage nothing. A stage
is learned when its texts are a success often enough. Prefixes are for rollouts only: evaluations begin with the prompt.

Demonstrations are not imitated (that is sft), and they need not be good beyond what leads to a reward. Texts that are
begun by them are of other states than the policy's own: until the last stage, the objective is another one.

When: a right answer is hardly ever found by chance, and there are demonstrations. When not: the policy now and then
succeeds by itself, parts of an answer earn something, or the demonstrations are good enough to imitate (sft).

Left out: stages per prompt, going back to a longer prefix.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rlhf_env.errors import ConfigError, Problem
from rlhf_env.learning.agent import Agent, Around, Metrics, Setup
from rlhf_env.learning.rollout import Rollout
from rlhf_env.settings import AtLeastOne, Name, Share, ShareBelowOne, fault, settings
from rlhf_env.types import Episode, Replies, ResetOptions, State

_LOOKED_AT = 100  # prompts, to see whether one has a demonstration


class BackwardCurriculum(Around):
    """Shortens the prefix while `agent` learns. What else it is asked (`trains`, `policy`), that one answers."""

    reads_every_text = True

    @settings
    class Config:
        """How the prefix becomes shorter. The agent to wrap is built first, and handed in."""

        stages: AtLeastOne = 4
        """In how many steps the prefix is taken away; as many as an answer has tokens, for one at a time."""
        column: Name = "completion"
        """The column of the task with the demonstrated answers; to a prompt without one, the whole answer is
        written."""
        threshold: float = 0.5
        """A stage is learned when the mean of `part` over the last `window` texts that began with its prefix was at
        least this, `patience` times in a row. (Salimans & Chen took 0.2.)"""
        window: AtLeastOne = 64
        """Texts of a stage that success is the mean of."""
        patience: AtLeastOne = 1
        """Updates in a row after which success must have been at least `threshold`."""
        part: str = "task"
        """The reward part that says how well a text did, unweighted."""
        earlier: Share = 0.0
        """The share of groups that are at a stage which has been learned, each as likely, so that it is not
        forgotten (R3 mixes all stages)."""
        whole: ShareBelowOne = 0.0
        """The share of groups that begin without a prefix at every stage."""

        def problems(self) -> Iterator[Problem]:
            if self.earlier + self.whole >= 1.0:
                yield fault("earlier", f"and whole must leave some groups to the stage itself, got {self.earlier}")

    def __init__(self, setup: Setup, config: Config, agent: Agent) -> None:
        self.setup = setup
        self.config = config
        self.agent = agent
        task = setup.task
        if task is None or isinstance(task, Replies):
            what = "a run without a task has no answers" if task is None else "in a conversation the agent speaks first"
            raise ConfigError(f"{what} that could be begun: backward_curriculum needs a task of single answers")
        if config.part not in setup.reward.parts:
            parts = ", ".join(setup.reward.parts)
            raise ConfigError(fault("part", f"must be one of the reward's ({parts}), got {config.part!r}"))
        inner = agent
        while isinstance(inner, Around):
            if isinstance(inner, BackwardCurriculum):
                raise ConfigError(Problem("another backward_curriculum is inside of this one", ("agent",)))
            inner = inner.agent
        looked_at = range(_LOOKED_AT if task.size is None else min(task.size, _LOOKED_AT))
        if not any(task.prompt(index, {}).meta.get(config.column) for index in looked_at):
            raise ConfigError(
                fault(
                    "column",
                    f"{config.column!r} holds no demonstrated answer in the first {len(looked_at)} prompts: name the "
                    "task's column that does",
                )
            )
        self.stage = 1  # the present one, from 1 to `stages`
        self._draws = setup.stream("stages of a backward curriculum")
        self._stages = np.zeros(0, dtype=np.int64)  # of each group of the present rollout
        self._recent: list[float] = []  # successes of the last texts of this stage
        self._streak = 0  # the number of updates in a row after which success was high enough

    def share(self, stage: int) -> float:
        """The share of an answer that is given at a stage."""
        return 1.0 - stage / self.config.stages

    def begin(self) -> ResetOptions:
        wishes = super().begin()
        groups = self.setup.batch_size // int(wishes.get("group_size", 1))
        self._stages = np.full(groups, self.stage)
        if self.stage < self.config.stages and (self.config.earlier or self.config.whole):
            drawn = self._draws.random(groups)
            earlier = self._draws.integers(1, max(self.stage, 2), size=groups)
            if self.stage > 1:
                self._stages = np.where(drawn < self.config.earlier, earlier, self._stages)
            self._stages = np.where(drawn >= 1.0 - self.config.whole, self.config.stages, self._stages)
        shares = [self.share(int(stage)) for stage in self._stages]
        return {**wishes, "prefix": {"column": self.config.column, "shares": shares}}

    def update(self, rollout: Rollout, /) -> Metrics:
        """The agent's update, and perhaps the next stage. Texts without a score, and of other stages, do not count."""
        metrics = {**self.agent.update(rollout), "backward/stage": float(self.stage)}
        metrics["backward/prefix_tokens"] = float(np.mean([_given(episode) for episode in rollout.episodes]))
        part = self.config.part
        for row, group in enumerate(rollout.group.tolist()):
            raw = rollout.scores[row].raw
            if part in raw and group < len(self._stages) and self._stages[group] == self.stage:
                self._recent.append(raw[part])
        self._recent = self._recent[-self.config.window :]
        success = sum(self._recent) / max(len(self._recent), 1)
        learned = len(self._recent) == self.config.window and success >= self.config.threshold
        self._streak = self._streak + 1 if learned else 0
        if self._streak >= self.config.patience and self.stage < self.config.stages:
            self.stage, self._streak, self._recent = self.stage + 1, 0, []
        return {**metrics, "backward/success": success}

    def state_dict(self) -> State:
        return {
            "agent": self.agent.state_dict(),
            "stage": self.stage,
            "draws": dict(self._draws.bit_generator.state),
            "stages": self._stages.tolist(),
            "recent": list(self._recent),
            "streak": self._streak,
        }

    def load_state_dict(self, state: State, /) -> None:
        self.agent.load_state_dict(state["agent"])
        self.stage, self._streak = int(state["stage"]), int(state["streak"])
        self._draws.bit_generator.state = dict(state["draws"])
        self._stages = np.array(state["stages"], dtype=np.int64)
        self._recent = [float(value) for value in state["recent"]]


def _given(episode: Episode) -> int:
    """The tokens before the agent's first."""
    actions = episode.actions
    return int(actions.argmax()) if actions.any() else len(actions)
