"""Label Studio 1: tasks with annotations, as its "JSON" export writes and its import reads them.

    [{"id": 1, "data": {"prompt": "...", "response_1": "...", "response_2": "..."},
      "annotations": [{"completed_by": 1, "lead_time": 4.2, "created_at": "...", "was_cancelled": false, "result":
        [{"from_name": "preference", "to_name": "response_1,response_2", "type": "pairwise",
          "value": {"selected": "left"}}]}]}]

`pairwise` is a comparison, `choices` of "tie" or "cannot say" one without a winner, `rating` a rating (a score by that
criterion when the tag is not named "rating"), `ranker` a ranking of the responses' names or of the ids of `data.items`
(id, and body or text). Responses are the texts of `data` whose names begin with response, answer, generation or text.
`lead_time` is the seconds that an annotation took. We write one task per judgement; cancelled annotations are passed
over, and people are known by the number that `completed_by` gives, never by their e-mail.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.provenance import in_order, parsed, provenance_of, remade
from rlhf_env.feedback.judgements import Judgement, Kind, answer_of, kind_of
from rlhf_env.types import JsonObject

_SIDES = {"left": "first", "right": "second"}
_TEXTS = ("response", "answer", "generation", "text")


def label_studio_tasks(judgements: Iterable[Judgement]) -> list[JsonObject]:
    people: dict[str, int] = {}
    return [
        _task(number, it, people.setdefault(it.annotator, len(people) + 1))
        for number, it in enumerate(judgements, start=1)
    ]


def _task(number: int, it: Judgement, person: int) -> JsonObject:
    names = [f"response_{place}" for place in range(1, len(it.responses) + 1)]
    provenance = {**provenance_of(it), "kind": kind_of(it), "answer": answer_of(it), "completed_by": person}
    annotation = {"id": number, "completed_by": person, "was_cancelled": False, "result": _results(it, names)}
    if it.seconds is not None:
        annotation["lead_time"] = it.seconds
    if it.created:
        annotation["created_at"] = it.created
    data: dict[str, object] = {
        "prompt": it.prompt.text,
        **{name: response.text for name, response in zip(names, it.responses, strict=True)},
        "criterion": it.criterion,
        "provenance": json.dumps(provenance, default=dict),
    }
    if kind_of(it) == "ranking":
        data["items"] = [{"id": name, "title": "", "body": data[name]} for name in names]
    return {"id": number, "data": data, "annotations": [annotation]}


def _results(it: Judgement, names: list[str]) -> list[JsonObject]:
    def result(tag: str, to: str, kind: str, value: object) -> JsonObject:
        return {"from_name": tag, "to_name": to, "type": kind, "value": value}

    answer = answer_of(it)
    match kind_of(it):
        case "comparison" if answer in _SIDES.values():
            side = next(side for side, verdict in _SIDES.items() if verdict == answer)
            return [result("preference", ",".join(names), "pairwise", {"selected": side})]
        case "comparison":
            return [result("undecided", names[0], "choices", {"choices": [answer]})]
        case "rating":
            return [result("rating", names[0], "rating", {"rating": answer})]
        case "ranking":
            order = [name for _, name in sorted(zip(answer, names, strict=True), key=lambda placed: placed[0])]
            return [result("rank", "items", "ranker", {"ranker": {"rank": order}})]
        case _:
            return [result(name, names[0], "rating", {"rating": score}) for name, score in answer.items()]


def label_studio_judgements(task: object, *, source: str, annotator: str) -> list[Judgement]:
    """Every annotation of a task. Raises DataError with every problem of the task."""
    data = task.get("data") if isinstance(task, Mapping) else None
    annotations = task.get("annotations") if isinstance(task, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(annotations, list):
        raise DataError("not a task with data and annotations")
    told = parsed("provenance", data["provenance"]) if isinstance(data.get("provenance"), str) else {}
    if not isinstance(told, Mapping):
        raise DataError("provenance: must be an object")
    texts = _texts(data)
    crowd = {name: told[name] for name in ("prompt", "responses", "criterion") if name in told}
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
            ours = told.get("completed_by") == person and told.get("kind") == kind
            if ours and in_order(told.get("answer")) == in_order(answer):
                answer = told["answer"]
            name = annotator or f"label-studio user {person}"
            about = told if ours else {**crowd, "annotator": name, **_circumstances(annotation)}
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


def _answer(results: Sequence[object], names: list[str]) -> tuple[Kind, Any]:
    scores: dict[str, object] = {}
    for result in results:
        kind = result.get("type") if isinstance(result, Mapping) else None
        value = result.get("value") if isinstance(result, Mapping) else None
        tag = result.get("from_name") if isinstance(result, Mapping) else None
        match kind, value:
            case "pairwise", {"selected": side}:
                return "comparison", _SIDES.get(str(side), side)
            case "choices", {"choices": [choice]}:
                return "comparison", choice
            case "ranker", {"ranker": {} as order}:
                return "ranking", _ranks(
                    [name for ids in order.values() if isinstance(ids, list) for name in ids], names
                )
            case "rating", {"rating": score} if tag == "rating":
                return "rating", score
            case "rating", {"rating": score}:
                scores[str(tag)] = score
    if not scores:
        raise DataError("result: none of pairwise, choices, rating, ranker")
    return "criteria", scores


def _ranks(order: Sequence[object], names: list[str]) -> list[int]:
    if sorted(map(str, order)) != sorted(names):
        raise DataError(f"ranker: does not rank {', '.join(names)}")
    return [1 + [str(name) for name in order].index(name) for name in names]


def _circumstances(annotation: Mapping[str, object]) -> JsonObject:
    given = {"seconds": annotation.get("lead_time"), "created": annotation.get("created_at")}
    return {name: value for name, value in given.items() if value is not None}
