"""How good a reward model is, before anybody optimises against it: the scorecard.

Everything is measured on judgements the model has not been fitted to; that they are is for the caller to see to
(`PreferenceStore.split`, `rlhf-env scorecard --held-out`). What the data cannot show is None, and `notes` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

from rlhf_env import plugins
from rlhf_env.device_names import AUTO
from rlhf_env.envs.over_long import OverLong, OverLongCount
from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange import read_judgements
from rlhf_env.feedback.judgements import Judgement, Preference, Response
from rlhf_env.feedback.kinds import kind_of, preferences_of
from rlhf_env.feedback.reward_models.calibration import (
    Accuracy,
    brier_score,
    calibration_error_by_chance,
    expected_calibration_error,
    reliability,
    wilson_interval,
    win_probability,
)
from rlhf_env.feedback.reward_models.card import BestOfFour, Correlation, Flip, Point, Scorecard, Slice, VoteAgreement
from rlhf_env.feedback.reward_models.fairness import PromptAndResponse
from rlhf_env.feedback.reward_models.loading import load_scorer
from rlhf_env.feedback.reward_models.ranks import kendall, kendall_interval, spearman, spearman_interval
from rlhf_env.feedback.reward_models.scorer import LimitedScorer, Scorer, fit_to_scorer, pair_log_odds, require_readable
from rlhf_env.feedback.store.database import is_store
from rlhf_env.feedback.store.split import split_by_prompt
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.text_measures import repeated_share, words
from rlhf_env.types import Float, Prompt

Valued = tuple[Prompt, Response, float]
"""A response and what it is known to be worth."""

EDITS: Mapping[str, Callable[[str], str]] = {
    "whitespace": lambda text: text.replace(" ", "  "),
    "first letter": lambda text: text[:1].swapcase() + text[1:],
    "final punctuation": lambda text: text[:-1] if text.endswith(".") else text + "." * text[-1:].isalnum(),
}
"""Edits that change no meaning: every space doubled; the case of the first letter turned; a full stop at the end taken
away, or put where a letter or digit stood last (other punctuation is left alone)."""

_SMALLEST_SLICE = 20
MOST_POINTS = 400  # texts kept for the pictures
_EXAMPLES = 2  # of each edit


def scorecard_of(
    model: str | Path,
    data: str | Path,
    *,
    held_out: float = 1.0,
    gold: str | None = None,
    seed: int = 0,
    over_long: OverLong = "refuse",
    device: str = AUTO,
) -> Scorecard:
    """The scorecard of a model by folder on data by file (`load_scorer`, `read_data`).

    `gold` is the name of a reward to compare ranks with, in place of the ratings in the data; its responses need their
    token ids. `seed` draws what chance alone gives in calibration. `over_long` is what happens to pairs that the model
    cannot read (see `fit_lengths`); ratings of such texts are left out, unless all are refused.
    """
    preferences, valued = read_data(data, held_out=held_out)
    scorer = load_scorer(model, device=device)
    notes: list[str] = []
    if over_long == "refuse":
        sides = [side for preference in preferences for side in _sides(preference)]
        require_readable(scorer, [*sides, *((prompt, response) for prompt, response, _ in valued)], path=data)
    elif isinstance(scorer, LimitedScorer) and (most := scorer.context) is not None:
        preferences, count = fit_to_scorer(scorer, preferences, over_long, path=data)
        lengths = scorer.lengths([(prompt, response) for prompt, response, _ in valued])
        fitting = [it for it, tokens in zip(valued, lengths, strict=True) if tokens <= most]
        counts = {"pairs": count, "ratings": OverLongCount(of=len(valued), left_out=len(valued) - len(fitting))}
        notes += [f"over-long: {count.said_of(what, most)}" for what, count in counts.items() if count]
        valued = fitting
    if gold is not None:
        reward = plugins.build_plugin("reward", gold, {})
        texts = list({_key(text): text for preference in preferences for text in _sides(preference)}.values())
        worth = reward([response.episode(prompt) for prompt, response in texts])
        valued = [(*text, float(value)) for text, value in zip(texts, worth, strict=True)]
    rng = np.random.default_rng(seed)
    card = make_scorecard(scorer, preferences, gold=valued, gold_is=gold or "people's ratings", rng=rng)
    return replace(card, notes=(*notes, *card.notes))


def make_scorecard(
    scorer: Scorer,
    preferences: Sequence[Preference],
    *,
    gold: Sequence[Valued] = (),
    gold_is: str = "gold",
    rng: np.random.Generator,
) -> Scorecard:
    """Measure `scorer` on judgements it has not seen.

    `gold` holds what responses are known to be worth: a gold reward's scores, or people's mean ratings; `gold_is` says
    which. `rng` draws what chance alone gives in calibration. Raises DataError when there are no preferences.
    """
    if not preferences:
        raise DataError("a scorecard needs at least one preference")
    notes: list[str] = []
    delta = pair_log_odds(scorer, preferences)
    right = np.asarray((delta > 0) + 0.5 * (delta == 0))
    prompts = [preference.prompt.text for preference in preferences]
    texts = list({_key(text): text for preference in preferences for text in _sides(preference)}.values())
    scores = scorer.score_responses(texts)
    lengths = np.array([_length(response) for _, response in texts], dtype=np.float64)
    repeated = np.array([repeated_share(words(response.text)) for _, response in texts])
    worth = {_key((prompt, response)): value for prompt, response, value in gold}
    agreement, intervals = _agreement(preferences, delta)
    if agreement is None:
        notes.append("agreement: no pair was judged by more than one person")
    best_of_four = _best_of_four(scorer, preferences, gold)
    if best_of_four is None:
        notes.append("best of four: no prompt has four responses of which it is known which is best")
    if not gold:
        notes.append("gold: neither a gold reward nor ratings of single responses are given")
    flips: Mapping[str, float] | None = None
    examples: tuple[Flip, ...] = ()
    try:
        room = _with_room_for_edits(scorer, preferences)
        if len(room) < len(preferences):
            notes.append(f"flips: {len(preferences) - len(room)} pairs are too long for the model once they are edited")
        flips, flip_intervals, examples = _flips(scorer, room)
        intervals |= flip_intervals
    except DataError as error:
        notes.append(f"flips: edited text cannot be read: {error}")
    correlation = _gold_correlation(scorer, gold) if worth else None
    by_length, by_repetition = spearman(scores, lengths), spearman(scores, repeated)
    ranks = {"length_correlation": by_length, "repetition_correlation": by_repetition}
    intervals |= {name: spearman_interval(rho, len(texts)) for name, rho in ranks.items() if rho is not None}
    if correlation is not None and correlation.spearman is not None and correlation.kendall is not None:
        intervals["spearman"] = spearman_interval(correlation.spearman, correlation.texts)
        intervals["kendall"] = kendall_interval(correlation.kendall, correlation.texts)
    intervals["margin"] = _mean_interval(delta, prompts)
    squares = np.square(delta) / 2.0
    intervals["spread"] = _root_interval(_mean_interval(squares, prompts))
    intervals["brier"] = _mean_interval(np.square(win_probability(-delta)), prompts)
    intervals["calibration_error"] = _calibration_interval(delta, prompts, rng)
    longer = _longer_preferred(preferences, delta)
    if longer is not None:
        intervals["longer_preferred"] = longer[1]
    shown = np.unique(np.linspace(0, len(texts) - 1, min(MOST_POINTS, len(texts))).astype(int))
    return Scorecard(
        pairs=len(preferences),
        prompts=len(set(prompts)),
        accuracy=clustered_accuracy(right, prompts),
        margin=float(delta.mean()),
        calibration_error=expected_calibration_error(delta),
        calibration_error_by_chance=calibration_error_by_chance(delta, rng),
        brier=brier_score(delta),
        reliability=tuple(reliability(delta)),
        gold=correlation,
        gold_is=gold_is,
        length_correlation=by_length,
        repetition_correlation=by_repetition,
        longer_preferred=None if longer is None else longer[0],
        agreement=agreement,
        best_of_four=best_of_four,
        slices=tuple(_slices(preferences, right)),
        flips=flips,
        flip_examples=examples,
        points=tuple(Point(float(scores[i]), int(lengths[i]), float(repeated[i])) for i in shown),
        intervals=intervals,
        notes=tuple(notes),
        spread=float(np.sqrt(squares.mean())),
        spread_of_all=float(scores.std()) * scorer.log_odds_per_point,
    )


def read_data(path: str | Path, *, held_out: float = 1.0) -> tuple[list[Preference], list[Valued]]:
    """The pairs of a preference store or of a file of judgements, and the mean overall rating of each rated response.

    `held_out` below 1 keeps the prompts that `PreferenceStore.split(held_out)` holds out. Raises DataError for a file
    that is neither, or that has no pair.
    """
    path = Path(path)
    if is_store(path):
        with PreferenceStore(path) as store:
            judgements = list(store.judgements())
    else:
        judgements = read_judgements(path)
    _, preferences = split_by_prompt(preferences_of(judgements), held_out)
    if not preferences:
        raise DataError(f"{path}: no pair of responses of which one is preferred, among {len(judgements)} judgements")
    kept = {preference.prompt.text for preference in preferences}
    return preferences, [valued for valued in mean_ratings(judgements) if valued[0].text in kept]


def mean_ratings(judgements: Sequence[Judgement], *, criterion: str = "overall") -> list[Valued]:
    """What each rated response is worth: the mean of its ratings by the criterion."""
    scores: dict[object, tuple[PromptAndResponse, list[int]]] = {}
    for rating in (rating for judgement in judgements for rating in kind_of(judgement).ratings(judgement)):
        if rating.criterion == criterion:
            text = (rating.prompt, rating.response)
            scores.setdefault(_key(text), (text, []))[1].append(rating.score)
    return [(*text, float(np.mean(values))) for text, values in scores.values()]


# ---------------------------------------------------------------- rank correlations


def _gold_correlation(scorer: Scorer, gold: Sequence[Valued]) -> Correlation:
    scores = scorer.score_responses([(prompt, response) for prompt, response, _ in gold])
    values = np.array([value for _, _, value in gold])
    return Correlation(spearman(scores, values), kendall(scores, values), len(gold))


# ---------------------------------------------------------------- pairs


def clustered_accuracy(right: Float, prompts: Sequence[str]) -> Accuracy:
    """Accuracy with Wilson's interval at the effective number of pairs: those of one prompt are not independent.

    p (1 - p) / (variance of p between prompts) independent pairs have the same variance; never more than there are.
    """
    share = float(right.mean())
    variance = _variance_between(right, prompts)
    # Where all are right there is no variance to go by: one pair per prompt is the cautious answer.
    effective = min(len(right), share * (1 - share) / variance) if variance > 0 else len(set(prompts))
    return Accuracy(share, *wilson_interval(share, effective), len(right))


def _mean_interval(values: Float, prompts: Sequence[str]) -> tuple[float, float]:
    """95 % of the mean, by its variance between prompts: pairs of one prompt are not independent."""
    middle = float(values.mean())
    half = NormalDist().inv_cdf(0.975) * float(np.sqrt(_variance_between(values, prompts)))
    return middle - half, middle + half


def _root_interval(ends: tuple[float, float]) -> tuple[float, float]:
    low, high = ends
    return float(np.sqrt(max(low, 0.0))), float(np.sqrt(high))


def _variance_between(values: Float, prompts: Sequence[str]) -> float:
    """Of the mean of `values`: the sum over prompts of their squared total deviation, over the count squared."""
    of_prompt: dict[str, float] = {}
    for prompt, deviation in zip(prompts, values - values.mean(), strict=True):
        of_prompt[prompt] = of_prompt.get(prompt, 0.0) + float(deviation)
    return sum(value**2 for value in of_prompt.values()) / len(values) ** 2


def _calibration_interval(delta: Float, prompts: Sequence[str], rng: np.random.Generator) -> tuple[float, float]:
    """95 %, from 200 draws of as many prompts. Redrawn errors are larger than the truth, as measured ones are."""
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    groups = [np.array(group) for group in rows.values()]
    drawn = [
        expected_calibration_error(
            delta[np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])]
        )
        for _ in range(200)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _longer_preferred(
    preferences: Sequence[Preference], delta: Float
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The share of pairs of unequal length in which (the model, people) prefer the longer, and the interval of the
    model's; None without any."""
    longer = np.array(
        [np.sign(_length(preference.chosen) - _length(preference.rejected)) for preference in preferences]
    )
    unequal = longer != 0
    if not unequal.any():
        return None
    by_model = (np.sign(delta) * longer)[unequal]
    prompts = [preference.prompt.text for preference, counts in zip(preferences, unequal, strict=True) if counts]
    share = clustered_accuracy(np.asarray((by_model > 0) + 0.5 * (by_model == 0)), prompts)
    return (share.value, float(np.mean(longer[unequal] > 0))), (share.low, share.high)


def _agreement(
    preferences: Sequence[Preference], delta: Float
) -> tuple[VoteAgreement | None, dict[str, tuple[float, float]]]:
    votes: dict[
        object, list[tuple[str, float, float]]
    ] = {}  # per pair: who, for which side, which side the model is on
    for preference, difference in zip(preferences, delta, strict=True):
        one, other = (_key(text) for text in _sides(preference))
        side = 1.0 if repr(one) < repr(other) else -1.0
        pair = (preference.criterion, frozenset((one, other)))
        votes.setdefault(pair, []).append((preference.annotator, side, side * float(np.sign(difference))))
    people, model, of_pair, pairs = [], [], [], 0
    for cast in votes.values():
        by_person = {who: (side, model_side) for who, side, model_side in cast}  # a person's last word
        if len(by_person) < 2:
            continue
        pairs += 1
        total = sum(side for side, _ in by_person.values())
        for side, model_side in by_person.values():
            others = np.sign(total - side)
            people.append(0.5 + 0.5 * side * others)
            model.append(0.5 + 0.5 * model_side * others)
            of_pair.append(str(pairs))
    if not pairs:
        return None, {}
    shares = {
        name: clustered_accuracy(np.array(values), of_pair) for name, values in (("people", people), ("model", model))
    }
    agreement = VoteAgreement(shares["people"].value, shares["model"].value, pairs, len(people))
    return agreement, {name: (share.low, share.high) for name, share in shares.items()}


def _best_of_four(scorer: Scorer, preferences: Sequence[Preference], gold: Sequence[Valued]) -> BestOfFour | None:
    """By gold where it knows four responses to a prompt; else where one response was preferred to three others."""
    fours: list[tuple[list[PromptAndResponse], set[int]]] = []
    by_prompt: dict[str, dict[object, tuple[PromptAndResponse, float]]] = {}
    for prompt, response, value in gold:
        by_prompt.setdefault(prompt.text, {})[_key((prompt, response))] = ((prompt, response), value)
    for known in by_prompt.values():
        if len(known) >= 4:
            four = list(known.values())[:4]
            highest = max(value for _, value in four)
            fours.append(([text for text, _ in four], {i for i, (_, value) in enumerate(four) if value == highest}))
    if not fours:
        beaten: dict[object, dict[object, PromptAndResponse]] = {}
        for preference in preferences:
            chosen, rejected = _sides(preference)
            beaten.setdefault(_key(chosen), {_key(chosen): chosen})[_key(rejected)] = rejected
        fours = [(list(texts.values())[:4], {0}) for texts in beaten.values() if len(texts) >= 4]
    if not fours:
        return None
    scores = scorer.score_responses([text for texts, _ in fours for text in texts]).reshape(-1, 4)
    hits = []
    for row, (_, best) in zip(scores, fours, strict=True):
        picked = set(np.flatnonzero(row == row.max()).tolist())
        hits.append(len(picked & best) / len(picked))
    value = float(np.mean(hits))
    return BestOfFour(value, *wilson_interval(value, len(hits)), len(hits))


def _slices(preferences: Sequence[Preference], right: Float) -> Iterator[Slice]:
    """Accuracy by what pairs have in common, where 20 pairs or more do and not all of them."""
    rows: dict[str, list[int]] = {}
    middle = float(np.median([len(preference.prompt.text) for preference in preferences]))
    for i, preference in enumerate(preferences):
        difference = _length(preference.chosen) - _length(preference.rejected)
        names = [
            f"criterion: {preference.criterion}",
            f"annotator: {preference.annotator}",
            "the chosen is " + ("longer" if difference > 0 else "shorter" if difference < 0 else "as long"),
            "shorter prompts" if len(preference.prompt.text) <= middle else "longer prompts",
            *(f"written by: {name}" for name in sorted({_author(preference.chosen), _author(preference.rejected)})),
            *(
                f"{key}: {value}"
                for key, value in preference.prompt.meta.items()
                if isinstance(value, str | int | bool)
            ),
        ]
        for name in names:
            rows.setdefault(name, []).append(i)
    for name, members in rows.items():
        if _SMALLEST_SLICE <= len(members) < len(preferences):
            yield Slice(name, clustered_accuracy(right[members], [preferences[i].prompt.text for i in members]))


def _flips(
    scorer: Scorer, preferences: Sequence[Preference]
) -> tuple[dict[str, float], dict[str, tuple[float, float]], tuple[Flip, ...]]:
    """By edit, the share of pairs the scorer judges otherwise when both responses are edited; intervals; examples.

    The text is read anew before and after, so that nothing but the edit differs.
    """

    def log_odds(edit: Callable[[str], str]) -> Float:
        edited = [
            replace(
                pair,
                chosen=replace(pair.chosen, text=edit(pair.chosen.text), ids=None, prompt_ids=None),
                rejected=replace(pair.rejected, text=edit(pair.rejected.text), ids=None, prompt_ids=None),
            )
            for pair in apart
        ]
        return pair_log_odds(scorer, edited)

    # Without their ids two responses may say the same: those have no verdict to flip.
    apart = [
        pair
        for pair in preferences
        if all(edit(pair.chosen.text) != edit(pair.rejected.text) for edit in (_unedited, *EDITS.values()))
    ]
    if not apart:
        raise DataError("no pair of responses differs in its words")
    before, after = log_odds(_unedited), {name: log_odds(edit) for name, edit in EDITS.items()}
    flipped = {name: np.sign(odds) != np.sign(before) for name, odds in after.items()}
    examples = tuple(
        Flip(
            name,
            apart[i].prompt.text,
            apart[i].chosen.text,
            apart[i].rejected.text,
            float(before[i]),
            float(after[name][i]),
        )
        for name, rows in flipped.items()
        for i in sorted(np.flatnonzero(rows), key=lambda i: -abs(before[i]))[:_EXAMPLES]  # the surest of the turned
    )
    flipped["any of them"] = np.any(list(flipped.values()), axis=0)
    prompts = [pair.prompt.text for pair in apart]
    shares = {name: clustered_accuracy(rows.astype(np.float64), prompts) for name, rows in flipped.items()}
    intervals = {f"flips: {name}": (share.low, share.high) for name, share in shares.items()}
    return {name: share.value for name, share in shares.items()}, intervals, examples


def _with_room_for_edits(scorer: Scorer, preferences: Sequence[Preference]) -> list[Preference]:
    """The pairs that the scorer can read after every edit: edits make texts longer."""
    if not isinstance(scorer, LimitedScorer) or scorer.context is None:
        return list(preferences)
    longest = np.zeros(len(preferences), np.int64)
    for edit in (_unedited, *EDITS.values()):
        edited = [
            (prompt, replace(side, text=edit(side.text), ids=None, prompt_ids=None))
            for preference in preferences
            for prompt, side in _sides(preference)
        ]
        longest = np.maximum(longest, np.reshape(scorer.lengths(edited), (-1, 2)).max(axis=1))
    return [pair for pair, tokens in zip(preferences, longest.tolist(), strict=True) if tokens <= scorer.context]


def _unedited(text: str) -> str:
    return text


def _sides(preference: Preference) -> tuple[PromptAndResponse, PromptAndResponse]:
    return (preference.prompt, preference.chosen), (preference.prompt, preference.rejected)


def _key(text: PromptAndResponse) -> tuple[str, str, object]:
    """Equal for texts that say the same, whoever wrote them."""
    prompt, response = text
    return prompt.text, response.text, response.ids


def _length(response: Response) -> int:
    """Characters: known for any text, whoever wrote it and in whatever language."""
    return len(response.text)


def _author(response: Response) -> str:
    author = response.author
    return author.name if author.temperature is None else f"{author.name} at temperature {author.temperature:g}"


# ---------------------------------------------------------------- to read
