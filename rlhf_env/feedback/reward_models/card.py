"""The scorecard as data: what was measured of a reward model, and its table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_env.errors import DataError, RunFailed
from rlhf_env.feedback.reward_models.calibration import Accuracy, Bin
from rlhf_env.types import JsonObject

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho and Kendall's tau-b over `texts` responses; NaN-free: None where one side does not vary."""

    spearman: float | None
    kendall: float | None
    texts: int


@dataclass(frozen=True)
class VoteAgreement:
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
    `spread` is the standard deviation of the scores of two answers to one prompt, the root of the mean of half their
    squared difference, and `spread_of_all` that of the scores of all texts, both in log-odds (None: a scorecard from
    before they were measured).

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
    agreement: VoteAgreement | None
    best_of_four: BestOfFour | None
    slices: tuple[Slice, ...]
    flips: Mapping[str, float] | None
    flip_examples: tuple[Flip, ...]
    points: tuple[Point, ...]
    intervals: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...]
    spread: float | None = None
    spread_of_all: float | None = None

    @property
    def worst_slice(self) -> Slice | None:
        """The slice of the lowest accuracy. One of many is low by chance: read its interval."""
        return min(self.slices, key=lambda one: one.accuracy.value, default=None)

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
            content: JsonObject = json.loads(Path(path).read_text(encoding="utf-8"))
            content.pop("worst_slice")
            built: JsonObject = {
                "accuracy": Accuracy(**content.pop("accuracy")),
                "reliability": tuple(Bin(**fields) for fields in content.pop("reliability")),
                "slices": tuple(
                    Slice(fields["name"], Accuracy(**fields["accuracy"])) for fields in content.pop("slices")
                ),
                "flip_examples": tuple(Flip(**fields) for fields in content.pop("flip_examples")),
                "points": tuple(Point(**fields) for fields in content.pop("points")),
                "intervals": {
                    name: (float(low), float(high)) for name, (low, high) in content.pop("intervals").items()
                },
                "notes": tuple(content.pop("notes")),
            }
            for name, kind in (("gold", Correlation), ("agreement", VoteAgreement), ("best_of_four", BestOfFour)):
                value = content.pop(name)
                built[name] = None if value is None else kind(**value)
            pair = content.pop("longer_preferred")
            return cls(**content, **built, longer_preferred=None if pair is None else (float(pair[0]), float(pair[1])))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"scorecard {path}: cannot be read ({type(error).__name__}: {error}): make it again with "
                "`rlhf-env scorecard`"
            ) from error


@dataclass(frozen=True)
class CardLine:
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
    for one in measures(card):
        table.add_row(one.name, one.value, one.interval, one.meaning)
    return table


def measures(card: Scorecard) -> Iterator[CardLine]:
    """Every number of the scorecard, in the order to read them; last what is not measured, and why."""

    def measure(name: str, key: str, value: float | None, meaning: str) -> CardLine:
        return CardLine(name, _number(value), _interval(card.intervals.get(key)), meaning)

    a = card.accuracy
    yield CardLine(
        "accuracy",
        _number(a.value),
        _interval((a.low, a.high)),
        "how often it prefers what annotators chose; 0.5 is a coin",
    )
    if card.agreement is not None:
        agreement = card.agreement
        yield measure(
            "agreement with annotators",
            "model",
            agreement.model,
            f"with the majority of the others, on {agreement.pairs} pairs of {agreement.votes} votes",
        )
        yield measure(
            "annotators among themselves", "people", agreement.people, "the same for one of them: the model's ceiling"
        )
    yield measure("mean margin", "margin", card.margin, "log-odds for the chosen response; 0 is indifference")
    if card.spread is not None and card.spread_of_all is not None:
        yield measure(
            "spread within a prompt",
            "spread",
            card.spread,
            f"log-odds; {card.spread_of_all:.3f} over all texts. Near 0 it teaches slowly, however accurate",
        )
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
        "score and length",
        "length_correlation",
        card.length_correlation,
        "Spearman; the taste of annotators may have some",
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
            "prefers the longer", "longer_preferred", by_model, f"annotators do in {by_people:.3f} of these pairs"
        )
    if card.best_of_four is not None:
        best = card.best_of_four
        meaning = f"finds the best of four, {best.prompts} prompts; chance 0.25"
        yield CardLine("best of four", _number(best.value), _interval((best.low, best.high)), meaning)
    worst = card.worst_slice
    if worst is not None:
        w = worst.accuracy
        meaning = f"{worst.name} ({w.pairs} pairs), lowest of {len(card.slices)}: one of many is low by chance"
        yield CardLine("worst slice", _number(w.value), _interval((w.low, w.high)), meaning)
    for name, share in (card.flips or {}).items():
        yield measure(f"verdict flips: {name}", f"flips: {name}", share, "the meaning is unchanged: 0 is right")
    for note in card.notes:
        name, _, why = note.partition(": ")
        yield CardLine(name, "-", "", why)


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
