"""A validation split for choosing settings: part of a task's training prompts takes the place of its held-out ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Annotated

import numpy as np

from rlhf_env.envs.splits import Part, held_out_texts, unit_interval
from rlhf_env.envs.tasks import TaskSpec, load_task, option_names, prompt_at
from rlhf_env.errors import under
from rlhf_env.settings import Example, ShareBelowOne, require
from rlhf_env.types import (
    Bool,
    Episode,
    FollowsTraining,
    Int,
    JudgesForm,
    MasksActions,
    Prompt,
    Replies,
    ResetOptions,
    ScoresItself,
    TaskReply,
)

_TRIES = 1000  # of indices, for a prompt on the wanted side of an unbounded task


class Validation:
    """The training prompts of another task: some of them are for evaluation, the others for training.

    So settings are chosen without looking at the held-out prompts on which results are reported. A hash of a prompt's
    text decides on which side it is. A task with a single prompt has it on both sides.

    Args:
        task: the other task: a name, a table or a task.
        share: about this share of its training prompts is evaluated on.
        part: which prompts: those of training, or those set aside for evaluation.
    """

    score: Callable[[Episode], float | None]
    reply: Callable[[Episode], TaskReply]
    well_formed: Callable[[Episode], bool]
    action_mask: Callable[[Prompt, Int], Bool]

    def __init__(
        self, task: Annotated[TaskSpec, Example("addition")], share: ShareBelowOne = 0.2, part: Part = "training"
    ) -> None:
        require(share=(share, ShareBelowOne))
        with under("task"):
            self.task = load_task(task)
        self.share, self.part = share, part
        self.option_names = option_names(self.task)
        # A score, a reply, a form, an action mask: what the task has, and nothing that it has not.
        if isinstance(self.task, ScoresItself):
            self.score = self.task.score
        if isinstance(self.task, Replies):
            self.reply = self.task.reply
        if isinstance(self.task, JudgesForm):
            self.well_formed = self.task.well_formed
        if isinstance(self.task, MasksActions):
            self.action_mask = self.task.action_mask
        if isinstance(self.task, FollowsTraining):
            self.follow, self.take_logged = self.task.follow, self.task.take_logged

    @property
    def size(self) -> int | None:
        return self.task.size and len(self._places)

    @cached_property
    def _places(self) -> list[int]:
        """The indices of this side's prompts in a bounded task; all of them if nothing can be held out."""
        texts = [_salted(prompt_at(self.task, index, {})) for index in range(self.task.size or 0)]
        aside = held_out_texts(texts, self.share)
        return [i for i, text in enumerate(texts) if not aside or (text in aside) == (self.part == "held_out")]

    def prompt(self, index: int, options: ResetOptions, /) -> Prompt:
        if self.task.size is not None:
            return prompt_at(self.task, self._places[index % len(self._places)], options)
        stream = np.random.default_rng(index)
        prompt = prompt_at(self.task, index, options)
        for _ in range(_TRIES):
            if self._side(prompt) == self.part:
                break
            prompt = prompt_at(self.task, int(stream.integers(2**31)), options)
        return prompt

    def _side(self, prompt: Prompt) -> Part:
        return "held_out" if unit_interval(_salted(prompt)) < self.share else "training"

    def held_out(self) -> Validation:
        aside = Validation(self.task, self.share, "held_out")
        return self if self.size is not None and self.size == aside.size == self.task.size else aside


def _salted(prompt: Prompt) -> str:
    """The text to hash. Tasks hold out the texts with the lowest hashes, so that a second split needs another hash."""
    return f"validation/{prompt.text}"
