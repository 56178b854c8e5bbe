"""Human evaluation: who writes the better responses, from comparisons that are made blind.

`blind_pairs` makes the items that people judge on the annotation page, `tournament` reads what came out.

Two numbers for each author. The win rate is what was seen: the share of comparisons won, a tie counting half (both bad
is one, too); it depends on whom one was compared with. The rating does not: it is the strength in the Bradley-Terry
model, where i beats j with probability sigmoid(strength_i - strength_j), on Elo's scale (400 points are odds of ten to
one; the mean is 0).

Judgements of one prompt depend on each other, so that intervals resample prompts, not judgements. Where every prompt
came out alike there is nothing to resample: the win rate then has Wilson's interval with prompts as trials, the rating
none (its ends are NaN).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from rlhf_env.errors import ConfigError
from rlhf_env.feedback.asking.agreement import RESAMPLES, Interval, bootstrap, unless_alike
from rlhf_env.feedback.judgements import Author, Response, prompt_digest
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.feedback.store.items import Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Float, Prompt

ELO = 400 / np.log(10)
_SHARES = {
    "first": (1.0, 0.0),
    "second": (0.0, 1.0),
    "tie": (0.5, 0.5),
    "both bad": (0.5, 0.5),
}  # of a judgement, by what it said


@dataclass(frozen=True)
class Contender:
    """An author in comparisons with other authors."""

    author: Author
    comparisons: int
    """How many comparisons with other authors there are."""
    win_rate: Interval
    """The share of them that was won, a tie counting half."""
    rating: Interval
    """The strength in the Bradley-Terry model, on Elo's scale."""

    @property
    def name(self) -> str:
        """As written: make it fit to be shown."""
        at = "" if self.author.temperature is None else f" at {self.author.temperature:g}"
        return f"{self.author.kind} {self.author.name}{at}"


@dataclass(frozen=True)
class BlindPairs:
    """Items for evaluation."""

    items: Sequence[Item]
    prompts: int
    """Prompts that two authors or more have answered."""
    same: int
    """Pairs that are left out because they say the same: nobody can prefer one of two equal responses."""


def blind_pairs(answers: Sequence[Sequence[tuple[Prompt, Response]]], **settings: Any) -> BlindPairs:
    """Every two authors' responses to one prompt as an item; `answers[i]` are those of one author.

    Prompts are compared by text. Of several responses of one author to a prompt the first is taken, so that nobody
    counts for more. `settings` are those of Item: criterion, overlap, seed. Raises ConfigError where nothing can be
    compared.
    """
    by_prompt: dict[str, list[tuple[Prompt, Response]]] = defaultdict(list)
    for given in answers:
        for text, answer in {prompt.text: (prompt, response) for prompt, response in reversed(given)}.items():
            by_prompt[text].append(answer)
    shared = [answered for answered in by_prompt.values() if len(answered) > 1]
    if not shared:
        raise ConfigError("no two of them answer the same prompt: have them answer the same ones, word for word")
    met = [(answered[0][0], (one, other)) for answered in shared for (_, one), (_, other) in combinations(answered, 2)]
    apart = [(prompt, pair) for prompt, pair in met if not pair[0].says_the_same_as(pair[1])]
    items = [
        Item(kind="comparison", prompt=prompt, responses=pair, purpose="evaluation", **settings)
        for prompt, pair in apart
    ]
    return BlindPairs(items, len(shared), len(met) - len(apart))


def contests(store: PreferenceStore) -> Mapping[str, list[Comparison]]:
    """By criterion, the comparisons that say who is better, wherever they come from.

    Verdicts on a reward model's opinions are left out: those pairs were chosen for what the model thinks of them.
    """
    checked = {item for item, asked in store.items() if asked.purpose == "verification"}
    by_criterion: dict[str, list[Comparison]] = defaultdict(list)
    for item, judgement in store.votes():
        if isinstance(judgement, Comparison) and item not in checked:
            by_criterion[judgement.criterion].append(judgement)
    return by_criterion


def tournament(
    comparisons: Iterable[Comparison], rng: np.random.Generator, *, resamples: int = RESAMPLES
) -> list[Contender]:
    """Every author, the highest win rate first.

    "Cannot say" is no result, and two responses of one author say nothing about who is better: both are left out.
    """
    results = [
        comparison
        for comparison in comparisons
        if comparison.verdict in _SHARES and comparison.first.author != comparison.second.author
    ]
    authors = list(dict.fromkeys(response.author for comparison in results for response in comparison.responses))
    places = {author: place for place, author in enumerate(authors)}
    prompts: dict[str, int] = {}
    rows = [prompts.setdefault(prompt_digest(comparison.prompt), len(prompts)) for comparison in results]
    wins = np.zeros((len(prompts), len(authors), len(authors)))  # P, A, A: how often row beat column
    for on, comparison in zip(rows, results, strict=True):
        one, other = (places[response.author] for response in comparison.responses)
        share, rest = _SHARES[comparison.verdict]
        wins[on, one, other] += share
        wins[on, other, one] += rest
    contenders = []
    drawn = int(rng.integers(2**63))  # the same prompts for all: what one wins in a resample, the others lose in it
    for place, author in enumerate(authors):
        own = wins[wins[:, place].sum(1) + wins[:, :, place].sum(1) > 0]  # a draw without one of them has no rate
        win_rate = bootstrap(partial(_win_rate, place), own, np.random.default_rng(drawn), resamples=resamples)
        rating = bootstrap(partial(_rating, place), wins, np.random.default_rng(drawn), resamples=resamples)
        contenders.append(
            Contender(
                author=author,
                comparisons=round(float(own[:, place].sum() + own[:, :, place].sum())),
                win_rate=unless_alike(win_rate, *wilson_interval(win_rate.value, len(own))),
                rating=unless_alike(rating, np.nan, np.nan),
            )
        )
    return sorted(contenders, key=lambda contender: -contender.win_rate.value)


def strengths(wins: Float) -> Float:
    """Bradley-Terry strengths float64[A] of `wins` float64[A, A] (row beat column so often), with mean 0.

    Each pair that met gets half a win either way beforehand: for two authors that is Jeffreys' prior, as Firth (1993)
    has it, and it keeps who never lost from a strength of infinity. NaN where the authors fall into groups that never
    met: their strengths cannot be compared (Ford 1957).
    """
    met = (wins + wins.T) > 0
    reached = np.linalg.matrix_power(np.eye(len(met)) + met, len(met)) > 0
    if not reached.all():
        return np.full(len(wins), np.nan)
    prior = wins + 0.5 * met
    games = prior + prior.T
    strength: Float = np.zeros(len(wins))
    for _ in range(100):  # Newton; the likelihood is concave
        expected = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
        slope = prior.sum(1) - (games * expected).sum(1)
        spread = games * expected * (1 - expected)
        curvature = np.diag(spread.sum(1)) - spread + 1 / len(wins)  # the last term holds the mean at 0
        step = np.linalg.solve(curvature, slope)
        strength += step
        if np.abs(step).max() < 1e-12:
            break
    centred: Float = strength - strength.mean()
    return centred


def _win_rate(place: int, wins: Float) -> float:
    won, lost = wins[:, place].sum(), wins[:, :, place].sum()
    return float(won / (won + lost))


def _rating(place: int, wins: Float) -> float:
    return float(ELO * strengths(wins.sum(0))[place])
