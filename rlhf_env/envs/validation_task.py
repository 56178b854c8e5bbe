"""For choosing settings: another task's training prompts, some of which stand in for its held-out ones."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from rlhf_env.envs.splits import Part, held_out_texts, unit_interval
from rlhf_env.envs.tasks import TaskSpec, load_task
from rlhf_env.errors import under
from rlhf_env.settings import ShareBelowOne, require
from rlhf_env.types import Options, Prompt

_TRIES = 1000  # of indices, for a prompt on the wanted side of an unbounded task


class Validation:
    """Another task without its held-out prompts: some of its training prompts are evaluated on, the rest trained on.

    What is chosen by such evaluations has not seen the prompts that results are reported on. The text of a prompt
    decides on which side it is; a task of one prompt has it on both.

    Args:
        task: the other task: a name, a table or a task.
        share: about this share of its training prompts is evaluated on.
        part: which prompts: those of training, or those set aside for evaluation.
    """

    def __init__(self, task: TaskSpec, share: ShareBelowOne = 0.2, part: Part = "training") -> None:
        require(share=(share, ShareBelowOne))
        with under("task"):
            self.task = load_task(task)
        self.share, self.part = share, part

    @property
    def size(self) -> int | None:
        return self.task.size and len(self._places)

    @cached_property
    def _places(self) -> list[int]:
        """The indices into a bounded task of one side; all of them where nothing can be set aside."""
        texts = [_salted(self.task.prompt(index, {})) for index in range(self.task.size or 0)]
        aside = held_out_texts(texts, self.share)
        return [i for i, text in enumerate(texts) if not aside or (text in aside) == (self.part == "held_out")]

    def prompt(self, index: int, options: Options, /) -> Prompt:
        if self.task.size is not None:
            return self.task.prompt(self._places[index % len(self._places)], options)
        stream = np.random.default_rng(index)
        prompt = self.task.prompt(index, options)
        for _ in range(_TRIES):
            if self._side(prompt) == self.part:
                break
            prompt = self.task.prompt(int(stream.integers(2**31)), options)
        return prompt

    def _side(self, prompt: Prompt) -> Part:
        return "held_out" if unit_interval(_salted(prompt)) < self.share else "training"

    def held_out(self) -> Validation:
        aside = Validation(self.task, self.share, "held_out")
        return self if self.size is not None and self.size == aside.size == self.task.size else aside

    def __getattr__(self, name: str) -> Any:
        """A score, a reply, an action mask, names of options: what the task has, and nothing that it has not."""
        if name.startswith("_") or name == "task":
            raise AttributeError(name)
        return getattr(self.task, name)


def _salted(prompt: Prompt) -> str:
    """Tasks that set prompts aside do it by the same hash of the text, and have left none below their share."""
    return f"validation/{prompt.text}"
