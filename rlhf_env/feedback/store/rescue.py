"""What can still be read of a damaged preference store, written into a new one.

Rows are asked for one by one, so that a page that cannot be read costs its own rows and no others. Where the first page
is gone (header and schema), that of a new store stands in for it: the tables of a store that was never brought up from
an older version lie where they lie there. Kept is what says what its digest says and belongs to rows that were kept;
the rest is counted.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.store.integrity import damaged_rows
from rlhf_env.feedback.store.schema import APPLICATION_ID, LEAVE_UNVERIFIED, MIGRATIONS, from_bytes
from rlhf_env.feedback.store.store import PreferenceStore

# Parents before children. A row of the tables at the end belongs to one of the others, and has no id.
_TABLES = ("prompts", "responses", "annotators", "criteria", "items", "judgements")
_PARTS = {
    "judged": "judgement",
    "item_responses": "item",
    "checks": "item",
    "leases": "item",
    "controls": "item",
    "assignees": "item",
}
# Of a part, the column that belongs to another table beside its owner's.
_OTHERS = {
    "judged": ("response", "responses"),
    "item_responses": ("response", "responses"),
    "checks": ("favoured", "responses"),
    "leases": ("annotator", "annotators"),
}
_UNREADABLE = (sqlite3.Error, UnicodeDecodeError)  # SQLite quotes a damaged schema in its messages
_LARGEST_ID = 2**40
_AT_A_TIME = 500


@dataclass(frozen=True)
class Rescued:
    """How many rows of each table were kept, and how many are lost that are known to have been there."""

    kept: dict[str, int]
    lost: dict[str, int]


def rescue(damaged: str | Path, out: str | Path) -> Rescued:
    """Write every readable row of a store into a new one at `out`. The damaged file is only read.

    Raises DataError where nothing can be read, ConfigError where there is something at `out`.
    """
    damaged, out = Path(damaged), Path(out)
    if out.exists():
        raise ConfigError(f"{out}: there is something at this path: name another one")
    if not damaged.is_file():
        raise ConfigError(f"preference store {damaged}: there is no such file")
    with tempfile.TemporaryDirectory(dir=out.absolute().parent) as folder:
        best: tuple[Rescued, Path] | None = None
        for number, copy in enumerate(_attempts(damaged, Path(folder))):
            made = Path(folder) / f"{number}.rescued"
            found = _rescued(copy, made, as_it_is=number == 0)
            if best is None or _worth(found) > _worth(best[0]):
                best = found, made
            if number == 0 and any(found.kept.values()) and not any(found.lost.values()):
                break
        assert best is not None
        if not any(best[0].kept.values()):
            raise DataError(f"{damaged}: nothing of it can be read as a preference store")
        shutil.move(best[1], out)
        return best[0]


def _worth(found: Rescued) -> tuple[int, int]:
    return found.kept["judgements"], sum(found.kept.values())


def _attempts(damaged: Path, folder: Path) -> Iterator[Path]:
    """Copies of the file: as it is, with a header made anew, and with the schema of a new store of each version."""
    copy = folder / "copy.sqlite"
    shutil.copyfile(damaged, copy)
    if (wal := Path(f"{damaged}-wal")).is_file():
        shutil.copyfile(wal, f"{copy}-wal")
    yield copy
    content = damaged.read_bytes()
    page = int.from_bytes(content[16:18], "big")
    page = page if page in (2**power for power in range(9, 16)) else 4096
    content += bytes(-len(content) % page)
    for version in range(len(MIGRATIONS), 0, -1):
        empty = folder / f"empty {version}.sqlite"
        roots = _make_empty(empty, version, page)
        fresh = empty.read_bytes()
        header = bytearray(fresh[:100])
        header[18:20] = b"\x01\x01"  # no write-ahead log
        header[28:32] = (len(content) // page).to_bytes(4, "big")  # pages
        header[32:40] = bytes(8)  # no free ones
        if version == len(MIGRATIONS):
            with_header = folder / "with header.sqlite"
            with_header.write_bytes(bytes(header) + content[100:])
            yield with_header
        pages = [content[start : start + page] for start in range(0, len(content), page)]
        for number in range(min(len(pages), len(fresh) // page)):
            if number + 1 not in roots:  # a page of the schema: no table begins there
                pages[number] = fresh[number * page : (number + 1) * page]
        with_schema = folder / f"with schema {version}.sqlite"
        with_schema.write_bytes(bytes(header) + b"".join(pages)[100:])
        yield with_schema


def _make_empty(path: Path, version: int, page: int) -> set[int]:
    """A store of a schema version, and the pages that its tables and indices begin at."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size = {page:d}")
        db.execute("BEGIN")
        for statement in (statement for migration in MIGRATIONS[:version] for statement in migration):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
        db.execute(f"PRAGMA user_version = {version:d}")
        db.execute("COMMIT")
        return {int(root) for (root,) in db.execute("SELECT rootpage FROM sqlite_master")}


def _rescued(copy: Path, made: Path, *, as_it_is: bool) -> Rescued:
    """What is read of a copy, in a store of its own."""
    PreferenceStore(made).close()
    kept = dict.fromkeys((*_TABLES, *_PARTS), 0)
    highest = dict.fromkeys((*_TABLES, *_PARTS), 0)
    with closing(sqlite3.connect(made, isolation_level=None)) as new, closing(sqlite3.connect(copy)) as old:
        new.text_factory, old.text_factory = _as_written, _as_bytes
        new.execute("PRAGMA journal_mode = DELETE")
        new.execute("BEGIN")
        for table in _TABLES:
            highest[table] = _copy_by_id(old, new, table)
        for table, owner in _PARTS.items():
            _copy_parts(old, new, table, owner, highest[f"{owner}s"])
        _leave_unverified(old, new, as_it_is)
        before = {table: _count(new, table) for table in kept}
        named = new.execute("SELECT max(response) FROM judged").fetchone()[0]
        highest["responses"] = max(highest["responses"], named if isinstance(named, int) and named < _LARGEST_ID else 0)
        _drop_what_is_damaged(new)
        new.execute("COMMIT")
        kept = {table: _count(new, table) for table in kept}
    lost = {table: max(highest[table], before[table]) - kept[table] for table in kept}
    return Rescued(kept, lost)


def _as_bytes(stored: bytes) -> str:
    """A text that is written again as the same bytes, whatever they are."""
    return stored.decode("utf-8", errors="surrogateescape")


def _as_written(stored: bytes) -> str:
    """As stores read it; what no store wrote is read as something else, which its digest then tells."""
    try:
        return from_bytes(stored)
    except UnicodeDecodeError:
        return _as_bytes(stored)


def _leave_unverified(old: sqlite3.Connection, new: sqlite3.Connection, as_it_is: bool) -> None:
    """Judgements that were unverified stay so; a version that was only tried out says nothing."""
    with contextlib.suppress(*_UNREADABLE):
        if as_it_is and old.execute("PRAGMA user_version").fetchone()[0] == 1:
            new.execute(LEAVE_UNVERIFIED)
        else:
            new.executemany(
                "INSERT OR IGNORE INTO unverified VALUES (?)", old.execute("SELECT judgement FROM unverified")
            )


def _count(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _columns(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> list[str]:
    """The columns that both have."""
    try:
        there = {row[1] for row in old.execute(f"PRAGMA table_info({table})")}
    except _UNREADABLE:
        return []
    return [row[1] for row in new.execute(f"PRAGMA table_info({table})") if row[1] in there]


def _copy_by_id(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> int:
    """Copy the rows of a table; the highest id that is known of."""
    columns = _columns(old, new, table)
    if not columns:
        return 0
    select = f"SELECT {', '.join(columns)} FROM {table} NOT INDEXED WHERE id"
    highest = start = 0
    misses = 0
    # By ranges while they can be read, by single rows within one that cannot.
    while misses < 2 and start < _LARGEST_ID:
        try:
            rows = old.execute(f"{select} > ? ORDER BY id LIMIT ?", (start, _AT_A_TIME)).fetchall()
        except _UNREADABLE:
            rows, misses = [], misses + 1
            for identity in range(start + 1, start + 1 + _AT_A_TIME):
                try:
                    rows += old.execute(f"{select} = ?", (identity,)).fetchall()
                except _UNREADABLE:
                    continue
            misses = 0 if rows else misses
            _insert(new, table, columns, rows)
            start += _AT_A_TIME
        else:
            if not rows:
                break
            _insert(new, table, columns, rows)
            start = int(rows[-1][columns.index("id")])
        highest = max([highest, *(int(row[columns.index("id")]) for row in rows)])
    with contextlib.suppress(*_UNREADABLE, TypeError, ValueError):
        highest = max(highest, int(old.execute(f"SELECT max(id) FROM {table}").fetchone()[0] or 0))
    return highest if highest < _LARGEST_ID else _count(new, table)


def _copy_parts(old: sqlite3.Connection, new: sqlite3.Connection, table: str, owner: str, highest: int) -> None:
    """Copy the rows that belong to others, owner by owner."""
    columns = _columns(old, new, table)
    if not columns:
        return
    select = f"SELECT {', '.join(columns)} FROM {table}"
    try:
        _insert(new, table, columns, old.execute(select).fetchall())
    except _UNREADABLE:
        for identity in range(1, highest + 1):
            try:
                rows = old.execute(f"{select} WHERE {owner} = ?", (identity,)).fetchall()
            except _UNREADABLE:
                continue
            _insert(new, table, columns, rows)


def _insert(new: sqlite3.Connection, table: str, columns: list[str], rows: list[tuple[object, ...]]) -> None:
    values = ", ".join("?" if name in ("id", *_PARTS.values()) else f"{_bound(new, table, name)}" for name in columns)
    for row in rows:
        given = [it.encode("utf-8", errors="surrogateescape") if isinstance(it, str) else it for it in row]
        try:
            new.execute(f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({values})", given)
        except (*_UNREADABLE, OverflowError):
            continue  # what no store would hold: counted as lost


def _bound(new: sqlite3.Connection, table: str, column: str) -> str:
    """How a value of the column is bound: texts as bytes, which are texts whatever they hold."""
    kinds = {row[1]: row[2] for row in new.execute(f"PRAGMA table_info({table})")}
    return "CAST(? AS TEXT)" if kinds[column] == "TEXT" else "?"


def _drop_what_is_damaged(new: sqlite3.Connection) -> None:
    """Until every row is what its digest says, and belongs to rows that are there."""
    while True:
        orphans = {(row[0], row[1]) for row in new.execute("PRAGMA foreign_key_check") if row[1] is not None}
        new.execute("DELETE FROM unverified WHERE judgement NOT IN (SELECT id FROM judgements)")
        for table, owner in _PARTS.items():
            parent = f"{owner}s"
            new.execute(f"DELETE FROM {table} WHERE {owner} NOT IN (SELECT id FROM {parent})")
            if table in _OTHERS:
                other, others = _OTHERS[table]
                new.execute(f"DELETE FROM {table} WHERE {other} NOT IN (SELECT id FROM {others})")
        damaged = set(damaged_rows(new)) | {(table, identity) for table, identity in orphans if table in _TABLES}
        if not damaged:
            return
        for table, identity in damaged:
            new.execute(f"DELETE FROM {table} WHERE id = ?", (identity,))
