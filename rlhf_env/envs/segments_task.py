"""A text in segments, each with a goal of its own: what an agent with options is for."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Annotated

from annotated_types import MaxLen, MinLen

from rlhf_env.envs.splits import Part
from rlhf_env.envs.tasks import places_of
from rlhf_env.errors import Problem
from rlhf_env.settings import AtLeastOne, Name, fault, settings
from rlhf_env.types import Episode, Prompt, ResetOptions

_SET_ASIDE = 0.25  # the share of prompts that is held out for evaluation
_FEW = 2**16  # orders that can be listed


@settings(kw_only=False)
class Segments:
    """Meet several goals, one after the other: `"123:"` asks for a segment of letters of goal 1, then of 2, then of 3.

    With the default goals and two letters a segment, `"abdcee"` meets all three. Reward: the number of segments that
    meet their goals with every letter, up to the first that does not, divided by the number of segments asked for, or
    by that of the response where it is larger.
    """

    goals: Annotated[tuple[Name, ...], MinLen(1), MaxLen(9)] = ("ab", "cd", "ef")
    """The letters of each goal."""
    segments: AtLeastOne = 3
    """Segments of a text."""
    length: AtLeastOne = 2
    """Letters of a segment."""
    shuffled: bool = False
    """Each prompt asks for goals in an order of its own, with repetitions, and a quarter of the orders is held out.
    Otherwise there is one prompt: goal 1, 2, and so on, and again from 1 after the last."""
    part: Part = "training"
    """Which prompts: those of training, or those set aside for evaluation."""

    def problems(self) -> Iterator[Problem]:
        if twice := [letter for letter, times in Counter("".join(self.goals)).items() if times > 1]:
            yield fault("goals", f"must have no letter twice, got {twice[0]!r} twice")
        if self.shuffled and len(self.goals) ** self.segments > _FEW:
            yield fault("segments", f"must leave at most {_FEW} orders of {len(self.goals)} goals, got {self.segments}")

    @cached_property
    def _orders(self) -> list[str]:
        numbers = [str(number + 1) for number in range(len(self.goals))]
        if not self.shuffled:
            return ["".join(itertools.islice(itertools.cycle(numbers), self.segments))]
        orders = ["".join(order) for order in itertools.product(numbers, repeat=self.segments)]
        return [orders[place] for place in places_of(self.part, orders, _SET_ASIDE)]

    @property
    def size(self) -> int:
        return len(self._orders)

    def prompt(self, index: int, _options: ResetOptions, /) -> Prompt:
        order = self._orders[index % self.size]
        return Prompt(id=f"segments/{order}", text=f"{order}:", meta={"order": order})

    def held_out(self) -> Segments:
        """Orders that training never asks for; the one order there is, where they are not shuffled."""
        aside = replace(self, part="held_out")
        return aside if self.shuffled and len(self.goals) ** self.segments > 1 else self

    def score(self, episode: Episode, /) -> float:
        order, text = str(episode.prompt.meta["order"]), episode.response
        written = [text[start : start + self.length] for start in range(0, len(text), self.length)]
        met = itertools.takewhile(
            lambda pair: len(pair[1]) == self.length and set(pair[1]) <= set(self.goals[int(pair[0]) - 1]),
            zip(order, written, strict=False),
        )
        return sum(1 for _ in met) / max(len(order), len(written))

    def well_formed(self, episode: Episode, /) -> bool:
        """Whether the response is as long as asked for, and of letters of the goals alone."""
        length = self.length * len(str(episode.prompt.meta["order"]))
        return len(episode.response) == length and set(episode.response) <= set("".join(self.goals))
