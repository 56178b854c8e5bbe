"""Label Studio 1: tasks with annotations, as its "JSON" export writes and its import reads them; JSON-MIN and CSV.

    [{"id": 1, "data": {"prompt": "...", "response_1": "...", "response_2": "..."},
      "annotations": [{"completed_by": 1, "lead_time": 4.2, "created_at": "...", "was_cancelled": false, "result":
        [{"from_name": "preference", "to_name": "response_1,response_2", "type": "pairwise",
          "value": {"selected": "left"}}]}]}]

Each result of an annotation is a judgement of its own, by the criterion `from_name`; ratings of one response by several
tags are one judgement of the kind "criteria". What a result is about is said by `to_name`: names of columns of the data
or, with the labeling configuration, of its object tags; "left" is the first of them. Without a configuration a name
that is no column is the response with the same number or letter at its end ("t1" is "answer1"). Words beside a
judgement (TextArea, Choices that are no verdict, Number) become its note. A ranker with one list is an order; buckets
are groups, and have an order only where `Reading.buckets` gives one.

Skipped annotations, drafts, predictions and whatever else is no judgement are passed over, and counted. People are
known by the number of `completed_by`, never by their e-mail unless nothing else is there; of people who were deleted,
each annotation is somebody's own. JSON-MIN and CSV have no `to_name`: sides need the configuration there.

We write one task per judgement. `lead_time` is the seconds that an annotation took.
"""

from __future__ import annotations

import json
import re
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

_RATED = {"rating": "rating", "number": "number"}
_NOTES = ("textarea", "choices", "number", "taxonomy")
_MINIMAL = {"annotator", "annotation_id", "lead_time"}
_VALUES = ("selected", "rating", "ranker", "number", "choices", "text")  # what a result's value has, by its type
_TYPES = {"selected": "pairwise", "text": "textarea"}
_CONFIGURED = "give the labeling configuration (--label-config)"


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


# ---------------------------------------------------------------- reading


def is_task(row: JsonView) -> bool:
    return "annotations" in row or ("completions" in row and "data" in row)  # UltraFeedback has completions, too


def is_minimal(row: JsonView) -> bool:
    """A row of the JSON-MIN or CSV export, which is one annotation."""
    return row.keys() >= _MINIMAL


def wide_scales(rows: Iterable[Any], reading: Reading) -> set[str]:
    """The tags whose ratings do not end at 5, as the configuration or any rating of the file says."""
    controls = {} if reading.label_config is None else reading.label_config.controls
    wide = {name for name, tag in controls.items() if tag.highest not in (None, float(HIGHEST))}
    for row in rows:
        if not isinstance(row, Mapping):
            continue
        results = [one for given in _annotations(row) for one in given.get("result") or () if isinstance(one, Mapping)]
        results += list(_minimal_results(row, reading)) if is_minimal(row) else []
        for one in results:
            value = one.get("value")
            for name in _RATED:
                score = value.get(name) if isinstance(value, Mapping) else None
                if isinstance(score, (int, float)) and not LOWEST <= score <= HIGHEST:
                    wide.add(str(one.get("from_name")))
    return wide


def label_studio_judgements(task: JsonView, reading: Reading) -> list[Judgement]:
    """Every annotation of a task, or the one of a row of JSON-MIN. Raises DataError with every problem of it."""
    if is_minimal(task) and not is_task(task):
        who, created, seconds = task["annotator"], task.get("created_at"), task.get("lead_time")
        about: JsonObject = {"completed_by": who, "created_at": created, "lead_time": seconds}
        annotation = {**about, "id": task["annotation_id"], "result": list(_minimal_results(task, reading))}
        return _Task(task, reading).judgements(annotation)
    data = task.get("data")
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(data, Mapping) or not isinstance(annotations, list):
        raise DataError("not a task with data and annotations")
    for name in ("drafts", "predictions"):
        if isinstance(task.get(name), list) and task[name]:
            reading.passes_over(f"Label Studio: {name}", len(task[name]))
    asked = _Task(data, reading)
    made: list[Judgement] = []
    problems: list[str] = []
    for place, annotation in enumerate(annotations, start=1):
        try:
            if not isinstance(annotation, Mapping) or not isinstance(annotation.get("result"), list):
                raise DataError("expected an object with a list of results")
            if annotation.get("was_cancelled") or annotation.get("skipped"):
                reading.passes_over("Label Studio: skipped annotations")
            elif not annotation["result"]:
                reading.passes_over("Label Studio: annotations without a result")
            else:
                made += asked.judgements(annotation)
        except DataError as error:
            problems += (f"annotation {place}: {problem}" for problem in error.problems)
    if problems:
        raise DataError(*problems)
    return made


def _annotations(row: JsonView) -> Iterator[JsonView]:
    given = row.get("annotations", row.get("completions"))
    for annotation in given if isinstance(given, list) else ():
        if isinstance(annotation, Mapping) and isinstance(annotation.get("result") or [], list):
            yield annotation


def _minimal_results(row: JsonView, reading: Reading) -> Iterator[JsonObject]:
    """The results of a row of JSON-MIN or CSV, in which each tag is a column; a single choice or text stands bare."""
    controls = {} if reading.label_config is None else reading.label_config.controls
    for name, cell in row.items():
        value = _cell(cell)
        if name in controls:
            tag = controls[name].type
            texts = value if isinstance(value, list) else [value]
            if (
                tag in ("choices", "textarea")
                and all(isinstance(text, str) for text in texts)
                and value not in ("", None)
            ):
                yield {"from_name": name, "type": tag, "value": {"choices" if tag == "choices" else "text": texts}}
                continue
        for one in value if isinstance(value, list) else ():
            if isinstance(one, Mapping) and (key := next((key for key in _VALUES if key in one), None)):
                yield {"from_name": name, "type": _TYPES.get(key, key), "value": one}


def _cell(cell: object) -> Any:
    if isinstance(cell, str) and cell[:1] in ("[", "{"):
        try:
            return parsed("", cell)
        except DataError:
            return cell
    return cell


@dataclass(frozen=True)
class _Task:
    """A task's data, and what was judged in it."""

    data: JsonView
    reading: Reading

    def judgements(self, annotation: JsonView) -> list[Judgement]:
        stored = self.data.get("provenance")
        provenance = parsed("provenance", stored) if isinstance(stored, str) and stored else {}
        if not isinstance(provenance, Mapping):
            raise DataError("provenance: must be an object")
        asked: list[Asked] = []
        notes: list[str] = []
        for result in annotation["result"]:
            if not isinstance(result, Mapping) or not isinstance(result.get("from_name"), str):
                self.reading.passes_over("Label Studio: results that no tag gave (relations between regions)")
                continue
            found = self._asked(result)
            if isinstance(found, str):
                notes.append(found)
            elif found is not None:
                asked.append(found)
        person = annotation.get("completed_by")
        number = person.get("id", person.get("email")) if isinstance(person, Mapping) else person
        nobody = f"label-studio annotation {annotation.get('id')}, by somebody who was deleted"
        who = nobody if number in (None, "", "None") else f"label-studio user {number}"
        circumstances = {"seconds": _seconds(annotation.get("lead_time")), "created": annotation.get("created_at")}
        return judgements_of_answers(
            prompt_in(self.data, self._prompt_columns(), "data"),
            {
                **self._responses(),
                **{name: self.data[name] for one in asked for name in one.names if name in self.data},
            },
            asked,
            notes,
            who=who,
            circumstances={name: value for name, value in circumstances.items() if value not in (None, "")},
            provenance=provenance,
            ours=provenance.get("completed_by") == number,
            reading=self.reading,
            program="label_studio",
        )

    def _asked(self, result: JsonView) -> Asked | str | None:
        """What one result says: an answer and what it is about, a note, or nothing that is read."""
        name, kind, value = str(result["from_name"]), str(result.get("type")).lower(), result.get("value")
        if not isinstance(value, Mapping):
            self.reading.passes_over(f"Label Studio {name!r}: a result without a value")
            return None
        if kind in _RATED and name in self.reading.off_scale:
            self.reading.passes_over(f"Label Studio {name!r}: {kind}s of a scale that is not {LOWEST} to {HIGHEST}")
            return None
        about = self._about(result)
        if kind == "ranker":
            return self._ranked(name, value)
        part = MessagePart(name=name, type=kind, value=value)
        if kind == "number" and len(about) == 1 and self._has_scale(name):
            return Asked(MessagePart(name=name, type="rating", value={"rating": value.get("number")}), about)
        if kind == "choices" and value.get("choices") and len(self._sides()) == 2:
            (choice, *more) = value["choices"] if isinstance(value["choices"], list) else (value["choices"],)
            if not more and (choice in self._sides() or verdict_of(choice)):
                return Asked(MessagePart(name=name, type=kind, value={"choices": [choice]}), self._sides())
        if kind in ("pairwise", "rating"):
            if len(about) != (2 if kind == "pairwise" else 1):
                shown = result.get("to_name")
                self.reading.passes_over(
                    f"Label Studio {name!r}: a {kind} of {shown!r}, which are no columns of the data: {_CONFIGURED}"
                    if shown is not None
                    else f"Label Studio {name!r}: a {kind} without a to_name: {_CONFIGURED}"
                )
                return None
            return Asked(part, about)
        if (known := self._by_name(part)) is not None:
            return known
        if kind in _NOTES and "start" not in value and "startOffset" not in value:
            said = value.get("text", value.get("choices", value.get("number", value.get("taxonomy"))))
            words = [str(one) for one in (said if isinstance(said, list) else [said])]
            return f"{name}: {', '.join(words)}"
        self.reading.passes_over(f"Label Studio {name!r}: results of the type {kind!r}")
        return None

    def _by_name(self, part: MessagePart) -> Asked | None:
        """An answer of a kind that is known by its name: one of a plugin's."""
        names = list(self._responses())
        asked = Asked(part, tuple(names))
        return asked if asked.kind_by_name("label_studio") else None

    def _has_scale(self, name: str) -> bool:
        config = self.reading.label_config
        return config is not None and name in config.controls and config.controls[name].highest == HIGHEST

    # ---------------------------------------------------------------- what a result is about

    def _about(self, result: JsonView) -> tuple[str, ...]:
        """The columns that a result is about, in the order of its `to_name`; () where one cannot be told."""
        config, to_name = self.reading.label_config, result.get("to_name")
        if config is not None and result["from_name"] in config.controls:
            columns = config.controls[str(result["from_name"])].about
        else:
            names = to_name.split(",") if isinstance(to_name, str) else []
            columns = tuple(self._column(name.strip()) or "" for name in names)
        judged = all(column in self.data and column not in PROMPTS for column in columns)
        return columns if judged and len(set(columns)) == len(columns) else ()

    def _column(self, name: str) -> str | None:
        if name in self.data:
            return name
        label = re.search(r"(\d+|(?<=[_\- ])[A-Za-z])$", name)
        if label is None:
            return None
        same = [column for column in self._sides() if RESPONSE.fullmatch(column)[1] == label[1]]  # type: ignore[index]
        if len(same) != 1:
            return None
        self.reading.assumed[f"the tag {name!r} shows the column {same[0]!r}, by the ending that they share"] = None
        return same[0]

    def _sides(self) -> tuple[str, ...]:
        """The columns that hold responses."""
        config = self.reading.label_config
        if config is not None:
            about = [
                column for tag in config.controls.values() if tag.type in ("pairwise", "rating") for column in tag.about
            ]
            return tuple(dict.fromkeys(column for column in about if column in self.data and column not in PROMPTS))
        return tuple(name for name, text in self.data.items() if RESPONSE.fullmatch(name) and isinstance(text, str))

    def _prompt_columns(self) -> Sequence[str]:
        """Of a configuration, the texts that are shown and not judged."""
        config = self.reading.label_config
        if config is None:
            return ()
        judged = {
            column
            for tag in config.controls.values()
            if tag.type in ("pairwise", "rating", "ranker")
            for column in tag.about
        }
        return [column for column in config.shown if column not in judged]

    def _responses(self) -> JsonObject:
        """Every text that may be judged, by the name that answers call it."""
        return {**{name: self.data[name] for name in self._sides()}, **self._items()}

    def _items(self) -> JsonObject:
        """The items of a list that a Ranker ranks, by id."""
        for items in map(_cell, self.data.values()):
            if isinstance(items, list) and items and all(isinstance(it, Mapping) and "id" in it for it in items):
                return {str(it["id"]): it.get("body", it.get("text", it.get("html"))) for it in items}
        return {}

    def _ranked(self, name: str, value: JsonView) -> Asked | None:
        lists = value.get("ranker")
        if not isinstance(lists, Mapping) or not all(isinstance(ids, list) for ids in lists.values()):
            raise DataError(f"{name}: ranker: expected lists of items by name")
        items, places = self._items(), {}
        if set(lists) == {name}:
            (order,) = lists.values()
            places = {str(item): place for place, item in enumerate(order, start=1)}
        else:
            buckets = [bucket for bucket in lists if bucket != "_"]  # "_": what was put into none of them
            unknown = [bucket for bucket in buckets if bucket not in self.reading.buckets]
            if unknown:
                groups = ", ".join(map(repr, buckets))
                self.reading.passes_over(
                    f"Label Studio {name!r}: items in the buckets {groups}, which are groups without an order: "
                    f"--buckets {','.join(buckets)} gives one, the best first"
                )
                return None
            for bucket in buckets:
                places |= {str(item): self.reading.buckets.index(bucket) for item in lists[bucket]}
        absent = [item for item in places if item not in items]
        if absent or not places:
            raise DataError(f"{name}: ranker: {absent[0] if absent else 'nothing'} is no item of the data")
        if len(places) < 2:
            self.reading.passes_over(f"Label Studio {name!r}: rankings of one item")
            return None
        names = tuple(item for item in items if item in places)
        return Asked(MessagePart(name=name, type="ranker", value={"places": [places[item] for item in names]}), names)


def _seconds(given: object) -> object:
    """A CSV holds it as text."""
    try:
        return float(given) if isinstance(given, str) and given else given
    except ValueError:
        return given
