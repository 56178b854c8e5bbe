"""What people (or simulated annotators) say about responses, and the weighted pairs that models learn from.

A `Response` to a prompt, with who wrote it; four kinds of judgement, each as it was made, responses in the order they
were shown; a `Preference`, the weighted pair that training reads. How each kind becomes pairs:

    Comparison      `.preference`: the pair itself; none for a tie or "cannot say"
    Ranking         `.preferences`: the C(K, 2) pairs of K responses
    Rating          `rating_preferences`: ratings of one prompt by one person, read as a ranking
    CriteriaRating  `criteria_preferences`: the same, criterion by criterion
    any of them     `preferences_of`
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np

from rlhf_env.errors import DataError
from rlhf_env.feedback import findings
from rlhf_env.types import Episode, FinishReason, Prompt

AuthorKind = Literal["policy", "human", "dataset"]
Verdict = Literal["first", "second", "tie", "cannot say"]
Kind = Literal["comparison", "rating", "ranking", "criteria"]
Ids = tuple[int, ...]

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
KINDS: tuple[Kind, ...] = get_args(Kind)
LOWEST, HIGHEST = 1, 5  # the ends of the Likert scale


@dataclass(frozen=True)
class Author:
    """Who wrote a response. `name` is a policy's, a person's or a file's; `temperature` is a policy's."""

    kind: AuthorKind
    name: str
    temperature: float | None = None

    def __post_init__(self) -> None:
        findings.refuse(
            findings.one_of("author kind", self.kind, get_args(AuthorKind)),
            findings.text("author name", self.name),
            self.temperature is not None and findings.number("temperature", self.temperature, zero_is_fine=True),
        )


@dataclass(frozen=True)
class Response:
    """One answer to a prompt.

    What a policy wrote keeps its token ids: `ids`, the end token included when `finish_reason` is "stop", after
    `prompt_ids`, the prompt as that policy read it. Ids are never made again from the text. Text that no policy wrote
    has none of the three.
    """

    text: str
    author: Author
    ids: Ids | None = None
    prompt_ids: Ids | None = None
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        reason = self.finish_reason
        findings.refuse(
            findings.text("text", self.text, empty_is_fine=True),
            findings.token_ids("ids", self.ids),
            findings.token_ids("prompt_ids", self.prompt_ids),
            (self.ids is None) != (self.prompt_ids is None) and "ids and prompt_ids: both or neither are given",
            reason is not None and findings.one_of("finish_reason", reason, get_args(FinishReason)),
        )

    @classmethod
    def from_episode(cls, episode: Episode, author: Author) -> Response:
        return cls(
            text=episode.response,
            author=author,
            ids=tuple(episode.response_ids.tolist()),
            prompt_ids=tuple(episode.prompt_ids.tolist()),
            finish_reason=episode.finish_reason,
        )

    def episode(self, prompt: Prompt) -> Episode:
        """The response as rewards see it. Raises DataError when its token ids are not known."""
        if self.ids is None or self.prompt_ids is None or self.finish_reason is None:
            raise DataError(f"the response {self.text!r} has no token ids: it was not written by a policy")
        return Episode(
            prompt=prompt,
            prompt_ids=np.array(self.prompt_ids, dtype=np.int64),
            response=self.text,
            response_ids=np.array(self.ids, dtype=np.int64),
            finish_reason=self.finish_reason,
            actions=np.ones(len(self.ids), dtype=np.bool_),
        )

    def says_the_same_as(self, other: Response) -> bool:
        """Equal text, and equal ids where both have them: an answer cut short differs from the same one finished."""
        return self.text == other.text and (self.ids is None or other.ids is None or self.ids == other.ids)


@dataclass(frozen=True)
class Comparison:
    """One judgement of two responses, in the order they were shown.

    `created` is ISO 8601, `seconds` the time the judgement took. `group` is not empty for a pair read off a larger
    judgement (see `Preference`).
    """

    prompt: Prompt
    first: Response
    second: Response
    verdict: Verdict
    annotator: str
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""
    seconds: float | None = None
    group: str = ""

    def __post_init__(self) -> None:
        decided = self.verdict in ("first", "second")
        findings.refuse(
            *prompt_problems(self.prompt),
            findings.one_of("verdict", self.verdict, VERDICTS),
            decided and self.first.says_the_same_as(self.second) and "chosen equal to rejected: there is no winner",
            *_circumstance_problems(self),
            findings.text("group", self.group, empty_is_fine=True),
        )

    @property
    def responses(self) -> tuple[Response, ...]:
        return self.first, self.second

    @property
    def preference(self) -> Preference | None:
        """The pair with the weight of the judgement.

        None for "cannot say", and for a tie: that says two scores are equal, which no pair with a winner can.
        """
        if self.verdict not in ("first", "second"):
            return None
        return Preference(
            prompt=self.prompt,
            chosen=self.first if self.verdict == "first" else self.second,
            rejected=self.second if self.verdict == "first" else self.first,
            annotator=self.annotator,
            criterion=self.criterion,
            weight=self.weight,
            created=self.created,
            chosen_was_first=self.verdict == "first",
            seconds=self.seconds,
            group=self.group,
        )


@dataclass(frozen=True)
class Preference:
    """A weighted pair with a winner. `chosen_was_first` keeps the order in which the two were shown.

    Pairs of one `group` (not "") were read off one judgement. They share its noise, so training keeps them in one
    batch, where their weights are those of one judgement.
    """

    prompt: Prompt
    chosen: Response
    rejected: Response
    annotator: str
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""
    chosen_was_first: bool = True
    seconds: float | None = None
    group: str = ""

    def __post_init__(self) -> None:
        findings.refuse(findings.one_of("chosen_was_first", self.chosen_was_first, (True, False)))
        _ = self.comparison  # raises for the rest

    @property
    def comparison(self) -> Comparison:
        return Comparison(
            self.prompt,
            *((self.chosen, self.rejected) if self.chosen_was_first else (self.rejected, self.chosen)),
            verdict="first" if self.chosen_was_first else "second",
            annotator=self.annotator,
            criterion=self.criterion,
            weight=self.weight,
            created=self.created,
            seconds=self.seconds,
            group=self.group,
        )


@dataclass(frozen=True)
class Rating:
    """A Likert score of one response: 1 (worst) to 5 (best)."""

    prompt: Prompt
    response: Response
    score: int
    annotator: str
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        findings.refuse(
            *prompt_problems(self.prompt),
            findings.whole_number("score", self.score, LOWEST, HIGHEST),
            *_circumstance_problems(self),
        )

    @property
    def responses(self) -> tuple[Response, ...]:
        return (self.response,)


@dataclass(frozen=True)
class Ranking:
    """K responses put in order: `ranks[i]` is the place of `responses[i]`, 1 the best; equal places are ties.

    Places are dense: 1, 2, 2, 3. `responses` are in the order they were shown.
    """

    prompt: Prompt
    responses: tuple[Response, ...]
    ranks: tuple[int, ...]
    annotator: str
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        findings.refuse(
            *prompt_problems(self.prompt),
            len(self.responses) < 2 and f"responses: a ranking needs at least 2, got {len(self.responses)}",
            rank_problem(self.ranks, len(self.responses)),
            *(
                f"responses: {i + 1} and {j + 1} say the same"
                for (i, a), (j, b) in combinations(enumerate(self.responses), 2)
                if a.says_the_same_as(b)
            ),
            *_circumstance_problems(self),
        )

    @property
    def preferences(self) -> list[Preference]:
        """The pairs of different rank of the C(K, 2), each of weight `weight / C(K, 2)`, in one group.

        All pairs of a ranking together weigh as much as one comparison, as in Ouyang et al. 2022 (2203.02155, equation
        1): treated as independent, each response would count in K - 1 updates, and the model overfits. Ties leave their
        share unused: a ranking that says less weighs less.
        """
        share = self.weight / (len(self.responses) * (len(self.responses) - 1) / 2)
        group = judgement_digest(self)
        return [
            Preference(
                prompt=self.prompt,
                chosen=self.responses[i if first_wins else j],
                rejected=self.responses[j if first_wins else i],
                annotator=self.annotator,
                criterion=self.criterion,
                weight=share,
                created=self.created,
                chosen_was_first=first_wins,
                seconds=self.seconds,
                group=group,
            )
            for i, j in combinations(range(len(self.responses)), 2)
            if self.ranks[i] != self.ranks[j]
            for first_wins in (self.ranks[i] < self.ranks[j],)
        ]


@dataclass(frozen=True)
class CriteriaRating:
    """One response, a Likert score for each named criterion: {"helpful": 4, "harmless": 5}."""

    prompt: Prompt
    response: Response
    scores: Mapping[str, int] = field(hash=False)
    annotator: str
    weight: float = 1.0
    created: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        findings.refuse(
            *prompt_problems(self.prompt),
            *criteria_problems(self.scores),
            *_circumstance_problems(self),
        )

    @property
    def criterion(self) -> str:
        """Which scores these are: "harmless, helpful"."""
        return ", ".join(sorted(self.scores))

    @property
    def responses(self) -> tuple[Response, ...]:
        return (self.response,)

    @property
    def ratings(self) -> list[Rating]:
        """One rating per criterion."""
        return [
            Rating(self.prompt, self.response, score, self.annotator, name, self.weight, self.created, self.seconds)
            for name, score in self.scores.items()
        ]


Judgement = Comparison | Rating | Ranking | CriteriaRating


def kind_of(judgement: Judgement) -> Kind:
    kinds: dict[type, Kind] = {
        Comparison: "comparison",
        Rating: "rating",
        Ranking: "ranking",
        CriteriaRating: "criteria",
    }
    return kinds[type(judgement)]


def answer_of(judgement: Judgement) -> Any:
    """What was said, as JSON holds it: a verdict, a score, the ranks, the scores by criterion."""
    match judgement:
        case Comparison():
            return judgement.verdict
        case Rating():
            return judgement.score
        case Ranking():
            return list(judgement.ranks)
        case CriteriaRating():
            return dict(judgement.scores)


def make_judgement(
    kind: Kind, prompt: Prompt, responses: Sequence[Response], answer: Any, *, criterion: str, **circumstances: Any
) -> Judgement:
    """The judgement of a kind, from responses in the order shown and what `answer_of` gives. Raises DataError."""
    findings.refuse(findings.one_of("kind", kind, KINDS))
    wanted = {"comparison": 2, "rating": 1, "criteria": 1}.get(kind)
    findings.refuse(
        wanted is not None and len(responses) != wanted and f"responses: a {kind} has {wanted}, got {len(responses)}"
    )
    about = {"criterion": criterion, **circumstances}
    match kind:
        case "comparison":
            return Comparison(prompt, responses[0], responses[1], answer, **about)
        case "rating":
            return Rating(prompt, responses[0], answer, **about)
        case "ranking":
            return Ranking(prompt, tuple(responses), tuple(answer) if isinstance(answer, list) else answer, **about)
        case "criteria":
            return CriteriaRating(prompt, responses[0], answer, **circumstances)


def preferences_of(judgements: Iterable[Judgement]) -> Iterator[Preference]:
    """The weighted pairs of judgements of any kind.

    Those of comparisons and rankings come in order; those of ratings, which need all ratings of a prompt, come last.
    """
    ratings: list[Rating] = []
    for judgement in judgements:
        match judgement:
            case Comparison():
                if (preference := judgement.preference) is not None:
                    yield preference
            case Ranking():
                yield from judgement.preferences
            case Rating():
                ratings.append(judgement)
            case CriteriaRating():
                ratings += judgement.ratings
    yield from rating_preferences(ratings)


def rating_preferences(ratings: Iterable[Rating]) -> Iterator[Preference]:
    """Pairs of the responses that one annotator scored differently, on one prompt by one criterion.

    Scores of one person are compared with each other only, since people use a scale differently. K rated responses are
    read as a ranking of K with ties: each pair weighs 1/C(K, 2) of the ratings' mean weight. Of several ratings of one
    response the last one counts.
    """
    by_scale: dict[tuple[str, str, str, str], dict[Response, Rating]] = {}
    for it in ratings:
        rated = by_scale.setdefault((it.prompt.id, it.prompt.text, it.annotator, it.criterion), {})
        same = next((response for response in rated if response.says_the_same_as(it.response)), it.response)
        rated.pop(same, None)
        rated[it.response] = it
    for rated in by_scale.values():
        if len(rated) > 1:
            last = max(rated.values(), key=lambda rating: rating.created)
            levels = sorted({rating.score for rating in rated.values()}, reverse=True)
            yield from Ranking(
                prompt=last.prompt,
                responses=tuple(rated),
                ranks=tuple(1 + levels.index(rating.score) for rating in rated.values()),
                annotator=last.annotator,
                criterion=last.criterion,
                weight=sum(rating.weight for rating in rated.values()) / len(rated),
                created=last.created,
            ).preferences


def criteria_preferences(judgements: Iterable[CriteriaRating]) -> Iterator[Preference]:
    """The pairs of each criterion by itself, under its name: `rating_preferences` of every named score."""
    return rating_preferences(rating for judgement in judgements for rating in judgement.ratings)


def judgement_digest(it: Judgement) -> str:
    """sha256 of everything a judgement says, order of the responses included: two that are equal are one."""
    prompt = prompt_digest(it.prompt)
    shown = [response_digest(prompt, response) for response in it.responses]
    circumstances = [it.annotator, it.criterion, float(it.weight), it.created, answer_of(it), shown]
    # What schema version 1 did not know stays out where it is not given, so that digests of its rows hold.
    group = it.group if isinstance(it, Comparison) else ""
    later = [] if it.seconds is None and not group else [it.seconds, group]
    return digest(kind_of(it), prompt, *circumstances, *later)


def prompt_digest(prompt: Prompt) -> str:
    return digest(prompt.id, prompt.text, prompt.meta)


def response_digest(prompt: str, it: Response) -> str:
    """`prompt` is the digest of the prompt it answers."""
    temperature = None if it.author.temperature is None else float(it.author.temperature)
    by = (it.author.kind, it.author.name, temperature)
    return digest(prompt, it.text, it.ids, it.prompt_ids, it.finish_reason, by)


def digest(*content: object) -> str:
    """sha256 in hexadecimal of anything JSON can hold."""
    return hashlib.sha256(findings.as_json(content).encode("ascii")).hexdigest()


def rank_problem(ranks: object, count: int) -> str:
    if not isinstance(ranks, tuple) or not all(type(rank) is int for rank in ranks):
        return "ranks: expected a tuple of whole numbers"
    if len(ranks) != count:
        return f"ranks: {len(ranks)} for {count} responses"
    if set(ranks) != set(range(1, len(set(ranks)) + 1)):
        return f"ranks: {ranks} are not dense places 1, 2, ... (equal places are ties)"
    return ""


def criteria_problems(scores: object) -> Iterator[str]:
    if not isinstance(scores, Mapping) or not scores:
        yield "scores: expected a score for each of one or more named criteria"
        return
    for name, score in scores.items():
        yield findings.text("criterion", name) or findings.whole_number(f"scores[{name}]", score, LOWEST, HIGHEST)


def prompt_problems(prompt: Prompt) -> Iterator[str]:
    yield findings.text("prompt id", prompt.id)
    yield findings.text("prompt", prompt.text, empty_is_fine=True)
    yield findings.json_object("prompt meta", prompt.meta)


def _circumstance_problems(it: Judgement) -> Iterator[str]:
    yield findings.text("annotator", it.annotator)
    if not isinstance(it, CriteriaRating):
        yield findings.text("criterion", it.criterion)
    yield findings.number("weight", it.weight)
    yield findings.text("created", it.created, empty_is_fine=True)
    if it.seconds is not None:
        yield findings.number("seconds", it.seconds, zero_is_fine=True)
