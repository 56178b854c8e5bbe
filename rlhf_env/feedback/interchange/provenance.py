"""What a file says about a judgement beside the texts and the answer, and a judgement made again from all of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_env.errors import DataError
from rlhf_env.feedback.judgements import Author, Comparison, Judgement, Kind, Response, make_judgement
from rlhf_env.plain_data import read_json
from rlhf_env.types import JsonObject, JsonView, Prompt

_CIRCUMSTANCES = ("annotator", "criterion", "weight", "created", "seconds", "group")


def provenance_of(it: Judgement) -> JsonObject:
    """Of a judgement: its prompt's id and metadata, each response in the order shown, and how it was made."""
    return {
        "prompt": {"id": it.prompt.id, "meta": dict(it.prompt.meta)},
        "responses": [about(response) for response in it.responses],
        **circumstances_of(it),
    }


def circumstances_of(it: Judgement) -> JsonObject:
    """Who judged, when, by what: only what is known."""
    group = it.group if isinstance(it, Comparison) else ""
    given = {"annotator": it.annotator, "criterion": it.criterion, "weight": it.weight, "created": it.created}
    return given | ({} if it.seconds is None else {"seconds": it.seconds}) | ({"group": group} if group else {})


def about(response: Response) -> JsonObject:
    """Everything of a response but its text."""
    return {
        "author": [response.author.kind, response.author.name, response.author.temperature],
        "ids": response.ids,
        "prompt_ids": response.prompt_ids,
        "finish_reason": response.finish_reason,
    }


def remade(
    kind: Kind, prompt: Any, texts: Sequence[Any], answer: Any, provenance: Any, *, source: str, annotator: str
) -> Judgement:
    """The judgement that `provenance` (an object, or {} when a file has none) completes.

    `source` is the file's name: the author of what has none, and the annotator where neither the file nor `annotator`
    says who. Raises DataError with every problem.
    """
    if not isinstance(provenance, Mapping) or not isinstance(provenance.get("prompt", {}), Mapping):
        raise DataError("provenance: must be an object, with an object for the prompt")
    told = provenance.get("responses", [{}] * len(texts))
    if not isinstance(told, list) or len(told) != len(texts):
        raise DataError(f"provenance: tells of {len(told) if isinstance(told, list) else 0} of {len(texts)} responses")
    problems: list[str] = []
    responses: list[Response] = []
    for place, (text, more) in enumerate(zip(texts, told, strict=True), start=1):
        try:
            responses.append(response_from(text, more, source))
        except DataError as error:
            problems += (f"response {place}: {problem.removeprefix('text: ')}" for problem in error.problems)
    if not isinstance(prompt, str):
        problems.insert(0, f"prompt: expected text, got {json.dumps(prompt)[:40]}")
    if problems:
        raise DataError(*problems)
    made = {name: provenance[name] for name in _CIRCUMSTANCES if provenance.get(name) is not None}
    made.setdefault("annotator", annotator or source)
    made.setdefault("criterion", "overall")
    if kind != "comparison":
        made.pop("group", None)
    return make_judgement(kind, prompt_from(prompt, provenance.get("prompt", {})), responses, answer, **made)


def prompt_from(text: str, told: JsonView) -> Prompt:
    """Without an id of its own a prompt is named by its text: the same text has the same id in every file."""
    name = hashlib.sha256(json.dumps(text).encode("ascii")).hexdigest()[:16]
    return Prompt(told.get("id", name), text, told.get("meta", {}))


def response_from(text: Any, told: Any, source: str) -> Response:
    """The response of which a file tells `told`. Raises DataError."""
    if not isinstance(told, Mapping):
        raise DataError("provenance: must be an object for each response")
    author = told.get("author", ["dataset", source, None])
    if not isinstance(author, list) or len(author) != 3:
        raise DataError("author: expected [kind, name, temperature]")
    return Response(
        text=text,
        author=Author(*author),
        ids=_tuple(told.get("ids")),
        prompt_ids=_tuple(told.get("prompt_ids")),
        finish_reason=told.get("finish_reason"),
    )


def in_order(answer: object) -> Any:
    """A ranking as other programs keep it, best first and without equal places; any other answer as it is."""
    if isinstance(answer, list) and all(type(rank) is int for rank in answer):
        return sorted(range(len(answer)), key=lambda place: answer[place])
    return answer


def parsed(field: str, content: str) -> Any:
    """JSON inside a text cell. Raises DataError that names the field."""
    try:
        return read_json(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{field}: not JSON: {error}") from error


def _tuple(ids: object) -> Any:
    return tuple(ids) if isinstance(ids, list) else ids  # what is no list is refused by Response
