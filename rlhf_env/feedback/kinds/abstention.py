"""An abstention: somebody was asked for a judgement of another kind, and says instead why there is none.

It is a vote on the item like any other, so that nobody waits for one, and it teaches a reward model nothing. Of a
comparison the same is said by its verdicts "cannot say" and "both bad".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import Response, judgement_problems
from rlhf_env.feedback.kinds.form import ChoiceInput, Form, Option, by_criterion
from rlhf_env.feedback.kinds.kind import JudgementKind
from rlhf_env.types import Prompt

Reason = Literal["cannot say", "all bad"]
ABSTENTION_REASONS: tuple[Reason, ...] = get_args(Reason)
CANNOT_SAY: Reason = "cannot say"


@dataclass(frozen=True)
class Abstention:
    """Responses that somebody saw and did not judge."""

    prompt: Prompt
    responses: tuple[Response, ...]
    """In the order they were shown."""
    reason: Reason
    """"all bad" is said of two or more: none of them deserves to be placed before another."""
    annotator: str
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""
    """When, as ISO 8601."""
    seconds: float | None = None
    """How long it took."""
    note: str = ""
    """What the annotator wrote beside it."""
    flag: bool = False
    """The annotator wants whoever asked to look at it."""

    def __post_init__(self) -> None:
        findings.refuse(
            findings.one_of("reason", self.reason, ABSTENTION_REASONS),
            not self.responses and "responses: an abstention is about one response or more",
            self.reason == "all bad"
            and len(self.responses) == 1
            and "reason: 'all bad' is said of two or more responses",
            *judgement_problems(self),
            findings.text("criterion", self.criterion),
            findings.text("note", self.note, empty_is_fine=True),
            findings.one_of("flag", self.flag, (True, False)),
        )


def abstention_options(responses: int) -> tuple[Option, ...]:
    """What may be said instead of a judgement of so many responses."""
    cannot_say = Option(value="cannot say", key="n", label="Cannot say")
    if responses < 2:
        return (cannot_say,)
    return Option(value="all bad", key="b", label="Both bad" if responses == 2 else "All bad"), cannot_say


def _form(guidelines: Mapping[str, str]) -> Form:
    criterion, text = next(iter(guidelines.items()))
    question = f"Why can these not be judged{by_criterion(criterion)}?"
    return Form(question=question, guidelines=text, inputs=(ChoiceInput(options=abstention_options(2)),))


ABSTENTION = JudgementKind(
    name="abstention",
    plural="abstentions",
    judgement=Abstention,
    responses=("responses",),
    answer=("reason",),
    text_answer=True,
    form=_form,
    is_asked=False,
)
