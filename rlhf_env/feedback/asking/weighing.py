"""Votes of several people on the same responses, weighed: one judgement where there were several.

- `each`: every vote as it is. Five votes on a pair weigh five.
- `majority`: a pair that several people judged is one pair, as most of them said; it is left out where as many said one
  as the other. A response that several people rated has their median; of two scores in the middle both, each with half
  the weight.
- `dawid-skene`: a pair that several people judged is one pair in both orders, weighed p and 1 - p; a response that they
  rated has each score k, weighed p(k).

There p is the posterior probability in the model of Dawid & Skene, "Maximum Likelihood Estimation of Observer
Error-Rates Using the EM Algorithm" (Applied Statistics 28, 1979, equation 2.5): with the votes v_a of the annotators a,

    p(k) ~ prior(k) * product over a of P(a says v_a | k is true)

where each annotator's error rates and the prior are found by expectation maximisation (crowd-kit does that). A cross-
entropy with the label p is the loss of the pair in one order, weighed p, and of the other, weighed 1 - p. Somebody who
reliably says the opposite is read the other way round. Which response of a pair is called the first means nothing, so
each pair is put in twice, once in either order: the prior is then 1/2, and an annotator has one error rate. Of pairs,
each annotator is imagined to have judged seven more, five of them rightly: a Beta(5, 2) prior. Maximum likelihood alone
takes whoever agreed on a few pairs to be always right, and was worse than a majority where all are equally good.

A person who judged the same several times has one vote: what they said most often, of as many the last.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from rlhf_env.envs.global_generators import lent_generators
from rlhf_env.errors import MissingExtra
from rlhf_env.feedback.judgements import Judgement, Preference, Response
from rlhf_env.feedback.kinds import HIGHEST, LOWEST, Ranking, Rating
from rlhf_env.feedback.reward_models.calibration import wilson_interval

VoteWeighing = Literal["each", "majority", "dawid-skene"]
Learnable = Preference | Judgement
"""A pair, or a judgement that a reward model learns from as it is: a ranking, a rating."""
Ballot = Mapping[str, int]
"""What each annotator said of one unit."""
Labels = Mapping[int, float]
"""The probability of each label of one unit: 1 or -1 of a pair, a score of a rated response."""
_Vote = TypeVar("_Vote", Preference, Rating)

_IMAGINED_RIGHT, _IMAGINED_WRONG = 5, 2  # votes of each annotator before the first: see the header
_NEGLIGIBLE = 1e-6  # a share of a weight that is not worth a pair


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """What the votes say of one annotator."""

    annotator: str
    votes: int
    """All of theirs."""
    compared: int
    """Those on what others judged, too; of a tie among the others nothing is known, so it does not count."""
    agreed: float | None
    """The share of the compared ones in which the majority of the others said the same; None without any."""
    low: float | None
    high: float | None
    """The ends of its 95 % interval (Wilson)."""
    accuracy: float | None = None
    """How often they are right, as the model of Dawid & Skene estimates it; None where it was not asked."""

    @property
    def against(self) -> bool:
        """Whether they answer against the rest: even the upper end of the interval is below one half."""
        return self.high is not None and self.high < 0.5


@dataclass(frozen=True, kw_only=True)
class WeighedVotes:
    """What is left to learn once votes are weighed, in the order of the first votes."""

    learnable: tuple[Learnable, ...]
    votes: int
    """Votes that were weighed: pairs and ratings, one for each person and unit."""
    shared: int
    """Pairs and rated responses that two people or more judged."""
    undecided: int
    """Pairs that are left out, because the votes on them weigh the same on both sides."""
    reliabilities: tuple[Reliability, ...]
    """Of every annotator of a pair or a rating, the least reliable first."""


def weigh_votes(
    learnable: Iterable[Learnable], how: VoteWeighing = "majority", *, whole_orders: bool = False
) -> WeighedVotes:
    """Weigh the votes on each pair and each rated response.

    Rankings are votes on their pairs where somebody else judged one of those pairs; with `whole_orders` (which
    Plackett-Luce needs) they stay as they are, and so does what is neither a pair, a rating nor a ranking. Raises
    MissingExtra where "dawid-skene" needs crowd-kit and it is not installed.
    """
    given = list(learnable)
    if not whole_orders and _rankings_overlap(given):
        given = [pair for one in given for pair in (one.preferences if isinstance(one, Ranking) else [one])]
    pairs: dict[object, list[Preference]] = {}
    ratings: dict[object, list[Rating]] = {}
    order: dict[object, list[Learnable]] = {}  # by unit, in the order of the first votes
    for one in given:
        key: object = (id(one), len(order))
        if isinstance(one, Preference):
            pairs.setdefault(key := _pair_key(one), []).append(one)
        elif isinstance(one, Rating):
            ratings.setdefault(key := _rating_key(one), []).append(one)
        order.setdefault(key, []).append(one)
    sides = {key: _ballot(votes, _side) for key, votes in pairs.items()}
    scores = {key: _ballot(votes, _score) for key, votes in ratings.items()}
    accuracies: dict[str, float] = {}
    said: dict[object, Labels] = {}
    if how == "majority":
        said = {key: _majority(ballot) for key, ballot in sides.items()}
        said |= {key: _median(ballot) for key, ballot in scores.items()}
    elif how == "dawid-skene":
        of_pairs, right = _dawid_skene(sides, (1, -1), either_order=True)
        of_scores, accuracies = _dawid_skene(scores, range(LOWEST, HIGHEST + 1))
        said, accuracies = of_pairs | of_scores, accuracies | right
    kept: list[Learnable] = []
    undecided = 0
    for key, votes in order.items():
        if key not in said:
            kept += votes
        elif key in pairs:
            merged = _merged_pair(pairs[key], said[key])
            undecided += not merged
            kept += merged
        else:
            kept += _merged_rating(ratings[key], said[key])
    ballots = [*sides.values(), *scores.values()]
    return WeighedVotes(
        learnable=tuple(kept),
        votes=sum(map(len, ballots)),
        shared=sum(len(ballot) > 1 for ballot in ballots),
        undecided=undecided,
        reliabilities=tuple(_reliabilities(ballots, accuracies)),
    )


def _rankings_overlap(given: Sequence[Learnable]) -> bool:
    """Whether somebody else judged a pair of a ranking."""
    people: dict[object, str] = {}
    rankings = [one for one in given if isinstance(one, Ranking)]
    judged = [one for one in given if isinstance(one, Preference)] if rankings else []
    for pair in (*judged, *(pair for ranking in rankings for pair in ranking.preferences)):
        if people.setdefault(_pair_key(pair), pair.annotator) != pair.annotator:
            return True
    return False


def _text(response: Response) -> tuple[str, object]:
    return response.text, response.ids


def _pair_key(pair: Preference) -> object:
    return pair.prompt.text, pair.criterion, frozenset((_text(pair.chosen), _text(pair.rejected)))


def _rating_key(rating: Rating) -> object:
    return rating.prompt.text, rating.criterion, _text(rating.response)


def _side(pair: Preference) -> int:
    """1 or -1: which of the two was chosen, in an order that no vote changes."""
    return 1 if repr(_text(pair.chosen)) < repr(_text(pair.rejected)) else -1


def _score(rating: Rating) -> int:
    return rating.score


def _ballot(votes: Iterable[_Vote], label: Callable[[_Vote], int]) -> dict[str, int]:
    """By annotator what they said most often; of what they said as often, the last."""
    said: dict[str, list[int]] = {}
    for vote in sorted(votes, key=lambda one: one.created):  # those without a time stay in their order
        said.setdefault(vote.annotator, []).append(label(vote))
    return {who: max(reversed(labels), key=labels.count) for who, labels in said.items()}


# ---------------------------------------------------------------- what the votes say together


def _majority(ballot: Ballot) -> Labels:
    total = sum(ballot.values())
    return {} if total == 0 else {1 if total > 0 else -1: 1.0}


def _median(ballot: Ballot) -> Labels:
    """One score, or two of half a weight each."""
    ordered = sorted(ballot.values())
    middle = {ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]}
    return {score: 1 / len(middle) for score in middle}


def _dawid_skene(
    ballots: Mapping[object, Ballot], labels: Iterable[int], *, either_order: bool = False
) -> tuple[dict[object, Labels], dict[str, float]]:
    """By unit the probability of each label; by annotator how often they are right.

    Fitted to the units that two people or more judged: one vote alone agrees with itself. A pair with one vote is then
    as its annotator said with the probability that they are right; with 1 where nothing is known of them.
    """
    shared = {key: ballot for key, ballot in ballots.items() if len(ballot) > 1}
    alone = {key: next(iter(ballot.items())) for key, ballot in ballots.items() if len(ballot) == 1}
    said: dict[object, Labels] = {key: {label: 1.0} for key, (_, label) in alone.items()}
    if not shared:
        return said, {}
    if importlib.util.find_spec("crowdkit") is None:
        raise MissingExtra('votes = "dawid-skene": crowd-kit', "crowd")
    with warnings.catch_warnings(), lent_generators(0):  # it draws from numpy's generator where labels tie
        warnings.simplefilter("ignore")  # what pandas will drop one day is theirs to mend
        import pandas as pd
        from crowdkit.aggregation import DawidSkene

        rows = [
            (task, annotator, label)
            for number, ballot in enumerate(shared.values())
            for annotator, one in ballot.items()
            for task, label in (((number, one), (-1 - number, -one)) if either_order else ((number, one),))
        ]
        truth: dict[int, int] = {}
        if either_order:
            people = dict.fromkeys(annotator for _, annotator, _ in rows)
            imagined, truth = _imagined_votes(people, start=len(shared))
            rows += imagined
        votes = pd.DataFrame(rows, columns=["task", "worker", "label"])
        model = DawidSkene(n_iter=200).fit(votes, pd.Series(truth) if truth else None)
        posterior, errors, priors = model.probas_, model.errors_, model.priors_
        known = [label for label in labels if label in posterior.columns]
        for task, key in enumerate(shared):
            said[key] = {label: float(posterior.at[task, label]) for label in known}
        right = {
            str(annotator): float(sum(priors[label] * errors.at[(annotator, label), label] for label in known))
            for annotator in dict.fromkeys(votes["worker"])
            if all((annotator, label) in errors.index for label in known)
        }
    for key, (annotator, label) in alone.items():
        if either_order and annotator in right:
            said[key] = {label: right[annotator], -label: 1 - right[annotator]}
    return said, right


def _imagined_votes(people: Iterable[str], *, start: int) -> tuple[list[tuple[int, str, int]], dict[int, int]]:
    """Each person's votes on pairs of known truth, which are the prior; and the truth, by task from `start` on."""
    rows: list[tuple[int, str, int]] = []
    truth: dict[int, int] = {}
    for person in people:
        for right in [1] * _IMAGINED_RIGHT + [-1] * _IMAGINED_WRONG:
            for label in (1, -1):
                task = start + len(truth)
                rows.append((task, person, label * right))
                truth[task] = label
    return rows, truth


# ---------------------------------------------------------------- one judgement of several


def _merged_pair(votes: Sequence[Preference], said: Labels) -> list[Preference]:
    """The pair in the order that is likelier, and in the other with what is left; nothing where both are as likely."""
    side = max(said, key=lambda label: said[label], default=0)
    p = said.get(side, 0.0)
    if not side or abs(p - 0.5) < _NEGLIGIBLE:
        return []
    first = votes[0]
    if len(votes) == 1 and p == 1.0 and _side(first) == side:
        return [first]
    best, other = (first.chosen, first.rejected) if _side(first) == side else (first.rejected, first.chosen)
    stated = [_side(vote) * side * vote.margin for vote in votes if vote.margin is not None]
    weight = sum(vote.weight for vote in votes) / len(votes)
    merged = replace(
        first,
        chosen=best,
        rejected=other,
        chosen_was_first=first.chosen_was_first is (best is first.chosen),
        annotator=_together(votes),
        weight=weight * p,
        margin=max(0.0, sum(stated) / len(stated)) if stated else None,
        note="",
    )
    if (1 - p) * weight <= _NEGLIGIBLE:
        return [merged]
    # Both orders are one label, so they stay in one batch, as the pairs of a ranking do.
    merged = replace(merged, group=first.group or repr(_pair_key(first)))
    turned = replace(
        merged,
        chosen=other,
        rejected=best,
        chosen_was_first=not merged.chosen_was_first,
        weight=weight * (1 - p),
        margin=None,
    )
    return [merged, turned]


def _merged_rating(votes: Sequence[Rating], said: Labels) -> list[Rating]:
    weight = sum(vote.weight for vote in votes) / len(votes)
    return [
        replace(votes[0], score=score, annotator=_together(votes), weight=weight * p, note="")
        for score, p in sorted(said.items())
        if p * weight > _NEGLIGIBLE
    ]


def _together(votes: Sequence[_Vote]) -> str:
    people = {vote.annotator for vote in votes}
    return votes[0].annotator if len(people) == 1 else f"{len(people)} people"


# ---------------------------------------------------------------- who is reliable


def _reliabilities(ballots: Iterable[Ballot], accuracies: Mapping[str, float]) -> list[Reliability]:
    agreed: dict[str, list[bool]] = {}
    cast: Counter[str] = Counter()
    for ballot in ballots:
        cast.update(ballot.keys())
        for annotator, label in ballot.items():
            compared = agreed.setdefault(annotator, [])
            others = _most_common([other for who, other in ballot.items() if who != annotator])
            if others is not None:
                compared.append(label == others)
    found = []
    for annotator, compared in agreed.items():
        share = sum(compared) / len(compared) if compared else None
        low, high = (None, None) if share is None else wilson_interval(share, len(compared))
        found.append(
            Reliability(
                annotator=annotator,
                votes=cast[annotator],
                compared=len(compared),
                agreed=share,
                low=low,
                high=high,
                accuracy=accuracies.get(annotator),
            )
        )
    return sorted(found, key=lambda one: math.inf if one.agreed is None else one.agreed)


def _most_common(labels: Sequence[int]) -> int | None:
    """None where there is none, or where several are."""
    counts = {label: labels.count(label) for label in labels}
    most = [label for label, count in counts.items() if count == max(counts.values())]
    return most[0] if len(most) == 1 else None
