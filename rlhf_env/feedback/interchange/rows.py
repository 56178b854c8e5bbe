"""One JSON object per judgement: our own, and TRL's preference formats.

    {"kind": "ranking", "prompt": "...", "responses": ["...", "..."], "answer": [2, 1], "provenance": {...}}
    {"prompt": "How are you?", "chosen": "Fine, and you?", "rejected": "No.", "provenance": {...}}
    {"prompt": [{"role": "user", "content": "..."}], "chosen": [{"role": "assistant", "content": "..."}], ...}
    {"prompt": "How are you?", "completion": "Fine, and you?", "label": true, "provenance": {...}}

`provenance` is optional. A conversation becomes the text that the File task makes of it ("plain"), its messages go to
`meta["messages"]`. A label becomes a rating, True the highest and False the lowest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_env.envs.file_task import plain_conversation
from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.provenance import (
    about_response,
    circumstances_of,
    prompt_from,
    provenance_of,
    remade,
    response_from,
)
from rlhf_env.feedback.judgements import Judgement, Preference
from rlhf_env.feedback.kinds import HIGHEST, LOWEST, Comparison, Rating, ScoredResponse, kind_of
from rlhf_env.types import JsonObject, JsonView

_SIDES = ("chosen", "rejected")
_MIDDLE = (LOWEST + HIGHEST) / 2


def judgement_row(judgement: Judgement) -> JsonObject:
    kind = kind_of(judgement)
    return {
        "kind": kind.name,
        "prompt": judgement.prompt.text,
        "responses": [response.text for response in judgement.responses],
        "answer": kind.answer_of(judgement),
        "provenance": provenance_of(judgement),
    }


def pair_row(pair: Preference) -> JsonObject:
    """TRL's standard preference format."""
    return {
        "prompt": pair.prompt.text,
        "chosen": pair.chosen.text,
        "rejected": pair.rejected.text,
        "provenance": {
            "prompt": {"id": pair.prompt.id, "meta": dict(pair.prompt.meta)},
            "chosen": about_response(pair.chosen),
            "rejected": about_response(pair.rejected),
            **circumstances_of(pair, pair.group),
            "chosen_was_first": pair.chosen_was_first,
        },
    }


def conversational_pair_row(pair: Preference) -> JsonObject:
    """TRL's conversational preference format. A prompt that was no conversation is one message of the user."""
    row = pair_row(pair)
    messages = pair.prompt.meta.get("messages")
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        messages = [{"role": "user", "content": pair.prompt.text}]
    row["provenance"]["prompt"]["text"] = pair.prompt.text
    answers = {side: [{"role": "assistant", "content": row[side]}] for side in _SIDES}
    return {"prompt": messages, **answers, "provenance": row["provenance"]}


def unpaired_rows(judged: Preference | ScoredResponse) -> Iterator[JsonObject]:
    """TRL's unpaired preference format: two rows for a pair, one for a rating, none for a rating in the middle."""
    if isinstance(judged, Preference):
        labels = [(judged.chosen, True), (judged.rejected, False)]
        whole = judgement_row(Comparison.of(judged))
    else:
        labels = [(judged.response, judged.score > _MIDDLE)] if judged.score != _MIDDLE else []
        whole = judgement_row(judged)
    for response, label in labels:
        yield {
            "prompt": judged.prompt.text,
            "completion": response.text,
            "label": label,
            "provenance": {"judgement": whole},
        }


def judgement_of(row: Mapping[str, object], *, source: str, annotator: str) -> Judgement:
    """The judgement of any of these rows. Raises DataError with every problem of the row."""
    if "kind" in row:
        return _own(row, source, annotator)
    if "completion" in row or "label" in row:
        return _unpaired(row, source, annotator)
    return Comparison.of(preference_of(row, source=source, annotator=annotator))


def preference_of(row: JsonView, *, source: str, annotator: str) -> Preference:
    """The pair of a row with chosen and rejected. Raises DataError with every problem of the row."""
    row = _explicit(row)
    problems = [f"{field}: missing" for field in ("prompt", *_SIDES) if field not in row]
    if row.get("chosen") is None and row.get("rejected") is not None:
        problems = ["chosen: a preference without a winner", *(p for p in problems if not p.startswith("chosen"))]
    provenance = row.get("provenance") or {}
    if not isinstance(provenance, Mapping) or not all(
        isinstance(provenance.get(k, {}), Mapping) for k in ("prompt", *_SIDES)
    ):
        problems.append("provenance: must be an object, with an object for each of prompt, chosen and rejected")
    if problems:
        raise DataError(*problems)
    text, about_prompt = _prompt_text(row["prompt"], provenance.get("prompt", {}), problems)
    sides = {}
    for side in _SIDES:
        try:
            sides[side] = response_from(_completion_text(row[side]), provenance.get(side, {}), source)
        except DataError as error:
            problems += (f"{side}: {problem.removeprefix('text: ')}" for problem in error.problems)
    if problems:
        raise DataError(*problems)
    names = ("criterion", "weight", "created", "chosen_was_first", "seconds", "group")
    circumstances = {name: provenance[name] for name in names if provenance.get(name) is not None}
    who = provenance.get("annotator", annotator or source)
    return Preference(prompt_from(text, about_prompt), sides["chosen"], sides["rejected"], who, **circumstances)


def _own(row: JsonView, source: str, annotator: str) -> Judgement:
    missing = [f"{field}: missing" for field in ("prompt", "responses", "answer") if field not in row]
    if missing:
        raise DataError(*missing)
    if not isinstance(row["responses"], list):
        raise DataError("responses: expected a list of texts")
    provenance = row.get("provenance") or {}
    return remade(
        row["kind"], row["prompt"], row["responses"], row["answer"], provenance, source=source, annotator=annotator
    )


def _unpaired(row: Mapping[str, object], source: str, annotator: str) -> Judgement:
    problems = [f"{field}: missing" for field in ("prompt", "completion", "label") if field not in row]
    if "label" in row and type(row["label"]) is not bool:
        problems.append(f"label: expected true or false, got {json.dumps(row['label'])[:40]}")
    if problems:
        raise DataError(*problems)
    provenance = row.get("provenance") or {}
    if not isinstance(provenance, Mapping):
        raise DataError("provenance: must be an object")
    text, about_prompt = _prompt_text(row["prompt"], {}, problems)
    completion = _completion_text(row["completion"])
    if problems:
        raise DataError(*problems)
    if isinstance(provenance.get("judgement"), Mapping):
        judgement = judgement_of(provenance["judgement"], source=source, annotator=annotator)
        texts = [response.text for response in judgement.responses]
        if not isinstance(judgement, (Comparison, Rating)) or completion not in texts:
            raise DataError("provenance: is of another completion: take it out of the line")
        return judgement
    score = HIGHEST if row["label"] else LOWEST
    provenance = {**provenance, "prompt": about_prompt}
    return remade("rating", text, [completion], score, provenance, source=source, annotator=annotator)


def _explicit(row: Mapping[str, object]) -> JsonView:
    """TRL's implicit prompt: conversations that differ in the last message. Plain texts are not divided by guess."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if "prompt" in row or not isinstance(chosen, list) or not isinstance(rejected, list):
        return row
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise DataError("chosen, rejected: without a prompt both must begin with the same messages, and differ in one")
    return {**row, "prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _prompt_text(prompt: Any, about: JsonView, problems: list[str]) -> tuple[str, JsonView]:
    """(text, what is known about the prompt) of a text or a conversation."""
    if isinstance(prompt, str):
        return prompt, about
    if not isinstance(prompt, list):
        problems.insert(0, f"prompt: expected text, got {json.dumps(prompt)[:40]}")
    elif not prompt or not all(_is_message(message) for message in prompt):
        problems.insert(0, "prompt: expected text, or messages with a role and a content of text")
    elif "text" in about:
        return about["text"], about
    else:
        return plain_conversation(prompt), {"meta": {"messages": [dict(message) for message in prompt]}, **about}
    return "", about


def _completion_text(content: object) -> Any:
    """The text of a completion; what is neither text nor one message of the assistant is refused by Response."""
    if isinstance(content, list) and len(content) == 1 and _is_message(content[0]):
        if content[0]["role"] != "assistant":
            raise DataError(f"expected a message of the assistant, got one of {content[0]['role']!r}")
        return content[0]["content"]
    return content


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def judgements_of(rows: Sequence[tuple[Mapping[str, object], Judgement]]) -> list[Judgement]:
    """The judgements of rows, where the two halves of an unpaired pair, one after the other, are one."""
    made: list[Judgement] = []
    half = None
    for row, judgement in rows:
        is_half = "completion" in row and isinstance(judgement, Comparison)
        if not is_half or judgement != half:
            made.append(judgement)
        half = judgement if is_half and judgement != half else None
    return made
