"""The learned reward: the score of a Bradley-Terry model that was fitted to preferences.

bradley_terry = {weight = 1.0, model = "runs/demo/reward_model"}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_env.types import Episode, Float


class BradleyTerry:
    """`model` is a folder that `RewardModel.save` wrote. Its scores have mean 0 and standard deviation 1 over the
    responses the model was fitted on. Raises DataError when the folder holds no reward model."""

    def __init__(self, model: str | Path) -> None:
        from rlhf_env.feedback.reward_model import RewardModel  # torch loads when the reward is built, not when listed

        self.model = str(model)
        self._model = RewardModel.load(model).requires_grad_(False)

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        return self._model.score(episodes)

    def __repr__(self) -> str:
        return f"BradleyTerry(model={self.model!r})"
