"""A language model as a judge of single responses: LLM-as-a-judge (Zheng et al. 2023), over any OpenAI-compatible
endpoint.

    [rewards.judge]
    url = "http://localhost:8000/v1"
    model = "judge"
    rubric = "helpful"              # or a file with {prompt} and {response}

A score is the mean of the votes that could be read, from 0 (`lowest`) to 1 (`highest`). Where none could be, the judge
abstains: the part says nothing about that text. What was asked stands in the metrics of each update, as
`rollout/logged/judge/requests`, `prompt_tokens`, `completion_tokens` and `cached`, with the share of texts that were
`abstained` on; in the budget, each text is a reward call, as with every reward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated

from rlhf_env.errors import Problem
from rlhf_env.feedback.judging.judge import Judging, scale_problems
from rlhf_env.feedback.judging.rubrics import Rubric, load_rubric, rubric_problems
from rlhf_env.settings import IsPath, settings
from rlhf_env.types import Episode, TrainerState


@settings(frozen=False, eq=False)
class Judge(Judging):
    """A model's score of each response by a rubric, 0 to 1."""

    rubric: Annotated[str, IsPath()] = "helpful"
    """What it is asked: "helpful", "harmless", "correct" (which needs a column `answer`), or a file with the places
    {prompt} and {response}; any other place is a column of the task. Its answer has to end in "Score: N"."""
    lowest: float = 1.0
    """The scale's lower end, which becomes 0; a place {lowest} holds it."""
    highest: float = 10.0
    """The scale's upper end, which becomes 1."""

    low, high = 0.0, 1.0  # what no score leaves

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        yield from rubric_problems(self.rubric, "score")
        yield from scale_problems(self.lowest, self.highest)

    @cached_property
    def _rubric(self) -> Rubric:
        return load_rubric(self.rubric, "score")

    @cached_property
    def _abstained(self) -> list[float]:
        return []

    def __call__(self, episodes: Sequence[Episode], /) -> list[float | None]:
        """A float of each, or None. Raises RewardError, and RewardFailed where one text is to blame."""
        votes = self.scores(episodes, self._rubric, (self.lowest, self.highest))
        self._abstained.extend(float(not each) for each in votes)
        return [math.fsum(each) / len(each) if each else None for each in votes]

    def follow(self, _state: TrainerState, /) -> None: ...

    def take_logged(self) -> Mapping[str, Sequence[float]]:
        """What was asked since the last time."""
        spent, abstained = vars(self.spent()), list(self._abstained)
        self._abstained.clear()
        counts = {f"judge/{name}": [float(count)] for name, count in spent.items()}
        return counts | ({"judge/abstained": abstained} if abstained else {})
