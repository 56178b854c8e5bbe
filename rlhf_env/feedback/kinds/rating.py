"""A rating: a score of one response on the Likert scale, 1 to 5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import Preference, Response, judgement_problems
from rlhf_env.feedback.kinds.dialects import Answered, Dialect, MessagePart, Names
from rlhf_env.feedback.kinds.form import ChoiceInput, Form, Option, by_criterion
from rlhf_env.feedback.kinds.kind import HIGHEST, LOWEST, JudgementKind, ScoredResponse
from rlhf_env.feedback.kinds.ranking import Ranking
from rlhf_env.types import Prompt

SCALE = tuple(
    Option(value=score, label=label, key=str(score))
    for score, label in enumerate(("very bad", "bad", "fair", "good", "very good"), start=LOWEST)
)


@dataclass(frozen=True)
class Rating:
    """A Likert score of one response."""

    prompt: Prompt
    response: Response
    score: int
    """1 (worst) to 5 (best)."""
    annotator: str
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""
    """When, as ISO 8601."""
    seconds: float | None = None
    """How long the judgement took."""
    note: str = ""
    """What the annotator wrote beside the judgement."""
    flag: bool = False
    """The annotator wants whoever asked to look at it."""

    def __post_init__(self) -> None:
        findings.refuse(
            findings.whole_number("score", self.score, LOWEST, HIGHEST),
            *judgement_problems(self),
            findings.text("criterion", self.criterion),
            findings.text("note", self.note, empty_is_fine=True),
            findings.one_of("flag", self.flag, (True, False)),
        )

    @property
    def responses(self) -> tuple[Response, ...]:
        return (self.response,)


def rating_preferences(ratings: Iterable[ScoredResponse]) -> Iterator[Preference]:
    """Pairs of the responses that one annotator scored differently, on one prompt by one criterion.

    Scores of one person are compared with each other only, since people use a scale differently. K rated responses are
    read as a ranking of K with ties: each pair weighs 1/C(K, 2) of the ratings' mean weight. Of several ratings of one
    response the last one counts.
    """
    by_scale: dict[tuple[str, str, str, str], dict[Response, ScoredResponse]] = {}
    for rating in ratings:
        scale = (rating.prompt.id, rating.prompt.text, rating.annotator, rating.criterion)
        rated = by_scale.setdefault(scale, {})
        same = next((response for response in rated if response.says_the_same_as(rating.response)), rating.response)
        rated.pop(same, None)
        rated[rating.response] = rating
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


def _itself(rating: Rating) -> Iterable[Rating]:
    return (rating,)


def _form(guidelines: Mapping[str, str]) -> Form:
    criterion, text = next(iter(guidelines.items()))
    question = f"How good is this response{by_criterion(criterion)}?"
    return Form(question=question, guidelines=text, inputs=(ChoiceInput(options=SCALE, steps=True),))


# Argilla: a whole number as the value of the question "rating". Label Studio: a `rating` whose tag is named "rating".


def _to_argilla(answer: object, _: Names) -> list[MessagePart]:
    return [MessagePart(name="rating", value=answer)]


def _from_argilla(part: MessagePart, _: Names) -> Answered | None:
    return Answered(value=part.value) if part.name == "rating" and not isinstance(part.value, (str, list)) else None


def _to_label_studio(answer: object, _: Names) -> list[MessagePart]:
    return [MessagePart(name="rating", type="rating", value={"rating": answer})]


def _from_label_studio(part: MessagePart, _: Names) -> Answered | None:
    match part.type, part.name, part.value:
        case "rating", "rating", {"rating": score}:
            return Answered(value=score)
    return None


RATING = JudgementKind(
    name="rating",
    plural="ratings",
    judgement=Rating,
    responses=("response",),
    answer=("score",),
    form=_form,
    ratings=_itself,
    level="ordinal",
    simulation="rate",
    argilla=Dialect(write=_to_argilla, read=_from_argilla),
    label_studio=Dialect(write=_to_label_studio, read=_from_label_studio),
)
