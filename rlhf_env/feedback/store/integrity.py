"""Whether a preference store is whole: its pages, as SQLite sees them, and its rows, as their own digests say.

SQLite has no checksums: a flipped bit in a text leaves a sound database that says something else. But prompts and
responses are known by the sha256 of their content, and judgements and items by that of what they say: rows are held
against it.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from rlhf_env.errors import DataError
from rlhf_env.feedback.judgements import Response, digest, prompt_digest, response_digest
from rlhf_env.feedback.kinds import kind_names, kind_of
from rlhf_env.feedback.kinds.kind import LATER, digest_of
from rlhf_env.feedback.store.records import RESPONSE_COLUMNS, read_judgement, read_prompt, read_response
from rlhf_env.types import Prompt

WHOLE_CHECK_BYTES = 32 * 2**20
"""A store up to this size is checked row by row when it is opened, a larger one page by page."""

Damage = tuple[str, int]
"""(table, id) of a row that does not say what its digest says."""

_T = TypeVar("_T")


def page_problem(db: sqlite3.Connection, *, whole: bool) -> str:
    """What SQLite finds wrong first; "" if it finds nothing. `whole`: indices are held against their tables, too."""
    found = str(db.execute(f"PRAGMA {'integrity' if whole else 'quick'}_check(1)").fetchone()[0])
    if found != "ok":
        return " ".join(found.replace("*** in database main ***", "").split())
    orphan = db.execute("PRAGMA foreign_key_check").fetchone()
    return "" if orphan is None else f"a row of {orphan[0]} belongs to one of {orphan[2]} that is not there"


def damaged_rows(db: sqlite3.Connection) -> Iterator[Damage]:
    """Every row that does not say what its digest says, in a database of the newest schema."""
    prompts: dict[int, Prompt] = {}
    for identity, name, *row in db.execute("SELECT id, digest, name, text, meta FROM prompts ORDER BY id"):
        prompt = _read(read_prompt, tuple(row))
        if prompt is None or _read(prompt_digest, prompt) != name:
            yield "prompts", identity
        else:
            prompts[identity] = prompt
    responses: dict[int, Response] = {}
    rows = db.execute(f"SELECT r.id, r.digest, r.prompt, {RESPONSE_COLUMNS} FROM responses AS r ORDER BY r.id")
    for identity, name, answered, *row in rows:
        response = _read(read_response, tuple(row)) if answered in prompts else None
        if response is None or response_digest(prompt_digest(prompts[answered]), response) != name:
            yield "responses", identity
        else:
            responses[identity] = response
    yield from _damaged_judgements(db, prompts, responses)
    yield from _damaged_items(db, prompts, responses)


def _read(make: Callable[..., _T], *parts: Any) -> _T | None:
    """What `make` makes of the parts of a row; None where it cannot."""
    try:
        return make(*parts)
    except (DataError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _damaged_judgements(
    db: sqlite3.Connection, prompts: Mapping[int, Prompt], responses: Mapping[int, Response]
) -> Iterator[Damage]:
    shown = _shown(db, "judgement", "judged", responses)
    rows = db.execute(
        """SELECT j.id, j.digest, j.withdrawn, j.prompt,
        j.kind, j.payload, j.criterion, annotators.name, j.weight, j.created, j.seconds
        FROM judgements AS j LEFT JOIN annotators ON annotators.id = j.annotator ORDER BY j.id"""
    )
    unverified = {identity for (identity,) in db.execute("SELECT judgement FROM unverified")}
    equals: Counter[str] = Counter()
    for identity, name, withdrawn, about, *said in rows:
        if withdrawn and name == f"withdrawn {identity}":
            continue
        found = list(_judgement_digests(prompts.get(about), shown[identity], *said))
        equals.update(found)
        if found and identity in unverified:
            continue
        if name not in (*found, *(digest("again", it, equals[it]) for it in found)):
            yield "judgements", identity


def _judgement_digests(
    prompt: Prompt | None, shown: list[Response], kind: str, stored: str, *said: Any
) -> Iterator[str]:
    """What may be the digest of a judgement of these columns.

    Of a kind that is not installed here it is one of two; and earlier versions wrote a whole number of seconds as such.
    """
    payload = _read(json.loads, stored)
    if prompt is None or not shown or not isinstance(payload, dict) or not payload:
        return
    if kind in kind_names():
        judgement = _read(read_judgement, prompt, shown, kind, stored, *said)
        if judgement is None:
            return
        answers, later = [kind_of(judgement).answer_of(judgement)], kind_of(judgement).later_of(judgement)
    else:
        later = {name: payload.pop(name) for name in LATER if name in payload}
        answers = [payload, *list(payload.values())[:1]]
    *rest, seconds = said
    for answer in answers:
        for took in (seconds, int(seconds)) if isinstance(seconds, float) and seconds.is_integer() else (seconds,):
            found = _read(digest_of, kind, prompt, shown, answer, later, *rest, took)
            if found is not None:
                yield found


def _damaged_items(
    db: sqlite3.Connection, prompts: Mapping[int, Prompt], responses: Mapping[int, Response]
) -> Iterator[Damage]:
    shown = _shown(db, "item", "item_responses", responses)
    rows = db.execute("SELECT id, digest, prompt, kind, criterion, criteria, repeat, purpose FROM items ORDER BY id")
    for identity, name, about, *said in rows:
        if _read(_item_digest, prompts.get(about), shown[identity], *said) != name:
            yield "items", identity


def _item_digest(
    prompt: Prompt, shown: list[Response], kind: str, criterion: str, criteria: str, repeat: int, purpose: str
) -> str:
    """`Item.digest` of the columns of its row."""
    about = prompt_digest(prompt)
    names = sorted(response_digest(about, response) for response in shown)
    later = [] if purpose == "collection" else [purpose]
    return digest("item", kind, about, names, criterion, sorted(json.loads(criteria)), repeat, *later)


def _shown(
    db: sqlite3.Connection, owner: str, table: str, responses: Mapping[int, Response]
) -> Mapping[int, list[Response]]:
    """The responses of each judgement or item, in order. The names of columns and tables are our own."""
    found: dict[int, list[Response]] = defaultdict(list)
    for identity, response in db.execute(f"SELECT {owner}, response FROM {table} ORDER BY {owner}, position"):
        if response in responses:
            found[identity].append(responses[response])
    return found
