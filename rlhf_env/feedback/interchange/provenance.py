"""What a file says about a judgement beside the texts and the answer, and a judgement made again from all of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.judgements import Author, Judgement, Preference, Response, id_of_text, kept_meta
from rlhf_env.feedback.kinds import kind_named, kind_of
from rlhf_env.feedback.kinds.kind import CIRCUMSTANCES
from rlhf_env.plain_data import read_json
from rlhf_env.types import JsonObject, JsonView, Prompt


def provenance_of(judgement: Judgement) -> JsonObject:
    """Of a judgement: its prompt's id and metadata, each response in the order shown, and how it was made."""
    return {
        "prompt": {"id": judgement.prompt.id, "meta": kept_meta(judgement.prompt)},
        "responses": [about_response(response) for response in judgement.responses],
        **circumstances_of(judgement, kind_of(judgement).later_of(judgement)),
    }


def circumstances_of(judged: Judgement | Preference, later: JsonView) -> JsonObject:
    """Who judged, when, by what: only what is known. `later` are group, margin and note, where they are given."""
    given = {
        "annotator": judged.annotator,
        "criterion": judged.criterion,
        "weight": judged.weight,
        "created": judged.created,
    }
    return given | ({} if judged.seconds is None else {"seconds": judged.seconds}) | dict(later)


def later_of_pair(pair: Preference) -> JsonObject:
    """Its group, margin and note, where they are given."""
    given = {"group": pair.group, "margin": pair.margin, "note": pair.note}
    return {name: value for name, value in given.items() if value not in (None, "")}


def about_response(response: Response) -> JsonObject:
    """Everything of a response but its text."""
    return {
        "author": [response.author.kind, response.author.name, response.author.temperature],
        "ids": response.ids,
        "prompt_ids": response.prompt_ids,
        "finish_reason": response.finish_reason,
    }


def remade(kind: str, prompt: Any, texts: Sequence[Any], answer: Any, provenance: Any, reading: Reading) -> Judgement:
    """The judgement that `provenance` (an object, or {} when a file has none) completes.

    The file's name is the author of what has none, and the annotator where neither the file nor `reading` says who.
    Raises DataError with every problem.
    """
    if not isinstance(provenance, Mapping) or not isinstance(provenance.get("prompt", {}), Mapping):
        raise DataError("provenance: must be an object, with an object for the prompt")
    about_each = provenance.get("responses", [{}] * len(texts))
    if not isinstance(about_each, list) or len(about_each) != len(texts):
        raise DataError(
            f"provenance: tells of {len(about_each) if isinstance(about_each, list) else 0} of {len(texts)} responses"
        )
    problems: list[str] = []
    responses: list[Response] = []
    for place, (text, more) in enumerate(zip(texts, about_each, strict=True), start=1):
        try:
            responses.append(response_from(text, more, reading.source))
        except DataError as error:
            problems += (f"response {place}: {problem.removeprefix('text: ')}" for problem in error.problems)
    if not isinstance(prompt, str):
        problems.insert(0, f"prompt: expected text, got {json.dumps(prompt)[:40]}")
    if problems:
        raise DataError(*problems)
    made = {name: provenance[name] for name in CIRCUMSTANCES if provenance.get(name) is not None}
    made.setdefault("annotator", reading.annotator or reading.source)
    made.setdefault("criterion", "overall")
    return kind_named(kind)(prompt_from(prompt, provenance.get("prompt", {})), responses, answer, **made)


def prompt_from(text: str, about: JsonView) -> Prompt:
    """Without an id of its own a prompt is named by its text: the same text has the same id in every file."""
    return Prompt(about.get("id", id_of_text(text)), text, about.get("meta", {}))


def response_from(text: Any, about: Any, source: str) -> Response:
    """The response that a file says `about`, beside its text. Raises DataError."""
    if not isinstance(about, Mapping):
        raise DataError("provenance: must be an object for each response")
    author = about.get("author", ["dataset", source, None])
    if not isinstance(author, list) or len(author) != 3:
        raise DataError("author: expected [kind, name, temperature]")
    return Response(
        text=text,
        author=Author(*author),
        ids=_tuple(about.get("ids")),
        prompt_ids=_tuple(about.get("prompt_ids")),
        finish_reason=about.get("finish_reason"),
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
