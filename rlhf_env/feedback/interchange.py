"""Preferences as files that other programs read: JSON lines in TRL's standard preference format.

    {"prompt": "How are you?", "chosen": "Fine, and you?", "rejected": "No.", "provenance": {...}}

`prompt`, `chosen` and `rejected` are what TRL's trainers read. Everything else a store knows is in `provenance`, which
is optional on reading and makes the round trip exact.

    write_jsonl("pairs.jsonl", store.preferences())
    store.add(read_jsonl("pairs.jsonl"))
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_env.errors import DataError
from rlhf_env.feedback.preferences import Author, Preference, Response
from rlhf_env.types import Prompt

_MOST_PROBLEMS = 20
_SIDES = ("chosen", "rejected")
_SETTINGS = ("criterion", "weight", "created", "chosen_was_first")


def write_jsonl(path: str | Path, preferences: Iterable[Preference]) -> int:
    """Write one line per preference; returns how many. The file appears whole or not at all."""
    path = Path(path)
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with half.open("w", encoding="utf-8", newline="\n") as file:
            for preference in preferences:
                # ASCII with escapes, so that lone surrogates and odd line separators survive
                file.write(json.dumps(_row(preference), default=dict) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    return count


def read_jsonl(path: str | Path, *, annotator: str = "") -> list[Preference]:
    """The preferences of a file, in order. `annotator` (default: the file's name) judged the lines that do not say who.

    Raises DataError with each problem as "file:line: field: what", up to 20 of them: a line that is not JSON or not
    UTF-8, a field that is missing, null or no text, a preference without a winner, an empty file.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    preferences: list[Preference] = []
    problems: list[str] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            preferences.append(_preference(_parsed(line), Author("dataset", path.name), annotator or path.name))
        except DataError as error:
            problems += (f"{path}:{number}: {problem}" for problem in error.problems)
        if len(problems) > _MOST_PROBLEMS:
            problems[_MOST_PROBLEMS:] = [f"{path}: and more after these {_MOST_PROBLEMS}"]
            break
    if not problems and not preferences:
        problems = [f"{path}: the file is empty: each line must hold a prompt, a chosen and a rejected text"]
    if problems:
        raise DataError(*problems)
    return preferences


def _row(it: Preference) -> dict[str, Any]:
    return {
        "prompt": it.prompt.text,
        "chosen": it.chosen.text,
        "rejected": it.rejected.text,
        "provenance": {
            "prompt": {"id": it.prompt.id, "meta": it.prompt.meta},
            "chosen": _about(it.chosen),
            "rejected": _about(it.rejected),
            "annotator": it.annotator,
            **{name: getattr(it, name) for name in _SETTINGS},
        },
    }


def _about(response: Response) -> dict[str, Any]:
    return {
        "author": [response.author.kind, response.author.name, response.author.temperature],
        "ids": response.ids,
        "prompt_ids": response.prompt_ids,
        "finish_reason": response.finish_reason,
    }


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start + 1} of the line") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError("not an object with prompt, chosen and rejected")
    return row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _preference(row: dict[str, Any], author: Author, annotator: str) -> Preference:
    """The preference of one line. Raises DataError with every problem of the line."""
    problems = [f"{field}: missing" for field in ("prompt", "chosen", "rejected") if field not in row]
    if row.get("chosen") is None and row.get("rejected") is not None:
        problems = ["chosen: a preference without a winner", *(p for p in problems if not p.startswith("chosen"))]
    about = row.get("provenance", {})
    if not isinstance(about, dict) or not all(isinstance(about.get(k, {}), dict) for k in ("prompt", *_SIDES)):
        problems.append("provenance: must be an object, with an object for each of prompt, chosen and rejected")
    if problems:
        raise DataError(*problems)
    sides: dict[str, Response] = {}
    for side in _SIDES:
        try:
            sides[side] = _response(row[side], about.get(side, {}), author)
        except DataError as error:
            problems += (f"{side}: {problem.removeprefix('text: ')}" for problem in error.problems)
    if not isinstance(row["prompt"], str):
        problems.insert(0, f"prompt: expected text, got {json.dumps(row['prompt'])[:40]}")
    if problems:
        raise DataError(*problems)
    whence = about.get("prompt", {})
    prompt = Prompt(whence.get("id", _name(row["prompt"])), row["prompt"], whence.get("meta", {}))
    settings = {name: about[name] for name in _SETTINGS if name in about}
    return Preference(prompt, sides["chosen"], sides["rejected"], about.get("annotator", annotator), **settings)


def _response(text: Any, about: dict[str, Any], author: Author) -> Response:
    written_by = about.get("author", [author.kind, author.name, author.temperature])
    if not isinstance(written_by, list) or len(written_by) != 3:
        raise DataError("author: expected [kind, name, temperature]")
    return Response(
        text=text,
        author=Author(*written_by),
        ids=_tuple(about.get("ids")),
        prompt_ids=_tuple(about.get("prompt_ids")),
        finish_reason=about.get("finish_reason"),
    )


def _tuple(ids: Any) -> Any:
    return tuple(ids) if isinstance(ids, list) else ids  # what is no list is refused by Response


def _name(text: Any) -> str:
    """An id for a prompt that came without one: the same text has the same id in every file."""
    return hashlib.sha256(json.dumps(text).encode("ascii")).hexdigest()[:16]
