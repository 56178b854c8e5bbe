"""What the rest of the house has to know of a kind of judgement: its fields, what they mean, and how people are asked.

A kind is one file with a frozen dataclass (a `Judgement`) and one `JudgementKind`. The store, the formats of
`interchange`, the page, agreement and the fitting of reward models read that entry and nothing else. The built-in kinds
are listed in `registry.py`; a plugin offers others by the hook `register_judgements`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from rlhf_env.errors import DataError
from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import Judgement, Preference, Response, digest, prompt_digest, response_digest
from rlhf_env.feedback.kinds.dialects import Dialect, argilla_by_fields, label_studio_by_fields
from rlhf_env.feedback.kinds.form import Form, OptionValue
from rlhf_env.types import Prompt

LOWEST, HIGHEST = 1, 5  # the ends of the Likert scale
LATER = ("group", "margin", "note", "flag")  # circumstances that are kept only where they are given
CIRCUMSTANCES = ("annotator", "criterion", "weight", "created", "seconds", *LATER)

MeasurementLevel = Literal["nominal", "ordinal", "interval"]
"""Whether values are names, an order, or numbers whose differences mean something."""
Opinion = tuple[str, float]
"""(unit, value): about which responses, and what was said of them as a number."""
Simulation = Literal["compare", "rank", "rate", "judge"]


class ScoredResponse(Judgement, Protocol):
    """A judgement that gives one response a score from 1 (worst) to 5 (best)."""

    @property
    def response(self) -> Response: ...

    @property
    def score(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a reward model learns from: responses in their order, or the score of one."""

    prompt: Prompt
    responses: tuple[Response, ...]
    """The best first."""
    weight: float
    score: int | None = None
    """Of a single response, 1 to 5."""
    group: str = ""
    """Lessons of one group (not "") stay in one batch."""
    margin: float = 0.0
    """How much further apart than equal the scores of two responses are wanted."""


def lesson_of_pair(preference: Preference) -> Lesson:
    return Lesson(
        prompt=preference.prompt,
        responses=(preference.chosen, preference.rejected),
        weight=preference.weight,
        group=preference.group,
        margin=preference.margin or 0.0,
    )


def opinion_of(prompt: Prompt, response: Response, value: float) -> Opinion:
    """What somebody said of one response."""
    return _unit(prompt, [response]), value


def opinion_of_pair(prompt: Prompt, responses: tuple[Response, Response], ranks: tuple[int, int]) -> Opinion:
    """Which of two responses somebody placed higher: 0, 1, or 2 for a tie; the order shown does not matter.

    Responses are taken in the order of their digests.
    """
    in_order = _place(prompt, responses[0]) <= _place(prompt, responses[1])
    first, second = ranks if in_order else ranks[::-1]
    return _unit(prompt, responses), 2.0 if first == second else float(second < first)


def _unit(prompt: Prompt, responses: Sequence[Response]) -> str:
    """Known by content: files of other people about the same texts are about the same unit."""
    return digest(prompt.text, sorted(response.text for response in responses))


def _place(prompt: Prompt, response: Response) -> str:
    """What orders the two of a pair. Of a text without an author it is the text, not the file that it came from."""
    if response.author.kind == "dataset" and response.ids is None:
        return digest(prompt.text, response.text)
    return response_digest(prompt_digest(prompt), response)


def _nothing(_: Judgement) -> tuple[()]:
    return ()


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgementKind:
    """One kind of judgement. Called with a prompt, responses and an answer it makes the judgement."""

    name: str
    """What stores, files and commands call it."""
    plural: str
    """What counts of it are called: "comparisons"."""
    judgement: Callable[..., Judgement]
    """The frozen dataclass: `prompt`, the responses, what was said, and `annotator`, `criterion`, `weight`, `created`
    and `seconds`. It refuses what makes no sense with a DataError."""
    responses: tuple[str, ...]
    """Its fields that hold a response each, in the order shown; ("responses",) is a tuple of two or more."""
    answer: tuple[str, ...]
    """Its fields that hold what was said. Of one field the answer is the value, of several an object by their names: in
    votes, files and stores alike. A kind of any number of responses has one field, a list with an entry for each."""
    text_answer: bool = False
    """The answer is a text, which a cell of a table holds as it is; any other answer is JSON there."""
    form: Callable[[Mapping[str, str]], Form]
    """What the annotation page asks, given the guidelines of each criterion that an item names."""
    is_asked: bool = True
    """People can be asked for it; otherwise it is only an answer to what they were asked."""
    many_criteria: bool = False
    """An item names several criteria, and the answer is an object with a value for each."""
    pairs: Callable[..., Iterable[Preference]] = _nothing
    """The weighted pairs that a judgement decides by itself."""
    ratings: Callable[..., Iterable[ScoredResponse]] = _nothing
    """The scores that a judgement gives; those of one person, prompt and criterion become pairs together."""
    lessons: Callable[..., Iterable[Lesson]] | None = None
    """`lessons(judgement, whole_orders)`: what a reward model learns from it, where that is more than its pairs and
    ratings. `whole_orders` says that the loss takes orders (Plackett-Luce) and not pairs."""
    opinions: Callable[..., Mapping[str, Sequence[Opinion]]] | None = None
    """What agreement between people is counted from, by criterion. By default the scores of `ratings`."""
    level: MeasurementLevel = "nominal"
    """What the values of `opinions` are, for Krippendorff's alpha."""
    tallies: Mapping[str, tuple[OptionValue, ...]] = field(default_factory=dict)
    """Values of the first field of the answer that are counted by themselves: {"ties": ("tie",)}."""
    rare_tallies: tuple[str, ...] = ()
    """Those of `tallies` that counts name only where there are any."""
    simulation: Simulation = "judge"
    """The method of a simulated annotator that judges it."""
    argilla: Dialect | None = None
    """How Argilla keeps it: question -> value. By default a question for each field of the answer."""
    label_studio: Dialect | None = None
    """How Label Studio keeps it: a list of results. By default a tag for each field of the answer."""

    @property
    def count(self) -> int | None:
        """How many responses it judges; None for any number of two or more."""
        return None if self.responses == ("responses",) else len(self.responses)

    def takes(self, circumstance: str) -> bool:
        """Whether its judgements have a field for a circumstance such as the note."""
        return circumstance in self._fields and circumstance not in self.answer

    @functools.cached_property
    def _fields(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.judgement).parameters

    @functools.cached_property
    def in_argilla(self) -> Dialect:
        return self.argilla or argilla_by_fields(self.name, self.answer)

    @functools.cached_property
    def in_label_studio(self) -> Dialect:
        return self.label_studio or label_studio_by_fields(self.name, self.answer)

    # ---------------------------------------------------------------- plain data

    def answer_of(self, judgement: Judgement) -> object:
        """What was said, as JSON holds it."""
        values = self._values(judgement)
        return values if len(self.answer) > 1 else values[self.answer[0]]

    def circumstances_of(self, judgement: Judgement) -> dict[str, object]:
        """Who judged, when, by what: the fields for it that this kind has."""
        return {name: getattr(judgement, name) for name in CIRCUMSTANCES if name in self._fields}

    def later_of(self, judgement: Judgement) -> dict[str, object]:
        """Its group (see `Preference.group`), margin, note and flag: those that this kind has, where given."""
        given = {name: getattr(judgement, name) for name in LATER if self.takes(name)}
        return {name: value for name, value in given.items() if value not in (None, "") and value is not False}

    def __call__(
        self, prompt: Prompt, responses: Sequence[Response], answer: object, **circumstances: object
    ) -> Judgement:
        """The judgement, from responses in the order shown and what `answer_of` gives. Raises DataError.

        Circumstances that this kind has no field for are passed over.
        """
        findings.refuse(
            self.count not in (None, len(responses))
            and f"responses: a {self.name} has {self.count}, got {len(responses)}"
        )
        shown: Mapping[str, object] = {"responses": tuple(responses)}
        if self.count is not None:
            shown = dict(zip(self.responses, responses, strict=True))
        said = {*self.answer, *self.responses}
        given = {name: value for name, value in circumstances.items() if name in self._fields and name not in said}
        return self.judgement(prompt=prompt, **shown, **self._fields_of(answer), **given)

    def again(self, judgement: Judgement, responses: Sequence[Response] | None = None, **changes: object) -> Judgement:
        """The judgement with other responses or circumstances."""
        shown = judgement.responses if responses is None else responses
        circumstances = self.circumstances_of(judgement) | changes
        return self(judgement.prompt, shown, self.answer_of(judgement), **circumstances)

    def payload_of(self, judgement: Judgement) -> dict[str, object]:
        """What a store keeps of the judgement beside its circumstances."""
        return self._values(judgement) | self.later_of(judgement)

    def answer_in(self, payload: Mapping[str, object]) -> object:
        """The answer that a payload holds."""
        if len(self.answer) > 1:
            return {name: payload[name] for name in self.answer if name in payload}
        return payload[self.answer[0]]

    def digest(self, judgement: Judgement) -> str:
        """sha256 of everything a judgement says, order of the responses included: two that are equal are one."""
        return digest_of(
            self.name,
            judgement.prompt,
            judgement.responses,
            self.answer_of(judgement),
            self.later_of(judgement),
            judgement.criterion,
            judgement.annotator,
            judgement.weight,
            judgement.created,
            None if judgement.seconds is None else float(judgement.seconds),
        )

    def _values(self, judgement: Judgement) -> dict[str, object]:
        return {name: _plain(getattr(judgement, name)) for name in self.answer}

    def _fields_of(self, answer: object) -> dict[str, object]:
        if len(self.answer) == 1:
            values = {self.answer[0]: answer}
        elif isinstance(answer, Mapping):
            values = dict(answer)
        else:
            wanted = ", ".join(self.answer)
            raise DataError(f"answer: expected an object with {wanted}, got {findings.in_words(answer)}")
        needed = {name for name in self.answer if self._fields[name].default is inspect.Parameter.empty}
        findings.refuse(
            *(f"{str(one)[:40]}: no such field of the kind {self.name!r}" for one in values if one not in self.answer),
            *(f"{name}: missing" for name in self.answer if name in needed - values.keys()),
        )
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    # ---------------------------------------------------------------- what it means

    def opinions_of(self, judgement: Judgement) -> Mapping[str, Sequence[Opinion]]:
        """By criterion, what was said about which responses; a criterion without opinions was judged all the same."""
        if self.opinions is not None:
            return self.opinions(judgement)
        by_criterion: dict[str, list[Opinion]] = {}
        for rating in self.ratings(judgement):
            opinion = opinion_of(rating.prompt, rating.response, float(rating.score))
            by_criterion.setdefault(rating.criterion, []).append(opinion)
        return by_criterion or {judgement.criterion: []}

    def lessons_of(self, judgement: Judgement, *, whole_orders: bool = False) -> Iterable[Lesson]:
        """What a reward model learns from it. Raises DataError where its loss cannot take the judgement."""
        if self.lessons is not None:
            yield from self.lessons(judgement, whole_orders)
            return
        for rating in self.ratings(judgement):
            yield Lesson(prompt=rating.prompt, responses=(rating.response,), weight=rating.weight, score=rating.score)
        yield from map(lesson_of_pair, self.pairs(judgement))


def digest_of(
    kind: str,
    prompt: Prompt,
    responses: Sequence[Response],
    answer: object,
    later: Mapping[str, object],
    criterion: str,
    annotator: str,
    weight: float,
    created: str,
    seconds: float | None,
) -> str:
    """`JudgementKind.digest` of what a judgement of the kind says."""
    name = prompt_digest(prompt)
    shown = [response_digest(name, response) for response in responses]
    # What schema version 1 did not know stays out where it is not given, so that digests of its rows hold.
    more = dict(later)
    group = more.pop("group", "")
    rest = [seconds, group] if seconds is not None or group or more else []
    rest += [more] if more else []
    return digest(kind, name, annotator, criterion, float(weight), created, answer, shown, *rest)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
