"""Texts on their way to their scores, batch by batch, while others are still being written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rlhf_env.envs.reward_answers import Answers, together
from rlhf_env.envs.waiting import Asking
from rlhf_env.errors import RewardError
from rlhf_env.types import Episode, Score

if TYPE_CHECKING:
    from rlhf_env.envs.rewards import RewardMix


class Scoring:
    """Batches of texts on their way to their scores (`RewardMix.scoring`).

    Each part is asked what `RewardMix.score` would ask it, batch after batch and in that order: parts that wait outside
    this process in threads of their own, the others in `begin`. Of several failures, the one that would have come
    first is raised.
    """

    def __init__(self, mix: RewardMix, asking: Asking) -> None:
        self._mix, self._asking = mix, asking
        self._batches: list[tuple[Sequence[Episode], dict[str, Future[Answers]]]] = []
        self._places: list[int] = []
        self._rows, self._group_size = 0, 1
        self._raised: RewardError | None = None

    def begin(
        self, episodes: Sequence[Episode], group_size: int = 1, *, rows: int = 0, places: Sequence[int] | None = None
    ) -> None:
        """Hand in a batch, as to `RewardMix.score`. Raises RewardError where that is sure already.

        Parts that look at all texts together are asked in `finish`, in the order of `places` (default: as they come).
        """
        self._mix.read_ahead(episodes)
        for_all = self._mix.for_all
        if for_all is not None and (not for_all.is_first or self._raised is not None):
            return
        try:
            self.hand_in(episodes, group_size, rows=rows, places=places)
        except RewardError as error:
            if for_all is None:
                raise
            self._raised = error  # the others learn of it in `finish`, where they ask what there is

    def hand_in(
        self, episodes: Sequence[Episode], group_size: int = 1, *, rows: int = 0, places: Sequence[int] | None = None
    ) -> None:
        """`begin` in the process that asks."""
        mix = self._mix
        self._rows, self._group_size = max(self._rows, rows), group_size
        self._places += range(len(self._places), len(self._places) + len(episodes)) if places is None else places
        answers = self._ask({name: (episodes, group_size, rows) for name in mix.parts if name not in mix._by_batch})
        self._batches.append((episodes, answers))
        here = [answer for name, answer in answers.items() if name not in mix._outside and answer.done()]
        if any(answer.exception() is not None for answer in here):
            self.scores()  # raises this one, or one that comes before it
        for answer in (each for _, every in self._batches for each in every.values()):
            if not answer.done():
                break
            answer.result()

    def _ask(self, questions: Mapping[str, tuple[Sequence[Episode], int, int]]) -> dict[str, Future[Answers]]:
        """The answers to come: those that wait outside are asked first, the others answer at once, up to a failure."""
        mix = self._mix
        asked = {name: partial(mix._part, name, *question) for name, question in questions.items()}
        answers: dict[str, Future[Answers]] = {
            name: self._asking.ask(mix._outside[name], question) if name in mix._outside else Future()
            for name, question in asked.items()
        }
        for name, question in asked.items():
            if name in mix._outside:
                continue
            try:
                answers[name].set_result(question())
            except RewardError as error:
                answers[name].set_exception(error)
                break
        return answers

    def finish(self) -> list[Score]:
        """The scores of all batches, in their order. Raises RewardError."""
        return self._mix._told_all(self.scores)

    def scores(self) -> list[Score]:
        """`finish` in the process that asks."""
        if self._raised is not None:
            raise self._raised
        mix = self._mix
        found = [
            (episodes, {name: answer.result() for name, answer in answers.items()})
            for episodes, answers in self._batches
        ]
        every = [episode for episodes, _ in found for episode in episodes]
        order = np.argsort(self._places, kind="stable").tolist()
        batch = [every[place] for place in order]
        asked = self._ask({name: (batch, 1, self._rows) for name in mix.parts if name in mix._by_batch})
        answers = {
            name: together([(len(episodes), said[name]) for episodes, said in found])
            for name in mix.parts
            if name not in asked
        }
        for name, answer in asked.items():
            values, failed = answer.result()
            of_place = dict(zip(order, values, strict=True))
            answers[name] = (
                [of_place[place] for place in range(len(every))],
                {order[place]: did for place, did in failed.items()},
            )
        self._batches.clear()
        self._places.clear()
        return mix._scores(every, answers, self._group_size)
