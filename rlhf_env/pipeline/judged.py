"""What there is to learn of a store or a file of judgements: read, chosen, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rlhf_env.errors import ConfigError, DataError, Problem, did_you_mean, under
from rlhf_env.feedback.asking.selection import k_centre, ngram_vectors
from rlhf_env.feedback.asking.weighing import Learnable
from rlhf_env.feedback.interchange import LabelConfig, Reading, judgements_in, layout_named
from rlhf_env.feedback.judgements import Judgement, Preference
from rlhf_env.feedback.kinds import Comparison, Ranking, Rating, ScoredResponse, kind_of, preferences_of
from rlhf_env.feedback.store.database import is_store
from rlhf_env.feedback.store.split import place_in_split, split_by_prompt
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.pipeline.reward_settings import RewardModelSettings


@dataclass(frozen=True)
class SelectedJudgements:
    """The judgements that are learned from, and what was left out: how often, by why."""

    judgements: Sequence[Judgement]
    """By one criterion, of the annotators that were asked for."""
    criterion: str
    left_out: Counter[str] = field(default_factory=Counter)
    assumed: Sequence[str] = ()
    """What a file did not say and was taken to be so."""


def read_judged(source: str | Path, wanted: RewardModelSettings) -> SelectedJudgements:
    """The judgements of a preference store, or of a file that `preferences import` reads.

    Raises DataError where there are none, ConfigError for a criterion or an annotator that does not occur.
    """
    source = Path(source)
    config = None if wanted.label_config is None else LabelConfig.read(Path(wanted.label_config))
    if wanted.layout:
        with under("layout"):
            layout_named(wanted.layout)
    reading = Reading(
        source=source.name,
        annotator=wanted.annotator,
        layout=wanted.layout,
        limit=wanted.limit,
        label_config=config,
        buckets=wanted.buckets,
        skip=wanted.skip,
    )
    if is_store(source):
        with PreferenceStore(source) as store:
            found = list(store.judgements())
        if not found:
            raise DataError(
                f"{source}: nobody has judged anything in it yet: `rlhf-env annotate --store {source}`, or "
                "`rlhf-env preferences import`"
            )
    else:
        found = judgements_in(source, reading)
    left_out = Counter(reading.passed_over)
    problems: list[Problem] = []
    try:
        criterion = _criterion_of(found, wanted.criterion)
    except ConfigError as error:
        problems += (it if isinstance(it, Problem) else Problem(it) for it in error.problems)
        criterion = ""
    people = {judgement.annotator for judgement in found}
    problems += (
        Problem(f"{key}: nobody called {name!r} judged anything{did_you_mean(name, people)}", (key,))
        for key in ("annotators", "without")
        for name in getattr(wanted, key)
        if name not in people
    )
    if problems:
        raise ConfigError(*problems)
    kept: list[Judgement] = []
    for judgement in found:
        if judgement.annotator in wanted.without or judgement.annotator not in (wanted.annotators or people):
            left_out[f"judgements of {judgement.annotator}"] += 1
            continue
        by_it = list(_by(criterion, judgement))
        if not by_it:
            left_out[f"judgements by another criterion ({judgement.criterion})"] += 1
        kept += by_it
    return SelectedJudgements(kept, criterion, left_out, tuple(reading.assumed))


def _criteria_of(judgement: Judgement) -> list[str]:
    ratings = list(kind_of(judgement).ratings(judgement))
    return [rating.criterion for rating in ratings] or [judgement.criterion]


def _criterion_of(found: Iterable[Judgement], wanted: str) -> str:
    counts = Counter(name for judgement in found for name in _criteria_of(judgement))
    if wanted and wanted not in counts:
        said = f"criterion: nothing was judged by {wanted!r}{did_you_mean(wanted, counts)}"
        raise ConfigError(Problem(said, ("criterion",)))
    if wanted:
        return wanted
    if len(counts) == 1:
        return next(iter(counts))
    if "overall" in counts:
        return "overall"
    each = ", ".join(f"{name} ({count:,})" for name, count in counts.most_common())
    raise ConfigError(Problem(f"criterion: judged by several, none of them overall: {each}: name one", ("criterion",)))


def _by(criterion: str, judgement: Judgement) -> Iterable[Judgement]:
    """The judgement, as far as it is by this criterion: of one by several criteria the rating by this one."""
    kind = kind_of(judgement)
    if kind.many_criteria:
        return (rating for rating in kind.ratings(judgement) if rating.criterion == criterion)
    return (judgement,) if judgement.criterion == criterion else ()


def held_out_of(
    judged: SelectedJudgements, share: float, source: str | Path
) -> tuple[list[Judgement], list[Judgement]]:
    """(training, held out), by prompt. Raises DataError where one of the two is empty, and says at which share not."""
    training, unseen = split_by_prompt(judged.judgements, share)
    if share == 0.0 or (training and unseen):
        return training, unseen
    places = sorted(
        {judgement.prompt.text: place_in_split(judgement.prompt) for judgement in judged.judgements}.values()
    )
    if len(places) == 1:
        said = (
            f"{source}: everything was judged on one prompt, so no prompt can be held out: judge answers to more "
            "prompts, or fit without a measure: --held-out 0"
        )
        raise DataError(Problem(said, ("held_out",)))
    smallest, largest = (np.ceil(place * 1000 + 1e-9) / 1000 for place in (places[0], places[-1]))
    asked = smallest if training else min(largest - 0.001, 0.999)
    none = "none is held out" if training else "all are held out"
    said = (
        f"{source}: of {len(places)} prompts {none} at a share of {share:.3g}: say --held-out {asked:.3f}, for example"
    )
    raise DataError(Problem(said, ("held_out",)))


# ---------------------------------------------------------------- what a loss learns from


def learnable_of(judged: Iterable[Judgement], wanted: RewardModelSettings, left_out: Counter[str]) -> list[Learnable]:
    """What the loss learns from, in order; the rest is counted in `left_out`. DataError where that is nothing."""
    judgements = list(judged)
    kinds = Counter(kind_of(judgement).plural for judgement in judgements)
    decided = [one for judgement in judgements for one in _decided(judgement, left_out)]
    if not decided:
        what = ", ".join(f"{count:,} {name}" for name, count in kinds.items()) or "no judgement"
        why = "; ".join(f"{name} ({count:,})" for name, count in left_out.items())
        raise DataError(f"nothing to learn from: {what}, and none of them prefers or rates a response: {why}")
    match wanted.loss:
        case "by kind":
            found: list[Learnable] = decided
        case "likert":
            found = [one for one in decided if isinstance(one, Rating)]
            _count_others(decided, found, left_out, "Likert's loss is of ratings")
        case "ranking-pairs" | "plackett-luce":
            found = list(_in_order(decided, wanted, left_out))
            _count_others(decided, found, left_out, "a loss of rankings takes no ratings")
            if not any(isinstance(one, Ranking) for one in decided):
                found = []
        case "bradley-terry" | "margins":
            found = list(preferences_of(one for one in _as_judgements(decided)))
            alone = sum(isinstance(one, Rating) for one in decided)
            if alone and not found:
                left_out["ratings of which no two are of one prompt by one person, so that they are no pairs"] += alone
    if wanted.loss == "margins" and not any(isinstance(one, Preference) and one.margin for one in found):
        raise _fits_nothing(wanted, kinds, "no judgement states a margin")
    if not found:
        raise _fits_nothing(wanted, kinds, "")
    if wanted.loss == "margins":
        scale = wanted.margin_scale
        return [
            replace(one, margin=scale * one.margin) if isinstance(one, Preference) and one.margin else one
            for one in found
        ]
    stated = sum(isinstance(one, Preference) and bool(one.margin) for one in found)
    if stated:
        left_out['margins that pairs state, not the pairs (loss = "margins" asks for them)'] += stated
    return [
        replace(one, margin=None) if isinstance(one, Preference) and one.margin is not None else one for one in found
    ]


def _fits_nothing(wanted: RewardModelSettings, kinds: Counter[str], why: str) -> DataError:
    there = ", ".join(f"{count:,} {name}" for name, count in kinds.items())
    said = f"loss: {wanted.loss} fits none of the judgements ({there}{'; ' if why else ''}{why}): leave it away"
    return DataError(Problem(said, ("loss",)))


def _decided(judgement: Judgement, left_out: Counter[str]) -> Iterable[Learnable]:
    """As a reward model learns from it; nothing of a tie, which is counted."""
    kind = kind_of(judgement)
    if kind.lessons is not None:
        if any(True for _ in kind.pairs(judgement)) or not isinstance(judgement, Ranking):
            return (judgement,)
        left_out["rankings in which all are equal"] += 1
        return ()
    ratings = [_plain(rating) for rating in kind.ratings(judgement)]
    pairs = list(kind.pairs(judgement))
    if not ratings and not pairs:
        what = judgement.verdict if isinstance(judgement, Comparison) else kind.name
        left_out[f"nothing preferred: {what}"] += 1
    return (*ratings, *pairs)


def _plain(rating: ScoredResponse) -> Rating:
    if isinstance(rating, Rating):
        return rating
    circumstances = {name: getattr(rating, name) for name in ("annotator", "criterion", "weight", "created", "seconds")}
    return Rating(rating.prompt, rating.response, rating.score, **circumstances)


def _as_judgements(decided: Iterable[Learnable]) -> Iterable[Judgement]:
    return (Comparison.of(one) if isinstance(one, Preference) else one for one in decided)


def _in_order(decided: Iterable[Learnable], wanted: RewardModelSettings, left_out: Counter[str]) -> Iterable[Learnable]:
    """Rankings, and the pairs that are rankings of two. One with ties has no Plackett-Luce likelihood: its pairs."""
    for one in decided:
        if isinstance(one, Ranking) and wanted.loss == "plackett-luce" and len(set(one.ranks)) < len(one.ranks):
            left_out["orders of rankings with ties, which Plackett-Luce does not know: their pairs are learned"] += 1
            yield from one.preferences
        elif not isinstance(one, Rating):
            yield one


def _count_others(decided: Sequence[Learnable], found: Sequence[Learnable], left_out: Counter[str], why: str) -> None:
    kept = {id(one) for one in found}
    for one in decided:
        if id(one) not in kept and not isinstance(one, Ranking):
            left_out[f"{'ratings' if isinstance(one, Rating) else 'judgements'}: {why}"] += 1


# ---------------------------------------------------------------- fewer of them


def far_apart(learnable: Sequence[Learnable], count: int) -> list[Learnable]:
    """`count` of them whose texts (prompt and responses) lie far apart, in order: k-centre on runs of words.

    Those of one group, which are one judgement, count as one and stay together.
    """
    units: dict[object, list[int]] = {}
    for i, one in enumerate(learnable):
        units.setdefault((isinstance(one, Preference) and one.group) or i, []).append(i)
    if count >= len(units):
        return list(learnable)
    texts = [" ".join(dict.fromkeys(_texts(learnable[i] for i in rows))) for rows in units.values()]
    picked = set(k_centre(ngram_vectors(texts), count).tolist())
    rows = sorted(i for place, unit in enumerate(units.values()) if place in picked for i in unit)
    return [learnable[i] for i in rows]


def _texts(learnable: Iterable[Learnable]) -> Iterable[str]:
    for one in learnable:
        yield one.prompt.text
        responses = (one.chosen, one.rejected) if isinstance(one, Preference) else one.responses
        yield from (response.text for response in responses)
