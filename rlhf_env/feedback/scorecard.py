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
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

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
    win_probability,
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
MOST_POINTS = 400  # texts kept for the pictures
_EXAMPLES = 2  # of each edit


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
class Point:
    """One response: its score, its characters, and its `repetition`."""

    score: float
    length: int
    repetition: float


@dataclass(frozen=True)
class Flip:
    """A pair whose verdict an `edit` turned: the log-odds of the chosen response before and after."""

    edit: str
    prompt: str
    chosen: str
    rejected: str
    before: float
    after: float


@dataclass(frozen=True)
class Scorecard:
    """Correlations with length (in characters) and repetition are Spearman's, over all different responses.

    `accuracy` has Wilson's interval for the number of independent pairs that its spread between prompts amounts to.
    `margin` is the mean log-odds given to the chosen response. `calibration_error` stands beside what chance alone
    gives a calibrated model on as many pairs. `longer_preferred` is the share of pairs in which (the model, people)
    prefer the longer response. `flips` is, by edit of `EDITS`, the share of pairs of another verdict once both texts
    are edited; `flip_examples` are a few of them. `points` are responses to draw, at most 400, evenly out of all.

    `intervals` holds 95 % intervals, by the name of the number: over prompts for means and shares (of
    `longer_preferred` the model's), a bootstrap over prompts for `calibration_error`, and the large-sample ones of rank
    correlations, which take texts to be independent. `agreement` has those of its two numbers, `people` and `model`.
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
    flip_examples: tuple[Flip, ...]
    points: tuple[Point, ...]
    intervals: Mapping[str, tuple[float, float]]
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

    @classmethod
    def load(cls, path: str | Path) -> Scorecard:
        """What `save` wrote. Raises DataError for a file that is no scorecard, or one of an older version."""
        try:
            told: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            told.pop("worst_slice")
            built: dict[str, Any] = {
                "accuracy": Accuracy(**told.pop("accuracy")),
                "reliability": tuple(Bin(**it) for it in told.pop("reliability")),
                "slices": tuple(Slice(it["name"], Accuracy(**it["accuracy"])) for it in told.pop("slices")),
                "flip_examples": tuple(Flip(**it) for it in told.pop("flip_examples")),
                "points": tuple(Point(**it) for it in told.pop("points")),
                "intervals": {name: (float(low), float(high)) for name, (low, high) in told.pop("intervals").items()},
                "notes": tuple(told.pop("notes")),
            }
            for name, kind in (("gold", Correlation), ("agreement", Agreement), ("best_of_four", BestOfFour)):
                value = told.pop(name)
                built[name] = None if value is None else kind(**value)
            pair = told.pop("longer_preferred")
            return cls(**told, **built, longer_preferred=None if pair is None else (float(pair[0]), float(pair[1])))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"scorecard {path}: cannot be read ({type(error).__name__}: {error}): make it again with "
                "`rlhf-env scorecard`"
            ) from error


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
    repeated = np.array([repetition(response.text) for _, response in texts])
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
        flips, flip_intervals, examples = _flips(scorer, preferences)
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
    intervals["brier"] = _mean_interval(np.square(win_probability(-delta)), prompts)
    intervals["calibration_error"] = _calibration_interval(delta, prompts, rng)
    longer = _longer_preferred(preferences, delta)
    if longer is not None:
        intervals["longer_preferred"] = longer[1]
    shown = np.unique(np.linspace(0, len(texts) - 1, min(MOST_POINTS, len(texts))).astype(int))
    return Scorecard(
        pairs=len(preferences),
        prompts=len(set(prompts)),
        accuracy=_clustered(right, prompts),
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


def spearman_interval(rho: float, count: int) -> tuple[float, float]:
    """95 %, by Fisher's z with variance 1.06 / (count - 3) (Fieller, Hartley and Pearson 1957); [-1, 1] below 5."""
    return _fisher_interval(rho, 1.06 / (count - 3) if count > 4 else np.inf)


def kendall_interval(tau: float, count: int) -> tuple[float, float]:
    """95 %, by Fisher's z with variance 0.437 / (count - 4) (Fieller, Hartley and Pearson 1957); [-1, 1] below 5."""
    return _fisher_interval(tau, 0.437 / (count - 4) if count > 4 else np.inf)


def _fisher_interval(value: float, variance: float) -> tuple[float, float]:
    if abs(value) >= 1.0 and np.isfinite(variance):
        return value, value
    half = NormalDist().inv_cdf(0.975) * float(np.sqrt(variance))
    middle = float(np.arctanh(np.clip(value, -0.999999, 0.999999)))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


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
    variance = _variance_between(right, prompts)
    # Where all are right there is no variance to go by: one pair per prompt is the cautious answer.
    effective = min(len(right), share * (1 - share) / variance) if variance > 0 else len(set(prompts))
    return Accuracy(share, *wilson_interval(share, effective), len(right))


def _mean_interval(values: Float, prompts: Sequence[str]) -> tuple[float, float]:
    """95 % of the mean, by its variance between prompts: pairs of one prompt are not independent."""
    middle = float(values.mean())
    half = NormalDist().inv_cdf(0.975) * float(np.sqrt(_variance_between(values, prompts)))
    return middle - half, middle + half


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
    longer = np.array([np.sign(_length(it.chosen) - _length(it.rejected)) for it in preferences])
    unequal = longer != 0
    if not unequal.any():
        return None
    by_model = (np.sign(delta) * longer)[unequal]
    prompts = [it.prompt.text for it, counts in zip(preferences, unequal, strict=True) if counts]
    share = _clustered(np.asarray((by_model > 0) + 0.5 * (by_model == 0)), prompts)
    return (share.value, float(np.mean(longer[unequal] > 0))), (share.low, share.high)


def _agreement(
    preferences: Sequence[Preference], delta: Float
) -> tuple[Agreement | None, dict[str, tuple[float, float]]]:
    votes: dict[
        object, list[tuple[str, float, float]]
    ] = {}  # per pair: who, for which side, which side the model is on
    for it, difference in zip(preferences, delta, strict=True):
        one, other = (_key(text) for text in _sides(it))
        side = 1.0 if repr(one) < repr(other) else -1.0
        pair = (it.criterion, frozenset((one, other)))
        votes.setdefault(pair, []).append((it.annotator, side, side * float(np.sign(difference))))
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
    shares = {name: _clustered(np.array(values), of_pair) for name, values in (("people", people), ("model", model))}
    found = Agreement(shares["people"].value, shares["model"].value, pairs, len(people))
    return found, {name: (it.low, it.high) for name, it in shares.items()}


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


def _flips(
    scorer: Scorer, preferences: Sequence[Preference]
) -> tuple[dict[str, float], dict[str, tuple[float, float]], tuple[Flip, ...]]:
    """By edit, the share of pairs the scorer judges otherwise when both responses are edited; intervals; examples.

    The text is read anew before and after, so that nothing but the edit differs.
    """

    def log_odds(edit: Callable[[str], str]) -> Float:
        edited = [
            replace(
                it,
                chosen=replace(it.chosen, text=edit(it.chosen.text), ids=None, prompt_ids=None),
                rejected=replace(it.rejected, text=edit(it.rejected.text), ids=None, prompt_ids=None),
            )
            for it in apart
        ]
        return pair_log_odds(scorer, edited)

    # Without their ids two responses may say the same: those have no verdict to flip.
    apart = [
        it
        for it in preferences
        if all(edit(it.chosen.text) != edit(it.rejected.text) for edit in (_unedited, *EDITS.values()))
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
    prompts = [it.prompt.text for it in apart]
    shares = {name: _clustered(rows.astype(np.float64), prompts) for name, rows in flipped.items()}
    intervals = {f"flips: {name}": (it.low, it.high) for name, it in shares.items()}
    return {name: it.value for name, it in shares.items()}, intervals, examples


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


@dataclass(frozen=True)
class Measure:
    """One number as it is written everywhere: its name, value and interval (empty where there is none), and what it
    means or is to be compared with."""

    name: str
    value: str
    interval: str
    meaning: str


def scorecard_table(card: Scorecard) -> Table:
    """The scorecard as a table for the terminal."""
    from rich.table import Table

    table = Table(
        "measure", "value", "95 % interval", "compare with", title=f"{card.pairs:,} pairs on {card.prompts:,} prompts"
    )
    for it in measures(card):
        table.add_row(it.name, it.value, it.interval, it.meaning)
    return table


def measures(card: Scorecard) -> Iterator[Measure]:
    """Every number of the scorecard, in the order to read them; last what is not measured, and why."""

    def measure(name: str, key: str, value: float | None, meaning: str) -> Measure:
        return Measure(name, _number(value), _interval(card.intervals.get(key)), meaning)

    a = card.accuracy
    yield Measure(
        "accuracy",
        _number(a.value),
        _interval((a.low, a.high)),
        "how often it prefers what people chose; 0.5 is a coin",
    )
    if card.agreement is not None:
        it = card.agreement
        yield measure(
            "agreement with people",
            "model",
            it.model,
            f"with the majority of the others, on {it.pairs} pairs of {it.votes} votes",
        )
        yield measure("people among themselves", "people", it.people, "the same for a person: the model's ceiling")
    yield measure("mean margin", "margin", card.margin, "log-odds for the chosen response; 0 is indifference")
    yield measure(
        "calibration error",
        "calibration_error",
        card.calibration_error,
        f"stated against observed odds: {card.calibration_error_by_chance:.3f} by chance if calibrated; 0.05 is good",
    )
    yield measure("Brier score", "brier", card.brier, "squared error of its probabilities: 0 is perfect, 0.25 a coin")
    if card.gold is not None:
        texts = f"with {card.gold_is}, {card.gold.texts:,} texts; 1 is the same order"
        yield measure("rank correlation, Spearman", "spearman", card.gold.spearman, texts)
        yield measure("rank correlation, Kendall", "kendall", card.gold.kendall, texts)
    yield measure(
        "score and length", "length_correlation", card.length_correlation, "Spearman; people's taste may have some"
    )
    yield measure(
        "score and repetition",
        "repetition_correlation",
        card.repetition_correlation,
        "Spearman; above 0 invites loops",
    )
    if card.longer_preferred is not None:
        by_model, by_people = card.longer_preferred
        yield measure(
            "prefers the longer", "longer_preferred", by_model, f"people do in {by_people:.3f} of these pairs"
        )
    if card.best_of_four is not None:
        best = card.best_of_four
        told = f"finds the best of four, {best.prompts} prompts; chance 0.25"
        yield Measure("best of four", _number(best.value), _interval((best.low, best.high)), told)
    worst = card.worst_slice
    if worst is not None:
        w = worst.accuracy
        told = f"{worst.name} ({w.pairs} pairs), lowest of {len(card.slices)}: one of many is low by chance"
        yield Measure("worst slice", _number(w.value), _interval((w.low, w.high)), told)
    for name, share in (card.flips or {}).items():
        yield measure(f"verdict flips: {name}", f"flips: {name}", share, "the meaning is unchanged: 0 is right")
    for note in card.notes:
        name, _, why = note.partition(": ")
        yield Measure(name, "-", "", why)


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
