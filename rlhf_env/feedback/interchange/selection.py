"""Which of a file's judgements are wanted: the first rows, a sample of all, or those by some criteria."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.interchange.gathering import Located, Reading
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import CriteriaRating


def chosen_rows(rows: Iterable[Located], reading: Reading) -> Iterator[Located]:
    """The rows that `reading` asks for, in their order in the file.

    What follows a limit is not read; a sample is drawn from all.
    """
    if reading.limit is not None and reading.sample is not None:
        raise ConfigError("limit and sample: the first rows or a sample of all, not both")
    if reading.sample is None:
        yield from rows if reading.limit is None else islice(rows, reading.limit)
        return
    known = list(rows)
    count = min(reading.sample, len(known))
    for place in sorted(np.random.default_rng(reading.seed).choice(len(known), count, replace=False)):
        yield known[place]


def by_criteria(judgements: Iterable[Judgement], reading: Reading) -> Iterator[Judgement]:
    """The judgements by the criteria that `reading` asks for; what is by another one is passed over and counted.

    Raises DataError where nothing is by one of them.
    """
    if not reading.criteria:
        yield from judgements
        return
    wanted = set(reading.criteria)
    others: dict[str, None] = {}
    found = set()
    for judgement in judgements:
        kept: Judgement | None = judgement if judgement.criterion in wanted else None
        names = {judgement.criterion}
        if isinstance(judgement, CriteriaRating):
            names = set(judgement.scores)
            scores = {name: score for name, score in judgement.scores.items() if name in wanted}
            kept = replace(judgement, scores=scores) if scores else None
        found |= names & wanted
        for name in sorted(names - wanted):
            others[name] = None
            reading.passes_over(f"judgements by the criterion {name!r}")
        if kept is not None:
            yield kept
    if missing := [name for name in reading.criteria if name not in found]:
        has = ", ".join(map(repr, [*sorted(found), *others])) or "none"
        raise DataError(
            *(f"{reading.source}: nothing was judged by the criterion {name!r}; it has {has}" for name in missing)
        )
