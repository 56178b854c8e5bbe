"""What every reward model can do, and the one door by which they are loaded.

Importing this module imports no torch: rewards are listed before they are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rlhf_env import assets
from rlhf_env.errors import DataError
from rlhf_env.feedback.judgements import Preference, Response
from rlhf_env.types import Episode, Float, Prompt


class Scorer(Protocol):
    """A reward model: fitted here, trained elsewhere, or several of them. No score depends on batch mates."""

    @property
    def log_odds_per_point(self) -> float:
        """What a difference of 1 between two scores is worth in log-odds: `calibration.win_probability` takes those."""

    @property
    def members(self) -> int:
        """M: how many opinions there are. 1 where there is one model with one head."""

    def score(self, episodes: Sequence[Episode]) -> Float:
        """float64[B], the mean of the members. Raises DataError for a text that cannot be scored."""

    def score_members(self, episodes: Sequence[Episode]) -> Float:
        """float64[M, B]: what each member says."""

    def score_responses(self, responses: Sequence[tuple[Prompt, Response]]) -> Float:
        """float64[B], as `score`, for what a preference store holds."""


def pair_log_odds(scorer: Scorer, preferences: Sequence[Preference]) -> Float:
    """float64[P]: the log-odds the scorer gives the chosen response over the rejected one."""
    scores = scorer.score_responses([(it.prompt, side) for it in preferences for side in (it.chosen, it.rejected)])
    difference: Float = (scores[0::2] - scores[1::2]) * scorer.log_odds_per_point
    return difference


def load_scorer(model: str | Path) -> Scorer:
    """A reward model by folder (or hub name), told by the files in it:

    - reward_model.json: a RewardModel that `save` wrote;
    - reward_ensemble.json: a RewardEnsemble;
    - config.json: a sequence classification model of transformers with one label, trained anywhere.

    Raises DataError when it is none of these.
    """
    from rlhf_env.feedback.classifier import SequenceClassifier
    from rlhf_env.feedback.ensemble import RewardEnsemble
    from rlhf_env.feedback.reward_model import RewardModel

    folder = Path(assets.resolve(str(model)))
    if (folder / "reward_model.json").is_file():
        return RewardModel.load(folder).requires_grad_(False)
    if (folder / "reward_ensemble.json").is_file():
        return RewardEnsemble.load(folder)
    if (folder / "config.json").is_file():
        return SequenceClassifier(folder)
    if folder.exists() or str(model).startswith(("/", ".", "~")):
        raise DataError(
            f"{folder} is not a reward model: there is no reward_model.json (RewardModel.save writes one), no "
            "reward_ensemble.json and no config.json of a sequence classification model in it"
        )
    return SequenceClassifier(str(model))
