"""Several learned rewards combined into one that is low where they disagree (Coste et al. 2024, 2310.02743).

    ensemble = {weight = 1.0, model = "runs/reward_ensemble", combination = "worst"}
    ensemble = {weight = 1.0, model = ["runs/a", "runs/b"], combination = "uncertainty", penalty = 0.5}

Members that were fitted to different draws of the votes agree where many votes were, and disagree elsewhere: a text
that one of them alone likes is worth little.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.reward_models.config import Combination
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.settings import IsPath, NonNegative, fault, require
from rlhf_env.types import Episode, Float


class Ensemble:
    """Several reward models, combined. One member alone is refused: it cannot disagree.

    Args:
        model: a folder of several models (`RewardEnsemble.save`), of one model with several heads, or a list of folders
            of any kind the `bradley_terry` reward takes.
        combination: the "mean" of the members, the "worst" (lowest) of them, by "uncertainty" the mean minus
            `penalty` times their variance, or "entropic": nearly that where they differ by little, and never below
            the lowest (`rlhf-env lab laws entropic`).
        penalty: what the variance is multiplied by; for "entropic" 1 / (2 beta) in -beta log mean exp(-score / beta).
        device: where they compute, as in [policy] (in a run: where the policy does).
    """

    def __init__(
        self,
        model: Annotated[str | Path | Sequence[str | Path], IsPath()],
        combination: Combination = "worst",
        penalty: NonNegative = 1.0,
        device: str = "cpu",
    ) -> None:
        from rlhf_env.feedback.reward_models.ensemble import RewardEnsemble, combined

        require(combination=(combination, Combination), penalty=(penalty, NonNegative))
        self.combination, self.penalty = combination, penalty
        self.model = [str(model)] if isinstance(model, str | Path) else [str(one) for one in model]
        self._ensemble = RewardEnsemble([load_scorer(one, device=device) for one in self.model])
        self._combined = combined
        if self._ensemble.members < 2:
            raise ConfigError(fault("model", f"{self.model[0]} is a single model: an ensemble needs two or more"))

    def __call__(self, episodes: Sequence[Episode], /) -> Float:
        """float64[B]."""
        return self._combined(self._ensemble.score_members(episodes), self.combination, penalty=self.penalty)

    def __repr__(self) -> str:
        return f"Ensemble(model={self.model!r}, combination={self.combination!r}, penalty={self.penalty!r})"
