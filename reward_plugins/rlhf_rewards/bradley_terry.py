"""The learned reward: the score of a model that was fitted to preferences (Bradley and Terry 1952).

    bradley_terry = {weight = 1.0, model = "runs/demo/reward_model"}

`rlhf-env reward-model` fits one to votes, and `rlhf-env scorecard` says how good it is. The further a policy goes from
the texts that people judged, the less its score means: docs/guides/over-optimisation.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.settings import IsPath
from rlhf_env.types import Episode, Float


class BradleyTerry:
    """The score of one reward model. Raises DataError when `model` is none.

    Args:
        model: a folder that `RewardModel.save` wrote, whose scores have mean 0 and standard deviation 1 over the
            responses it was fitted on; a run of the agent sft+rm, whose scores have them over the pairs it read last;
            or a sequence classification model of transformers with one label (a folder, a hub name), whose scores are
            taken as they are.
        device: where it computes, as in [policy] (in a run: where the policy does).
    """

    def __init__(self, model: Annotated[str | Path, IsPath()], device: str = "cpu") -> None:
        self.model = str(model)
        self._scorer = load_scorer(model, device=device)  # torch loads here, not when the reward is listed

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        return self._scorer.score(episodes)

    def __repr__(self) -> str:
        return f"BradleyTerry(model={self.model!r})"
