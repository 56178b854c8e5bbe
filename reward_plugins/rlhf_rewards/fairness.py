"""A penalty for responses whose learned reward changes when they speak of another group of people.

    fairness = {weight = 0.5, model = "runs/demo/reward_model"}
    fairness = {weight = 0.5, model = "runs/demo/reward_model", words = [["Anna", "Aisha"], ["Paris", "Tunis"]]}

It does not repair the reward model; it keeps a policy from exploiting the model's prejudice. A policy may avoid the
penalty by naming nobody: look at what it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.reward_models.fairness import GENDER, Groups, group_scores
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.settings import IsPath
from rlhf_env.types import Episode, Float

_AUTHOR = Author("policy", "policy")


class Fairness:
    """-(highest - lowest score) over versions of prompt and response, one for each group; 0 if they name no group.

    Args:
        model: one that the `bradley_terry` reward takes. The penalty has the unit of its scores, and its own tokenizer
            reads the versions.
        words: a row for each word, with its form for every group (default: words of gender).
        device: where it computes, as in [policy] (in a run: where the policy does).
    """

    high: ClassVar[float] = 0.0

    def __init__(
        self,
        model: Annotated[str | Path, IsPath()],
        words: Sequence[Sequence[str]] = GENDER.words,
        device: str = "cpu",
    ) -> None:
        rows = tuple(tuple(row) for row in words)
        self.model = str(model)
        self._groups = Groups(tuple(f"group {i + 1}" for i in range(len(rows[0]) if rows else 0)), rows)
        self._scorer = load_scorer(model, device=device)

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        answers = [(it.prompt, Response(it.response, _AUTHOR, finish_reason=it.finish_reason)) for it in episodes]
        scores = group_scores(self._scorer, self._groups, answers)
        spread: Float = np.nan_to_num(np.ptp(scores, axis=1), nan=0.0)
        return 0.0 - spread  # where no group is named this is 0.0, not -0.0

    def __repr__(self) -> str:
        return f"Fairness(model={self.model!r})"
