"""Stored preferences as what an agent learns from, in the place of an environment.

    with PreferenceStore("preferences.sqlite") as store:
        source = pair_source(list(store.preferences()), tokenizer, pairs=32, seed=0)
    train(agent, source, Budget(gradient_steps=500), spending=setup.spending, engine=setup.engine)

In an experiment file that is `preferences = "preferences.sqlite"` (or a file of judgements) beside `[agent] name =
"dpo"`. Answers that were judged one by one (TRL's completion and label, or ratings) have no pairs: `kto` learns from
them.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_env.envs.over_long import OverLong, OverLongCount
from rlhf_env.envs.tokenizers import prompt_ids
from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange import Reading, judgements_in, may_hold_judgements, read_judgements
from rlhf_env.feedback.interchange.lengths import (
    fit_lengths,
    require_fit,
    require_templates_take,
    texts_of,
    written_with,
)
from rlhf_env.feedback.judgements import Judgement, Preference, Response
from rlhf_env.feedback.kinds import HIGHEST, LOWEST, ScoredResponse, kind_of, preferences_of
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.learning.functional import with_reference_logprobs
from rlhf_env.learning.rollout import Rollout, labelled_answers, preference_pairs
from rlhf_env.learning.sources import DataSource
from rlhf_env.types import Episode, Float, Prompt, Tokenizer, TokenScorer


def load_judgements(path: str | Path) -> list[Judgement]:
    """Every judgement of a preference store, a folder of the datasets library, or a file. Raises DataError.

    Files are known by the end of their names: .jsonl, .ndjson, .json, .csv, .tsv, each also with .gz, and .parquet.
    They may be in the layout of any published set that `preferences import` reads.
    """
    path = Path(path)
    if path.is_dir():
        return list(_judgements_of(path))
    if may_hold_judgements(path):
        try:
            state = path.stat()
        except OSError:
            return read_judgements(path)  # which says what is wrong
        return list(_read_once(path, state.st_mtime_ns, state.st_size))
    if not path.is_file():  # a store would be made there
        raise DataError(f"{path}: no such file of preferences")
    with PreferenceStore(path) as store:
        return list(store.judgements())


@functools.lru_cache(maxsize=1)
def _read_once(path: Path, changed: int, size: int) -> tuple[Judgement, ...]:
    """The judgements of a file. A run asks for the same ones several times, and large files take minutes to read."""
    return _judgements_of(path)


def _judgements_of(path: Path) -> tuple[Judgement, ...]:
    """What is passed over is said: nobody looks at the file again."""
    reading = Reading(source=path.name)
    judgements = tuple(judgements_in(path, reading))
    for what, count in reading.passed_over.items():
        warnings.warn(f"{path}: passed over: {what}: {count:,}", RuntimeWarning, stacklevel=1)
    return judgements


def load_fitting(
    path: str | Path, tokenizer: Tokenizer, context: int | None, over_long: OverLong
) -> tuple[list[Judgement], OverLongCount]:
    """What `load_judgements` reads, without or with shorter texts where a model of this `context` cannot read them.

    With "refuse" nothing is changed, and `require_stored_fit` refuses.
    """
    judgements = load_judgements(path)
    require_templates_take(texts_of(judgements), tokenizer, path)
    if context is None or over_long == "refuse":
        return judgements, OverLongCount(of=len(judgements))
    return fit_lengths(
        judgements,
        context + 1,  # it never reads the last token
        over_long,
        lengths=lambda texts: [len(pair_episode(prompt, side, tokenizer).ids) for prompt, side in texts],
        reader="the policy",
        tokenizer=tokenizer,
        path=path,
    )


def load_preferences(path: str | Path) -> list[Preference]:
    """The pairs of what `load_judgements` reads. Raises DataError where there is none."""
    return pairs_of(load_judgements(path), path)


def pairs_of(judgements: Sequence[Judgement], path: str | Path) -> list[Preference]:
    """The pairs of judgements that were read from `path`. Raises DataError where there is none."""
    preferences = list(preferences_of(judgements))
    if not preferences:
        labels = sum(1 for _ in labels_of(judgements))
        if labels:
            raise DataError(
                f"{path}: {labels:,} answers judged one by one and no decided pair: the agent kto learns from such"
            )
        raise DataError(f"{path}: the store has no decided pair: add judgements first")
    criteria = Counter(pair.criterion for pair in preferences)
    if len(criteria) > 1:
        each = ", ".join(f"{name} ({count:,})" for name, count in criteria.items())
        said = (
            f"{path}: pairs by several criteria are learned from alike: {each}; rlhf-env preferences import --criterion"
        )
        warnings.warn(f"{said} takes those of one", RuntimeWarning, stacklevel=1)  # once, whoever asks
    return preferences


def labels_of(judgements: Iterable[Judgement]) -> Iterator[tuple[ScoredResponse, bool]]:
    """Each answer that was judged by itself, and whether it is desirable; none for a score in the middle."""
    for judgement in judgements:
        for rating in kind_of(judgement).ratings(judgement):
            if 2 * rating.score != LOWEST + HIGHEST:
                yield rating, 2 * rating.score > LOWEST + HIGHEST


def only_labels(judgements: Sequence[Judgement]) -> bool:
    """Whether everything was judged one by one, so that there are labels and no comparisons."""
    return bool(judgements) and all(kind_of(judgement).count == 1 for judgement in judgements)


def label_source(
    labels: Sequence[tuple[ScoredResponse, bool]],
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int,
    reference: TokenScorer | None = None,
) -> DataSource:
    """Rollouts of `rows` answers each (`labelled_answers`), in shuffled epochs. Weights of labels are not read."""
    read = [pair_episode(rating.prompt, rating.response, tokenizer) for rating, _ in labels]
    known = None if reference is None else _Known(read, reference)

    def rollout(drawn: Sequence[int]) -> Rollout:
        episodes, desirable = [read[i] for i in drawn], [labels[i][1] for i in drawn]
        made = labelled_answers(episodes, desirable, pad_id=tokenizer.pad_id)
        return made if known is None else with_reference_logprobs(known, made)

    return DataSource(len(read), rows, rollout, seed=seed)


def require_stored_fit(path: str | Path, tokenizer: Tokenizer, context: int, *, labels: bool = False) -> None:
    """Raise DataError that names every stored text that a model of this `context` cannot read.

    `labels`: where there are no comparisons, answers that were judged by themselves are what is learned from.
    """
    if labels and only_labels(judgements := load_judgements(path)):
        sides = [(rating.prompt, rating.response) for rating, _ in labels_of(judgements)]
    else:
        pairs = load_preferences(path)
        sides = [(pair.prompt, side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    require_templates_take(sides, tokenizer, path)
    measured = ((prompt, side, len(pair_episode(prompt, side, tokenizer).ids)) for prompt, side in sides)
    require_fit(measured, context + 1, reader="the policy", path=path)  # it never reads the last token


def pair_source(
    preferences: Sequence[Preference],
    tokenizer: Tokenizer,
    *,
    pairs: int,
    seed: int,
    reference: TokenScorer | None = None,
) -> DataSource:
    """Rollouts of `pairs` pairs each (`preference_pairs`), in shuffled epochs; each pair's weight and margin go along.

    So do, as the extra "reference", the log-probabilities under a `reference`: computed here and now, once for all
    epochs, in an order that no resumed run changes.
    """
    read = [
        [pair_episode(preference.prompt, side, tokenizer) for side in (preference.chosen, preference.rejected)]
        for preference in preferences
    ]
    known = None if reference is None else _Known([episode for pair in read for episode in pair], reference)

    def rollout(rows: Sequence[int]) -> Rollout:
        made = preference_pairs(
            [read[i][0] for i in rows],
            [read[i][1] for i in rows],
            pad_id=tokenizer.pad_id,
            weights=[preferences[i].weight for i in rows],
            margins=[preferences[i].margin for i in rows],
        )
        return made if known is None else with_reference_logprobs(known, made)

    return DataSource(len(read), pairs, rollout, seed=seed)


class _Known:
    """A `TokenScorer` of given episodes, which it has scored."""

    def __init__(self, episodes: Sequence[Episode], scorer: TokenScorer) -> None:
        self._logprobs = dict(zip(episodes, scorer.response_logprobs(episodes), strict=True))

    def response_logprobs(self, episodes: Sequence[Episode], /) -> list[Float]:
        return [self._logprobs[episode] for episode in episodes]


def pair_episode(prompt: Prompt, response: Response, tokenizer: Tokenizer) -> Episode:
    """A stored response as a text: the ids it was written with, where they say in this vocabulary what its text says.

    Otherwise - people, data sets, a policy with another tokenizer - the text is encoded and, unless it was cut at the
    length limit, closed by the end token.
    """
    if written_with(tokenizer, response):
        return response.episode(prompt)
    end = [tokenizer.end_id] if response.finish_reason in (None, "stop", "stop_string") else []
    read = replace(
        response,
        ids=(*tokenizer.encode(response.text), *end),
        prompt_ids=tuple(prompt_ids(tokenizer, prompt)),
        finish_reason="stop" if end else response.finish_reason,
    )
    return read.episode(prompt)
