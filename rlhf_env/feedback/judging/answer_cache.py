"""What a judging model has answered before, in a file, so that nothing is asked twice: one SQLite database.

An answer is known by everything that decides it (`key_of`); of an answer the text and its tokens are kept, and neither
the question nor the key to the server. Many processes may use one file. An answer is in it or not, whatever is killed,
and the oldest go when it has grown to its bound.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf_env import assets
from rlhf_env.errors import ConfigError
from rlhf_env.settings import fault
from rlhf_env.types import JsonView

_PATIENCE = 30.0  # seconds to wait for another process that writes
_KEPT = 0.9  # of the bound, when the oldest go
_WEIGHT = "length(CAST(said AS BLOB)) + 64"  # bytes of a row, about
_COLUMNS = "said, prompt_tokens, completion_tokens"
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    place INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    said TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL
)"""


@dataclass(frozen=True)
class Completion:
    """What a model said, and the tokens that it counted for it (0 where it did not say)."""

    said: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


def default_cache() -> Path:
    """The file where the settings name none."""
    return assets.cache_folder() / "judges.sqlite"


def key_of(request: JsonView) -> bytes:
    """sha256 of a request, as JSON with its names in order."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=True).encode()).digest()


class AnswerCache:
    """The answers in a file of at most `most` bytes of text. Usable from several threads.

    Raises ConfigError, about the setting `cache`, for a file that is no such database, or cannot be written.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.most = path, most
        self._turn = threading.Lock()
        with self._said_plainly():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # whole after a power cut, perhaps without the last ones
            self._db.execute(_TABLES)

    def get(self, key: bytes) -> Completion | None:
        with self._turn, self._said_plainly():
            row = self._db.execute(f"SELECT {_COLUMNS} FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else Completion(*row)

    def put(self, key: bytes, answer: Completion) -> None:
        """Keep an answer; the one that is there stays."""
        said = answer.said.encode("utf-8", "replace").decode()  # SQLite takes no lone surrogates
        row = key, said, answer.prompt_tokens, answer.completion_tokens
        with self._turn, self._said_plainly():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.execute(f"INSERT OR IGNORE INTO answers (key, {_COLUMNS}) VALUES (?, ?, ?, ?)", row)
                self._let_the_oldest_go()
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    def _let_the_oldest_go(self) -> None:
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (free,) = self._db.execute("PRAGMA freelist_count").fetchone()
        (size,) = self._db.execute("PRAGMA page_size").fetchone()
        if (pages - free) * size <= self.most:
            return
        (total,) = self._db.execute(f"SELECT coalesce(sum({_WEIGHT}), 0) FROM answers").fetchone()
        if total <= self.most * _KEPT:
            return
        surplus, last = total - int(self.most * _KEPT), -1
        for place, bytes_ in self._db.execute(f"SELECT place, {_WEIGHT} FROM answers ORDER BY place"):
            last, surplus = place, surplus - bytes_
            if surplus <= 0:
                break
        self._db.execute("DELETE FROM answers WHERE place <= ?", (last,))

    @contextmanager
    def _said_plainly(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            what = f"= {str(self.path)!r} cannot be used for a judge's answers"
            raise ConfigError(fault("cache", f"{what}: {error}: name another file, or cache_mb = 0")) from error
