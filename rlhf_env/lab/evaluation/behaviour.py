"""What changed between two sets of texts: phrases, formats, kinds of answers; and what a reward pays for.

Everything here reads texts alone, so it compares two policies, two checkpoints or two files. A text is one observation:
a word that one text says nine times counts once, for the nine are not independent.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from rlhf_env.errors import DataError
from rlhf_env.feedback.asking.selection import k_centre, ngram_vectors
from rlhf_env.feedback.reward_models.calibration import wilson_interval
from rlhf_env.lab.statistics import Estimate, holm, sign_flip_p, student_mean
from rlhf_env.types import Bool, Float, Int

_WORD = re.compile(r"\w+(?:['’]\w+)*")

# Each is a search in the whole text, upper and lower case alike; none can backtrack far.
MARKUP: Mapping[str, re.Pattern[str]] = {
    "refusal": re.compile(
        r"\bi (?:can't|can’t|cannot|can not|won't|won’t|am not able to|am unable to)\b"
        r"|\bi['’]m (?:not able|unable|sorry,? but)\b|\bi am sorry,? but\b|\bas an ai\b",
        re.IGNORECASE,
    ),
    "apology": re.compile(r"\b(?:sorry|apologi[sz]e|apologies)\b", re.IGNORECASE),
    "question": re.compile(r"\?"),
    "exclamation": re.compile(r"!"),
    "list": re.compile(r"^[ \t]*(?:[-*•]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE),
    "code block": re.compile(r"```"),
    "heading": re.compile(r"^#{1,6} \S", re.MULTILINE),
    "link": re.compile(r"\bhttps?://", re.IGNORECASE),
    "empty": re.compile(r"\A\s*\Z"),
}


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation: "It's fine, THANKS!" -> it's, fine, thanks."""
    return [found.group() for found in _WORD.finditer(text.lower())]


def phrases_of(text: str, longest: int) -> set[str]:
    """The different runs of 1 to `longest` words."""
    words = words_of(text)
    return {
        " ".join(words[start : start + length])
        for length in range(1, longest + 1)
        for start in range(len(words) - length + 1)
    }


# ---------------------------------------------------------------- phrases gained and lost


@dataclass(frozen=True)
class PhraseChange:
    """How the use of a phrase changed: `before`, `after` are the shares of texts that say it.

    `log_odds` is the difference of the log odds (above 0: gained) and `z` that in standard deviations; `p` is
    two-sided, after Holm's correction for all phrases tested.
    """

    phrase: str
    before: float
    after: float
    log_odds: float
    z: float
    p: float


def phrase_changes(
    before: Sequence[str], after: Sequence[str], *, longest: int = 3, least: int = 5, prior: float = 10.0
) -> list[PhraseChange]:
    """Every phrase of up to `longest` words, most gained first: log odds ratios with an informative Dirichlet prior.

    Monroe, Colaresi and Quinn 2008, "Fightin' Words" (Political Analysis 16:4), eqs. 16 and 18 to 22, where the
    observations are texts that say a phrase or do not. The prior is worth `prior` texts that say it as often as all
    texts together do; it keeps a phrase that was seen once from looking like the largest change of all. Phrases in
    fewer than `least` of all texts, and those in every text, are not tested: both are known without knowing which texts
    are which, so the correction stays right.
    """
    _need_texts(before, after)
    said = [Counter(phrase for text in texts for phrase in phrases_of(text, longest)) for texts in (before, after)]
    sizes = (len(before), len(after))
    together = sum(sizes)
    tested = [p for p, count in (said[0] + said[1]).items() if least <= count < together]
    changes = []
    for phrase in tested:
        share = (said[0][phrase] + said[1][phrase]) / together
        log_odds, variance = [], 0.0
        for counts, size in zip(said, sizes, strict=True):
            yes = counts[phrase] + prior * share
            no = size - counts[phrase] + prior * (1.0 - share)
            log_odds.append(math.log(yes / no))
            variance += 1.0 / yes + 1.0 / no
        changes.append((phrase, log_odds[1] - log_odds[0], math.sqrt(variance)))
    ps = holm([2.0 * NormalDist().cdf(-abs(change / deviation)) for _, change, deviation in changes])
    found = [
        PhraseChange(
            phrase, said[0][phrase] / sizes[0], said[1][phrase] / sizes[1], change, change / deviation, min(1.0, p)
        )
        for (phrase, change, deviation), p in zip(changes, ps, strict=True)
    ]
    return sorted(found, key=lambda it: (-it.z, it.phrase))


# ---------------------------------------------------------------- formats


@dataclass(frozen=True)
class RateChange:
    """The shares of texts with a property, and the difference `after` - `before` with its 95 % interval."""

    name: str
    before: float
    after: float
    difference: Estimate


def format_changes(before: Sequence[str], after: Sequence[str]) -> list[RateChange]:
    """How often texts of either set have each of `MARKUP`."""
    _need_texts(before, after)
    return [
        rate_change(
            name, *(np.array([pattern.search(text) is not None for text in texts]) for texts in (before, after))
        )
        for name, pattern in MARKUP.items()
    ]


def tone_changes(before: Float | None, after: Float | None) -> list[RateChange]:
    """How often texts of either set sound positive or negative, from sentiment in [-1, 1]; none without it.

    0.05 to either side of 0 is where the scale's authors draw the lines (Hutto and Gilbert 2014, see the reward
    `sentiment`).
    """
    if before is None or after is None:
        return []
    return [
        rate_change("positive in tone", before >= 0.05, after >= 0.05),
        rate_change("negative in tone", before <= -0.05, after <= -0.05),
    ]


def rate_change(name: str, before: Sequence[bool] | Bool, after: Sequence[bool] | Bool) -> RateChange:
    """Two shares and their difference, with the interval of Newcombe 1998 (Statistics in Medicine 17, method 10).

    It is built from the two Wilson intervals, so it has a width where a share is 0 or 1. The two sets count as
    independent: answers to the same prompts make the interval too wide rather than too narrow.
    """
    a, b = float(np.mean(after)), float(np.mean(before))
    (low_a, high_a), (low_b, high_b) = wilson_interval(a, len(after)), wilson_interval(b, len(before))
    low = a - b - math.hypot(a - low_a, high_b - b)
    high = a - b + math.hypot(high_a - a, b - low_b)
    return RateChange(name, b, a, Estimate(a - b, low, high))


# ---------------------------------------------------------------- kinds of answers


@dataclass(frozen=True)
class Cluster:
    """Texts that are alike: the shares of either set that are in it, and the text nearest to its middle."""

    before: float
    after: float
    typical: str


def clusters(before: Sequence[str], after: Sequence[str], count: int = 8, *, rounds: int = 50) -> list[Cluster]:
    """Both sets together in `count` clusters or fewer, the one that grew most first.

    k-means (Lloyd) on word and bigram vectors from a k-centre start, which needs no random numbers; it ends when no
    text moves, or after `rounds`.
    """
    _need_texts(before, after)
    texts = [*before, *after]
    vectors = ngram_vectors(texts)
    distinct = len(np.unique(vectors, axis=0))
    home = _k_means(vectors, vectors[k_centre(vectors, min(count, distinct))], rounds)
    late = np.arange(len(texts)) >= len(before)
    found = []
    for number in np.unique(home):
        inside = home == number
        middle = vectors[inside].mean(axis=0)
        nearest = np.flatnonzero(inside)[np.linalg.norm(vectors[inside] - middle, axis=1).argmin()]
        shares = (float(inside[~late].mean()), float(inside[late].mean()))
        found.append(Cluster(*shares, texts[int(nearest)]))
    return sorted(found, key=lambda it: (it.before - it.after, it.typical))


def _k_means(vectors: Float, centres: Float, rounds: int) -> Int:
    """int64[N]: the number of each row's centre. A centre that loses all its rows stays where it is."""
    centres = centres.copy()
    home = np.full(len(vectors), -1)
    for _ in range(rounds):
        squared = (vectors**2).sum(axis=1)[:, None] - 2.0 * vectors @ centres.T + (centres**2).sum(axis=1)
        moved = squared.argmin(axis=1)
        if np.array_equal(moved, home):
            break
        home = moved
        for number in np.unique(home):
            centres[number] = vectors[home == number].mean(axis=0)
    return home


# ---------------------------------------------------------------- what the reward pays for


@dataclass(frozen=True)
class PaidPhrase:
    """What a phrase is worth to a reward: `pay` is how much a text that says it loses when it is taken out.

    `usual` is what as many words are worth elsewhere: the median over the other phrases, none where there are no
    others. `before`, `after`: shares of texts that say it; `times`: how often those after say it. `brought_in` is `pay`
    times the growth in use, in units of reward a text. `exploited`: paid for significantly more than is usual, and
    significantly gained.
    """

    phrase: str
    pay: Estimate
    usual: float
    before: float
    after: float
    times: float
    brought_in: float
    exploited: bool


def paid_phrases(
    before: Sequence[str],
    after: Sequence[str],
    score: Callable[[Sequence[tuple[int, str]]], Float],
    *,
    stream: np.random.Generator,
    longest: int = 3,
    candidates: int = 50,
    texts_each: int = 32,
    alpha: float = 0.05,
) -> list[PaidPhrase]:
    """The phrases of the texts `after` that a reward pays most for, those that brought in most first.

    A phrase is taken out wherever a text says it, with what stands between it and the next word, and the text is scored
    again (occlusion; Zeiler and Fergus 2014, arXiv 1311.2901, for words Li et al. 2016, arXiv 1612.08220).
    `score(pairs)` gives float64[N] for pairs (i, text): `text` in the place of `after[i]`. Looked at are `candidates`
    phrases, half of them those gained most and half those used most, in the first `texts_each` texts that say them.
    Both tests behind `exploited`, that of random signs for the pay and that of `phrase_changes`, are at `alpha` after
    Holm's correction. Of phrases that contain each other, the one that brought in most is listed.
    """
    changes = {change.phrase: change for change in phrase_changes(before, after, longest=longest)}
    tested = _candidates(changes, after, longest, candidates)
    if not tested:
        return []
    saying = {phrase: [i for i, text in enumerate(after) if phrase in phrases_of(text, longest)] for phrase in tested}
    pairs = {
        phrase: [((i, after[i]), (i, without(after[i], phrase))) for i in saying[phrase][:texts_each]]
        for phrase in tested
    }
    asked = list(dict.fromkeys(text for both in pairs.values() for pair in both for text in pair))
    scored = dict(zip(asked, np.asarray(score(asked), dtype=np.float64).tolist(), strict=True))
    losses = {phrase: np.array([scored[full] - scored[cut] for full, cut in both]) for phrase, both in pairs.items()}
    times = {phrase: float(np.mean([times_said(after[i], phrase) for i in saying[phrase]])) for phrase in tested}
    usual = _usual({p: float(losses[p].mean()) for p in tested}, {p: times[p] * (p.count(" ") + 1) for p in tested})
    # A reward for length pays for every phrase: what is tested is what a phrase gets beyond that.
    ps = holm([sign_flip_p(losses[phrase] - usual[phrase], stream=stream) for phrase in tested])
    found = []
    for phrase, p in zip(tested, ps, strict=True):
        change, pay = changes[phrase], student_mean(losses[phrase])
        gained = change.z > 0 and change.p < alpha
        found.append(
            PaidPhrase(
                phrase,
                pay,
                usual[phrase],
                change.before,
                change.after,
                times[phrase],
                pay.value * (change.after - change.before),
                gained and pay.value > max(usual[phrase], 0.0) and p < alpha,
            )
        )
    ranked = sorted(found, key=lambda it: (not it.exploited, -it.brought_in, -len(it.phrase), it.phrase))
    return list(_without_overlaps(ranked))


def without(text: str, phrase: str) -> str:
    """`text` with every occurrence of the words of `phrase` taken out, each with what follows up to the next word."""
    wanted = phrase.split(" ")
    spans = [(found.start(), found.end(), found.group().lower()) for found in _WORD.finditer(text)]
    kept, place, word = [], 0, 0
    while word + len(wanted) <= len(spans):
        if [said for _, _, said in spans[word : word + len(wanted)]] == wanted:
            kept.append(text[place : spans[word][0]])
            word += len(wanted)
            place = spans[word][0] if word < len(spans) else len(text)
        else:
            word += 1
    return "".join([*kept, text[place:]]).rstrip() if kept else text


def times_said(text: str, phrase: str) -> int:
    """How often `text` says `phrase`, without overlaps."""
    words, wanted = words_of(text), phrase.split(" ")
    count = place = 0
    while place + len(wanted) <= len(words):
        found = words[place : place + len(wanted)] == wanted
        count += found
        place += len(wanted) if found else 1
    return count


def _candidates(changes: Mapping[str, PhraseChange], after: Sequence[str], longest: int, count: int) -> list[str]:
    """Half of them those gained most, half those said by most texts; only such as texts still say.

    One that says a word twice is left out: that a phrase is repeated is seen in how many times a text says it.
    """
    said = Counter(phrase for text in after for phrase in phrases_of(text, longest))
    plain = [p for p in changes if said[p] and len(set(p.split(" "))) == p.count(" ") + 1]
    by_use = sorted(plain, key=lambda p: (-said[p], p))
    by_gain = [p for p in plain if changes[p].z > 0]
    return list(dict.fromkeys([*by_gain[: count - count // 2], *by_use[: count // 2]]))


def _usual(pay: Mapping[str, float], words: Mapping[str, float]) -> dict[str, float]:
    """What `words` of each phrase would be paid at the median price of a word in the phrases that do not overlap it."""
    return {
        phrase: words[phrase] * float(np.median([pay[p] / words[p] for p in pay if not _overlap(p, phrase)] or [0.0]))
        for phrase in pay
    }


def _overlap(phrase: str, other: str) -> bool:
    return f" {phrase} " in f" {other} " or f" {other} " in f" {phrase} "


def _without_overlaps(ranked: Sequence[PaidPhrase]) -> Iterator[PaidPhrase]:
    kept: list[str] = []
    for it in ranked:
        if not any(_overlap(it.phrase, other) for other in kept):
            kept.append(it.phrase)
            yield it


def _need_texts(before: Sequence[str], after: Sequence[str]) -> None:
    if not before or not after:
        raise DataError(f"texts of two policies are compared, got {len(before)} before and {len(after)} after")
