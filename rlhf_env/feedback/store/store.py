"""The one SQLite file that keeps what people prefer: prompts, responses, judgements, and who is to judge what next.

The file is safe against a kill at any instant: what a method has returned from is on the disk (WAL, synchronous=FULL).
Annotation goes through items: `add_items` says what is to be judged and by how many people, `next_item` lends one to an
annotator for some minutes, `submit` takes the vote, `undo` takes it back. Every item gets exactly as many votes as it
asks for, from as many people; a retried vote is one row. An item's purpose stays with its votes: `evaluation` compares
authors blind (`rlhf_env.feedback.asking.tournament`), `verification` checks a reward model
(`rlhf_env.feedback.asking.verification`).

The nouns are those of `rlhf_env.feedback.judgements` and `rlhf_env.feedback.kinds`. The file is `database.py`, what it
keeps is `records.py`; here is who judges what next.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from rlhf_env.errors import DataError, LeaseExpired, NotAsked
from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import Judgement, prompt_digest, response_digest
from rlhf_env.feedback.kinds import kind_named
from rlhf_env.feedback.store.database import damage
from rlhf_env.feedback.store.integrity import WHOLE_CHECK_BYTES, damaged_rows, page_problem
from rlhf_env.feedback.store.items import Assignment, Item, Origin, Receipt, VerificationItem, VoteProgress
from rlhf_env.feedback.store.records import RESPONSE_COLUMNS, Records, read_prompt, read_response
from rlhf_env.feedback.store.schema import to_bytes

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
_ITEMS = f"""SELECT i.id, p.name, p.text, p.meta, {RESPONSE_COLUMNS},
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


class PreferenceStore(Records):
    """`with PreferenceStore("preferences.sqlite") as store: store.add(comparisons)`.

    Opens or creates the file, and brings an older schema up to date. Raises DataError when the file is something else,
    or was written by a newer version, or is damaged (`check`: every row of a file up to 32 MiB, the pages of a larger
    one): `rlhf_env.feedback.store.rescue` takes out of it what can be read. One connection: use a store from the thread
    that opened it. Several processes may have the file open; writers wait for each other for up to `timeout` seconds.
    `clock` gives seconds since 1970.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        timeout: float = 30.0,
        clock: Callable[[], float] = time.time,
        check: bool = True,
    ) -> None:
        super().__init__(path, timeout=timeout, clock=clock)
        if not check:
            return
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        """Raise DataError where the file is damaged."""
        try:
            whole = not self.path.is_file() or self.path.stat().st_size <= WHOLE_CHECK_BYTES
            found = page_problem(self._db, whole=whole)
            if whole and not found:
                with self._snapshot():
                    damaged = next(damaged_rows(self._db), None)
                found = "" if damaged is None else f"{damaged[0]}: the row {damaged[1]} is not what was written"
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            found = str(error)
        if found:
            raise DataError(damage(self.path, found))

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
            f"""SELECT c.item, c.model, c.reason, c.log_odds, {RESPONSE_COLUMNS} FROM checks AS c
            JOIN responses AS r ON r.id = c.favoured ORDER BY c.item, c.model, c.reason"""
        ).fetchall()
        for item, model, reason, log_odds, *favoured in rows:
            yield (
                int(item),
                VerificationItem(
                    item=items[item],
                    model=model,
                    reason=reason,
                    favoured=read_response(favoured),
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

    def next_item(self, annotator: str, *, lease: float = 600.0, origin: Origin = "unknown") -> Assignment | None:
        """Lend `annotator` an item they have not judged, for `lease` seconds; None when nothing is left for them now.

        What they hold already is lent anew. An item is lent to no more people than it still needs votes, so that every
        item gets exactly as many votes as it asks for; a lease that ran out frees the place. The responses come in an
        order drawn for this annotator, the same whenever they see it.
        """
        findings.refuse(findings.text("annotator", annotator), findings.number("lease", lease))
        with self._writing():
            now = self._clock()
            who = self._annotator(annotator, origin)
            row = self._db.execute(_NEXT_ITEM, {"who": who, "now": now}).fetchone()
            return None if row is None else self._lend(row[0], annotator, who, now + lease)

    def submit(
        self,
        item: int,
        annotator: str,
        answer: object,
        *,
        key: str,
        seconds: float | None = None,
        ticket: str | None = None,
        origin: Origin = "unknown",
    ) -> Receipt:
        """Take a vote. `answer` speaks of the responses in the order they were shown to this annotator:

            comparison   "first", "second", "tie" or "cannot say"
            rating       1 to 5
            ranking      the place of each response, (2, 1, 3)
            criteria     {"helpful": 4, "harmless": 5}, a score for each name asked for

        `key` is made by the client, new for every vote and the same when it tries again. A second vote of one annotator
        on one item, or a second call with one key, changes nothing and returns the vote that stands. A vote after the
        lease ran out is taken if the item still needs it, and raises LeaseExpired if others have judged it meanwhile.

        Raises NotAsked for an item that was never lent to this annotator, or was put before somebody else: `ticket` is
        that of the assignment which was answered, where a vote may come from a page that showed another one. Raises
        DataError for an item that does not exist and an answer that does not fit.
        """
        findings.refuse(findings.text("annotator", annotator), findings.text("key", key))
        with self._writing():
            asked = self._item(item)
            who = self._annotator(annotator, origin)
            shown = tuple(asked.responses[place] for place in asked.order_for(annotator))
            assignment = Assignment(item, replace(asked, responses=shown), annotator, 0.0)
            if ticket is not None and ticket != assignment.ticket:
                raise NotAsked(f"item {item} was not put before {annotator!r} like that: the vote is somebody else's")
            if (earlier := self._earlier(item, who, key)) is not None:
                return Receipt(item, earlier, new=False)
            lent = self._db.execute("SELECT 1 FROM leases WHERE item = ? AND annotator = ?", (item, who)).fetchone()
            if lent is None:
                raise NotAsked(f"item {item} was never put before {annotator!r}: ask for the next item first")
            kind = kind_named(asked.kind)
            if kind.many_criteria:
                findings.refuse(
                    (not isinstance(answer, Mapping) or set(answer) != set(asked.criteria))
                    and f"{kind.answer[0]}: expected one for each of {', '.join(asked.criteria)}"
                )
            judgement = kind(
                asked.prompt,
                shown,
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
            if not self._add_judgement(judgement, origin, item, key):
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

    def _add_item(self, item: Item) -> int:
        prompt, shown = self._keep(item.prompt, item.responses)
        settings = (
            json.dumps(list(item.criteria)),
            item.overlap,
            item.seed,
            item.repeat,
            float(item.priority),
            item.purpose,
        )
        row = (item.digest, item.kind, to_bytes(item.criterion), *settings, prompt)
        if self._db.execute(_ADD_ITEM, row).rowcount > 0:
            places = [(place, item.digest, response) for place, response in enumerate(shown)]
            self._db.executemany(_ADD_ITEM_RESPONSE, places)
        (identity,) = self._db.execute("SELECT id FROM items WHERE digest = ?", (item.digest,)).fetchone()
        return int(identity)

    def _add_check(self, check: VerificationItem) -> int:
        item = self._add_item(check.item)
        favoured = response_digest(prompt_digest(check.item.prompt), check.favoured)
        row = (item, to_bytes(check.model), to_bytes(check.reason), float(check.log_odds), favoured)
        self._db.execute(_ADD_CHECK, row)
        return item

    def _lend(self, item: int, annotator: str, who: int, expires: float) -> Assignment:
        self._db.execute(_LEND, (item, who, expires))
        asked = self._item(item)
        shown = tuple(asked.responses[place] for place in asked.order_for(annotator))
        return Assignment(item, replace(asked, responses=shown), annotator, expires)

    def _item(self, item: int) -> Item:
        for _, asked in self._read_items("WHERE i.id = :item", {"item": item}):
            return asked
        raise DataError(f"item {item!r}: the store has no such item")

    def _read_items(self, condition: str, values: Mapping[str, object]) -> Iterator[tuple[int, Item]]:
        for item, rows in groupby(self._db.execute(_ITEMS.format(condition=condition), values), lambda row: row[0]):
            parts = list(rows)
            kind, criterion, criteria, overlap, seed, repeat, priority, purpose = parts[0][11:]
            yield (
                int(item),
                Item(
                    kind=kind,
                    prompt=read_prompt(parts[0][1:]),
                    responses=tuple(read_response(row[4:]) for row in parts),
                    criterion=criterion,
                    criteria=tuple(json.loads(criteria)),
                    overlap=overlap,
                    seed=seed,
                    repeat=repeat,
                    priority=priority,
                    purpose=purpose,
                ),
            )
