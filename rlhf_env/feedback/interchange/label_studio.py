"""Label Studio 1: tasks with annotations, as its "JSON" export writes and its import reads them.

    [{"id": 1, "data": {"prompt": "...", "response_1": "...", "response_2": "..."},
      "annotations": [{"completed_by": 1, "lead_time": 4.2, "created_at": "...", "was_cancelled": false, "result":
        [{"from_name": "preference", "to_name": "response_1,response_2", "type": "pairwise",
          "value": {"selected": "left"}}]}]}]

Which kind of judgement a result is, each kind says itself (`JudgementKind.label_studio`). Responses are the texts of
`data` whose names begin with response, answer, generation or text, or the `data.items` (id, and body or text) that are
ranked. `lead_time` is the seconds that an annotation took. We write one task per judgement; cancelled annotations are
passed over, and people are known by the number that `completed_by` gives, never by their e-mail.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.provenance import in_order, parsed, provenance_of, remade
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import MessagePart, kind_of, kinds
from rlhf_env.types import JsonObject

_TEXTS = ("response", "answer", "generation", "text")


def label_studio_tasks(judgements: Iterable[Judgement]) -> list[JsonObject]:
    people: dict[str, int] = {}
    return [
        _task(number, judgement, people.setdefault(judgement.annotator, len(people) + 1))
        for number, judgement in enumerate(judgements, start=1)
    ]


def _task(number: int, judgement: Judgement, person: int) -> JsonObject:
    names = [f"response_{place}" for place in range(1, len(judgement.responses) + 1)]
    kind = kind_of(judgement)
    answer = kind.answer_of(judgement)
    provenance = {**provenance_of(judgement), "kind": kind.name, "answer": answer, "completed_by": person}
    results = [
        {"from_name": part.name, "to_name": part.about or names[0], "type": part.type, "value": part.value}
        for part in kind.in_label_studio.write(answer, names)
    ]
    annotation = {"id": number, "completed_by": person, "was_cancelled": False, "result": results}
    if judgement.seconds is not None:
        annotation["lead_time"] = judgement.seconds
    if judgement.created:
        annotation["created_at"] = judgement.created
    data: dict[str, object] = {
        "prompt": judgement.prompt.text,
        **{name: response.text for name, response in zip(names, judgement.responses, strict=True)},
        "criterion": judgement.criterion,
        "provenance": json.dumps(provenance, default=dict),
    }
    if kind.in_label_studio.lists_items:
        data["items"] = [{"id": name, "title": "", "body": data[name]} for name in names]
    return {"id": number, "data": data, "annotations": [annotation]}


def label_studio_judgements(task: Any, *, source: str, annotator: str) -> list[Judgement]:
    """Every annotation of a task. Raises DataError with every problem of the task."""
    data = task.get("data") if isinstance(task, Mapping) else None
    annotations = task.get("annotations") if isinstance(task, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(annotations, list):
        raise DataError("not a task with data and annotations")
    provenance = parsed("provenance", data["provenance"]) if isinstance(data.get("provenance"), str) else {}
    if not isinstance(provenance, Mapping):
        raise DataError("provenance: must be an object")
    texts = _texts(data)
    crowd = {name: provenance[name] for name in ("prompt", "responses", "criterion") if name in provenance}
    made: list[Judgement] = []
    problems: list[str] = []
    for place, annotation in enumerate(annotations, start=1):
        try:
            if not isinstance(annotation, Mapping) or not isinstance(annotation.get("result"), list):
                raise DataError("expected an object with a list of results")
            if annotation.get("was_cancelled") or not annotation["result"]:
                continue
            kind, answer = _answer(annotation["result"], list(texts))
            who = annotation.get("completed_by")
            person = who.get("id") if isinstance(who, Mapping) else who
            ours = provenance.get("completed_by") == person and provenance.get("kind") == kind
            if ours and in_order(provenance.get("answer")) == in_order(answer):
                answer = provenance["answer"]
            name = annotator or f"label-studio user {person}"
            about = provenance if ours else {**crowd, "annotator": name, **_circumstances(annotation)}
            made.append(
                remade(
                    kind, data.get("prompt"), list(texts.values()), answer, about, source=source, annotator=annotator
                )
            )
        except DataError as error:
            problems += (f"annotation {place}: {problem}" for problem in error.problems)
    if problems:
        raise DataError(*problems)
    return made


def _texts(data: Mapping[str, object]) -> JsonObject:
    """The responses by name: the items that a ranker ranks, or the texts of the task."""
    items = data.get("items")
    if isinstance(items, list) and all(isinstance(item, Mapping) and "id" in item for item in items):
        return {str(item["id"]): item.get("body", item.get("text")) for item in items}
    return {name: text for name, text in data.items() if name.startswith(_TEXTS)}


def _answer(results: list[Any], names: list[str]) -> tuple[str, Any]:
    """(kind, answer): the first whole answer, or the fields of one kind put together."""
    by_name_first = sorted(kinds(), key=lambda kind: kind.in_label_studio.by_shape)
    fields: dict[str, dict[str, object]] = {}
    for result in results:
        if not isinstance(result, Mapping):
            continue
        part = MessagePart(name=str(result.get("from_name")), value=result.get("value"), type=str(result.get("type")))
        for kind in by_name_first:
            if (answered := kind.in_label_studio.read(part, names)) is not None:
                if answered.field is None:
                    return kind.name, answered.value
                fields.setdefault(kind.name, {})[answered.field] = answered.value
                break
    for name, values in fields.items():
        return name, values
    raise DataError("result: none of pairwise, choices, rating, ranker")


def _circumstances(annotation: Mapping[str, object]) -> JsonObject:
    given = {"seconds": annotation.get("lead_time"), "created": annotation.get("created_at")}
    return {name: value for name, value in given.items() if value is not None}
