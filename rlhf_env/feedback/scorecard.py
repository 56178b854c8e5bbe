"""How good a reward model is, before anybody optimises against it: the scorecard.

Everything is measured on judgements the model has not been fitted to; that they are is for the caller to see to
(`PreferenceStore.split`, `rlhf-env scorecard --held-out`). What the data cannot show is None, and `notes` says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf_env import plugins
from rlhf_env.errors import DataError, RunFailed
from rlhf_env.feedback.calibration import (
    Accuracy,
    Bin,
    brier_score,
    calibration_error_by_chance,
    expected_calibration_error,
    reliability,
    wilson_interval,
)
from rlhf_env.feedback.interchange import read_judgements
from rlhf_env.feedback.judgements import CriteriaRating, Judgement, Preference, Rating, Response, preferences_of
from rlhf_env.feedback.preferences import PreferenceStore, split_by_prompt
from rlhf_env.feedback.scorer import Scorer, load_scorer, pair_log_odds
from rlhf_env.types import Float, Prompt

if TYPE_CHECKING:
    from rich.table import Table

Text = tuple[Prompt, Response]
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


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho and Kendall's tau-b over `texts` responses; NaN-free: None where one side does not vary."""

    spearman: float | None
    kendall: float | None
    texts: int


@dataclass(frozen=True)
class Agreement:
    """On pairs that several people judged: how often a vote agrees with the majority of the *other* votes (a tie counts
    1/2), and how often the model does with that same majority. The people's number is the model's ceiling."""

    people: float
    model: float
    pairs: int
    votes: int


@dataclass(frozen=True)
class BestOfFour:
    """How often the highest-scored of four responses to a prompt is a best one; 1/4 by chance when one is best."""

    value: float
    low: float
    high: float
    prompts: int


@dataclass(frozen=True)
class Slice:
    """The accuracy on the pairs that have something in common."""

    name: str
    accuracy: Accuracy


@dataclass(frozen=True)
class Scorecard:
    """Correlations with length (in characters) and repetition are Spearman's, over all different responses.

    `accuracy` has Wilson's interval for the number of independent pairs that its spread between prompts amounts to.
    `margin` is the mean log-odds given to the chosen response. `calibration_error` stands beside what chance alone
    gives a calibrated model on as many pairs. `longer_preferred` is the share of pairs in which (the model, people)
    prefer the longer response. `flips` is, by edit of `EDITS`, the share of pairs of another verdict once both texts
    are edited.
    """

    pairs: int
    prompts: int
    accuracy: Accuracy
    margin: float
    calibration_error: float
    calibration_error_by_chance: float
    brier: float
    reliability: tuple[Bin, ...]
    gold: Correlation | None
    gold_is: str
    length_correlation: float | None
    repetition_correlation: float | None
    longer_preferred: tuple[float, float] | None
    agreement: Agreement | None
    best_of_four: BestOfFour | None
    slices: tuple[Slice, ...]
    flips: Mapping[str, float] | None
    notes: tuple[str, ...]

    @property
    def worst_slice(self) -> Slice | None:
        """The slice of the lowest accuracy. One of many is low by chance: read its interval."""
        return min(self.slices, key=lambda it: it.accuracy.value, default=None)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, the worst slice in its own place."""
        worst = None if self.worst_slice is None else asdict(self.worst_slice)
        text = json.dumps({**asdict(self), "worst_slice": worst}, indent=2, allow_nan=False)
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise RunFailed(f"scorecard {path}: cannot be written: {error}") from error


def scorecard_of(
    model: str | Path, data: str | Path, *, held_out: float = 1.0, gold: str | None = None, seed: int = 0
) -> Scorecard:
    """The scorecard of a model by folder on data by file (`load_scorer`, `read_data`).

    `gold` is the name of a reward to compare ranks with, in place of the ratings in the data; its responses need their
    token ids. `seed` draws what chance alone gives in calibration.
    """
    preferences, valued = read_data(data, held_out=held_out)
    scorer = load_scorer(model)
    if gold is not None:
        reward = plugins.build("reward", gold, {})
        texts = list({_key(text): text for it in preferences for text in _sides(it)}.values())
        worth = reward([response.episode(prompt) for prompt, response in texts])
        valued = [(*text, float(value)) for text, value in zip(texts, worth, strict=True)]
    rng = np.random.default_rng(seed)
    return make_scorecard(scorer, preferences, gold=valued, gold_is=gold or "people's ratings", rng=rng)


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
    prompts = [it.prompt.text for it in preferences]
    texts = list({_key(text): text for it in preferences for text in _sides(it)}.values())
    scores = scorer.score_responses(texts)
    lengths = np.array([_length(response) for _, response in texts], dtype=np.float64)
    worth = {_key((prompt, response)): value for prompt, response, value in gold}
    agreement = _agreement(preferences, delta)
    if agreement is None:
        notes.append("agreement: no pair was judged by more than one person")
    best_of_four = _best_of_four(scorer, preferences, gold)
    if best_of_four is None:
        notes.append("best of four: no prompt has four responses of which it is known which is best")
    if not gold:
        notes.append("gold: neither a gold reward nor ratings of single responses are given")
    flips = None
    try:
        flips = _flips(scorer, preferences)
    except DataError as error:
        notes.append(f"flips: edited text cannot be read: {error}")
    return Scorecard(
        pairs=len(preferences),
        prompts=len(set(prompts)),
        accuracy=_clustered(right, prompts),
        margin=float(delta.mean()),
        calibration_error=expected_calibration_error(delta),
        calibration_error_by_chance=calibration_error_by_chance(delta, rng),
        brier=brier_score(delta),
        reliability=tuple(reliability(delta)),
        gold=_gold_correlation(scorer, gold) if worth else None,
        gold_is=gold_is,
        length_correlation=spearman(scores, lengths),
        repetition_correlation=spearman(scores, np.array([repetition(response.text) for _, response in texts])),
        longer_preferred=_longer_preferred(preferences, delta),
        agreement=agreement,
        best_of_four=best_of_four,
        slices=tuple(_slices(preferences, right)),
        flips=flips,
        notes=tuple(notes),
    )


def read_data(path: str | Path, *, held_out: float = 1.0) -> tuple[list[Preference], list[Valued]]:
    """The pairs of a preference store or of a file of judgements, and the mean overall rating of each rated response.

    `held_out` below 1 keeps the prompts that `PreferenceStore.split(held_out)` holds out. Raises DataError for a file
    that is neither, or that has no pair.
    """
    path = Path(path)
    if path.is_file() and path.open("rb").read(16) == b"SQLite format 3\0":
        with PreferenceStore(path) as store:
            judgements = list(store.judgements())
    else:
        judgements = read_judgements(path)
    _, preferences = split_by_prompt(preferences_of(judgements), held_out)
    if not preferences:
        raise DataError(f"{path}: no pair of responses of which one is preferred, among {len(judgements)} judgements")
    kept = {it.prompt.text for it in preferences}
    return preferences, [valued for valued in _mean_ratings(judgements) if valued[0].text in kept]


def _mean_ratings(judgements: Sequence[Judgement]) -> list[Valued]:
    ratings = [it for it in judgements if isinstance(it, Rating)]
    ratings += [rating for it in judgements if isinstance(it, CriteriaRating) for rating in it.ratings]
    scores: dict[object, tuple[Text, list[int]]] = {}
    for it in ratings:
        if it.criterion == "overall":
            text = (it.prompt, it.response)
            scores.setdefault(_key(text), (text, []))[1].append(it.score)
    return [(*text, float(np.mean(values))) for text, values in scores.values()]


# ---------------------------------------------------------------- rank correlations


def spearman(a: Float, b: Float) -> float | None:
    """Pearson's correlation of the ranks, those of ties averaged; None when one of the two does not vary."""
    one, other = (_ranks(np.asarray(side, dtype=np.float64)) for side in (a, b))
    if any(side.size < 2 or side.min() == side.max() for side in (one, other)):
        return None
    return float(np.corrcoef(one, other)[0, 1])


def kendall(a: Float, b: Float) -> float | None:
    """Kendall's tau-b (1945): (concordant - discordant) / sqrt(pairs untied in a * pairs untied in b); None without.

    Quadratic in time, linear in memory.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    balance = untied_a = untied_b = 0.0
    for i in range(len(a) - 1):
        one, other = np.sign(a[i + 1 :] - a[i]), np.sign(b[i + 1 :] - b[i])
        balance += float(one @ other)
        untied_a += float(one @ one)
        untied_b += float(other @ other)
    return balance / float(np.sqrt(untied_a * untied_b)) if untied_a and untied_b else None


def repetition(text: str) -> float:
    """The share of words and word pairs that are not the first of their kind, in [0, 1); 0 for an empty text."""
    words = text.lower().split()
    runs = [*words, *pairwise(words)]
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0


def _ranks(values: Float) -> Float:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: Float = (last - (count - 1) / 2)[place]
    return ranks


def _gold_correlation(scorer: Scorer, gold: Sequence[Valued]) -> Correlation:
    scores = scorer.score_responses([(prompt, response) for prompt, response, _ in gold])
    values = np.array([value for _, _, value in gold])
    return Correlation(spearman(scores, values), kendall(scores, values), len(gold))


# ---------------------------------------------------------------- pairs


def _clustered(right: Float, prompts: Sequence[str]) -> Accuracy:
    """Accuracy with Wilson's interval at the effective number of pairs: those of one prompt are not independent.

    p (1 - p) / (variance of p between prompts) independent pairs have the same variance; never more than there are.
    """
    share = float(right.mean())
    of_prompt: dict[str, float] = {}
    for prompt, value in zip(prompts, right, strict=True):
        of_prompt[prompt] = of_prompt.get(prompt, 0.0) + float(value) - share
    variance = sum(value**2 for value in of_prompt.values()) / len(right) ** 2
    # Where all are right there is no variance to go by: one pair per prompt is the cautious answer.
    effective = min(len(right), share * (1 - share) / variance) if variance > 0 else len(of_prompt)
    return Accuracy(share, *wilson_interval(share, effective), len(right))


def _longer_preferred(preferences: Sequence[Preference], delta: Float) -> tuple[float, float] | None:
    """The share of pairs of unequal length in which (the model, people) prefer the longer; None without any."""
    longer = np.array([np.sign(_length(it.chosen) - _length(it.rejected)) for it in preferences])
    unequal = longer != 0
    if not unequal.any():
        return None
    by_model = (np.sign(delta) * longer)[unequal]
    return float(np.mean((by_model > 0) + 0.5 * (by_model == 0))), float(np.mean(longer[unequal] > 0))


def _agreement(preferences: Sequence[Preference], delta: Float) -> Agreement | None:
    votes: dict[
        object, list[tuple[str, float, float]]
    ] = {}  # per pair: who, for which side, which side the model is on
    for it, difference in zip(preferences, delta, strict=True):
        one, other = (_key(text) for text in _sides(it))
        side = 1.0 if repr(one) < repr(other) else -1.0
        pair = (it.criterion, frozenset((one, other)))
        votes.setdefault(pair, []).append((it.annotator, side, side * float(np.sign(difference))))
    people, model, pairs = [], [], 0
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
    return Agreement(float(np.mean(people)), float(np.mean(model)), pairs, len(people)) if pairs else None


def _best_of_four(scorer: Scorer, preferences: Sequence[Preference], gold: Sequence[Valued]) -> BestOfFour | None:
    """By gold where it knows four responses to a prompt; else where one response was preferred to three others."""
    fours: list[tuple[list[Text], set[int]]] = []
    by_prompt: dict[str, dict[object, tuple[Text, float]]] = {}
    for prompt, response, value in gold:
        by_prompt.setdefault(prompt.text, {})[_key((prompt, response))] = ((prompt, response), value)
    for known in by_prompt.values():
        if len(known) >= 4:
            four = list(known.values())[:4]
            highest = max(value for _, value in four)
            fours.append(([text for text, _ in four], {i for i, (_, value) in enumerate(four) if value == highest}))
    if not fours:
        beaten: dict[object, dict[object, Text]] = {}
        for it in preferences:
            chosen, rejected = _sides(it)
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
    middle = float(np.median([len(it.prompt.text) for it in preferences]))
    for i, it in enumerate(preferences):
        difference = _length(it.chosen) - _length(it.rejected)
        names = [
            f"criterion: {it.criterion}",
            f"annotator: {it.annotator}",
            "the chosen is " + ("longer" if difference > 0 else "shorter" if difference < 0 else "as long"),
            "shorter prompts" if len(it.prompt.text) <= middle else "longer prompts",
            *(f"written by: {name}" for name in sorted({_author(it.chosen), _author(it.rejected)})),
            *(f"{key}: {value}" for key, value in it.prompt.meta.items() if isinstance(value, str | int | bool)),
        ]
        for name in names:
            rows.setdefault(name, []).append(i)
    for name, members in rows.items():
        if _SMALLEST_SLICE <= len(members) < len(preferences):
            yield Slice(name, _clustered(right[members], [preferences[i].prompt.text for i in members]))


def _flips(scorer: Scorer, preferences: Sequence[Preference]) -> dict[str, float]:
    """By edit, the share of pairs the scorer judges otherwise when both responses are edited.

    The text is read anew before and after, so that nothing but the edit differs.
    """

    def verdicts(edit: Callable[[str], str]) -> Float:
        edited = [
            replace(
                it,
                chosen=replace(it.chosen, text=edit(it.chosen.text), ids=None, prompt_ids=None),
                rejected=replace(it.rejected, text=edit(it.rejected.text), ids=None, prompt_ids=None),
            )
            for it in apart
        ]
        signs: Float = np.sign(pair_log_odds(scorer, edited))
        return signs

    # Without their ids two responses may say the same: those have no verdict to flip.
    apart = [
        it
        for it in preferences
        if all(edit(it.chosen.text) != edit(it.rejected.text) for edit in (_unedited, *EDITS.values()))
    ]
    if not apart:
        raise DataError("no pair of responses differs in its words")
    before = verdicts(_unedited)
    flipped = {name: verdicts(edit) != before for name, edit in EDITS.items()}
    flipped["any of them"] = np.any(list(flipped.values()), axis=0)
    return {name: float(rows.mean()) for name, rows in flipped.items()}


def _unedited(text: str) -> str:
    return text


def _sides(it: Preference) -> tuple[Text, Text]:
    return (it.prompt, it.chosen), (it.prompt, it.rejected)


def _key(text: Text) -> tuple[str, str, object]:
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


def scorecard_table(card: Scorecard) -> Table:
    """The scorecard as a table for the terminal: what was measured, its value, and what to compare it with."""
    from rich.table import Table

    table = Table("measure", "value", "compare with", title=f"{card.pairs:,} pairs on {card.prompts:,} prompts")
    for row in _rows(card):
        table.add_row(*row)
    return table


def _rows(card: Scorecard) -> Iterator[tuple[str, str, str]]:
    a = card.accuracy
    yield "accuracy", f"{a.value:.3f}", f"95 % interval {a.low:.3f} to {a.high:.3f}; 0.5 is a coin"
    if card.agreement is not None:
        it = card.agreement
        yield (
            "agreement with people",
            f"{it.model:.3f}",
            f"people among themselves {it.people:.3f} ({it.pairs} pairs, {it.votes} votes)",
        )
    yield "mean margin", f"{card.margin:.3f}", "log-odds for the chosen response; 0 is indifference"
    yield (
        "calibration error",
        f"{card.calibration_error:.3f}",
        f"{card.calibration_error_by_chance:.3f} by chance if calibrated; 0.05 is good",
    )
    yield "Brier score", f"{card.brier:.3f}", "0 is perfect, 0.25 a coin"
    if card.gold is not None:
        rho, tau = (_number(value) for value in (card.gold.spearman, card.gold.kendall))
        yield f"rank correlation with {card.gold_is}", f"{rho} / {tau}", f"Spearman / Kendall, {card.gold.texts} texts"
    yield "score and length", _number(card.length_correlation), "Spearman; people's taste may have some"
    yield "score and repetition", _number(card.repetition_correlation), "Spearman; above 0 invites loops"
    if card.longer_preferred is not None:
        by_model, by_people = card.longer_preferred
        yield "prefers the longer", f"{by_model:.3f}", f"people {by_people:.3f}"
    if card.best_of_four is not None:
        best = card.best_of_four
        yield "best of four", f"{best.value:.3f}", f"{best.low:.3f} to {best.high:.3f} ({best.prompts}); chance 0.25"
    worst = card.worst_slice
    if worst is not None:
        w = worst.accuracy
        where = f"{w.low:.3f} to {w.high:.3f}: {worst.name} ({w.pairs} pairs), lowest of {len(card.slices)}"
        yield "worst slice", f"{w.value:.3f}", where
    for name, share in (card.flips or {}).items():
        yield f"verdict flips: {name}", f"{share:.3f}", "meaning unchanged: 0 is right"
    for note in card.notes:
        measure, _, why = note.partition(": ")
        yield measure, "-", why


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
