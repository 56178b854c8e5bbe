"""Texts that are too long for who is to read them, named by the lines on which they stand.

The readers of this wing give judgements and not lines, and only a text that is refused has to be found again. So the
file is searched then, whatever its format is.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange.gathering import MOST_PROBLEMS
from rlhf_env.feedback.judgements import Response
from rlhf_env.plain_data import read_file, read_json
from rlhf_env.types import Prompt

_SHOWN = 40  # characters of a text in a message


def require_fit(
    texts: Iterable[tuple[Prompt, Response, int]], most: int, *, reader: str, path: str | Path | None = None
) -> None:
    """Raise DataError that names every text of more than `most` tokens: (prompt, response, tokens of both together).

    `reader` is who reads no more. `path` is the file that the texts came from, whose lines are then named; up to 20.
    """
    too_long = [text for text in texts if text[2] > most]
    if not too_long:
        return
    lines = [] if path is None else list(_lines(Path(path)))
    problems = [
        f"{_where(prompt, response, lines, path)}: prompt and response have {tokens} tokens together, and {reader} "
        f"reads {most}: shorten {response.text[:_SHOWN]!r} or its prompt, or leave the line out"
        for prompt, response, tokens in too_long
    ]
    one_a_line = {problem.partition(": ")[0]: problem for problem in reversed(problems)}
    found = list(reversed(one_a_line.values())) if path is not None else problems
    more = len(found) - MOST_PROBLEMS
    raise DataError(*found[:MOST_PROBLEMS], *([f"... and {more} more texts that are too long"] if more > 0 else []))


def _where(prompt: Prompt, response: Response, lines: list[tuple[str, frozenset[str]]], path: object) -> str:
    for where, strings in lines:
        if response.text in strings and any(it in prompt.text for it in strings - {response.text, ""}):
            return where
    named = f"prompt {prompt.text[:_SHOWN]!r}"
    return named if path is None else f"{path}, {named}"


def _lines(path: Path) -> Iterator[tuple[str, frozenset[str]]]:
    """(where, every string that stands there) of a file of text; nothing of a store."""
    content = read_file(path)
    if content.startswith(b"SQLite format 3\0"):
        return
    text = content.decode("utf-8", errors="replace")
    if path.suffix.lower() in (".csv", ".tsv"):
        begins = 1
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for row in reader:
            yield f"{path}:{begins}", frozenset(row)
            begins = reader.line_num + 1
        return
    try:
        whole = read_json(text)
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list):
        for number, record in enumerate(whole, start=1):
            yield f"{path}, record {number}", frozenset(_strings(record))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            yield f"{path}:{number}", frozenset(_strings(json.loads(line)))
        except (ValueError, RecursionError):
            continue


def _strings(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _strings(value)
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value)
