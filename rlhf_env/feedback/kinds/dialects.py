"""How the answer of a judgement stands in the records of Argilla and in the results of Label Studio.

Both keep an answer as parts: a question and its value in Argilla, a tag with a type and a value in Label Studio. A kind
that says nothing is kept field by field, under "<kind>" or "<kind>.<field>", and is known by those names again. Kinds
that other people's files hold as well are known by the shape of a value (`by_shape`), whatever they are called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlhf_env.errors import DataError

Names = Sequence[str]
"""What the record calls the responses, in the order shown."""


@dataclass(frozen=True, kw_only=True)
class MessagePart:
    """One part of an answer as another program keeps it."""

    name: str
    """Argilla's question, Label Studio's tag."""
    value: object
    type: str = ""
    """Label Studio's type of result; Argilla has none."""
    about: str = ""
    """What Label Studio's result is about, in its own words; the first response by default."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a part says: the answer, or one field of it that others are put beside."""

    value: object
    field: str | None = None
    """None: the value is the whole answer."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one program keeps the answers of one kind."""

    write: Callable[[object, Names], list[MessagePart]]
    """The parts of an answer (`JudgementKind.answer_of`)."""
    read: Callable[[MessagePart, Names], Answered | None]
    """What a part says; None for one that is no answer of this kind."""
    by_shape: bool = True
    """Answers are known by the shape of their value. Kinds that are known by name are asked first."""
    lists_items: bool = False
    """Label Studio is told of the responses as the items of a list, too."""


def argilla_by_fields(kind: str, fields: Sequence[str]) -> Dialect:
    """A question for each field of the answer."""

    def write(answer: object, _: Names) -> list[MessagePart]:
        return [MessagePart(name=name, value=value) for name, value in _named(kind, fields, answer)]

    def read(part: MessagePart, _: Names) -> Answered | None:
        return _answered(kind, fields, part.name, part.value)

    return Dialect(write=write, read=read, by_shape=False)


def label_studio_by_fields(kind: str, fields: Sequence[str]) -> Dialect:
    """A text area for each field that is a text, and a choice, written as JSON, for any other."""

    def write(answer: object, _: Names) -> list[MessagePart]:
        return [
            MessagePart(name=name, type="textarea", value={"text": [value]})
            if isinstance(value, str)
            else MessagePart(name=name, type="choices", value={"choices": [json.dumps(value)]})
            for name, value in _named(kind, fields, answer)
        ]

    def read(part: MessagePart, _: Names) -> Answered | None:
        match part.type, part.value:
            case "textarea", {"text": [str() as text]}:
                return _answered(kind, fields, part.name, text)
            case "choices", {"choices": [str() as choice]}:
                answered = _answered(kind, fields, part.name, None)
                if answered is None:
                    return None
                try:
                    return Answered(value=json.loads(choice), field=answered.field)
                except ValueError as error:
                    raise DataError(f"{part.name}: not JSON: {error}") from error
        return None

    return Dialect(write=write, read=read, by_shape=False)


def order_of(ranks: object, names: Names) -> list[str]:
    """The names in the order of their ranks, the best first."""
    assert isinstance(ranks, Sequence)
    return [name for _, name in sorted(zip(ranks, names, strict=True), key=lambda placed: int(placed[0]))]


def _named(kind: str, fields: Sequence[str], answer: object) -> list[tuple[str, object]]:
    if len(fields) == 1:
        return [(kind, answer)]
    assert isinstance(answer, Mapping)
    return [(f"{kind}.{field}", answer[field]) for field in fields]


def _answered(kind: str, fields: Sequence[str], name: str, value: object) -> Answered | None:
    if len(fields) == 1:
        return Answered(value=value) if name == kind else None
    return next((Answered(value=value, field=field) for field in fields if name == f"{kind}.{field}"), None)
