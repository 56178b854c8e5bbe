"""Argilla: records of SDK 2.0 to 2.8 in each of its exports, and those of a FeedbackDataset (1.x).

    [{"id": "...", "fields": {"prompt": "...", "response_1": "...", "response_2": "..."}, "metadata": {...},
      "responses": {"preference": [{"value": "response_2", "user_id": "..."}]}, "suggestions": {}, "vectors": {}}]

That is `records.to_json` and `to_list`; `to_datasets` and `to_list(flatten=True)` have "preference.responses",
"preference.responses.users" and "preference.responses.status" beside the fields; 1.x has a list of answers for each
question, or records with "responses": [{"user_id", "status", "values"}].

Each question is a judgement of its own, by the criterion of its name; ratings of one response by several questions are
one judgement of the kind "criteria". A label that names a field, or is one of our verdicts ("tie", "both bad", "cannot
say"), compares two responses; a ranking (a list of names, or of names with ranks, which may tie) orders them; a whole
number rates the one response, or the one whose name or number the question's name has. Texts and other labels become
the note. Responses are the fields that answers name, or those called response_1, ... ; drafts, discarded answers,
suggestions, spans and whatever else is no judgement are passed over, and counted.

What Argilla itself leaves out nobody can read: `to_json` and `to_list` write no status, so that drafts look as if they
had been submitted, and no ranks, so that ties look like an order. `to_datasets` has the status.

We write one record per judgement; which question and value, each kind says itself (`JudgementKind.argilla`).
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.answers import PROMPTS, RESPONSE, Asked, judgements_of_answers, prompt_in
from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.provenance import parsed, provenance_of
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import HIGHEST, LOWEST, MessagePart, kind_of, verdict_of
from rlhf_env.types import JsonObject, JsonView

_PEOPLE = uuid.UUID("6e3f1f0c-4f6e-4c4e-9d5e-6a5f0b1c2d3e")  # the namespace of our annotators' ids
_ANSWERED = re.compile(r"(.+)\.responses")
_SUGGESTED = re.compile(r".+(\.suggestion(\.score|\.agent)?|-suggestion(-metadata)?)")
_BESIDE = ("id", "external_id", "status", "_server_id", "inserted_at", "updated_at", "metadata", "vectors", "score")


def argilla_record(judgement: Judgement) -> JsonObject:
    names = [f"response_{place}" for place in range(1, len(judgement.responses) + 1)]
    texts = [response.text for response in judgement.responses]
    kind = kind_of(judgement)
    answer = kind.answer_of(judgement)
    user = str(user_of(judgement.annotator))
    provenance = {**provenance_of(judgement), "kind": kind.name, "answer": answer}
    return {
        "id": kind.digest(judgement)[:32],
        "fields": {"prompt": judgement.prompt.text, **dict(zip(names, texts, strict=True))},
        "metadata": {"criterion": judgement.criterion, "provenance": json.dumps(provenance, default=dict)},
        "suggestions": {},
        "responses": {
            part.name: [{"value": part.value, "user_id": user}] for part in kind.in_argilla.write(answer, names)
        },
        "vectors": {},
        "_server_id": None,
    }


def user_of(annotator: str) -> uuid.UUID:
    """The id of an annotator of ours, who has no account there."""
    return uuid.uuid5(_PEOPLE, annotator.encode("utf-8", errors="replace").decode())


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Answer:
    """What one user answered to one question."""

    question: str
    value: Any
    user: str
    status: str


@dataclass(frozen=True)
class _Record:
    fields: JsonView
    answers: Sequence[_Answer]
    metadata: JsonView
    suggestions: int
    name: str


def is_record(row: JsonView) -> bool:
    return ("fields" in row and "responses" in row) or any(map(_ANSWERED.fullmatch, row)) or bool(_questions_of_1x(row))


def _questions_of_1x(row: JsonView) -> list[str]:
    return [name for name in row if f"{name}-suggestion" in row or _is_list_of_answers(row[name])]


def _is_list_of_answers(value: object) -> bool:
    answers = value if isinstance(value, list) else []
    return bool(answers) and all(
        isinstance(it, Mapping) and it.keys() >= {"user_id", "value", "status"} for it in answers
    )


@dataclass(frozen=True)
class Questions:
    """What all records of a file say about its questions together: a single record cannot."""

    named: frozenset[str]
    """The fields that answers name."""
    comparing: frozenset[str]
    """Questions of which some answer names a field or is a verdict."""
    off_scale: frozenset[str]
    """Questions of which some answer is a number off our scale."""


def questions_in(rows: Iterable[Any]) -> Questions:
    named: set[str] = set()
    comparing: set[str] = set()
    off_scale: set[str] = set()
    for row in rows:
        try:
            record = _record_of(row)
        except DataError:
            continue
        for answer in record.answers:
            values = _entries(answer.value)
            found = {value for value in values if value in record.fields}
            named |= found
            if isinstance(answer.value, str) and (found or verdict_of(answer.value)):
                comparing.add(answer.question)
            if type(answer.value) in (int, float) and not LOWEST <= answer.value <= HIGHEST:
                off_scale.add(answer.question)
    return Questions(frozenset(named), frozenset(comparing), frozenset(off_scale))


def argilla_judgements(row: JsonView, questions: Questions, reading: Reading) -> list[Judgement]:
    """Every answer that a record holds. Raises DataError with every problem of the record."""
    record = _record_of(row)
    stored = record.metadata.get("provenance")
    provenance = parsed("provenance", stored) if isinstance(stored, str) else {}
    if not isinstance(provenance, Mapping):
        raise DataError("provenance: must be an object")
    if record.suggestions:
        reading.passes_over("Argilla: suggestions", record.suggestions)
    names = [
        name for name in record.fields if name in questions.named or (RESPONSE.fullmatch(name) and name not in PROMPTS)
    ]
    by_user: dict[str, list[_Answer]] = {}
    for answer in record.answers:
        if answer.status not in ("submitted", "None"):
            reading.passes_over(f"Argilla: answers of the status {answer.status}")
        elif answer.value is None:
            reading.passes_over("Argilla: questions without an answer")
        else:
            by_user.setdefault(answer.user, []).append(answer)
    if not by_user:
        return []
    prompt = prompt_in(record.fields, (), "fields")
    for name in record.fields:
        if name not in names and name not in PROMPTS:
            reading.passes_over(f"Argilla: the field {name!r}")
    made: list[Judgement] = []
    problems: list[str] = []
    for user, answers in by_user.items():
        asked: list[Asked] = []
        notes: list[str] = []
        for answer in answers:
            found = _asked(answer, names, questions, reading)
            if isinstance(found, str):
                notes.append(found)
            elif found is not None:
                asked.append(found)
        who = f"argilla user {user}" if user != "None" else f"argilla record {record.name}, by somebody who was deleted"
        try:
            made += judgements_of_answers(
                prompt,
                {name: record.fields[name] for name in names},
                asked,
                notes,
                who=who,
                circumstances={},
                provenance=provenance,
                ours=user == str(user_of(str(provenance.get("annotator")))),
                reading=reading,
                program="argilla",
            )
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    return made


def _asked(answer: _Answer, names: Sequence[str], questions: Questions, reading: Reading) -> Asked | str | None:
    """What one answer says: an answer and what it is about, a note, or nothing that is read."""
    name, value = answer.question, answer.value
    part = MessagePart(name=name, value=value)
    whole = Asked(part, tuple(names))
    if whole.kind_by_name("argilla"):
        return whole
    if isinstance(value, list):
        entries = _entries(value)
        if any(isinstance(entry, Mapping) and "start" in entry for entry in value):
            reading.passes_over(f"Argilla {name!r}: spans")
            return None
        if entries and set(entries) == set(names) and len(entries) == len(names) > 1:
            return whole
        if set(entries) & set(names) or any(isinstance(entry, Mapping) for entry in value):
            reading.passes_over(f"Argilla {name!r}: rankings that leave responses out")
            return None
        return f"{name}: {', '.join(map(str, entries))}"
    if isinstance(value, str):
        if name not in questions.comparing:
            return f"{name}: {value}"
        if len(names) != 2:
            reading.passes_over(f"Argilla {name!r}: a choice among {len(names)} responses, two can be compared")
            return None
        return whole
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"responses.{name}: expected a text, a whole number or a list, got {value!r:.40}")
    if name in questions.off_scale:
        reading.passes_over(f"Argilla {name!r}: ratings of a scale that is not {LOWEST} to {HIGHEST}")
        return None
    rated = names if len(names) == 1 else _named_in(name, names)
    if len(rated) != 1:
        reading.passes_over(f"Argilla {name!r}: ratings of which the question does not name the response")
        return None
    criterion = name if len(names) == 1 else _without(name, rated[0])
    return Asked(MessagePart(name=criterion, value=value), (rated[0],))


def _named_in(question: str, names: Sequence[str]) -> list[str]:
    """The responses whose name the question's name has, or else whose number or letter it ends with."""
    whole = [name for name in names if name in question]
    if whole:
        return [max(whole, key=len)] if len(whole) == 1 or max(map(len, whole)) > min(map(len, whole)) else []
    label = re.search(r"(\d+|(?<=[ _-])[A-Za-z])$", question)
    ends = {name: match[1] for name in names if (match := RESPONSE.fullmatch(name))}
    return [] if label is None else [name for name, end in ends.items() if end == label[1]]


def _without(question: str, response: str) -> str:
    """A question's name without the response that it names: "quality_response_1" asks for "quality"."""
    label = r"(\d+|[A-Za-z])$"
    rest = question.replace(response, "", 1) if response in question else re.sub(label, "", question)
    return re.sub(r"(_|-|\.| )(for|of)?(_|-|\.| )*$", "", rest).strip("_-. ") or "rating"


def _entries(value: object) -> list[Any]:
    """The names or labels that a value has, those of a ranking without their ranks."""
    if isinstance(value, str):
        return [value]
    entries = value if isinstance(value, list) else []
    texts = [entry.get("value") if isinstance(entry, Mapping) else entry for entry in entries]
    return [text for text in texts if isinstance(text, str)]


# ---------------------------------------------------------------- the layouts of its versions


def _record_of(row: Any) -> _Record:
    if not isinstance(row, Mapping):
        raise DataError("not a record with fields and responses")
    metadata = row.get("metadata")
    if isinstance(metadata, str) and metadata:
        metadata = parsed("metadata", metadata)
    about = metadata if isinstance(metadata, Mapping) else {}
    name = str(row.get("id") or row.get("external_id") or row.get("_server_id") or "")
    if "fields" in row:
        fields, answers, suggested = row["fields"], row.get("responses"), row.get("suggestions")
        if not isinstance(fields, Mapping) or not isinstance(answers or {}, (Mapping, list)):
            raise DataError("not a record with fields and responses")
        read = _of_1x(answers) if isinstance(answers, list) else _of_questions(answers or {})
        return _Record(fields, list(read), about, len(suggested) if isinstance(suggested, (Mapping, list)) else 0, name)
    flat = {match[1]: key for key in row if (match := _ANSWERED.fullmatch(key))}
    of_1x = [question for question in _questions_of_1x(row) if question not in flat]
    taken = {*_BESIDE, *of_1x, *(key for key in row if _SUGGESTED.fullmatch(key))}
    taken |= {end for key in flat.values() for end in (key, f"{key}.users", f"{key}.status")}
    fields = {key: value for key, value in row.items() if key not in taken and value is not None}
    answers = [*_of_columns(row, flat), *_of_questions({question: _rows(row[question]) for question in of_1x})]
    suggestions = sum(row[key] is not None for key in row if key.endswith((".suggestion", "-suggestion")))
    return _Record(fields, answers, about, suggestions, name)


def _of_questions(questions: JsonView) -> Iterator[_Answer]:
    for question, answers in questions.items():
        if not isinstance(answers, list) or not all(isinstance(one, Mapping) and "value" in one for one in answers):
            raise DataError(f"responses.{question}: expected a list of objects with value and user_id")
        for given in answers:
            status = given.get("status", "submitted")
            yield _Answer(question, _ranked(given["value"]), str(given.get("user_id")), str(status))


def _of_1x(answers: Sequence[Any]) -> Iterator[_Answer]:
    for given in answers:
        values = given.get("values") if isinstance(given, Mapping) else None
        if not isinstance(values, Mapping):
            raise DataError("responses: expected a list of objects with user_id, status and values")
        for question, answered in values.items():
            value = answered.get("value") if isinstance(answered, Mapping) else answered
            status = given.get("status", "submitted")
            yield _Answer(question, _ranked(value), str(given.get("user_id")), str(status))


def _of_columns(row: JsonView, questions: Mapping[str, str]) -> Iterator[_Answer]:
    for question, key in questions.items():
        values = row[key] or []
        users, statuses = row.get(f"{key}.users") or [], row.get(f"{key}.status") or [None] * len(values)
        if (
            not all(isinstance(it, list) for it in (values, users, statuses))
            or len({*map(len, (values, users, statuses))}) > 1
        ):
            raise DataError(f"{key}: expected as many values, users and statuses")
        for value, user, status in zip(values, users, statuses, strict=True):
            yield _Answer(question, _ranked(value), str(user), str(status))


def _rows(answers: Any) -> Any:
    """A list of objects, which the datasets library may keep as an object of lists."""
    if isinstance(answers, Mapping) and all(isinstance(column, list) for column in answers.values()):
        return [dict(zip(answers, values, strict=True)) for values in zip(*answers.values(), strict=True)]
    return [] if answers is None else answers


def _ranked(value: Any) -> Any:
    return _rows(value) if isinstance(value, Mapping) and value.keys() >= {"rank", "value"} else value
