"""A comparison: which of two responses is better, a tie, both of them bad, or not to be told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import Preference, Response, judgement_problems, margin_problem, no_winner_problem
from rlhf_env.feedback.kinds.dialects import Answered, Dialect, MessagePart, Names
from rlhf_env.feedback.kinds.form import ChoiceInput, Form, Option, by_criterion
from rlhf_env.feedback.kinds.kind import JudgementKind, Opinion, opinion_of_pair
from rlhf_env.types import Prompt

Verdict = Literal["first", "second", "tie", "both bad", "cannot say"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_SPELLINGS = {"both_bad": "both bad", "bothbad": "both bad", "tie (bothbad)": "both bad", "cannot_say": "cannot say"}
BOTH_BAD = 3.0  # as an opinion, beside the 0, 1 and 2 of `opinion_of_pair`


def verdict_of(word: object) -> str | None:
    """The verdict without a side that a word of other programs says, whatever its case; None for another word."""
    plain = word.strip().casefold() if isinstance(word, str) else ""
    plain = _SPELLINGS.get(plain, plain)
    return plain if plain in VERDICTS[2:] else None


@dataclass(frozen=True)
class Comparison:
    """One judgement of two responses, in the order they were shown."""

    prompt: Prompt
    first: Response
    second: Response
    verdict: Verdict
    annotator: str
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""
    """When, as ISO 8601."""
    seconds: float | None = None
    """How long the judgement took."""
    group: str = ""
    """Not empty for a pair that was read off a larger judgement (see `Preference.group`)."""
    margin: float | None = None
    """By how much the better one is better, in the annotator's own scale; None where nobody said."""
    note: str = ""
    """What the annotator wrote beside the judgement."""
    flag: bool = False
    """The annotator wants whoever asked to look at it."""

    def __post_init__(self) -> None:
        decided = self.verdict in ("first", "second")
        findings.refuse(
            findings.one_of("verdict", self.verdict, VERDICTS),
            decided and no_winner_problem(self.first, self.second),
            *judgement_problems(self),
            findings.text("criterion", self.criterion),
            findings.text("group", self.group, empty_is_fine=True),
            margin_problem(self.margin),
            findings.text("note", self.note, empty_is_fine=True),
            findings.one_of("flag", self.flag, (True, False)),
        )

    @classmethod
    def of(cls, pair: Preference) -> Comparison:
        """The comparison that a preference says the same as."""
        first, second = (pair.chosen, pair.rejected) if pair.chosen_was_first else (pair.rejected, pair.chosen)
        return cls(
            prompt=pair.prompt,
            first=first,
            second=second,
            verdict="first" if pair.chosen_was_first else "second",
            annotator=pair.annotator,
            criterion=pair.criterion,
            weight=pair.weight,
            created=pair.created,
            seconds=pair.seconds,
            group=pair.group,
            margin=pair.margin,
            note=pair.note,
        )

    @property
    def responses(self) -> tuple[Response, ...]:
        return self.first, self.second

    @property
    def preference(self) -> Preference | None:
        """The pair with the weight of the judgement.

        None for "cannot say", for a tie (it says two scores are equal, which no pair with a winner can), and for "both
        bad", which prefers neither.
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
            margin=self.margin,
            note=self.note,
        )


def _pairs(comparison: Comparison) -> Iterable[Preference]:
    return () if comparison.preference is None else (comparison.preference,)


def _opinions(comparison: Comparison) -> Mapping[str, list[Opinion]]:
    """ "Cannot say" is no opinion of the pair; "both bad" is another one than a tie."""
    ranks = {"first": (1, 2), "second": (2, 1), "tie": (1, 1), "both bad": (1, 1)}.get(comparison.verdict)
    if ranks is None:
        return {comparison.criterion: []}
    unit, value = opinion_of_pair(comparison.prompt, (comparison.first, comparison.second), ranks)
    return {comparison.criterion: [(unit, BOTH_BAD if comparison.verdict == "both bad" else value)]}


def _form(guidelines: Mapping[str, str]) -> Form:
    criterion, text = next(iter(guidelines.items()))
    return Form(
        question=f"Which response is better{by_criterion(criterion)}?",
        guidelines=text,
        inputs=(
            ChoiceInput(
                options=(
                    Option(value="first", key="1", label="Response 1 is better", under=0),
                    Option(value="second", key="2", label="Response 2 is better", under=1),
                    Option(value="tie", key="t", label="Equally good"),
                    Option(value="both bad", key="b", label="Both bad"),
                    Option(value="cannot say", key="n", label="Cannot say"),
                )
            ),
        ),
    )


# Argilla: the question "preference", with the name of a response, "tie" or "cannot say" as its value. Label Studio:
# `pairwise`, or `choices` of "tie" or "cannot say".


def _to_argilla(answer: object, names: Names) -> list[MessagePart]:
    sides = {"first": names[0], "second": names[-1]}
    return [MessagePart(name="preference", value=sides.get(str(answer), answer))]


def _from_argilla(part: MessagePart, names: Names) -> Answered | None:
    if not isinstance(part.value, str) or len(names) != 2:
        return None
    sides = dict(zip(names, ("first", "second"), strict=True))
    verdict = sides.get(part.value) or verdict_of(part.value)
    return None if verdict is None else Answered(value=verdict)


_SIDES = {"left": "first", "right": "second"}


def _to_label_studio(answer: object, names: Names) -> list[MessagePart]:
    for side, verdict in _SIDES.items():
        if verdict == answer:
            return [MessagePart(name="preference", type="pairwise", value={"selected": side}, about=",".join(names))]
    return [MessagePart(name="undecided", type="choices", value={"choices": [answer]})]


def _from_label_studio(part: MessagePart, names: Names) -> Answered | None:
    match part.type, part.value:
        case "pairwise", {"selected": side}:
            return Answered(value=_SIDES.get(str(side), side))
        case "choices", {"choices": [choice]} if len(names) == 2:
            verdict = dict(zip(names, ("first", "second"), strict=True)).get(str(choice)) or verdict_of(choice)
            return None if verdict is None else Answered(value=verdict)
    return None


COMPARISON = JudgementKind(
    name="comparison",
    plural="comparisons",
    judgement=Comparison,
    responses=("first", "second"),
    answer=("verdict",),
    text_answer=True,
    form=_form,
    pairs=_pairs,
    opinions=_opinions,
    tallies={
        "preferences": ("first", "second"),
        "ties": ("tie",),
        "both bad": ("both bad",),
        "cannot say": ("cannot say",),
    },
    rare_tallies=("both bad",),
    simulation="compare",
    argilla=Dialect(write=_to_argilla, read=_from_argilla),
    label_studio=Dialect(write=_to_label_studio, read=_from_label_studio),
)
