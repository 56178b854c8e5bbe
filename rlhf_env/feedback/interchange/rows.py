"""One JSON object per judgement: our own, and the layouts that data sets of preferences have.

    {"kind": "ranking", "prompt": "...", "responses": ["...", "..."], "answer": [2, 1], "provenance": {...}}
    {"prompt": "How are you?", "chosen": "Fine, and you?", "rejected": "No.", "margin": 2.0, "provenance": {...}}
    {"prompt": [{"role": "user", "content": "..."}], "chosen": [{"role": "assistant", "content": "..."}], ...}
    {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [...]}         the prompt in both
    {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}                          hh-rlhf's transcripts
    {"conversations": [{"from": "human", "value": "..."}], "chosen": {"from": "gpt", ...}, ...}    ShareGPT
    {"prompt": "How are you?", "completion": "Fine, and you?", "label": true, "provenance": {...}}

`provenance` is optional, and so are the fields `annotator`, `criterion`, `weight`, `margin`, `created`, `seconds` and
`note`; a margin may also be the difference of `chosen_rating` and `rejected_rating` (or `score_chosen` and
`score_rejected`). A conversation becomes the text that the File task makes of it ("plain"), its messages go to
`meta["messages"]`. A label becomes a rating, True the highest and False the lowest. Other layouts of published sets are
those of `layouts/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_env.envs.tokenizers import plain_conversation, template_options
from rlhf_env.errors import DataError
from rlhf_env.feedback import findings
from rlhf_env.feedback.interchange.dialogues import (
    answer_in,
    divided,
    is_conversation,
    messages_of,
    transcript,
)
from rlhf_env.feedback.interchange.gathering import Reading, UnknownFields
from rlhf_env.feedback.interchange.provenance import (
    about_response,
    circumstances_of,
    later_of_pair,
    prompt_from,
    provenance_of,
    remade,
    response_from,
)
from rlhf_env.feedback.judgements import Judgement, Preference, kept_meta
from rlhf_env.feedback.kinds import HIGHEST, LOWEST, Comparison, Rating, ScoredResponse, kind_of
from rlhf_env.types import JsonObject, JsonView

_SIDES = ("chosen", "rejected")
_MIDDLE = (LOWEST + HIGHEST) / 2
CIRCUMSTANCE_COLUMNS = ("annotator", "criterion", "weight", "margin", "created", "seconds", "note")
"""Fields of a row of any layout that say how its judgement was made."""
_SCORES = (("chosen_rating", "rejected_rating"), ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
NUMBERS = ("weight", "margin", "seconds", *(name for names in _SCORES for name in names))
_TEMPLATED = ("tools", "chat_template_kwargs")  # columns that a chat template reads
_OWN = ("kind", "prompt", "responses", "answer")
_PAIR = ("prompt", *_SIDES, "conversations", "system", *(name for names in _SCORES for name in names))
_UNPAIRED = ("prompt", "completion", "label")
FIELDS = {*_OWN, *_PAIR, *_UNPAIRED, *_TEMPLATED, *CIRCUMSTANCE_COLUMNS, "provenance"}
"""Every name that has a meaning in a row."""


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
    """TRL's standard preference format, with the margin that its reward trainer reads where there is one."""
    margin = {} if pair.margin is None else {"margin": pair.margin}
    return {
        "prompt": pair.prompt.text,
        "chosen": pair.chosen.text,
        "rejected": pair.rejected.text,
        **margin,
        "provenance": {
            "prompt": {"id": pair.prompt.id, "meta": kept_meta(pair.prompt)},
            "chosen": about_response(pair.chosen),
            "rejected": about_response(pair.rejected),
            **circumstances_of(pair, later_of_pair(pair)),
            "chosen_was_first": pair.chosen_was_first,
        },
    }


def conversational_pair_row(pair: Preference) -> JsonObject:
    """TRL's conversational preference format. A prompt that was no conversation is one message of the user."""
    row = pair_row(pair)
    messages = kept_meta(pair.prompt).get("messages")
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        messages = [{"role": "user", "content": pair.prompt.text}]
    row["provenance"]["prompt"]["text"] = pair.prompt.text
    row |= {name: pair.prompt.meta[name] for name in _TEMPLATED if name in pair.prompt.meta}
    answers = {side: [{"role": "assistant", "content": row[side]}] for side in _SIDES}
    return {**row, "prompt": messages, **answers}


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


def judgement_of(row: JsonView, reading: Reading) -> Judgement:
    """The judgement of any of these rows. Raises DataError with every problem of the row."""
    known: Sequence[str]
    made: Judgement
    if "kind" in row and not all(side in row for side in _SIDES):
        known, made = _OWN, _own(row, reading)
    elif "completion" in row or "label" in row:
        known, made = _UNPAIRED, _unpaired(row, reading)
    elif "conversations" in row and not any(side in row for side in _SIDES):
        raise DataError("conversations: demonstrations, and no judgement of them: chosen and rejected are missing")
    else:
        known, made = _PAIR, Comparison.of(preference_of(row, reading))
    for name in row:
        if name not in (*known, *(() if known is _OWN else _TEMPLATED), *CIRCUMSTANCE_COLUMNS, "provenance"):
            reading.passes_over(f"column {name!r}")
    return made


def preference_of(row: JsonView, reading: Reading) -> Preference:
    """The pair of a row with chosen and rejected. Raises DataError with every problem of the row."""
    row = _explicit(row)
    missing = [field for field in ("prompt", *_SIDES) if field not in row]
    problems = [f"{field}: missing" for field in missing]
    if row.get("chosen") is None and row.get("rejected") is not None:
        problems = ["chosen: a preference without a winner", *(p for p in problems if not p.startswith("chosen"))]
    provenance = row.get("provenance") or {}
    if not isinstance(provenance, Mapping) or not all(
        isinstance(provenance.get(k, {}), Mapping) for k in ("prompt", *_SIDES)
    ):
        problems.append("provenance: must be an object, with an object for each of prompt, chosen and rejected")
    if not any(side in row for side in _SIDES):
        has = ", ".join(map(repr, row)) or "nothing"
        remedy = "rename its columns; `rlhf-env preferences layouts` lists those that are read, winners and ties too"
        raise UnknownFields(list(row), _PAIR, f"{', '.join(missing)}: missing, it has {has}: {remedy}")
    if problems == ["prompt: missing"] and all(isinstance(row[side], str) for side in _SIDES):
        raise UnknownFields(
            list(row), _PAIR, "prompt: missing; one inside chosen and rejected needs a column of its own"
        )
    if problems:
        raise DataError(*problems)
    text, about_prompt = prompt_text(row["prompt"], provenance.get("prompt", {}), problems, row)
    sides = {}
    for side in _SIDES:
        try:
            sides[side] = response_from(_completion_text(row[side]), provenance.get(side, {}), reading.source)
        except DataError as error:
            problems += (f"{side}: {problem.removeprefix('text: ')}" for problem in error.problems)
    about = with_columns(row, provenance)
    about["margin"] = about.get("margin", _margin(row, problems))
    if problems:
        raise DataError(*problems)
    names = (*CIRCUMSTANCE_COLUMNS[1:], "chosen_was_first", "group")
    circumstances = {name: about[name] for name in names if about.get(name) is not None}
    who = about.get("annotator", reading.annotator or reading.source)
    return Preference(prompt_from(text, about_prompt), sides["chosen"], sides["rejected"], who, **circumstances)


def with_columns(row: JsonView, provenance: JsonView) -> JsonObject:
    """What a row says of how its judgement was made: in fields of its own, or in its provenance."""
    given = {name: row[name] for name in CIRCUMSTANCE_COLUMNS if row.get(name) not in (None, "")}
    if type(given.get("annotator")) is int:
        given["annotator"] = str(given["annotator"])
    return {**provenance, **given}


def _margin(row: JsonView, problems: list[str]) -> float | None:
    """The difference of two ratings, where both are given."""
    for better, worse in _SCORES:
        high, low = row.get(better), row.get(worse)
        if high in (None, "") or low in (None, ""):
            continue
        wrong = [
            findings.number(
                name, abs(it) if isinstance(it, (int, float)) and not isinstance(it, bool) else it, zero_is_fine=True
            )
            for name, it in ((better, high), (worse, low))
        ]
        if any(wrong):
            problems += filter(None, wrong)
            return None
        assert isinstance(high, (int, float)) and isinstance(low, (int, float))
        if high < low:
            problems.append(f"{better}: {high} is below {worse}, {low}: which of the two is preferred?")
            return None
        return float(high - low)
    return None


def _own(row: JsonView, reading: Reading) -> Judgement:
    missing = [f"{field}: missing" for field in ("prompt", "responses", "answer") if field not in row]
    if missing:
        raise DataError(*missing)
    if not isinstance(row["responses"], list):
        raise DataError("responses: expected a list of texts")
    provenance = row.get("provenance") or {}
    if not isinstance(provenance, Mapping):
        raise DataError("provenance: must be an object")
    about = with_columns(row, provenance)
    return remade(row["kind"], row["prompt"], row["responses"], row["answer"], about, reading)


def _unpaired(row: JsonView, reading: Reading) -> Judgement:
    missing = [field for field in _UNPAIRED if field not in row]
    problems = [f"{field}: missing" for field in missing]
    if "label" in row and type(row["label"]) is not bool:
        problems.append(f"label: expected true or false, got {json.dumps(row['label'])[:40]}")
    if problems:
        raise DataError(*problems)
    provenance = row.get("provenance") or {}
    if not isinstance(provenance, Mapping):
        raise DataError("provenance: must be an object")
    text, about_prompt = prompt_text(row["prompt"], {}, problems, row)
    completion = _completion_text(row["completion"])
    if problems:
        raise DataError(*problems)
    if isinstance(provenance.get("judgement"), Mapping):
        judgement = judgement_of(provenance["judgement"], reading)
        texts = [response.text for response in judgement.responses]
        if not isinstance(judgement, (Comparison, Rating)) or completion not in texts:
            raise DataError("provenance: is of another completion: take it out of the line")
        return judgement
    score = HIGHEST if row["label"] else LOWEST
    about = with_columns(row, {**provenance, "prompt": about_prompt})
    return remade("rating", text, [completion], score, about, reading)


def _explicit(row: JsonView) -> JsonView:
    """The row with prompt, chosen and rejected apart: whole conversations differ in the last message.

    Plain texts are not divided by guess; transcripts in the layout of hh-rlhf are.
    """
    sides = [row.get(side) for side in _SIDES]
    if "conversations" in row and "prompt" not in row:
        system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        try:
            row = {**row, "prompt": [*system, *messages_of(row["conversations"])]}
        except DataError as error:
            raise DataError(*(f"conversations: {problem}" for problem in error.problems)) from error
    if "prompt" not in row and all(transcript(side) for side in sides):
        sides = [transcript(side) for side in sides]
    if not all(is_conversation(side) for side in sides):
        if "prompt" not in row and all(isinstance(side, list) for side in sides):
            divided([], [])  # says what is wanted
        return row
    if "prompt" in row and all(isinstance(side, list) and len(side) == 1 for side in sides):
        return row
    both = []
    for side, content in zip(_SIDES, sides, strict=True):
        try:
            both.append(messages_of(content))
        except DataError as error:
            raise DataError(*(f"{side}: {problem}" for problem in error.problems)) from error
    prompt, chosen, rejected = divided(*both)
    if "prompt" in row:
        asked = row["prompt"]
        same = prompt[-1]["content"] == asked if isinstance(asked, str) else prompt == messages_of(asked)
        if not same:
            raise DataError("chosen, rejected: whole conversations, which do not begin with the prompt of the row")
    return {**row, "prompt": prompt, "chosen": [chosen], "rejected": [rejected]}


def prompt_text(prompt: Any, about: JsonView, problems: list[str], row: JsonView | None = None) -> tuple[str, JsonView]:
    """(text, what is known about the prompt) of a text or a conversation; `row` has columns for its chat template."""
    if isinstance(prompt, str):
        return prompt, about
    try:
        messages = messages_of(prompt)
    except DataError as error:
        problems[:0] = [f"prompt: {problem}" for problem in error.problems]
        return "", about
    columns = {name: it for name in _TEMPLATED if (it := (row or {}).get(name))}
    try:
        template_options(columns)
    except DataError as error:
        problems[:0] = error.problems
    if "text" in about:
        return about["text"], about
    return plain_conversation(messages), {"meta": {"messages": messages, **columns}, **about}


def _completion_text(content: object) -> Any:
    """The text of a completion; what is neither text nor one message of the assistant is refused by Response."""
    if isinstance(content, Mapping) or (isinstance(content, list) and len(content) == 1 and is_conversation(content)):
        (message,) = messages_of(content)
        return answer_in(message)
    if isinstance(content, list) and len(content) > 1 and is_conversation(content):
        raise DataError(f"{len(content)} messages, expected one of the assistant")
    return content


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def judgements_of(rows: Sequence[tuple[JsonView, Sequence[Judgement]]]) -> list[Judgement]:
    """The judgements of rows, where the two halves of an unpaired pair, one after the other, are one."""
    made: list[Judgement] = []
    half = None
    for row, judgements in rows:
        is_half = "completion" in row and len(judgements) == 1 and isinstance(judgements[0], Comparison)
        if not is_half or judgements[0] != half:
            made += judgements
        half = judgements[0] if is_half and judgements[0] != half else None
    return made
