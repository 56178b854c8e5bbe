"""What every reward model can do, and the one door by which they are loaded.

Importing this module imports no torch: rewards are listed before they are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
    scores = scorer.score_responses(
        [(preference.prompt, side) for preference in preferences for side in (preference.chosen, preference.rejected)]
    )
    difference: Float = (scores[0::2] - scores[1::2]) * scorer.log_odds_per_point
    return difference
