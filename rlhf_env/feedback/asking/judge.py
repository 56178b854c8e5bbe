"""A judging model as an annotator: it compares pairs and rates responses that wait in a store, as people do.

    # judge.toml; rlhf-env preferences simulate STORE judge.toml
    [annotator]
    name = "judge"
    url = "http://localhost:8000/v1"
    model = "judge"

Its opinions are kept under its name, and weighed like those of any other annotator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated

import numpy as np

from rlhf_env.envs.isolation import RewardFailed
from rlhf_env.errors import DataError, Problem, RewardError
from rlhf_env.feedback.judging.judge import Judging, majority
from rlhf_env.feedback.judging.rubrics import Rubric, load_rubric, rubric_problems
from rlhf_env.feedback.kinds import HIGHEST, LOWEST, Verdict
from rlhf_env.settings import IsPath, settings
from rlhf_env.types import Episode


@settings(frozen=False, eq=False)
class JudgeAnnotator(Judging):
    """A language model behind an OpenAI-compatible endpoint, which judges by a rubric."""

    rubric: Annotated[str, IsPath()] = "helpful"
    """What it is asked about a pair: "helpful", "harmless", or a file with the places {prompt}, {first} and
    {second}."""
    rating_rubric: Annotated[str, IsPath()] = "helpful"
    """What it is asked about one response, from 1 to 5: as `rubric`, or "correct", or a file with {prompt} and
    {response}."""
    swap: bool = True
    """Ask each vote in both orders; it counts for a response only if both name it, and is a tie otherwise."""
    name: str = "judge"
    """What the store calls it."""

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from rubric_problems(self.rubric, "pair")
        yield from rubric_problems(self.rating_rubric, "score", "rating_rubric")

    @cached_property
    def _of_pairs(self) -> Rubric:
        return load_rubric(self.rubric, "pair")

    @cached_property
    def _of_one(self) -> Rubric:
        return load_rubric(self.rating_rubric, "score", "rating_rubric")

    def compare(self, pairs: Sequence[tuple[Episode, Episode]], _rng: np.random.Generator, /) -> list[Verdict]:
        """What most of the votes say; "cannot say" where none could be read. Raises RewardError."""
        try:
            votes = self.sides(pairs, self._of_pairs, swap=self.swap)
        except RewardFailed as error:
            raise RewardError(str(error)) from error
        return [majority(each) or "cannot say" for each in votes]

    def rate(self, episodes: Sequence[Episode], _rng: np.random.Generator, /) -> list[int]:
        """The mean of the votes, rounded. Raises RewardError, and DataError where none could be read."""
        try:
            votes = self.scores(episodes, self._of_one, (LOWEST, HIGHEST))
        except RewardFailed as error:
            raise RewardError(str(error)) from error
        for episode, each in zip(episodes, votes, strict=True):
            if not each:
                raise DataError(
                    f"annotator {self.name!r}: what the judge says of a response to {episode.prompt.id!r} ends in no "
                    f"score from {LOWEST} to {HIGHEST}: change the rubric, or ask for comparisons, where it may abstain"
                )
        return [round(LOWEST + (HIGHEST - LOWEST) * math.fsum(each) / len(each)) for each in votes]
