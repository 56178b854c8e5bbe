"""What people (or simulated annotators) prefer, and the one SQLite file that keeps it.

The nouns: a `Response` to a prompt, with who wrote it; a `Comparison`, one judgement as it was made, in the order the
two responses were shown; a `Preference`, a comparison that was decided, as models are trained on it.

The file is safe against a kill at any instant: what `add` has returned from is on the disk (WAL, synchronous=FULL).
Prompts and responses are known by a hash of their content, so that adding one again changes nothing, and so are
judgements: the same verdict of the same annotator at the same moment is one row.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np

from rlhf_env.errors import ConfigError, DataError, RunFailed
from rlhf_env.types import Episode, FinishReason, Prompt

AuthorKind = Literal["policy", "human", "dataset"]
Verdict = Literal["first", "second", "tie", "cannot say"]
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Author:
    """Who wrote a response. `name` is a policy's, a person's or a file's; `temperature` is a policy's."""

    kind: AuthorKind
    name: str
    temperature: float | None = None

    def __post_init__(self) -> None:
        _refuse(
            _one_of("author kind", self.kind, get_args(AuthorKind)),
            _text("author name", self.name),
            self.temperature is not None and _number("temperature", self.temperature, zero_is_fine=True),
        )


@dataclass(frozen=True)
class Response:
    """One answer to a prompt.

    What a policy wrote keeps its token ids: `ids`, the end token included when `finish_reason` is "stop", after
    `prompt_ids`, the prompt as that policy read it. Ids are never made again from the text. Text that no policy wrote
    has none of the three.
    """

    text: str
    author: Author
    ids: Ids | None = None
    prompt_ids: Ids | None = None
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        reason = self.finish_reason
        _refuse(
            _text("text", self.text, empty_is_fine=True),
            _token_ids("ids", self.ids),
            _token_ids("prompt_ids", self.prompt_ids),
            (self.ids is None) != (self.prompt_ids is None) and "ids and prompt_ids: both or neither are given",
            reason is not None and _one_of("finish_reason", reason, get_args(FinishReason)),
        )

    @classmethod
    def from_episode(cls, episode: Episode, author: Author) -> Response:
        return cls(
            text=episode.response,
            author=author,
            ids=tuple(episode.response_ids.tolist()),
            prompt_ids=tuple(episode.prompt_ids.tolist()),
            finish_reason=episode.finish_reason,
        )

    def episode(self, prompt: Prompt) -> Episode:
        """The response as rewards see it. Raises DataError when its token ids are not known."""
        if self.ids is None or self.prompt_ids is None or self.finish_reason is None:
            raise DataError(f"the response {self.text!r} has no token ids: it was not written by a policy")
        return Episode(
            prompt=prompt,
            prompt_ids=np.array(self.prompt_ids, dtype=np.int64),
            response=self.text,
            response_ids=np.array(self.ids, dtype=np.int64),
            finish_reason=self.finish_reason,
            actions=np.ones(len(self.ids), dtype=np.bool_),
        )

    def says_the_same_as(self, other: Response) -> bool:
        """Equal text, and equal ids where both have them: an answer cut short differs from the same one finished."""
        return self.text == other.text and (self.ids is None or other.ids is None or self.ids == other.ids)


@dataclass(frozen=True)
class Comparison:
    """One judgement of two responses, in the order they were shown. `created` is ISO 8601."""

    prompt: Prompt
    first: Response
    second: Response
    verdict: Verdict
    annotator: str
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""

    def __post_init__(self) -> None:
        decided = self.verdict in ("first", "second")
        _refuse(
            *_prompt_problems(self.prompt),
            _one_of("verdict", self.verdict, get_args(Verdict)),
            decided and self.first.says_the_same_as(self.second) and "chosen equal to rejected: there is no winner",
            _text("annotator", self.annotator),
            _text("criterion", self.criterion),
            _number("weight", self.weight),
            _text("created", self.created, empty_is_fine=True),
        )

    @property
    def preference(self) -> Preference | None:
        """None for a tie and for "cannot say"."""
        if self.verdict not in ("first", "second"):
            return None
        return Preference(
            prompt=self.prompt,
            chosen=self.first if self.verdict == "first" else self.second,
            rejected=self.second if self.verdict == "first" else self.first,
            annotator=self.annotator,
            criterion=self.criterion,
            weight=self.weight,
            created=self.created,
            chosen_was_first=self.verdict == "first",
        )


@dataclass(frozen=True)
class Preference:
    """A decided comparison. `chosen_was_first` keeps the order in which the two were shown."""

    prompt: Prompt
    chosen: Response
    rejected: Response
    annotator: str
    criterion: str = "overall"
    weight: float = 1.0
    created: str = ""
    chosen_was_first: bool = True

    def __post_init__(self) -> None:
        _refuse(_one_of("chosen_was_first", self.chosen_was_first, (True, False)))
        _ = self.comparison  # raises for the rest

    @property
    def comparison(self) -> Comparison:
        pair = (self.chosen, self.rejected) if self.chosen_was_first else (self.rejected, self.chosen)
        verdict: Verdict = "first" if self.chosen_was_first else "second"
        return Comparison(self.prompt, *pair, verdict, self.annotator, self.criterion, self.weight, self.created)


@dataclass(frozen=True)
class Counts:
    """What a store holds. `preferences + ties + cannot_say == comparisons`."""

    prompts: int
    responses: int
    annotators: int
    comparisons: int
    preferences: int
    ties: int
    cannot_say: int


# One tuple of statements per schema version, run once each. Never edit an entry that was released: append one.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE prompts (
            id INTEGER PRIMARY KEY,
            digest TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            text TEXT NOT NULL,
            meta TEXT NOT NULL)""",
        """CREATE TABLE responses (
            id INTEGER PRIMARY KEY,
            digest TEXT NOT NULL UNIQUE,
            prompt INTEGER NOT NULL REFERENCES prompts,
            text TEXT NOT NULL,
            ids TEXT,
            prompt_ids TEXT,
            finish_reason TEXT,
            author_kind TEXT NOT NULL CHECK (author_kind IN ('policy', 'human', 'dataset')),
            author TEXT NOT NULL,
            temperature REAL)""",
        "CREATE INDEX responses_by_prompt ON responses (prompt)",
        """CREATE TABLE annotators (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE)""",
        # The payload of a comparison is {"verdict": ...}. Other kinds (Likert, ranking, named criteria) have their own.
        """CREATE TABLE judgements (
            id INTEGER PRIMARY KEY,
            digest TEXT NOT NULL UNIQUE,
            kind TEXT NOT NULL,
            prompt INTEGER NOT NULL REFERENCES prompts,
            annotator INTEGER NOT NULL REFERENCES annotators,
            criterion TEXT NOT NULL,
            weight REAL NOT NULL CHECK (weight > 0),
            created TEXT NOT NULL,
            payload TEXT NOT NULL)""",
        """CREATE TABLE judged (
            judgement INTEGER NOT NULL REFERENCES judgements ON DELETE CASCADE,
            position INTEGER NOT NULL,
            response INTEGER NOT NULL REFERENCES responses,
            PRIMARY KEY (judgement, position)) WITHOUT ROWID""",
        "CREATE INDEX judged_by_response ON judged (response)",
    ),
)
_APPLICATION_ID = 0x726C6866  # "rlhf": tells our files from anybody else's

# Text goes in as bytes: sqlite3 refuses a lone surrogate, which is legal in a prompt.
_ADD_PROMPT = """INSERT INTO prompts (digest, name, text, meta)
    VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), ?) ON CONFLICT (digest) DO NOTHING"""
_ADD_RESPONSE = """INSERT INTO responses
    (digest, prompt, text, ids, prompt_ids, finish_reason, author_kind, author, temperature)
    SELECT ?, prompts.id, CAST(? AS TEXT), ?, ?, ?, ?, CAST(? AS TEXT), ? FROM prompts WHERE prompts.digest = ?
    ON CONFLICT (digest) DO NOTHING"""
_ADD_ANNOTATOR = "INSERT INTO annotators (name) VALUES (CAST(? AS TEXT)) ON CONFLICT (name) DO NOTHING"
_ADD_JUDGEMENT = """INSERT INTO judgements (digest, kind, prompt, annotator, criterion, weight, created, payload)
    SELECT ?, 'comparison', prompts.id, annotators.id, CAST(? AS TEXT), ?, CAST(? AS TEXT), ? FROM prompts, annotators
    WHERE prompts.digest = ? AND annotators.name = CAST(? AS TEXT)
    ON CONFLICT (digest) DO NOTHING"""
_ADD_JUDGED = """INSERT INTO judged (judgement, position, response)
    SELECT judgements.id, ?, responses.id FROM judgements, responses
    WHERE judgements.digest = ? AND responses.digest = ?
    ON CONFLICT (judgement, position) DO NOTHING"""
_COMPARISONS = """SELECT p.name, p.text, p.meta,
    a.text, a.ids, a.prompt_ids, a.finish_reason, a.author_kind, a.author, a.temperature,
    b.text, b.ids, b.prompt_ids, b.finish_reason, b.author_kind, b.author, b.temperature,
    j.payload, annotators.name, j.criterion, j.weight, j.created
    FROM judgements AS j
    JOIN prompts AS p ON p.id = j.prompt
    JOIN annotators ON annotators.id = j.annotator
    JOIN judged AS first ON first.judgement = j.id AND first.position = 0
    JOIN judged AS second ON second.judgement = j.id AND second.position = 1
    JOIN responses AS a ON a.id = first.response
    JOIN responses AS b ON b.id = second.response
    WHERE j.kind = 'comparison' ORDER BY j.id"""
_RESPONSES = """SELECT p.name, p.text, p.meta,
    r.text, r.ids, r.prompt_ids, r.finish_reason, r.author_kind, r.author, r.temperature
    FROM responses AS r JOIN prompts AS p ON p.id = r.prompt ORDER BY r.id"""


class PreferenceStore:
    """`with PreferenceStore("preferences.sqlite") as store: store.add(comparisons)`.

    Opens or creates the file, and brings an older schema up to date. Raises DataError when the file is something else,
    or was written by a newer version. One connection: use a store from the thread that opened it. Several processes may
    have the file open; writers wait for each other for up to `timeout` seconds.
    """

    def __init__(self, path: str | Path, *, timeout: float = 30.0) -> None:
        self.path = Path(path)
        try:
            # isolation_level=None: this class says itself where a transaction begins and ends
            self._db = sqlite3.connect(self.path, timeout=timeout, isolation_level=None)
        except sqlite3.Error as error:
            raise DataError(f"preference store {self.path}: {error}") from error
        try:
            self._db.text_factory = _from_bytes
            self._db.execute("PRAGMA foreign_keys = ON")
            # A crash of the machine loses no judgement whose `add` has returned.
            self._db.execute("PRAGMA synchronous = FULL")
            self._check_and_migrate()
            self._db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.Error as error:
            self._db.close()
            raise DataError(f"preference store {self.path}: {error}") from error
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> PreferenceStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A closed store cannot be used again."""
        self._db.close()

    def add_response(self, prompt: Prompt, *responses: Response) -> None:
        """Keep a prompt and responses to it (none: the prompt alone). What is there already is left as it is."""
        _refuse(*_prompt_problems(prompt))
        digest = _prompt_digest(prompt)
        with self._writing():
            self._db.execute(_ADD_PROMPT, _prompt_row(digest, prompt))
            self._db.executemany(_ADD_RESPONSE, [_response_row(digest, response) for response in responses])

    def add(self, judgements: Iterable[Comparison | Preference]) -> int:
        """Keep judgements with their prompts, responses and annotators: all of them, or none when one fails.

        Returns how many were new. A judgement without a `created` time gets the present one. Raises RunFailed when the
        disk is full or another process holds the file.
        """
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        prompts: list[tuple[Any, ...]] = []
        responses: list[tuple[Any, ...]] = []
        annotators: list[tuple[Any, ...]] = []
        rows: list[tuple[Any, ...]] = []
        judged: list[tuple[Any, ...]] = []
        for judgement in judgements:
            it = judgement if isinstance(judgement, Comparison) else judgement.comparison
            prompt = _prompt_digest(it.prompt)
            pair = [_response_row(prompt, response) for response in (it.first, it.second)]
            payload = json.dumps({"verdict": it.verdict})
            created = it.created or now
            shown = [row[0] for row in pair]
            digest = _digest(
                "comparison", prompt, it.annotator, it.criterion, float(it.weight), created, it.verdict, shown
            )
            annotator = _to_bytes(it.annotator)
            prompts.append(_prompt_row(prompt, it.prompt))
            responses.extend(pair)
            annotators.append((annotator,))
            row = (_to_bytes(it.criterion), float(it.weight), _to_bytes(created), payload, prompt, annotator)
            rows.append((digest, *row))
            judged.extend((position, digest, response) for position, response in enumerate(shown))
        with self._writing():
            self._db.executemany(_ADD_PROMPT, prompts)
            self._db.executemany(_ADD_RESPONSE, responses)
            self._db.executemany(_ADD_ANNOTATOR, annotators)
            before = self._db.total_changes
            self._db.executemany(_ADD_JUDGEMENT, rows)
            new = self._db.total_changes - before
            self._db.executemany(_ADD_JUDGED, judged)
        return new

    def comparisons(self) -> Iterator[Comparison]:
        """Every comparison, ties too, in the order they were added."""
        for row in self._db.execute(_COMPARISONS):
            verdict = json.loads(row[17])["verdict"]
            yield Comparison(_read_prompt(row), _read_response(row[3:]), _read_response(row[10:]), verdict, *row[18:])

    def preferences(self) -> Iterator[Preference]:
        """The decided comparisons, in the order they were added."""
        for comparison in self.comparisons():
            if (preference := comparison.preference) is not None:
                yield preference

    def responses(self) -> Iterator[tuple[Prompt, Response]]:
        """Every response with its prompt, in the order they were added."""
        for row in self._db.execute(_RESPONSES):
            yield _read_prompt(row), _read_response(row[3:])

    def split(self, held_out: float = 0.2, *, salt: str = "") -> tuple[list[Preference], list[Preference]]:
        """The preferences as (training, held-out), divided by prompt: held-out pairs are on prompts unseen in training.

        `split_by_prompt` says how.
        """
        return split_by_prompt(self.preferences(), held_out, salt=salt)

    def counts(self) -> Counts:
        verdicts: dict[str, int] = dict.fromkeys(get_args(Verdict), 0)
        for payload, count in self._db.execute(
            "SELECT payload, count(*) FROM judgements WHERE kind = 'comparison' GROUP BY payload"
        ):
            verdicts[json.loads(payload)["verdict"]] += count
        return Counts(
            prompts=self._count("SELECT count(*) FROM prompts"),
            responses=self._count("SELECT count(*) FROM responses"),
            annotators=self._count("SELECT count(*) FROM annotators"),
            comparisons=sum(verdicts.values()),
            preferences=verdicts["first"] + verdicts["second"],
            ties=verdicts["tie"],
            cannot_say=verdicts["cannot say"],
        )

    def _count(self, query: str) -> int:
        (count,) = self._db.execute(query).fetchone()
        return int(count)

    def _check_and_migrate(self) -> None:
        with self._transaction():  # so that of two processes one migrates and the other sees it done
            version = self._count("PRAGMA user_version")
            ours = self._count("PRAGMA application_id") == _APPLICATION_ID
            if not ours and (version or self._count("SELECT count(*) FROM sqlite_master")):
                raise DataError(f"{self.path} is a database, but no preference store")
            if version > len(_MIGRATIONS):
                raise DataError(
                    f"preference store {self.path} has schema version {version}, and this rlhf-env knows versions "
                    f"up to {len(_MIGRATIONS)}: upgrade rlhf-env"
                )
            for statement in (statement for migration in _MIGRATIONS[version:] for statement in migration):
                self._db.execute(statement)
            if version < len(_MIGRATIONS):
                # PRAGMA takes no parameters; both numbers are our own constants
                self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID:d}")
                self._db.execute(f"PRAGMA user_version = {len(_MIGRATIONS):d}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._transaction():
                yield
        except sqlite3.Error as error:
            raise RunFailed(f"preference store {self.path}: {error}; nothing of this call was kept") from error

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


def split_by_prompt(
    preferences: Iterable[Preference], held_out: float, *, salt: str = ""
) -> tuple[list[Preference], list[Preference]]:
    """(training, held-out), in order. Held out is where the hash of (salt, prompt text) falls below `held_out`.

    The hash makes the division stable: new preferences never move an old prompt to the other side. Prompts are compared
    by text, so that two ids of one text do not leak. `held_out` is a fraction of prompts, met in expectation.
    """
    if not 0.0 <= held_out <= 1.0:
        raise ConfigError(f"held_out: {held_out!r} is not a fraction between 0 and 1")
    parts: tuple[list[Preference], list[Preference]] = ([], [])
    for preference in preferences:
        hashed = hashlib.sha256(_to_bytes(f"{salt}\n{preference.prompt.text}")).digest()
        place = int.from_bytes(hashed[:6], "big") / 2**48  # 48 bits: the quotient is exact and below 1
        parts[place < held_out].append(preference)
    return parts


def _prompt_digest(prompt: Prompt) -> str:
    return _digest(prompt.id, prompt.text, prompt.meta)


def _digest(*content: Any) -> str:
    """sha256 in hexadecimal of anything JSON can hold."""
    return hashlib.sha256(_json(content).encode("ascii")).hexdigest()


def _prompt_row(digest: str, prompt: Prompt) -> tuple[Any, ...]:
    return digest, _to_bytes(prompt.id), _to_bytes(prompt.text), _json(dict(prompt.meta))


def _response_row(prompt: str, it: Response) -> tuple[Any, ...]:
    """The parameters of _ADD_RESPONSE; the first is the response's digest. `prompt` is its prompt's."""
    temperature = None if it.author.temperature is None else float(it.author.temperature)
    by = (it.author.kind, it.author.name, temperature)
    digest = _digest(prompt, it.text, it.ids, it.prompt_ids, it.finish_reason, by)
    ids = [None if sequence is None else _json(sequence) for sequence in (it.ids, it.prompt_ids)]
    return digest, _to_bytes(it.text), *ids, it.finish_reason, by[0], _to_bytes(by[1]), by[2], prompt


def _read_prompt(row: Sequence[Any]) -> Prompt:
    name, text, meta = row[:3]
    return Prompt(name, text, json.loads(meta))


def _read_response(row: Sequence[Any]) -> Response:
    text, ids, prompt_ids, finish_reason, kind, name, temperature = row[:7]
    read, prompt_read = (None if stored is None else tuple(json.loads(stored)) for stored in (ids, prompt_ids))
    return Response(text, Author(kind, name, temperature), read, prompt_read, finish_reason)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=dict)


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def _from_bytes(stored: bytes) -> str:
    return stored.decode("utf-8", errors="surrogatepass")


# Findings about one field: "" or False when nothing is wrong, so that a constructor can report all of them at once.


def _refuse(*problems: str | bool) -> None:
    found = [problem for problem in problems if isinstance(problem, str) and problem]
    if found:
        raise DataError(*found)


def _prompt_problems(prompt: Prompt) -> Iterator[str]:
    yield _text("prompt id", prompt.id)
    yield _text("prompt", prompt.text, empty_is_fine=True)
    try:
        _json(dict(prompt.meta))
    except (TypeError, ValueError) as error:
        yield f"prompt meta: {error}"


def _text(field: str, value: object, *, empty_is_fine: bool = False) -> str:
    if not isinstance(value, str):
        return f"{field}: expected text, got {_kind(value)}"
    return "" if value or empty_is_fine else f"{field}: empty"


def _number(field: str, value: object, *, zero_is_fine: bool = False) -> str:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if math.isfinite(number) and (number > 0 or (zero_is_fine and number == 0)):
        return ""
    return f"{field}: expected a finite number {'of at least' if zero_is_fine else 'above'} 0, got {value!r}"


def _one_of(field: str, value: object, known: Sequence[object]) -> str:
    return "" if value in known else f"{field}: {value!r} is none of {', '.join(map(str, known))}"


def _token_ids(field: str, value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, tuple) or not all(type(item) is int and item >= 0 for item in value):
        return f"{field}: expected a tuple of token ids (integers of at least 0)"
    return ""


def _kind(value: object) -> str:
    names = {type(None): "null", dict: "an object", list: "a list", str: "text", bool: "a boolean"}
    return names.get(type(value), f"the number {value!r}" if isinstance(value, (int, float)) else type(value).__name__)
