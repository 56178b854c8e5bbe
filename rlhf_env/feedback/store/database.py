"""The SQLite file behind a preference store: opened or made, brought up to date, and written whole or not at all."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from rlhf_env.errors import DataError, RunFailed
from rlhf_env.feedback.store.schema import APPLICATION_ID, LEAVE_UNVERIFIED, MIGRATIONS, from_bytes


def is_store(path: str | Path) -> bool:
    """Whether there is an SQLite file at the path."""
    try:
        with Path(path).open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def damage(path: Path, found: str) -> str:
    """What to say of a file that is damaged."""
    found = " ".join(found.split())  # SQLite quotes the schema, lines and all
    return f"preference store {path} is damaged ({found}): `rlhf-env preferences rescue` writes what can be read of it"


class Database:
    """An open file with the tables of `schema.py`.

    Opens or creates the file, and brings an older schema up to date. Raises DataError when the file is something else,
    or was written by a newer version. One connection: use it from the thread that opened it. Several processes may
    have the file open; writers wait for each other for up to `timeout` seconds. `clock` gives seconds since 1970.
    """

    def __init__(self, path: str | Path, *, timeout: float = 30.0, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._clock = clock
        if self.path.is_file() and self.path.stat().st_size == 1:  # SQLite takes one byte for an empty database
            raise DataError(f"preference store {self.path}: file is not a database")
        try:
            # isolation_level=None: this class says itself where a transaction begins and ends
            self._db = sqlite3.connect(self.path, timeout=timeout, isolation_level=None)
        except sqlite3.Error as error:
            raise DataError(f"preference store {self.path}: {error}") from error
        try:
            self._db.text_factory = from_bytes
            self._db.execute("PRAGMA foreign_keys = ON")
            # A crash of the machine loses no judgement whose `add` has returned.
            self._db.execute("PRAGMA synchronous = FULL")
            self._check_and_migrate()
            self._db.execute("PRAGMA journal_mode = WAL")
        except UnicodeDecodeError as error:
            self._db.close()
            raise DataError(damage(self.path, "its schema is not text")) from error
        except sqlite3.Error as error:
            self._db.close()
            if "malformed" in str(error) or "already exists" in str(error) or "no such" in str(error):
                raise DataError(damage(self.path, str(error))) from error
            if "not a database" in str(error) and self._has_pages():
                raise DataError(
                    f"preference store {self.path}: {error}; if it was one, and its beginning is damaged, "
                    "`rlhf-env preferences rescue` writes what can be read of it"
                ) from error
            raise DataError(f"preference store {self.path}: {error}") from error
        except BaseException:
            self._db.close()
            raise
        self._file = self._file_there()

    def _file_there(self) -> tuple[int, int] | None:
        """Which file has the path now; None where there is none."""
        with suppress(OSError):
            found = self.path.stat()
            return found.st_dev, found.st_ino
        return None

    def _has_pages(self) -> bool:
        """Whether the file has the size of whole pages, as a database has."""
        with suppress(OSError):
            size = self.path.stat().st_size
            return size >= 4096 and size % 512 == 0
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if isinstance(error, sqlite3.DatabaseError):  # a page that is damaged shows when it is read
            raise DataError(damage(self.path, str(error))) from error

    def close(self) -> None:
        """Close the file. A closed store cannot be used again."""
        self._db.close()

    def copy_to(self, file: str | Path) -> None:
        """Write the file as it stands, with all that is in it, to a new place."""
        try:
            with closing(sqlite3.connect(file)) as copy:
                self._db.backup(copy)
        except sqlite3.Error as error:
            raise RunFailed(f"preference store {file}: {error}; {self.path} is as it was") from error

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="microseconds")

    def _count(self, query: str) -> int:
        (count,) = self._db.execute(query).fetchone()
        return int(count)

    def _check_and_migrate(self) -> None:
        with self._transaction():  # so that of two processes one migrates and the other sees it done
            version = self._count("PRAGMA user_version")
            ours = self._count("PRAGMA application_id") == APPLICATION_ID
            if not ours and (version or self._count("SELECT count(*) FROM sqlite_master")):
                raise DataError(f"{self.path} is a database, but no preference store")
            if version > len(MIGRATIONS):
                raise DataError(
                    f"preference store {self.path} has schema version {version}, and this rlhf-env knows versions "
                    f"up to {len(MIGRATIONS)}: upgrade rlhf-env"
                )
            for statement in (statement for migration in MIGRATIONS[version:] for statement in migration):
                self._db.execute(statement)
            if version == 1:
                self._db.execute(LEAVE_UNVERIFIED)
            if version < len(MIGRATIONS):
                # PRAGMA takes no parameters; both numbers are our own constants
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
                self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS):d}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._file_there() != self._file:  # what is written to a file without a name is gone with this process
            raise RunFailed(
                f"preference store {self.path}: the file was moved, removed or replaced since it was opened; nothing "
                "of this call was kept: put it back, or open the store anew"
            )
        try:
            with self._transaction():
                yield
        except sqlite3.Error as error:
            raise RunFailed(f"preference store {self.path}: {error}; nothing of this call was kept") from error

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """All that is read inside is of one moment, whatever other processes write meanwhile."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # A full disk has rolled back already.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
