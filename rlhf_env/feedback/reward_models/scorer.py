"""What every reward model can do, and the one door by which they are loaded.

Importing this module imports no torch: rewards are listed before they are built.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from rlhf_env.envs.over_long import OverLong, OverLongCount
from rlhf_env.feedback.interchange.lengths import AnyJudged, fit_lengths, require_fit, require_templates_take, texts_of
from rlhf_env.feedback.judgements import Preference, Response
from rlhf_env.types import Episode, Float, Prompt, Tokenizer


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


@runtime_checkable
class LimitedScorer(Protocol):
    """A reward model that reads at most `context` tokens (None: any number), and says how many a response has."""

    @property
    def context(self) -> int | None: ...

    def lengths(self, responses: Sequence[tuple[Prompt, Response]]) -> list[int]:
        """The tokens of prompt and response together."""


@runtime_checkable
class HasTokenizer(Protocol):
    """A reward model that reads token ids of this tokenizer as they were written (None: it has none)."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...


def require_readable(
    scorer: Scorer, responses: Sequence[tuple[Prompt, Response]], *, path: str | Path | None = None
) -> None:
    """Raise DataError that names every response that is too long for the scorer, and every conversation that its chat
    template refuses, with its line where `path` has it."""
    require_templates_take(responses, scorer.tokenizer if isinstance(scorer, HasTokenizer) else None, path)
    if isinstance(scorer, LimitedScorer) and scorer.context is not None:
        lengths = scorer.lengths(responses)
        measured = ((*text, length) for text, length in zip(responses, lengths, strict=True))
        require_fit(measured, scorer.context, reader="the reward model", path=path)


def fit_to_scorer(
    scorer: Scorer, judgements: Sequence[AnyJudged], how: OverLong, *, path: str | Path | None = None
) -> tuple[list[AnyJudged], OverLongCount]:
    """Judgements (or pairs) of which the scorer can read every text, and how many were too long; see `fit_lengths`."""
    tokenizer = scorer.tokenizer if isinstance(scorer, HasTokenizer) else None
    require_templates_take(texts_of(judgements), tokenizer, path)
    if not isinstance(scorer, LimitedScorer) or scorer.context is None:
        return list(judgements), OverLongCount(of=len(judgements))
    return fit_lengths(
        judgements,
        scorer.context,
        how,
        lengths=scorer.lengths,
        reader="the reward model",
        tokenizer=tokenizer,
        path=path,
    )


def pair_log_odds(scorer: Scorer, preferences: Sequence[Preference]) -> Float:
    """float64[P]: the log-odds the scorer gives the chosen response over the rejected one."""
    scores = scorer.score_responses(
        [(preference.prompt, side) for preference in preferences for side in (preference.chosen, preference.rejected)]
    )
    difference: Float = (scores[0::2] - scores[1::2]) * scorer.log_odds_per_point
    return difference
