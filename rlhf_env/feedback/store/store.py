"""The one SQLite file that keeps what people prefer: prompts, responses, judgements, and who is to judge what next.

The file is safe against a kill at any instant: what a method has returned from is on the disk (WAL, synchronous=FULL).
Prompts and responses are known by a hash of their content, so that adding one again changes nothing, and so are
judgements: the same verdict of the same annotator at the same moment is one row.

Annotation goes through items: `add_items` says what is to be judged and by how many people, `next_item` lends one to an
annotator for some minutes, `submit` takes the vote, `undo` takes it back. Every item gets exactly as many votes as it
asks for, from as many people; a retried vote is one row. An item's purpose stays with its votes: `evaluation` compares
authors blind (`rlhf_env.feedback.asking.tournament`), `verification` checks a reward model
(`rlhf_env.feedback.asking.verification`).

The nouns are those of `rlhf_env.feedback.judgements`.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from rlhf_env.errors import DataError, LeaseExpired, RunFailed
from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import (
    KINDS,
    VERDICTS,
    Author,
    Comparison,
    Judgement,
    Kind,
    Preference,
    Response,
    answer_of,
    judgement_digest,
    kind_of,
    make_judgement,
    preferences_of,
    prompt_digest,
    prompt_problems,
    response_digest,
)
from rlhf_env.feedback.store.items import Assignment, Counts, Criterion, Item, Receipt, VerificationItem, VoteProgress
from rlhf_env.feedback.store.schema import APPLICATION_ID, MIGRATIONS, from_bytes, to_bytes
from rlhf_env.feedback.store.split import split_by_prompt
from rlhf_env.types import Prompt

# Text goes in as bytes: sqlite3 refuses a lone surrogate, which is legal in a prompt.
_ADD_PROMPT = """INSERT INTO prompts (digest, name, text, meta)
    VALUES (?, CAST(? AS TEXT), CAST(? AS TEXT), ?) ON CONFLICT (digest) DO NOTHING"""
_ADD_RESPONSE = """INSERT INTO responses
    (digest, prompt, text, ids, prompt_ids, finish_reason, author_kind, author, temperature)
    SELECT ?, prompts.id, CAST(? AS TEXT), ?, ?, ?, ?, CAST(? AS TEXT), ? FROM prompts WHERE prompts.digest = ?
    ON CONFLICT (digest) DO NOTHING"""
_ADD_ANNOTATOR = "INSERT INTO annotators (name) VALUES (CAST(? AS TEXT)) ON CONFLICT (name) DO NOTHING"
_ADD_JUDGEMENT = """INSERT INTO judgements
    (digest, kind, prompt, annotator, criterion, weight, created, seconds, payload, item, idempotency_key)
    SELECT ?, ?, prompts.id, annotators.id, CAST(? AS TEXT), ?, CAST(? AS TEXT), ?, ?, ?, CAST(? AS TEXT)
    FROM prompts, annotators WHERE prompts.digest = ? AND annotators.name = CAST(? AS TEXT)
    ON CONFLICT (digest) DO NOTHING"""
_ADD_JUDGED = """INSERT INTO judged (judgement, position, response)
    SELECT judgements.id, ?, responses.id FROM judgements, responses
    WHERE judgements.digest = ? AND responses.digest = ?
    ON CONFLICT (judgement, position) DO NOTHING"""
_ADD_ITEM = """INSERT INTO items (digest, kind, prompt, criterion, criteria, overlap, seed, repeat, priority, purpose)
    SELECT ?, ?, prompts.id, CAST(? AS TEXT), ?, ?, ?, ?, ?, ? FROM prompts WHERE prompts.digest = ?
    ON CONFLICT (digest) DO NOTHING"""
_ADD_ITEM_RESPONSE = """INSERT INTO item_responses (item, position, response)
    SELECT items.id, ?, responses.id FROM items, responses WHERE items.digest = ? AND responses.digest = ?
    ON CONFLICT (item, position) DO NOTHING"""
_ADD_CHECK = """INSERT INTO checks (item, model, reason, favoured, log_odds)
    SELECT ?, CAST(? AS TEXT), CAST(? AS TEXT), responses.id, ? FROM responses WHERE responses.digest = ?
    ON CONFLICT (item, model, reason) DO UPDATE SET favoured = excluded.favoured, log_odds = excluded.log_odds"""
_LEND = """INSERT INTO leases (item, annotator, expires) VALUES (?, ?, ?)
    ON CONFLICT (item, annotator) DO UPDATE SET expires = excluded.expires"""
_RESPONSE_COLUMNS = "r.text, r.ids, r.prompt_ids, r.finish_reason, r.author_kind, r.author, r.temperature"
_JUDGEMENTS = f"""SELECT j.id, p.name, p.text, p.meta, {_RESPONSE_COLUMNS},
    j.kind, j.payload, j.criterion, annotators.name, j.weight, j.created, j.seconds, j.item
    FROM judgements AS j
    JOIN prompts AS p ON p.id = j.prompt
    JOIN annotators ON annotators.id = j.annotator
    JOIN judged ON judged.judgement = j.id
    JOIN responses AS r ON r.id = judged.response
    WHERE {{condition}} ORDER BY j.id, judged.position"""
_RESPONSES = f"""SELECT p.name, p.text, p.meta, {_RESPONSE_COLUMNS}
    FROM responses AS r JOIN prompts AS p ON p.id = r.prompt ORDER BY r.id"""
_ITEMS = f"""SELECT i.id, p.name, p.text, p.meta, {_RESPONSE_COLUMNS},
    i.kind, i.criterion, i.criteria, i.overlap, i.seed, i.repeat, i.priority, i.purpose
    FROM items AS i
    JOIN prompts AS p ON p.id = i.prompt
    JOIN item_responses AS shown ON shown.item = i.id
    JOIN responses AS r ON r.id = shown.response
    {{condition}} ORDER BY i.id, shown.position"""
_VOTES = "(SELECT count(*) FROM judgements AS j WHERE j.item = i.id AND j.withdrawn = 0)"
_LENT_TO_OTHERS = "(SELECT count(*) FROM leases AS l WHERE l.item = i.id AND l.annotator <> :who AND l.expires > :now)"
_UNVOTED = """NOT EXISTS (SELECT 1 FROM judgements AS j
    WHERE j.item = i.id AND j.annotator = :who AND j.withdrawn = 0)"""
_OWN_LEASE = "EXISTS (SELECT 1 FROM leases AS l WHERE l.item = i.id AND l.annotator = :who AND l.expires > :now)"
# The item an annotator holds comes first, so that a reloaded page shows what it showed.
_NEXT_ITEM = f"""SELECT i.id FROM items AS i WHERE {_UNVOTED} AND {_VOTES} + {_LENT_TO_OTHERS} < i.overlap
    ORDER BY {_OWN_LEASE} DESC, i.priority DESC, i.id LIMIT 1"""


class PreferenceStore:
    """`with PreferenceStore("preferences.sqlite") as store: store.add(comparisons)`.

    Opens or creates the file, and brings an older schema up to date. Raises DataError when the file is something else,
    or was written by a newer version. One connection: use a store from the thread that opened it. Several processes may
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

    # ---------------------------------------------------------------- what it keeps

    def add_response(self, prompt: Prompt, *responses: Response) -> None:
        """Keep a prompt and responses to it (none: the prompt alone). What is there already is left as it is."""
        findings.refuse(*prompt_problems(prompt))
        with self._writing():
            self._keep(prompt, responses)

    def add(self, judgements: Iterable[Judgement | Preference]) -> int:
        """Keep judgements with their prompts, responses and annotators: all of them, or none when one fails.

        Returns how many were new. A judgement without a `created` time gets the present one. Raises RunFailed when the
        disk is full or another process holds the file.
        """
        now = self._now()
        made = [judgement.comparison if isinstance(judgement, Preference) else judgement for judgement in judgements]
        with self._writing():
            return sum(self._add_judgement(it if it.created else replace(it, created=now)) for it in made)

    def judgements(self, *, kind: Kind | None = None) -> Iterator[Judgement]:
        """Every judgement that stands, of one kind or of all, in the order they were added."""
        condition = "j.withdrawn = 0" + (" AND j.kind = :kind" if kind else "")
        return (judgement for _, _, judgement in self._read_judgements(condition, {"kind": kind}))

    def comparisons(self) -> Iterator[Comparison]:
        """Every comparison, ties too, in the order they were added."""
        for judgement in self.judgements(kind="comparison"):
            assert isinstance(judgement, Comparison)
            yield judgement

    def votes(self) -> Iterator[tuple[int | None, Judgement]]:
        """Every judgement that stands, with the id of the item that it was made through; None for one that came in."""
        return ((item, judgement) for _, item, judgement in self._read_judgements("j.withdrawn = 0", {}))

    def preferences(self) -> Iterator[Preference]:
        """All judgements as weighted pairs (`preferences_of`): decided comparisons in the order they were added."""
        return preferences_of(self.judgements())

    def responses(self) -> Iterator[tuple[Prompt, Response]]:
        """Every response with its prompt, in the order they were added."""
        for row in self._db.execute(_RESPONSES):
            yield _read_prompt(row), _read_response(row[3:])

    def annotators(self) -> list[str]:
        """Everybody who judged or was lent an item, in the order they came."""
        return [name for (name,) in self._db.execute("SELECT name FROM annotators ORDER BY id")]

    def set_criterion(self, criterion: Criterion) -> None:
        """Keep a criterion with its guidelines, in place of older ones of that name."""
        row = (to_bytes(criterion.name), to_bytes(criterion.guidelines))
        with self._writing():
            self._db.execute(
                """INSERT INTO criteria (name, guidelines) VALUES (CAST(? AS TEXT), CAST(? AS TEXT))
                ON CONFLICT (name) DO UPDATE SET guidelines = excluded.guidelines""",
                row,
            )

    def criteria(self) -> list[Criterion]:
        return [Criterion(*row) for row in self._db.execute("SELECT name, guidelines FROM criteria ORDER BY id")]

    def split(self, held_out: float = 0.2, *, salt: str = "") -> tuple[list[Preference], list[Preference]]:
        """The preferences as (training, held-out), divided by prompt: held-out pairs are on prompts unseen in training.

        `split_by_prompt` says how.
        """
        return split_by_prompt(self.preferences(), held_out, salt=salt)

    def counts(self) -> Counts:
        verdicts: dict[str, int] = dict.fromkeys(VERDICTS, 0)
        kinds: dict[str, int] = dict.fromkeys(KINDS, 0)
        rows = self._db.execute(
            """SELECT kind, json_extract(payload, '$.verdict'), count(*) FROM judgements
            WHERE withdrawn = 0 GROUP BY 1, 2"""
        )
        for kind, verdict, count in rows:
            kinds[kind] += count
            if kind == "comparison":
                verdicts[verdict] += count
        return Counts(
            prompts=self._count("SELECT count(*) FROM prompts"),
            responses=self._count("SELECT count(*) FROM responses"),
            annotators=self._count("SELECT count(*) FROM annotators"),
            comparisons=kinds["comparison"],
            preferences=verdicts["first"] + verdicts["second"],
            ties=verdicts["tie"],
            cannot_say=verdicts["cannot say"],
            ratings=kinds["rating"],
            rankings=kinds["ranking"],
            criteria=kinds["criteria"],
        )

    # ---------------------------------------------------------------- who judges what next

    def add_items(self, items: Iterable[Item]) -> list[int]:
        """Ask for judgements; the ids, in order. An item that is there already keeps its id and settings."""
        given = list(items)
        with self._writing():
            return [self._add_item(item) for item in given]

    def items(self) -> Iterator[tuple[int, Item]]:
        """Every item with its id, in the order they were added."""
        return self._read_items("", {})

    def add_checks(self, checks: Iterable[VerificationItem]) -> list[int]:
        """Ask people about a reward model's opinions; the items' ids, in order.

        One vote of a person on a pair serves every model and reason that asks about it. The opinion of a model that
        asks again for the same reason takes the place of its older one.
        """
        given = list(checks)
        with self._writing():
            return [self._add_check(check) for check in given]

    def checks(self) -> Iterator[tuple[int, VerificationItem]]:
        """Every check with its item's id, those of one item together."""
        items = dict(self.items())
        rows = self._db.execute(
            f"""SELECT c.item, c.model, c.reason, c.log_odds, {_RESPONSE_COLUMNS} FROM checks AS c
            JOIN responses AS r ON r.id = c.favoured ORDER BY c.item, c.model, c.reason"""
        ).fetchall()
        for item, model, reason, log_odds, *favoured in rows:
            yield (
                int(item),
                VerificationItem(
                    item=items[item],
                    model=model,
                    reason=reason,
                    favoured=_read_response(favoured),
                    log_odds=log_odds,
                ),
            )

    def prioritise(self, priorities: Mapping[int, float]) -> None:
        """Give items (by id) another priority: what an active learner would have judged next."""
        findings.refuse(
            *(
                f"priority of item {item}: {priority!r} is not a finite number"
                for item, priority in priorities.items()
                if not math.isfinite(priority)
            )
        )
        with self._writing():
            self._db.executemany(
                "UPDATE items SET priority = ? WHERE id = ?",
                [(float(priority), item) for item, priority in priorities.items()],
            )

    def next_item(self, annotator: str, *, lease: float = 600.0) -> Assignment | None:
        """Lend `annotator` an item they have not judged, for `lease` seconds; None when nothing is left for them now.

        What they hold already is lent anew. An item is lent to no more people than it still needs votes, so that every
        item gets exactly as many votes as it asks for; a lease that ran out frees the place. The responses come in an
        order drawn for this annotator, the same whenever they see it.
        """
        findings.refuse(findings.text("annotator", annotator), findings.number("lease", lease))
        with self._writing():
            now = self._clock()
            who = self._annotator(annotator)
            found = self._db.execute(_NEXT_ITEM, {"who": who, "now": now}).fetchone()
            return None if found is None else self._lend(found[0], annotator, who, now + lease)

    def submit(self, item: int, annotator: str, answer: object, *, key: str, seconds: float | None = None) -> Receipt:
        """Take a vote. `answer` speaks of the responses in the order they were shown to this annotator:

            comparison   "first", "second", "tie" or "cannot say"
            rating       1 to 5
            ranking      the place of each response, (2, 1, 3)
            criteria     {"helpful": 4, "harmless": 5}, a score for each name asked for

        `key` is made by the client, new for every vote and the same when it tries again. A second vote of one annotator
        on one item, or a second call with one key, changes nothing and returns the vote that stands. A vote after the
        lease ran out is taken if the item still needs it, and raises LeaseExpired if others have judged it meanwhile.
        Raises DataError for an item that does not exist and an answer that does not fit.
        """
        findings.refuse(findings.text("annotator", annotator), findings.text("key", key))
        with self._writing():
            asked = self._item(item)
            who = self._annotator(annotator)
            if (earlier := self._earlier(item, who, key)) is not None:
                return Receipt(item, earlier, new=False)
            if asked.kind == "criteria":
                findings.refuse(
                    (not isinstance(answer, Mapping) or set(answer) != set(asked.criteria))
                    and f"scores: expected one for each of {', '.join(asked.criteria)}"
                )
            judgement = make_judgement(
                asked.kind,
                asked.prompt,
                [asked.responses[place] for place in asked.order_for(annotator)],
                answer,
                criterion=asked.criterion,
                annotator=annotator,
                created=self._now(),
                seconds=seconds,
            )
            (free,) = self._db.execute(
                f"SELECT {_VOTES} + {_LENT_TO_OTHERS} < i.overlap FROM items AS i WHERE i.id = :item",
                {"item": item, "who": who, "now": self._clock()},
            ).fetchone()
            if not free:
                raise LeaseExpired(f"item {item} was lent to {annotator!r} too long ago: others have judged it")
            if not self._add_judgement(judgement, item, key):
                raise DataError("the same judgement of the same moment is in the store already: send it again")
            self._db.execute("DELETE FROM leases WHERE item = ? AND annotator = ?", (item, who))
            return Receipt(item, judgement, new=True)

    def undo(self, annotator: str, item: int | None = None, *, lease: float = 600.0) -> Assignment | None:
        """Take back the vote of `annotator` on `item` (default: their latest), and lend them that item again.

        None when they have no vote to take back. Name the item to make the call safe to retry: where the vote was taken
        back already, it only returns what they hold. The vote stays in the file as a record, and counts nowhere.
        """
        findings.refuse(findings.text("annotator", annotator))
        with self._writing():
            who = self._annotator(annotator)
            vote = self._db.execute(
                """SELECT id, item FROM judgements WHERE annotator = :who AND withdrawn = 0
                AND item IS NOT NULL AND (:item IS NULL OR item = :item) ORDER BY id DESC LIMIT 1""",
                {"who": who, "item": item},
            ).fetchone()
            now = self._clock()
            if vote is None:
                held = "SELECT item FROM leases WHERE annotator = ? AND item = ? AND expires > ?"
                again = self._db.execute(held, (who, item, now)).fetchone()
                return None if again is None else self._lend(again[0], annotator, who, now + lease)
            # The digest goes too: the same vote may be given again.
            withdraw = "UPDATE judgements SET withdrawn = 1, digest = 'withdrawn ' || id WHERE id = ?"
            self._db.execute(withdraw, vote[:1])
            return self._lend(vote[1], annotator, who, now + lease)

    def progress(self, annotator: str | None = None) -> VoteProgress:
        """How far annotation has come, and how much of it is still open to `annotator`."""
        (who,) = self._db.execute(
            "SELECT max(id) FROM annotators WHERE name = CAST(? AS TEXT)", (to_bytes(annotator or ""),)
        ).fetchone()
        row = self._db.execute(
            f"""SELECT count(*), count(*) FILTER (WHERE votes >= overlap), coalesce(sum(votes), 0),
            coalesce(sum(overlap), 0), coalesce(sum(own), 0),
            count(*) FILTER (WHERE NOT own AND votes + lent < overlap)
            FROM (SELECT i.overlap, {_VOTES} AS votes, {_LENT_TO_OTHERS} AS lent, NOT ({_UNVOTED}) AS own
            FROM items AS i)""",
            {"who": -1 if who is None else who, "now": self._clock()},
        ).fetchone()
        return VoteProgress(*row)

    # ---------------------------------------------------------------- inside

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="microseconds")

    def _count(self, query: str) -> int:
        (count,) = self._db.execute(query).fetchone()
        return int(count)

    def _keep(self, prompt: Prompt, responses: Sequence[Response]) -> tuple[str, list[str]]:
        """Insert what is new; the digests of the prompt and of the responses."""
        name = prompt_digest(prompt)
        rows = [_response_row(name, response) for response in responses]
        self._db.execute(_ADD_PROMPT, _prompt_row(name, prompt))
        self._db.executemany(_ADD_RESPONSE, rows)
        return name, [row[0] for row in rows]

    def _annotator(self, name: str) -> int:
        self._db.execute(_ADD_ANNOTATOR, (to_bytes(name),))
        (found,) = self._db.execute(
            "SELECT id FROM annotators WHERE name = CAST(? AS TEXT)", (to_bytes(name),)
        ).fetchone()
        return int(found)

    def _add_judgement(self, it: Judgement, item: int | None = None, key: str | None = None) -> bool:
        """Insert one judgement with all it speaks of; False when it was there."""
        prompt, shown = self._keep(it.prompt, it.responses)
        annotator = to_bytes(it.annotator)
        self._db.execute(_ADD_ANNOTATOR, (annotator,))
        name = judgement_digest(it)
        payload = {_PAYLOAD[kind_of(it)]: answer_of(it)}
        if isinstance(it, Comparison) and it.group:
            payload["group"] = it.group
        about = (kind_of(it), to_bytes(it.criterion), float(it.weight), to_bytes(it.created), it.seconds)
        tag = None if key is None else to_bytes(key)
        row = (name, *about, findings.as_json(payload), item, tag, prompt, annotator)
        new = self._db.execute(_ADD_JUDGEMENT, row).rowcount > 0
        if new:
            self._db.executemany(_ADD_JUDGED, [(place, name, response) for place, response in enumerate(shown)])
        return new

    def _earlier(self, item: int, who: int, key: str) -> Judgement | None:
        """The vote that stands for `who` on `item`; otherwise the one that came with `key`, although withdrawn."""
        used = self._db.execute(
            "SELECT item, annotator FROM judgements WHERE idempotency_key = CAST(? AS TEXT)", (to_bytes(key),)
        ).fetchone()
        if used not in (None, (item, who)):
            raise DataError("key: it came with another vote already: make a new one for each vote")
        for condition in (
            "j.item = :item AND j.annotator = :who AND j.withdrawn = 0",
            "j.idempotency_key = CAST(:key AS TEXT)",
        ):
            for _, _, vote in self._read_judgements(condition, {"item": item, "who": who, "key": to_bytes(key)}):
                return vote
        return None

    def _add_item(self, it: Item) -> int:
        prompt, shown = self._keep(it.prompt, it.responses)
        settings = (json.dumps(list(it.criteria)), it.overlap, it.seed, it.repeat, float(it.priority), it.purpose)
        row = (it.digest, it.kind, to_bytes(it.criterion), *settings, prompt)
        if self._db.execute(_ADD_ITEM, row).rowcount > 0:
            places = [(place, it.digest, response) for place, response in enumerate(shown)]
            self._db.executemany(_ADD_ITEM_RESPONSE, places)
        (found,) = self._db.execute("SELECT id FROM items WHERE digest = ?", (it.digest,)).fetchone()
        return int(found)

    def _add_check(self, it: VerificationItem) -> int:
        item = self._add_item(it.item)
        favoured = response_digest(prompt_digest(it.item.prompt), it.favoured)
        row = (item, to_bytes(it.model), to_bytes(it.reason), float(it.log_odds), favoured)
        self._db.execute(_ADD_CHECK, row)
        return item

    def _lend(self, item: int, annotator: str, who: int, expires: float) -> Assignment:
        self._db.execute(_LEND, (item, who, expires))
        found = self._item(item)
        shown = tuple(found.responses[place] for place in found.order_for(annotator))
        return Assignment(item, replace(found, responses=shown), annotator, expires)

    def _item(self, item: int) -> Item:
        for _, found in self._read_items("WHERE i.id = :item", {"item": item}):
            return found
        raise DataError(f"item {item!r}: the store has no such item")

    def _read_items(self, condition: str, values: Mapping[str, object]) -> Iterator[tuple[int, Item]]:
        for item, rows in groupby(self._db.execute(_ITEMS.format(condition=condition), values), lambda row: row[0]):
            parts = list(rows)
            kind, criterion, criteria, overlap, seed, repeat, priority, purpose = parts[0][11:]
            yield (
                int(item),
                Item(
                    kind=kind,
                    prompt=_read_prompt(parts[0][1:]),
                    responses=tuple(_read_response(row[4:]) for row in parts),
                    criterion=criterion,
                    criteria=tuple(json.loads(criteria)),
                    overlap=overlap,
                    seed=seed,
                    repeat=repeat,
                    priority=priority,
                    purpose=purpose,
                ),
            )

    def _read_judgements(
        self, condition: str, values: Mapping[str, object]
    ) -> Iterator[tuple[int, int | None, Judgement]]:
        """(id, item, judgement) of those that meet a condition of our own writing."""
        rows = self._db.execute(_JUDGEMENTS.format(condition=condition), values)
        for identity, group in groupby(rows, lambda row: row[0]):
            parts = list(group)
            kind, stored, criterion, annotator, weight, created, seconds, item = parts[0][11:]
            payload = json.loads(stored)
            more = {"group": payload["group"]} if "group" in payload else {}
            yield (
                int(identity),
                item,
                make_judgement(
                    kind,
                    _read_prompt(parts[0][1:]),
                    [_read_response(row[4:]) for row in parts],
                    payload[_PAYLOAD[kind]],
                    criterion=criterion,
                    annotator=annotator,
                    weight=weight,
                    created=created,
                    seconds=seconds,
                    **more,
                ),
            )

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
            if version < len(MIGRATIONS):
                # PRAGMA takes no parameters; both numbers are our own constants
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID:d}")
                self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS):d}")

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


# Under which name a judgement's payload, a JSON object, holds what was said.
_PAYLOAD: dict[Kind, str] = {"comparison": "verdict", "rating": "score", "ranking": "ranks", "criteria": "scores"}


def _prompt_row(name: str, prompt: Prompt) -> tuple[Any, ...]:
    return name, to_bytes(prompt.id), to_bytes(prompt.text), findings.as_json(dict(prompt.meta))


def _response_row(prompt: str, it: Response) -> tuple[Any, ...]:
    """The parameters of _ADD_RESPONSE; the first is the response's digest. `prompt` is its prompt's."""
    temperature = None if it.author.temperature is None else float(it.author.temperature)
    ids = [None if sequence is None else findings.as_json(sequence) for sequence in (it.ids, it.prompt_ids)]
    by = (it.author.kind, to_bytes(it.author.name), temperature)
    return response_digest(prompt, it), to_bytes(it.text), *ids, it.finish_reason, *by, prompt


def _read_prompt(row: Sequence[Any]) -> Prompt:
    name, text, meta = row[:3]
    return Prompt(name, text, json.loads(meta))


def _read_response(row: Sequence[Any]) -> Response:
    text, ids, prompt_ids, finish_reason, kind, name, temperature = row[:7]
    read, prompt_read = (None if stored is None else tuple(json.loads(stored)) for stored in (ids, prompt_ids))
    return Response(text, Author(kind, name, temperature), read, prompt_read, finish_reason)
