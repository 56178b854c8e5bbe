"""The texts that a run has kept, to be sorted, searched and read: an index in memory, the texts themselves on the disk.

What models and tasks wrote is made fit to be shown here: see `shown_text.for_page`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from rlhf_env.errors import DataError
from rlhf_env.lab.evaluation.runs import EVALUATION_FILE
from rlhf_env.lab.watching.growing_file import GrowingFile
from rlhf_env.lab.watching.reading import is_number, object_in
from rlhf_env.learning.recorded_texts import TEXTS_FILE
from rlhf_env.shown_text import for_page
from rlhf_env.types import JsonObject

AT_ONCE = 12  # texts that are sent together
CHARACTERS = 20_000  # of a prompt, or of a text without tokens
_WORDS = 400  # that a change is measured on
SORTS = ("update", "reward", "length", "kl", "change", "rewritten")


@dataclass(frozen=True)
class Query:
    """Which texts, in which order. `prompt`: the id of the only prompt; `source`: "evaluation" or "rollout"."""

    sort: str = "update"
    descending: bool = True
    search: str = ""
    source: str = ""
    update: int | None = None
    prompt: str | None = None
    begin: int = 0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Query:
        """Raises DataError for a field of another type."""
        kinds: dict[str, tuple[type, ...]] = {
            "sort": (str,),
            "descending": (bool,),
            "search": (str,),
            "source": (str,),
            "update": (int, type(None)),
            "prompt": (str, type(None)),
            "begin": (int,),
        }
        wanted = {name: value for name, value in given.items() if name in kinds and value is not None}
        for name, value in wanted.items():
            if type(value) not in kinds[name]:
                raise DataError(f"{name}: not a value that it can have: {str(value)[:40]!r}")
        return cls(**wanted)


@dataclass(frozen=True)
class _Entry:
    """What a text is found and sorted by."""

    offset: int
    size: int
    update: int
    source: str
    prompt_id: str
    words: str
    """Prompt and response, in small letters."""
    measures: Mapping[str, float]
    """By name; a part's is "part/NAME"."""


class TextIndex:
    """The texts of a run's folder as far as they were read (`read`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / TEXTS_FILE
        self._growing = GrowingFile(self._file)
        self._restarts = 0
        self._entries: list[_Entry] = []
        self._first: dict[tuple[str, int], tuple[float | None, list[str]]] = {}
        self._parts: dict[str, None] = {}
        self._numbers: dict[str, None] = {}

    @property
    def left(self) -> float:
        return self._growing.left

    def read(self) -> bool:
        """Read on; whether there was something new."""
        lines = self._growing.read()
        if self._growing.restarts != self._restarts:
            self._restarts = self._growing.restarts
            self._entries, self._first, self._parts, self._numbers = [], {}, {}, {}
        for offset, line in lines:
            try:
                row = json.loads(line)
                self._take_in(row, offset, len(line))
            except (ValueError, LookupError, TypeError, AttributeError):
                continue  # the first line, which is no text, or a damaged one
        return bool(lines)

    def _take_in(self, row: JsonObject, offset: int, size: int) -> None:
        prompt, response, index = str(row["prompt"]), str(row["response"]), int(row["index"])
        measures: dict[str, float] = {"length": float(row["length"])}
        measures |= {name: row[name] for name in ("reward", "kl") if is_number(row.get(name))}
        parts = {f"part/{name}": value for name, value in row["parts"].items() if is_number(value)}
        source, key = str(row["source"]), (str(row["prompt_id"]), index)
        if source == "evaluation":  # the same prompts each time, in the same places
            said = response.split()[:_WORDS]
            reward, before = self._first.setdefault(key, (measures.get("reward"), said))
            if before is not said:
                measures["rewritten"] = 1.0 - SequenceMatcher(None, before, said, autojunk=False).ratio()
                if reward is not None and "reward" in measures:
                    measures["change"] = measures["reward"] - reward
        self._parts |= dict.fromkeys(parts)
        self._numbers |= dict.fromkeys(row["numbers"])
        words = f"{prompt}\n{response}".casefold()
        self._entries.append(_Entry(offset, size, int(row["update"]), source, key[0], words, {**measures, **parts}))

    def about(self) -> JsonObject:
        """What there is to choose from: updates, sources, what one can sort by, and what tokens can be coloured by."""
        if not self._entries:
            rows = self._of_evaluation()
            sorts = [name for name in ("gold", "proxy", "kl") if any(name in row for row in rows)]
            return {"count": len(rows), "updates": [], "sources": [], "sorts": sorts, "numbers": []}
        known = {name for entry in self._entries for name in entry.measures}
        return {
            "count": len(self._entries),
            "updates": sorted({entry.update for entry in self._entries}),
            "sources": sorted({entry.source for entry in self._entries}),
            "sorts": [name for name in SORTS if name == "update" or name in known] + list(self._parts),
            "numbers": list(self._numbers),
        }

    def find(self, query: Query) -> JsonObject:
        """`total` texts that fit, and those from `begin` on, with everything that is kept of them."""
        if not self._entries:
            return self._find_in_evaluation(query)
        words = query.search.casefold()
        fitting = [
            entry
            for entry in self._entries
            if (not words or words in entry.words)
            and (not query.source or entry.source == query.source)
            and (query.update is None or entry.update == query.update)
            and (query.prompt is None or entry.prompt_id == query.prompt)
        ]
        sign = -1.0 if query.descending else 1.0

        def place(entry: _Entry) -> tuple[float, float]:
            measure = float(entry.update) if query.sort == "update" else entry.measures.get(query.sort)
            return (math.inf if measure is None else sign * measure, sign * entry.update)

        fitting.sort(key=place)
        begin = max(0, query.begin)
        shown = [self._whole(entry) for entry in fitting[begin : begin + AT_ONCE]]
        return {"total": len(fitting), "begin": begin, "texts": [text for text in shown if text is not None]}

    def _whole(self, entry: _Entry) -> JsonObject | None:
        try:
            with self._file.open("rb") as stream:
                stream.seek(entry.offset)
                row = json.loads(stream.read(entry.size))
        except (OSError, ValueError):  # replaced since: the next look reads it anew
            return None
        if not isinstance(row, dict) or row.get("update") != entry.update:
            return None
        return _shown(row, entry.measures)

    # ---------------------------------------------------------------- of a run that has kept none

    def _of_evaluation(self) -> Sequence[JsonObject]:
        rows = object_in(self._folder / EVALUATION_FILE).get("samples", [])
        if not isinstance(rows, list):
            return []
        return [row for row in rows if isinstance(row, dict) and "prompt" in row and "response" in row]

    def _find_in_evaluation(self, query: Query) -> JsonObject:
        """In the samples of the last evaluation, which have no tokens."""
        words, rows = query.search.casefold(), self._of_evaluation()
        fitting = [row for row in rows if words in f"{row['prompt']}\n{row['response']}".casefold()]
        if query.sort != "update":
            sign = -1.0 if query.descending else 1.0

            def measure(row: JsonObject) -> float:
                value = row.get(query.sort)
                return sign * value if is_number(value) else math.inf

            fitting.sort(key=measure)
        begin = max(0, query.begin)
        shown = [_shown({"source": "evaluation", **row}, {}) for row in fitting[begin : begin + AT_ONCE]]
        return {"total": len(fitting), "begin": begin, "texts": shown}


def _shown(row: JsonObject, measures: Mapping[str, float]) -> JsonObject:
    response = str(row["response"])
    told: JsonObject = {
        name: row[name] for name in ("update", "source", "length", "reward", "kl", "gold", "proxy") if name in row
    }
    parts = row.get("parts", {})
    return {
        **told,
        **{name: measures[name] for name in ("change", "rewritten") if name in measures},
        "prompt_id": row.get("prompt_id"),
        "prompt": for_page(str(row["prompt"])[:CHARACTERS]),
        "response": for_page(response[:CHARACTERS]),
        "finish_reason": for_page(str(row.get("finish_reason", ""))),
        "parts": {for_page(str(name)): value for name, value in parts.items()},
        "tokens": [for_page(str(token)) for token in row.get("tokens", ())],
        "given": row.get("given", []),
        "numbers": {for_page(str(name)): values for name, values in row.get("numbers", {}).items()},
    }
