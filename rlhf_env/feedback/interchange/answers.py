"""The answers that annotation tools keep about one record, as judgements: each of its responses, by its criterion.

What the readers of Argilla and Label Studio share: which columns are texts that were judged, and how a value becomes a
judgement of a kind. Which value is an answer of which kind, each kind says itself (`JudgementKind.argilla`,
`label_studio`), given the responses that it is about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.gathering import Reading
from rlhf_env.feedback.interchange.provenance import in_order, remade
from rlhf_env.feedback.interchange.rows import prompt_text
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import JudgementKind, MessagePart, kinds
from rlhf_env.feedback.kinds.dialects import Answered, Dialect
from rlhf_env.types import JsonObject, JsonView

Program = Literal["argilla", "label_studio"]

RESPONSE = re.compile(
    r"(?:response|answer|generation|completion|output|reply|candidate|summary|text)[ _-]?(\d+|(?<=[ _-])[a-z])?",
    re.IGNORECASE,
)
"""Names of columns with a text that was judged; the group is its number or letter. "answer_id" is none."""
PROMPTS = ("prompt", "instruction", "question", "input", "query")


@dataclass(frozen=True)
class Asked:
    """One answer, and the names of the responses that it is about, in the order of its sides."""

    part: MessagePart
    names: tuple[str, ...]

    def read(self, program: Program) -> tuple[JudgementKind, Answered] | None:
        """What it says, as the first kind that knows it; kinds that are known by name are asked first."""
        for kind in sorted(kinds(), key=lambda kind: _dialect(kind, program).by_shape):
            if (answered := _dialect(kind, program).read(self.part, self.names)) is not None:
                return kind, answered
        return None

    def kind_by_name(self, program: Program) -> bool:
        """Whether a kind that is known by its name, a plugin's, says so."""
        named = (_dialect(kind, program) for kind in kinds())
        return any(not it.by_shape and it.read(self.part, self.names) is not None for it in named)


def _dialect(kind: JudgementKind, program: Program) -> Dialect:
    return kind.in_argilla if program == "argilla" else kind.in_label_studio


def prompt_in(data: JsonView, columns: Sequence[str], where: str) -> tuple[str, JsonView]:
    """(text, what is known about it) of the prompt: the column named so, or the only one of `columns`."""
    named = [name for name in PROMPTS if name in data] or [name for name in columns if name in data]
    if not named or (len(named) > 1 and named[0] not in PROMPTS):
        has = ", ".join(map(repr, data)) or "nothing"
        raise DataError(
            f"{where}: no {', '.join(PROMPTS[:-1])} or {PROMPTS[-1]}, it has {has}: rename the prompt's column"
        )
    problems: list[str] = []
    found = prompt_text(data[named[0]], {}, problems)
    if problems:
        raise DataError(*problems)
    return found


def judgements_of_answers(
    prompt: tuple[str, JsonView],
    responses: JsonView,
    asked: Sequence[Asked],
    notes: Sequence[str],
    *,
    who: str,
    circumstances: JsonView,
    provenance: JsonView,
    ours: bool,
    reading: Reading,
    program: Program,
) -> list[Judgement]:
    """What one person said about a record.

    `provenance` is what a record of our own says beside the texts, `ours` whether this person's answer came with it.
    Notes go with the first judgement. Raises DataError with every problem.
    """
    said: list[tuple[str, tuple[str, ...], Any, str]] = []  # kind, responses, answer, criterion
    scores: dict[tuple[str, tuple[str, ...]], dict[str, object]] = {}
    for one in asked:
        found = one.read(program)
        if found is None:
            reading.passes_over(
                f"{_PROGRAMS[program]} {one.part.name!r}: {one.part.value!r:.60} is no answer that is known"
            )
        elif found[1].field is not None:
            scores.setdefault((found[0].name, one.names), {})[found[1].field] = found[1].value
        else:
            said.append((found[0].name, one.names, found[1].value, one.part.name))
    for (name, names), values in scores.items():
        if name == "criteria" and len(values) == 1 and not (ours and provenance.get("kind") == name):
            ((criterion, score),) = values.items()
            said.append(("rating", names, score, criterion))
        else:
            said.append((name, names, values, ""))
    if notes and not said:
        reading.passes_over(f"{_PROGRAMS[program]}: words without a judgement beside them", len(notes))
    made: list[Judgement] = []
    problems: list[str] = []
    text, about_prompt = prompt
    for place, (name, names, answer, criterion) in enumerate(said):
        mine = ours and provenance.get("kind") == name
        about: JsonObject = dict(provenance) if mine else {**_crowd(provenance), "annotator": who, **circumstances}
        if not mine and criterion:
            about["criterion"] = provenance.get("criterion", criterion)
        if mine and in_order(provenance.get("answer")) == in_order(answer):
            answer = provenance["answer"]
        if notes and not place and not about.get("note"):
            about["note"] = "\n".join(notes)
        about.setdefault("prompt", about_prompt)
        about |= _of_each(provenance, list(responses), names)
        texts = [responses.get(it) for it in names]
        try:
            made.append(remade(name, text, texts, answer, about, reading))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(*problems)
    return made


_PROGRAMS = {"argilla": "Argilla", "label_studio": "Label Studio"}


def _crowd(provenance: JsonView) -> JsonObject:
    """What a record of our own says of its texts, whoever judges them."""
    return {"prompt": provenance["prompt"]} if "prompt" in provenance else {}


def _of_each(provenance: JsonView, known: Sequence[str], names: Sequence[str]) -> JsonObject:
    """What a record of our own says of each response that was judged."""
    each = provenance.get("responses")
    if each is None:
        return {}
    if not isinstance(each, list) or len(each) != len(known):
        raise DataError(f"provenance: tells of {len(each) if isinstance(each, list) else 0} of {len(known)} responses")
    return {"responses": [each[known.index(name)] for name in names if name in known]}
