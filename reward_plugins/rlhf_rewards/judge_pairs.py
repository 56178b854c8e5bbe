"""A language model that compares the responses of a group: each is worth the share of its pairs that it wins.

Of G responses to one prompt all G (G - 1) / 2 pairs are judged, in both orders: with `votes` of V that is
V G (G - 1) questions. A tie is half a win; a pair on which the judge abstains is left out, and a response without a
pair that was judged has no score of this part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations
from typing import Annotated

from rlhf_env.errors import Problem
from rlhf_env.feedback.judging.judge import Judging
from rlhf_env.feedback.judging.rubrics import Rubric, load_rubric, rubric_problems
from rlhf_env.settings import IsPath, settings
from rlhf_env.types import Episode, TrainerState

_WORTH = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (0.5, 0.5)}


@settings(frozen=False, eq=False)
class JudgePairs(Judging):
    """The share of the others in its group that a response beats, as a model judges, 0 to 1."""

    rubric: Annotated[str, IsPath()] = "helpful"
    """What it is asked: "helpful", "harmless", or a file with the places {prompt}, {first} and {second}. Its answer has
    to end in "Verdict: A", B or tie."""
    swap: bool = True
    """Ask each vote in both orders; it counts for a response only if both name it, and is a tie otherwise."""

    low, high = 0.0, 1.0  # what no score leaves

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from rubric_problems(self.rubric, "pair")

    @cached_property
    def _rubric(self) -> Rubric:
        return load_rubric(self.rubric, "pair")

    @cached_property
    def _abstained(self) -> list[float]:
        return []

    def group_rewards(self, group: Sequence[Episode], /) -> list[float | None]:
        """A float of each, or None. Raises RewardError, and RewardFailed where these texts are to blame."""
        places = list(combinations(range(len(group)), 2))
        votes = self.sides([(group[one], group[two]) for one, two in places], self._rubric, swap=self.swap)
        self._abstained.extend(float(not each) for each in votes)
        worth: list[list[float]] = [[] for _ in group]
        for (one, two), each in zip(places, votes, strict=True):
            if each:
                worth[one].append(sum(_WORTH[vote][0] for vote in each) / len(each))
                worth[two].append(sum(_WORTH[vote][1] for vote in each) / len(each))
        return [sum(each) / len(each) if each else None for each in worth]

    def follow(self, _state: TrainerState, /) -> None: ...

    def take_logged(self) -> Mapping[str, Sequence[float]]:
        """What was asked since the last time; `judge_pairs/abstained` is of pairs."""
        spent, abstained = vars(self.spent()), list(self._abstained)
        self._abstained.clear()
        counts = {f"judge_pairs/{name}": [float(count)] for name, count in spent.items()}
        return counts | ({"judge_pairs/abstained": abstained} if abstained else {})
