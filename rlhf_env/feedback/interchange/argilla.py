"""Argilla 2: the JSON that `dataset.records.to_json` writes and `dataset.records.from_json` reads (SDK 2.0 to 2.8).

    [{"id": "...", "fields": {"prompt": "...", "response_1": "...", "response_2": "..."}, "metadata": {...},
      "responses": {"preference": [{"value": "response_2", "user_id": "..."}]}, "suggestions": {}, "vectors": {}}]

Of a record's responses in the sense of Argilla (the answers of its annotators), the shape tells the kind: the name of a
field, "tie" or "cannot say" is a comparison; a list of names, best first, a ranking; a whole number a rating, and a
score by that criterion when the question is not named "rating". We write one record per judgement. Draft and discarded
answers, where the file says so, are passed over.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.provenance import in_order, parsed, provenance_of, remade
from rlhf_env.feedback.judgements import Judgement, Kind, answer_of, judgement_digest, kind_of
from rlhf_env.types import JsonObject

_QUESTIONS: dict[Kind, str] = {"comparison": "preference", "rating": "rating", "ranking": "ranking"}
_PEOPLE = uuid.UUID("6e3f1f0c-4f6e-4c4e-9d5e-6a5f0b1c2d3e")  # the namespace of our annotators' ids


def argilla_record(it: Judgement) -> JsonObject:
    names = [f"response_{place}" for place in range(1, len(it.responses) + 1)]
    kind, answer = kind_of(it), answer_of(it)
    value: object = {"first": names[0], "second": names[-1]}.get(answer, answer) if kind == "comparison" else answer
    if kind == "ranking":
        value = [name for _, name in sorted(zip(answer, names, strict=True), key=lambda placed: placed[0])]
    scores = answer if kind == "criteria" else {_QUESTIONS[kind]: value}
    whose = str(user_of(it.annotator))
    provenance = {**provenance_of(it), "kind": kind, "answer": answer}
    return {
        "id": judgement_digest(it)[:32],
        "fields": {"prompt": it.prompt.text, **dict(zip(names, (r.text for r in it.responses), strict=True))},
        "metadata": {"criterion": it.criterion, "provenance": json.dumps(provenance, default=dict)},
        "suggestions": {},
        "responses": {name: [{"value": score, "user_id": whose}] for name, score in scores.items()},
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
    told = metadata.get("provenance") if isinstance(metadata, Mapping) else None
    provenance = parsed("provenance", told) if isinstance(told, str) else {}
    if not isinstance(provenance, Mapping):
        raise DataError("provenance: must be an object")
    prompt = next((fields[name] for name in ("prompt", "instruction") if name in fields), None)
    names = [name for name in fields if name.startswith(("response", "generation"))]
    crowd = {name: provenance[name] for name in ("prompt", "responses", "criterion") if name in provenance}
    made: list[Judgement] = []
    problems: list[str] = []
    for who, kind, answer in _answers(answers, names):
        ours = who == str(user_of(str(provenance.get("annotator")))) and kind == provenance.get("kind")
        if ours and in_order(provenance.get("answer")) == in_order(answer):
            answer = provenance["answer"]
        about = provenance if ours else {**crowd, "annotator": annotator or f"argilla user {who}"}
        texts = [fields[name] for name in names]
        try:
            made.append(remade(kind, prompt, texts, answer, about, source=source, annotator=annotator))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    return made


def _answers(questions: Mapping[str, object], names: list[str]) -> Iterator[tuple[str, Kind, Any]]:
    """(user, kind, answer) of each: the scores that one user gave by criteria are one answer."""
    scores: dict[str, dict[str, object]] = {}
    for question, answers in questions.items():
        if not isinstance(answers, list) or not all(isinstance(it, Mapping) and "value" in it for it in answers):
            raise DataError(f"responses.{question}: expected a list of objects with value and user_id")
        for given in answers:
            who, value = str(given.get("user_id")), given["value"]
            if given.get("status", "submitted") != "submitted":
                continue
            if isinstance(value, list):
                yield who, "ranking", _ranks(question, value, names)
            elif isinstance(value, str):
                sides = dict(zip(names, ("first", "second"), strict=False))
                yield who, "comparison", sides.get(value, value)
            elif question == _QUESTIONS["rating"]:
                yield who, "rating", value
            else:
                scores.setdefault(who, {})[question] = value
    for who, by_criterion in scores.items():
        yield who, "criteria", by_criterion


def _ranks(question: str, value: Sequence[object], names: list[str]) -> list[int]:
    """The place of each response. Argilla's server also writes {"value": name, "rank": place}, where places may tie."""
    places = {}
    for place, entry in enumerate(value, start=1):
        name, rank = (entry.get("value"), entry.get("rank")) if isinstance(entry, Mapping) else (entry, None)
        places[str(name)] = rank if type(rank) is int else place
    if set(places) != set(names):
        raise DataError(f"responses.{question}: does not rank {', '.join(names)}")
    dense = sorted(set(places.values()))
    return [1 + dense.index(places[name]) for name in names]
