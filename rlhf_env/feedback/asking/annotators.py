"""Who judges: people through the annotation page, and simulated annotators whose taste and noise are known.

A simulated annotator makes claims about preference learning checkable: how often it agrees with the gold reward, and
two of them with each other, is not estimated but computed.

Annotators are plugins: `register_annotators(register)` offers a class by name, and `load_annotator` builds it with the
settings of a table. A class that has a parameter `gold` is lent the gold reward.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, Problem, RunFailed
from rlhf_env.feedback.kinds import HIGHEST, LOWEST, Verdict
from rlhf_env.own_code import naming_who_raised
from rlhf_env.settings import NonNegative, fault, settings
from rlhf_env.shown_text import type_in_words
from rlhf_env.types import Episode, Float, Reward


class Annotator(Protocol):
    """Compares pairs of responses to one prompt. `name` is what the store calls it."""

    @property
    def name(self) -> str: ...

    def compare(self, pairs: Sequence[tuple[Episode, Episode]], rng: np.random.Generator, /) -> list[Verdict]:
        """One verdict per pair, `first` and `second` in the order of the pair."""


@runtime_checkable
class Ranks(Protocol):
    """An annotator who ranks, too."""

    def rank(self, groups: Sequence[Sequence[Episode]], rng: np.random.Generator, /) -> list[tuple[int, ...]]:
        """The places of each group's responses, 1 the best."""


@runtime_checkable
class Rates(Protocol):
    """An annotator who scores single responses, too."""

    def rate(self, episodes: Sequence[Episode], rng: np.random.Generator, /) -> list[int]:
        """A score from 1 to 5 of each."""


@runtime_checkable
class Judges(Protocol):
    """An annotator who judges kinds that are neither compared, ranked nor rated (`JudgementKind.simulation`)."""

    def judge(self, kind: str, episodes: Sequence[Episode], rng: np.random.Generator, /) -> object:
        """The answer to one item of the kind."""


def answers_to_each(
    annotator: Annotator, method: str, asked: Sequence[object], rng: np.random.Generator
) -> Sequence[Any]:
    """An annotator's answer to each of `asked`. Raises RunFailed where it raises, or has not one answer for each."""
    who = f"the annotator {annotator.name!r}: {method}()"
    with naming_who_raised(who):
        answers: object = getattr(annotator, method)(asked, rng)
    if not isinstance(answers, (list, tuple, np.ndarray)):
        raise RunFailed(f"{who} gave {type_in_words(answers)}: a list with one answer for each question is needed")
    if len(answers) != len(asked):
        raise RunFailed(f"{who} gave {len(answers)} answers to {len(asked)} questions: one for each is needed")
    return list(answers)


def load_annotator(settings: Mapping[str, object], gold: Reward | None = None, *, person: str = "") -> Annotator:
    """The annotator that a table names: {"name": "simulated", "temperature": 0.3}. Raises ConfigError.

    `gold`, and `person` as its own name, are lent to an annotator that asks for them.
    """
    given = dict(settings)
    plugin = plugins.name_in(given, "annotator")
    if plugin is None:
        raise ConfigError(Problem("annotator: the setting 'name' is required", ("name",)))
    lent = {name: value for name, value in {"gold": gold, "name": person}.items() if value}
    annotator: Annotator = plugins.build_plugin("annotator", plugin, given, lent)
    return annotator


def asks_for_gold(settings: Mapping[str, object]) -> bool:
    """Whether the annotator of a table goes by a gold reward. Where that cannot be told, building it says why."""
    given = dict(settings)
    try:
        plugin = plugins.name_in(given, "annotator")
        target = plugins.host().load("annotator", plugin or "")
    except ConfigError:
        return True
    return "gold" in inspect.signature(target).parameters if callable(target) else False


@settings
class SimulatedAnnotator:
    """Prefers what a gold reward scores higher, with known noise and biases.

        P(first preferred) = (1 - flip_rate) * p + flip_rate * (1 - p)
        p = sigmoid((u_1 - u_2 + position_bias) / temperature),    u = gold + length_bias * words

    which is the model of Bradley & Terry (1952) with the noise of a slipping finger. It never answers "tie"; between
    equals it tosses a coin.
    """

    gold: Reward
    """What it goes by; a file of settings lends it the gold reward."""
    temperature: NonNegative = 0.5
    """In units of gold: a difference of one temperature is judged rightly 73 times in 100. 0 is an annotator that never
    hesitates."""
    flip_rate: Annotated[float, Ge(0), Le(0.5)] = 0.0
    """Turns verdicts around whatever the difference, so that even obvious ones are sometimes wrong; above 0.5 verdicts
    would mean the opposite."""
    length_bias: float = 0.0
    """In units of gold per word (what white space separates): a taste for long answers, negative for short ones."""
    position_bias: float = 0.0
    """In units of gold: what being shown first is worth."""
    thresholds: tuple[float, ...] = (-1.5, -0.5, 0.5, 1.5)
    """In units of gold, rising: where its ratings pass from 1 to 2, ..., from 4 to 5."""
    name: str = "simulated"
    """What the store calls it."""

    def problems(self) -> Iterator[Problem]:
        rising = all(low < high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False))
        if len(self.thresholds) != HIGHEST - LOWEST or not rising:
            yield fault("thresholds", f"must be {HIGHEST - LOWEST} rising numbers, got {list(self.thresholds)}")

    def compare(self, pairs: Sequence[tuple[Episode, Episode]], rng: np.random.Generator, /) -> list[Verdict]:
        """One draw of `rng` per pair. Gold scores each different episode object once, in one batch."""
        utility = self._utilities([episode for pair in pairs for episode in pair])
        prefers_first = rng.random(len(pairs)) < self.preference_probability(utility[0::2] - utility[1::2])
        return ["first" if is_first else "second" for is_first in prefers_first]

    def rank(self, groups: Sequence[Sequence[Episode]], rng: np.random.Generator, /) -> list[tuple[int, ...]]:
        """The places of each group's responses, 1 the best: Plackett-Luce, drawn by Gumbel noise on u / temperature.

        Of any two responses that were not shown first, one is placed above the other as often as `compare` prefers it;
        a flip (at `flip_rate`) turns the whole ranking around. Of two responses it is `compare`.
        """
        utility = iter(self._utilities([episode for group in groups for episode in group]))
        rankings = []
        for group in groups:
            value = np.array([next(utility) for _ in group])
            value[:1] += self.position_bias
            noise, coin = rng.gumbel(size=len(group)), rng.random(len(group))
            # At temperature 0 the noise decides between equals only.
            order = (
                np.lexsort((coin, -value)) if self.temperature == 0 else np.argsort(-value / self.temperature - noise)
            )
            order = order[::-1] if rng.random() < self.flip_rate else order
            rankings.append(tuple(int(place) + 1 for place in np.argsort(order)))
        return rankings

    def rate(self, episodes: Sequence[Episode], rng: np.random.Generator, /) -> list[int]:
        """A score from 1 to 5 of each: how many `thresholds` its u passes, under logistic noise of `temperature`.

        P(score > k) = sigmoid((u - thresholds[k - 1]) / temperature), the ordered logit of McCullagh (1980). A flip (at
        `flip_rate`) turns the scale around.
        """
        heard = self._utilities(episodes) + self.temperature * rng.logistic(size=len(episodes))
        scores = LOWEST + np.searchsorted(np.asarray(self.thresholds), heard)
        flipped = rng.random(len(episodes)) < self.flip_rate
        return [int(score) for score in np.where(flipped, LOWEST + HIGHEST - scores, scores)]

    def preference_probability(self, difference: npt.ArrayLike) -> Float:
        """P(first preferred), of the shape of `difference` = u(first) - u(second)."""
        delta = np.asarray(difference, dtype=np.float64) + self.position_bias
        if self.temperature == 0:
            clean = 0.5 + 0.5 * np.sign(delta)
        else:
            clean = 0.5 + 0.5 * np.tanh(delta / (2 * self.temperature))  # sigmoid without overflow
        return np.asarray(self.flip_rate + (1 - 2 * self.flip_rate) * clean)

    def shuffled_probability(self, difference: npt.ArrayLike) -> Float:
        """P(first preferred) when a coin decides which of the two is shown first: half of the position bias is gone."""
        delta = np.asarray(difference, dtype=np.float64)
        if not self.position_bias:
            return self.preference_probability(delta)
        return (self.preference_probability(delta) + 1 - self.preference_probability(-delta)) / 2

    def expected_accuracy(self, difference: npt.ArrayLike, words: npt.ArrayLike = 0.0) -> float:
        """How often its verdicts agree with gold on pairs of these gold differences, in expectation.

        `words` are the pairs' differences in length, in the same direction; they matter where `length_bias` is not 0.
        A coin decides which response is shown first.

        This is also the ceiling for a reward model measured on this annotator's own labels: one that knows gold exactly
        reaches it, and none can be expected to pass it. On labels without noise the ceiling is 1. Pairs of equal gold
        count 1/2. NaN when there are no pairs.
        """
        delta = np.asarray(difference, dtype=np.float64)
        first = self.shuffled_probability(delta + self.length_bias * np.asarray(words))
        agrees = np.where(delta > 0, first, np.where(delta < 0, 1 - first, 0.5))
        return float(np.mean(agrees)) if agrees.size else float("nan")

    def _utilities(self, episodes: Sequence[Episode]) -> Float:
        """u of each episode, float64[B]; gold is asked once about each object."""
        distinct = {id(episode): episode for episode in episodes}
        gold = np.asarray(self.gold(list(distinct.values())), dtype=np.float64) if distinct else np.zeros(0)
        if self.length_bias:
            gold = gold + self.length_bias * np.array([len(episode.response.split()) for episode in distinct.values()])
        place = {key: i for i, key in enumerate(distinct)}
        return gold[[place[id(episode)] for episode in episodes]]


def annotator_panel(
    typical: SimulatedAnnotator,
    size: int,
    rng: np.random.Generator,
    *,
    temperature_spread: float = 0.0,
    length_spread: float = 0.0,
    position_spread: float = 0.0,
) -> list[SimulatedAnnotator]:
    """People who differ: `size` annotators around a typical one, "name 1", "name 2", ...

    Each has a temperature of his own (typical times exp(spread * normal)), a length bias and a position bias of his own
    (typical plus spread * normal).
    """
    if size < 1 or min(temperature_spread, length_spread, position_spread) < 0:
        raise ConfigError("panel: expected a size of at least 1 and spreads of at least 0")
    return [
        replace(
            typical,
            temperature=typical.temperature * float(np.exp(temperature_spread * rng.standard_normal())),
            length_bias=typical.length_bias + length_spread * float(rng.standard_normal()),
            position_bias=typical.position_bias + position_spread * float(rng.standard_normal()),
            name=f"{typical.name} {number}",
        )
        for number in range(1, size + 1)
    ]


def expected_agreement(
    one: SimulatedAnnotator, other: SimulatedAnnotator, difference: npt.ArrayLike, words: npt.ArrayLike = 0.0
) -> float:
    """How often the verdicts of two annotators agree on pairs of these gold (and length) differences, in expectation.

    Both see a pair in orders of their own; given the pair, their noise is independent. Of an annotator with itself it
    is the self-consistency that asking twice finds.
    """
    delta, length = np.asarray(difference, dtype=np.float64), np.asarray(words, dtype=np.float64)
    p, q = (annotator.shuffled_probability(delta + annotator.length_bias * length) for annotator in (one, other))
    return float(np.mean(p * q + (1 - p) * (1 - q)))
