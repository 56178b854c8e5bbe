"""What a reward part answered, checked: one finite number per episode, or per token of a token part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_env.errors import RewardError
from rlhf_env.types import Bool, Episode, Float

# A score beyond this is taken for a mistake: squared and summed over a batch it would not fit into float32.
LARGEST_SCORE = 1e15

# What a part says about some episodes: float or float64[T] each (None: it abstains), and why some of them only stand in
# for one, by place.
Answers = tuple[list[float | Float | None], dict[int, str]]


def episode_answers(name: str, answer: object, episodes: Sequence[Episode]) -> Answers:
    """The scores, float each or None, and what is wrong with those that are not sane.

    Raises RewardError for an answer of another form than one number, or None, per episode.
    """
    if isinstance(answer, np.ndarray) and answer.ndim == 1 and answer.dtype == object:
        answer = answer.tolist()
    silent: set[int] = set()
    if isinstance(answer, (list, tuple)):
        silent = {place for place, value in enumerate(answer) if value is None}
        answer = [0.0 if value is None else value for value in answer] if silent else answer
    values = _as_floats(name, answer, len(episodes), "episode")
    insane = np.flatnonzero(~_sane(values)).tolist()
    found: list[float | Float | None] = values.tolist()
    for place in silent:
        found[place] = None
    return found, {place: _returned(values[place]) for place in insane}


def token_answers(name: str, answer: object, episodes: Sequence[Episode]) -> Answers:
    """As `episode_answers`, float64[T] each."""
    try:
        rows = list(answer)  # type: ignore[call-overload]  # whatever a plugin returned
    except Exception as error:
        raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    if len(rows) != len(episodes):
        raise RewardError(f"reward {name!r} returned {len(rows)} rows for {len(episodes)} episodes")
    values = [
        _as_floats(name, row, len(it.response_ids), "token of response_ids")
        for row, it in zip(rows, episodes, strict=True)
    ]
    failed = {}
    for place, row in enumerate(values):
        for token in np.flatnonzero(~_sane(row))[:1].tolist():
            failed[place] = f"{_returned(row[token])} at token {token}"
    return list(values), failed


def together(batches: Sequence[tuple[int, Answers]]) -> Answers:
    """A part's answers to batches of these sizes, as one."""
    values: list[float | Float | None] = []
    failed: dict[int, str] = {}
    for size, (found, why) in batches:
        failed |= {len(values) + place: did for place, did in why.items()}
        values += found
        assert len(found) == size
    return values, failed


def _sane(values: Float) -> Bool:
    """bool of their shape: finite, and no larger than LARGEST_SCORE."""
    return np.abs(values) <= LARGEST_SCORE  # NaN is not


def _as_floats(name: str, answer: object, count: int, what: str) -> Float:
    """float64[count], finite or not. Raises RewardError for an answer of another form."""
    try:
        values = np.asarray(answer)
    except Exception as error:  # ragged lists; tensors, of which the error says what to do
        raise RewardError(f"reward {name!r} raised {type(error).__name__}: {error}") from error
    if values.dtype.kind not in "fiub":
        raise RewardError(f"reward {name!r} returned {values.dtype} values, expected one float per {what}")
    if values.shape != (count,):
        raise RewardError(f"reward {name!r} returned shape {values.shape}, expected ({count},): one float per {what}")
    return values.astype(np.float64)


def _returned(value: float) -> str:
    return f"returned {value:g}" + (f" (beyond {LARGEST_SCORE:g})" if np.isfinite(value) else "")
