"""Human verification of a reward model: which of its opinions to put before people, and how often they share them.

The model's opinion of a pair is which response it scores higher, and by what log-odds. These are worth a look:

    disagreement   the members of an ensemble disagree most (`selection.disagreement_priority`): the data did not decide
    above people   a policy's response is scored above all that people wrote, or a data set holds, for its prompt
    repetitive     the favourite of its prompt is in the top twentieth of all responses by repetition
    long           the same, by characters
    contradicted   a recorded judgement says the opposite of a confident model
    random         any pair: what the others are to be compared with

The middle four are the suspiciously high scores. A suspicious response is shown beside the best of those it should not
beat so easily (for "repetitive" and "long": the best of the less repetitive, or shorter, ones). Each reason takes the
pairs that the model is surest of (of "disagreement": most of two minds about) and one pair of a prompt, so that
prompts are independent trials. Reasons take turns in the queue, and the annotator sees none of this: a judgement is
worth something here because it was made blind.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, zip_longest
from typing import Any, Literal

import numpy as np

from rlhf_env.envs.over_long import OverLongCount
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.asking.selection import disagreement_priority
from rlhf_env.feedback.judgements import Preference, Response
from rlhf_env.feedback.kinds import Comparison, preferences_of
from rlhf_env.feedback.reward_models.calibration import wilson_interval, win_probability
from rlhf_env.feedback.reward_models.scorer import Scorer, require_readable
from rlhf_env.feedback.store.items import Item, VerificationItem
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.text_measures import repeated_share, words
from rlhf_env.types import Float, Prompt

__all__ = ["REASONS", "Candidate", "Outcome", "checks_of", "opinions", "outcomes", "recorded"]

REASONS: Mapping[str, str] = {
    "disagreement": "the members of the ensemble disagree most",
    "above people": "a policy's response is scored above all that people wrote",
    "repetitive": "the favourite is among the most repetitive twentieth",
    "long": "the favourite is among the longest twentieth",
    "contradicted": "a judgement said the opposite of a confident model",
    "random": "any pair: what the others are to be compared with",
}

_TAIL = 0.95  # "the top twentieth"
_BATCH = 256  # responses between two reports of progress


@dataclass(frozen=True)
class Candidate:
    """A prompt's responses, and what the members of an ensemble think of them."""

    prompt: Prompt
    responses: Sequence[Response]
    scores: Float
    """float64[M, K]: by M members of K responses, in log-odds."""


def opinions(
    models: Sequence[Scorer],
    responses: Iterable[tuple[Prompt, Response]],
    *,
    over_long: Literal["refuse", "leave out"] = "refuse",
    on_over_long: Callable[[OverLongCount], object] = lambda _: None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> list[Candidate]:
    """What every member of every model says of the different responses to each prompt; prompts with one are left out.

    The heads of one model are told apart where all responses have their token ids; otherwise it is one member, the mean
    of its heads. `on_progress` hears the share that is done. Responses that a model cannot read are refused or left
    out; they are not cut, because people are shown the whole text. `on_over_long` hears how many were left out.
    """
    # Both bring torch, which who reads outcomes does not need.
    from rlhf_env.feedback.asking.collecting import by_prompt
    from rlhf_env.feedback.reward_models.ensemble import RewardEnsemble

    together = RewardEnsemble(models)
    if over_long == "leave out" and together.context is not None:
        texts = list(responses)
        lengths = together.lengths(texts)
        responses = [text for text, tokens in zip(texts, lengths, strict=True) if tokens <= together.context]
        if len(responses) < len(texts):
            on_over_long(OverLongCount(of=len(texts), left_out=len(texts) - len(responses)))
    groups = [(prompt, group) for prompt, group in by_prompt(responses) if len(group) > 1]
    texts = [(prompt, response) for prompt, group in groups for response in group]
    if not texts:
        raise DataError("no prompt in the store has two different responses: there is nothing to compare")
    require_readable(together, texts)
    written = all(None not in (response.ids, response.prompt_ids, response.finish_reason) for _, response in texts)
    parts = []
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        if written:
            scores = (
                together.score_members([response.episode(prompt) for prompt, response in batch])
                * together.log_odds_per_point
            )
        else:
            scores = np.stack([model.score_responses(batch) * model.log_odds_per_point for model in models])
        parts.append(scores)
        on_progress(min(1.0, (start + _BATCH) / len(texts)))
    ends = np.cumsum([len(group) for _, group in groups])[:-1]
    split = np.split(np.concatenate(parts, axis=1), ends, axis=1)
    return [Candidate(prompt, group, scores) for (prompt, group), scores in zip(groups, split, strict=True)]


def recorded(store: PreferenceStore, criterion: str = "overall") -> list[Preference]:
    """What people said of pairs by `criterion` so far, verdicts of verification left out."""
    checked = {item for item, asked in store.items() if asked.purpose == "verification"}
    preferences = preferences_of(judgement for item, judgement in store.votes() if item not in checked)
    return [preference for preference in preferences if preference.criterion == criterion]


@dataclass(frozen=True)
class _Pair:
    """The model favours `responses[0]` by `log_odds`; the larger `urgency`, the earlier people see it."""

    prompt: Prompt
    responses: tuple[Response, Response]
    log_odds: float
    urgency: float


def checks_of(
    candidates: Sequence[Candidate],
    preferences: Iterable[Preference],
    rng: np.random.Generator,
    *,
    model: str,
    count: int = 20,
    confidence: float = 0.8,
    **settings: Any,
) -> list[VerificationItem]:
    """Up to `count` pairs for each reason, in the order people are to see them.

    `preferences` are recorded judgements; `model` is a name, and confident where it gives one side more than
    `confidence`. `settings` are those of Item: criterion, overlap, seed. Priorities fall from 2 to 1, before what was
    asked for otherwise.
    """
    if count < 1 or not 0.5 <= confidence < 1:
        raise ConfigError(f"count: at least 1 is needed, confidence: between 1/2 and 1; got {count} and {confidence}")
    by_reason: dict[str, Iterator[_Pair]] = {
        "disagreement": _disagreement(candidates),
        "above people": _above_people(candidates),
        "repetitive": _in_the_tail(candidates, lambda text: repeated_share(words(text))),
        "long": _in_the_tail(candidates, len),
        "contradicted": _contradicted(candidates, preferences, float(np.log(confidence / (1 - confidence)))),
        "random": _random(candidates, rng),
    }
    queues = [[(reason, pair) for pair in _most_urgent(pairs, count)] for reason, pairs in by_reason.items()]
    turns = [turn for turn in chain.from_iterable(zip_longest(*queues)) if turn is not None]
    return [
        VerificationItem(
            item=Item(
                kind="comparison",
                prompt=pair.prompt,
                responses=pair.responses,
                purpose="verification",
                priority=2 - place / len(turns),
                **settings,
            ),
            model=model,
            reason=reason,
            favoured=pair.responses[0],
            log_odds=pair.log_odds,
        )
        for place, (reason, pair) in enumerate(turns)
    ]


def _most_urgent(pairs: Iterable[_Pair], count: int) -> list[_Pair]:
    """At most `count`, the most urgent one of a prompt; of equally urgent ones the earlier."""
    best: dict[str, _Pair] = {}
    for pair in pairs:
        if pair.prompt.text not in best or pair.urgency > best[pair.prompt.text].urgency:
            best[pair.prompt.text] = pair
    return sorted(best.values(), key=lambda pair: -pair.urgency)[:count]


def _pair(candidate: Candidate, one: int, other: int, urgency: float | None = None) -> _Pair:
    """Of two responses, whichever the members favour on average first; more urgent the surer they are by default."""
    scores = candidate.scores.mean(axis=0)
    high, low = (one, other) if scores[one] >= scores[other] else (other, one)
    log_odds = float(scores[high] - scores[low])
    return _Pair(
        candidate.prompt,
        (candidate.responses[high], candidate.responses[low]),
        log_odds,
        log_odds if urgency is None else urgency,
    )


def _disagreement(candidates: Sequence[Candidate]) -> Iterator[_Pair]:
    for candidate in candidates:
        if len(candidate.scores) > 1:
            first, second = np.array(list(combinations(range(len(candidate.responses)), 2))).T
            worth = disagreement_priority(candidate.scores[:, first], candidate.scores[:, second])
            top = int(worth.argmax())
            if worth[top] > 1e-12:  # rounding is no disagreement
                yield _pair(candidate, int(first[top]), int(second[top]), float(worth[top]))


def _above_people(candidates: Sequence[Candidate]) -> Iterator[_Pair]:
    for candidate in candidates:
        scores = candidate.scores.mean(axis=0)
        policies = [i for i, response in enumerate(candidate.responses) if response.author.kind == "policy"]
        others = [i for i, response in enumerate(candidate.responses) if response.author.kind != "policy"]
        if policies and others:
            high, best = max(policies, key=lambda i: scores[i]), max(others, key=lambda i: scores[i])
            if scores[high] > scores[best]:
                yield _pair(candidate, high, best)


def _in_the_tail(candidates: Sequence[Candidate], measure: Callable[[str], float]) -> Iterator[_Pair]:
    measured = [
        np.array([measure(response.text) for response in candidate.responses], dtype=np.float64)
        for candidate in candidates
    ]
    bound = float(np.quantile(np.concatenate(measured), _TAIL))
    for candidate, values in zip(candidates, measured, strict=True):
        scores = candidate.scores.mean(axis=0)
        high = int(scores.argmax())
        less = np.flatnonzero(values < values[high])
        if values[high] >= bound and len(less):
            yield _pair(candidate, high, int(less[scores[less].argmax()]))


def _contradicted(
    candidates: Sequence[Candidate], preferences: Iterable[Preference], at_least: float
) -> Iterator[_Pair]:
    by_text = {candidate.prompt.text: candidate for candidate in candidates}
    for preference in preferences:
        candidate = by_text.get(preference.prompt.text)
        if candidate is None:
            continue
        sides = (preference.chosen, preference.rejected)
        places = [
            next((i for i, r in enumerate(candidate.responses) if r.says_the_same_as(side)), None) for side in sides
        ]
        winner, loser = places
        if winner is None or loser is None or winner == loser:
            continue
        pair = _pair(candidate, winner, loser)
        if pair.responses[0] is candidate.responses[loser] and pair.log_odds > at_least:
            yield pair


def _random(candidates: Sequence[Candidate], rng: np.random.Generator) -> Iterator[_Pair]:
    for candidate in candidates:
        one, other = rng.choice(len(candidate.responses), size=2, replace=False)
        yield _pair(candidate, int(one), int(other), float(rng.random()))


# ---------------------------------------------------------------- what came out


@dataclass(frozen=True)
class Outcome:
    """How often people share a model's opinion of the pairs that were asked about for one reason."""

    model: str
    reason: str
    pairs: int
    """Pairs that people were asked about."""
    votes: int
    """Verdicts on them; "cannot say" is none. Without votes the numbers below are NaN."""
    agreement: float
    """The mean over prompts of the share of votes for the response that the model favours, a tie counting half."""
    low: float
    """With `high`, Wilson's 95 % interval of the agreement; prompts are the trials."""
    high: float
    stated: float
    """What the model expects of the agreement: its mean probability for the response that it favours."""

    @property
    def why(self) -> str:
        """The reason in words; empty for one that this version does not know."""
        return REASONS.get(self.reason, "")

    def __str__(self) -> str:
        """`0.40 [0.29, 0.53]`"""
        return f"{self.agreement:.2f} [{self.low:.2f}, {self.high:.2f}]" if self.votes else "-"


def outcomes(store: PreferenceStore) -> list[Outcome]:
    """By model and reason, in the order of `REASONS`; what no verdict is known of has no votes."""
    votes: Mapping[int | None, list[Comparison]] = defaultdict(list)
    for item, judgement in store.votes():
        if isinstance(judgement, Comparison):
            votes[item].append(judgement)
    asked: dict[tuple[str, str], list[tuple[int, VerificationItem]]] = defaultdict(list)
    for item, check in store.checks():
        asked[check.model, check.reason].append((item, check))
    order: dict[str, int] = {reason: place for place, reason in enumerate(REASONS)}
    in_order = sorted(asked.items(), key=lambda entry: (entry[0][0], order.get(entry[0][1], len(order))))
    return [_outcome(model, reason, checks, votes) for (model, reason), checks in in_order]


def _outcome(
    model: str,
    reason: str,
    checks: Sequence[tuple[int, VerificationItem]],
    votes: Mapping[int | None, Sequence[Comparison]],
) -> Outcome:
    of_prompt: dict[str, list[tuple[float, float]]] = defaultdict(list)  # (agreed, stated) of every vote
    for item, check in checks:
        for vote in votes.get(item, ()):
            if vote.verdict != "cannot say":
                preference = vote.preference
                agreed = 0.5 if preference is None else float(preference.chosen == check.favoured)
                of_prompt[check.item.prompt.text].append((agreed, float(win_probability(check.log_odds))))
    if not of_prompt:
        return Outcome(model, reason, len(checks), 0, *[float("nan")] * 4)
    agreement, stated = np.mean([np.mean(rows, axis=0) for rows in of_prompt.values()], axis=0)
    low, high = wilson_interval(float(agreement), len(of_prompt))
    count = sum(map(len, of_prompt.values()))
    return Outcome(model, reason, len(checks), count, float(agreement), low, high, float(stated))
