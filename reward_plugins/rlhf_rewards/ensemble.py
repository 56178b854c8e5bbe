"""Several learned rewards combined into one that is low where they disagree (Coste et al. 2024, 2310.02743).

ensemble = {weight = 1.0, model = "runs/reward_ensemble", combination = "worst"}
ensemble = {weight = 1.0, model = ["runs/a", "runs/b"], combination = "uncertainty", penalty = 0.5}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.types import Episode, Float

if TYPE_CHECKING:
    from rlhf_env.feedback.reward_models.ensemble import Combination


class Ensemble:
    """The members' scores, combined: "mean", "worst" (the lowest), or "uncertainty" (mean - `penalty` * variance).

    `model` is a folder of several models (`RewardEnsemble.save`) or of one model with several heads, or a list of
    models that the `bradley_terry` reward takes. A single member is refused.
    """

    def __init__(
        self, model: str | Path | Sequence[str | Path], combination: Combination = "worst", penalty: float = 1.0
    ) -> None:
        from rlhf_env.feedback.reward_models.ensemble import RewardEnsemble, combined

        if not penalty >= 0:
            raise ConfigError(f"penalty: {penalty!r} is not a number of at least 0")
        self.combination, self.penalty = combination, penalty
        self.model = [str(model)] if isinstance(model, str | Path) else [str(one) for one in model]
        self._ensemble = RewardEnsemble([load_scorer(one) for one in self.model])
        self._combined = combined
        combined(np.zeros((1, 0)), combination)  # an unknown combination is found here
        if self._ensemble.members < 2:
            raise ConfigError(f"model: {self.model[0]} is a single model: an ensemble needs two or more")

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        return self._combined(self._ensemble.score_members(episodes), self.combination, penalty=self.penalty)

    def __repr__(self) -> str:
        return f"Ensemble(model={self.model!r}, combination={self.combination!r}, penalty={self.penalty!r})"
