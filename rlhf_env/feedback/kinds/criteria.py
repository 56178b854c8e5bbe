"""A rating by criteria: a score of one response for each of several named criteria."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import Response, judgement_problems
from rlhf_env.feedback.kinds.dialects import Answered, Dialect, MessagePart, Names
from rlhf_env.feedback.kinds.form import ChoiceInput, Form, Option
from rlhf_env.feedback.kinds.kind import HIGHEST, LOWEST, JudgementKind
from rlhf_env.feedback.kinds.rating import SCALE, Rating
from rlhf_env.types import Prompt


@dataclass(frozen=True)
class CriteriaRating:
    """One response, a Likert score for each named criterion."""

    prompt: Prompt
    response: Response
    scores: Mapping[str, int] = field(hash=False)
    """{"helpful": 4, "harmless": 5}"""
    annotator: str
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
            *_score_problems(self.scores),
            *judgement_problems(self),
            findings.text("note", self.note, empty_is_fine=True),
            findings.one_of("flag", self.flag, (True, False)),
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
            Rating(
                self.prompt,
                self.response,
                score,
                self.annotator,
                name,
                self.weight,
                self.created,
                self.seconds,
                self.note,
            )
            for name, score in self.scores.items()
        ]


def _score_problems(scores: object) -> Iterator[str]:
    if not isinstance(scores, Mapping) or not scores:
        yield "scores: expected a score for each of one or more named criteria"
        return
    for name, score in scores.items():
        yield findings.text("criterion", name) or findings.whole_number(f"scores[{name}]", score, LOWEST, HIGHEST)


def _ratings(judgement: CriteriaRating) -> list[Rating]:
    return judgement.ratings


_CANNOT_SAY = Option(value="cannot say", label="cannot say")


def _form(guidelines: Mapping[str, str]) -> Form:
    return Form(
        question="How good is this response by each of these?",
        inputs=tuple(
            ChoiceInput(name=name, label=name, guidelines=text, options=(*SCALE, _CANNOT_SAY), steps=True)
            for name, text in guidelines.items()
        ),
        submit="Submit scores",
        shortcuts=(
            ("1 – 5", "Score the next criterion, very bad to very good; 6: cannot say"),
            ("Tab, arrows", "Go back and change a score"),
            ("Enter", "Submit the scores"),
        ),
    )


# Argilla and Label Studio: a rating by that criterion for each question, or tag, that is not named "rating".


def _to_argilla(answer: object, _: Names) -> list[MessagePart]:
    assert isinstance(answer, Mapping)
    return [MessagePart(name=name, value=score) for name, score in answer.items()]


def _from_argilla(part: MessagePart, _: Names) -> Answered | None:
    return Answered(value=part.value, field=part.name) if isinstance(part.value, (int, float)) else None


def _to_label_studio(answer: object, _: Names) -> list[MessagePart]:
    assert isinstance(answer, Mapping)
    return [MessagePart(name=name, type="rating", value={"rating": score}) for name, score in answer.items()]


def _from_label_studio(part: MessagePart, _: Names) -> Answered | None:
    match part.type, part.value:
        case "rating", {"rating": score}:
            return Answered(value=score, field=part.name)
    return None


CRITERIA = JudgementKind(
    name="criteria",
    plural="criteria",
    judgement=CriteriaRating,
    responses=("response",),
    answer=("scores",),
    many_criteria=True,
    form=_form,
    ratings=_ratings,
    level="ordinal",
    argilla=Dialect(write=_to_argilla, read=_from_argilla),
    label_studio=Dialect(write=_to_label_studio, read=_from_label_studio),
)
