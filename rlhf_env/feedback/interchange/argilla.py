"""Argilla 2: the JSON that `dataset.records.to_json` writes and `dataset.records.from_json` reads (SDK 2.0 to 2.8).

    [{"id": "...", "fields": {"prompt": "...", "response_1": "...", "response_2": "..."}, "metadata": {...},
      "responses": {"preference": [{"value": "response_2", "user_id": "..."}]}, "suggestions": {}, "vectors": {}}]

A record's "responses" are the answers of its annotators, question by question; which kind of judgement they are, each
kind says itself (`JudgementKind.argilla`). We write one record per judgement. Draft and discarded answers, where the
file says so, are passed over.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.provenance import in_order, parsed, provenance_of, remade
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import MessagePart, kind_of, kinds
from rlhf_env.types import JsonObject

_PEOPLE = uuid.UUID("6e3f1f0c-4f6e-4c4e-9d5e-6a5f0b1c2d3e")  # the namespace of our annotators' ids


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


def argilla_judgements(record: Any, *, source: str, annotator: str) -> list[Judgement]:
    """Every answer that a record holds. Raises DataError with every problem of the record."""
    fields = record.get("fields") if isinstance(record, Mapping) else None
    answers = record.get("responses") if isinstance(record, Mapping) else None
    if not isinstance(fields, Mapping) or not isinstance(answers, Mapping):
        raise DataError("not a record with fields and responses")
    metadata = record.get("metadata")
    stored = metadata.get("provenance") if isinstance(metadata, Mapping) else None
    provenance = parsed("provenance", stored) if isinstance(stored, str) else {}
    if not isinstance(provenance, Mapping):
        raise DataError("provenance: must be an object")
    prompt = next((fields[name] for name in ("prompt", "instruction") if name in fields), None)
    names = [name for name in fields if name.startswith(("response", "generation"))]
    crowd = {name: provenance[name] for name in ("prompt", "responses", "criterion") if name in provenance}
    made: list[Judgement] = []
    problems: list[str] = []
    for user, kind, answer in _answers(answers, names):
        ours = user == str(user_of(str(provenance.get("annotator")))) and kind == provenance.get("kind")
        if ours and in_order(provenance.get("answer")) == in_order(answer):
            answer = provenance["answer"]
        about = provenance if ours else {**crowd, "annotator": annotator or f"argilla user {user}"}
        texts = [fields[name] for name in names]
        try:
            made.append(remade(kind, prompt, texts, answer, about, source=source, annotator=annotator))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    return made


def _answers(questions: Mapping[str, object], names: list[str]) -> Iterator[tuple[str, str, Any]]:
    """(user, kind, answer) of each. The fields that one user gave of one kind are one answer, after the others."""
    by_name_first = sorted(kinds(), key=lambda kind: kind.in_argilla.by_shape)
    fields: dict[tuple[str, str], dict[str, object]] = {}
    for question, answers in questions.items():
        if not isinstance(answers, list) or not all(isinstance(one, Mapping) and "value" in one for one in answers):
            raise DataError(f"responses.{question}: expected a list of objects with value and user_id")
        for given in answers:
            if given.get("status", "submitted") != "submitted":
                continue
            user, part = str(given.get("user_id")), MessagePart(name=question, value=given["value"])
            for kind in by_name_first:
                if (answered := kind.in_argilla.read(part, names)) is not None:
                    if answered.field is None:
                        yield user, kind.name, answered.value
                    else:
                        fields.setdefault((user, kind.name), {})[answered.field] = answered.value
                    break
    for (user, name), values in fields.items():
        yield user, name, values
