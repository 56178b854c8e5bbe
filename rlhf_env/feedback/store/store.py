"""The one SQLite file that keeps what people prefer: prompts, responses, judgements, and who is to judge what next.

The file is safe against a kill at any instant: what a method has returned from is on the disk (WAL, synchronous=FULL).
Annotation goes through items: `add_items` says what is to be judged and by how many people, `next_item` lends one to an
annotator for some minutes, `submit` takes the vote, `undo` takes it back. Every item gets exactly as many votes as it
asks for, from as many people; a retried vote is one row. An item's purpose stays with its votes: `evaluation` compares
authors blind (`rlhf_env.feedback.asking.tournament`), `verification` checks a reward model
(`rlhf_env.feedback.asking.verification`).

The nouns are those of `rlhf_env.feedback.judgements` and `rlhf_env.feedback.kinds`. The file is `database.py`, what it
keeps is `records.py`, what it asks is `queue.py`; here is who judges what next.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from rlhf_env.errors import DataError, LeaseExpired, NotAsked
from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import Judgement, digest
from rlhf_env.feedback.kinds import kind_named
from rlhf_env.feedback.kinds.abstention import ABSTENTION, CANNOT_SAY, Reason
from rlhf_env.feedback.store.database import damage
from rlhf_env.feedback.store.integrity import WHOLE_CHECK_BYTES, damaged_rows, page_problem
from rlhf_env.feedback.store.items import Assignment, Item, Origin, OwnVote, Receipt, VoteProgress
from rlhf_env.feedback.store.queue import Queue
from rlhf_env.feedback.store.schema import to_bytes
from rlhf_env.types import JsonObject

_LEND = """INSERT INTO leases (item, annotator, expires) VALUES (?, ?, ?)
    ON CONFLICT (item, annotator) DO UPDATE SET expires = excluded.expires"""
_VOTES = "(SELECT count(*) FROM judgements AS j WHERE j.item = i.id AND j.withdrawn = 0)"
_LENT_TO_OTHERS = "(SELECT count(*) FROM leases AS l WHERE l.item = i.id AND l.annotator <> :who AND l.expires > :now)"
_UNVOTED = """NOT EXISTS (SELECT 1 FROM judgements AS j
    WHERE j.item = i.id AND j.annotator = :who AND j.withdrawn = 0)"""
_OWN_LEASE = "EXISTS (SELECT 1 FROM leases AS l WHERE l.item = i.id AND l.annotator = :who AND l.expires > :now)"
_FOR_THEM = """(NOT EXISTS (SELECT 1 FROM assignees AS a WHERE a.item = i.id)
    OR EXISTS (SELECT 1 FROM assignees AS a WHERE a.item = i.id AND a.annotator = CAST(:name AS TEXT)))"""
_FREE = f"(i.purpose = 'control' OR {_VOTES} + {_LENT_TO_OTHERS} < i.overlap)"
# The item an annotator holds comes first, so that a reloaded page shows what it showed.
_NEXT_ITEM = f"""SELECT i.id FROM items AS i WHERE {_UNVOTED} AND {_FREE} AND {_FOR_THEM}
    AND (:controls OR i.purpose <> 'control')
    ORDER BY {_OWN_LEASE} DESC, (i.purpose = 'control') = :due DESC, i.priority DESC, i.id LIMIT 1"""
_PROGRESS = f"""SELECT count(*), count(*) FILTER (WHERE votes >= overlap), coalesce(sum(votes), 0),
    coalesce(sum(overlap), 0), coalesce(sum(own), 0),
    count(*) FILTER (WHERE NOT own AND votes + lent < overlap AND theirs)
    FROM (SELECT i.overlap, {_VOTES} AS votes, {_LENT_TO_OTHERS} AS lent, NOT ({_UNVOTED}) AS own, {_FOR_THEM} AS theirs
        FROM items AS i WHERE i.purpose <> 'control'
        UNION ALL SELECT 1, own, 0, own, 1 FROM (SELECT NOT ({_UNVOTED}) AS own FROM items AS i
            WHERE i.purpose = 'control' AND :name <> x''))"""
_WITHDRAW = "UPDATE judgements SET withdrawn = 1, digest = 'withdrawn ' || id WHERE id = ?"
CONTROL_EVERY = 10
"""One question in so many, at a place drawn for each annotator, is a control question while there are any."""


class PreferenceStore(Queue):
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

    def next_item(self, annotator: str, *, lease: float = 600.0, origin: Origin = "unknown") -> Assignment | None:
        """Lend `annotator` an item they have not judged, for `lease` seconds; None when nothing is left for them now.

        What they hold already is lent anew. An item is lent to no more people than it still needs votes, so that every
        item gets exactly as many votes as it asks for; a lease that ran out frees the place. The responses come in an
        order drawn for this annotator, the same whenever they see it. Items for named people come to nobody else. One
        of every `CONTROL_EVERY` items is a control question, and those that are left come last; a simulated annotator
        gets none.
        """
        findings.refuse(findings.text("annotator", annotator), findings.number("lease", lease))
        with self._writing():
            now = self._clock()
            who = self._annotator(annotator, origin)
            asked = {"who": who, "now": now, "name": to_bytes(annotator), "controls": origin != "simulated"}
            row = self._db.execute(_NEXT_ITEM, {**asked, "due": self._control_is_due(annotator, who)}).fetchone()
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
        abstain: Reason | None = None,
        instead: bool = False,
        margin: float | None = None,
        note: str = "",
        flag: bool = False,
    ) -> Receipt:
        """Take a vote. `answer` speaks of the responses in the order they were shown to this annotator:

            comparison   "first", "second", "tie", "both bad" or "cannot say"
            rating       1 to 5
            ranking      the place of each response, (2, 1, 3)
            criteria     {"helpful": 4, "harmless": 5}: for each name asked for a score, or "cannot say"

        `abstain` says instead of an answer why there is none: the vote is then an abstention. `margin`, `note` and
        `flag` are kept with the judgement; a kind that has no field for one refuses it. `instead` puts the vote in the
        place of the annotator's earlier one on this item, which stays in the file as a record.

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
            changed: int | None = None
            if (earlier := self._earlier(item, who, key)) is not None:
                changed = self._standing(item, who, key) if instead else None
                if changed is None:
                    return Receipt(item, earlier, new=False)
            lent = self._db.execute("SELECT 1 FROM leases WHERE item = ? AND annotator = ?", (item, who)).fetchone()
            if lent is None and changed is None:
                raise NotAsked(f"item {item} was never put before {annotator!r}: ask for the next item first")
            made = {"annotator": annotator, "created": self._now(), "seconds": seconds, "note": note, "flag": flag}
            judgement = _judgement_of(assignment.item, answer, abstain, {**made, "margin": margin})
            (free,) = self._db.execute(
                f"SELECT {_FREE} FROM items AS i WHERE i.id = :item", {"item": item, "who": who, "now": self._clock()}
            ).fetchone()
            if changed is not None:
                self._db.execute(_WITHDRAW, (changed,))
            elif not free:
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
            self._db.execute(_WITHDRAW, vote[:1])
            return self._lend(vote[1], annotator, who, now + lease)

    def own_votes(self, annotator: str, *, before: int | None = None, limit: int = 50) -> list[OwnVote]:
        """What an annotator has said, the latest first; `before` is the number of one, to read on from there."""
        findings.refuse(findings.text("annotator", annotator))
        condition = """j.id IN (SELECT id FROM judgements WHERE withdrawn = 0 AND item IS NOT NULL
            AND annotator = (SELECT id FROM annotators WHERE name = CAST(:name AS TEXT))
            AND (:before IS NULL OR id < :before) ORDER BY id DESC LIMIT :limit)"""
        values = {"name": to_bytes(annotator), "before": before, "limit": limit}
        found = [(number, item, vote) for number, item, vote in self._read_judgements(condition, values) if item]
        return [OwnVote(number, self._shown(item, annotator, 0.0), vote) for number, item, vote in reversed(found)]

    def own_vote(self, annotator: str, item: int) -> OwnVote | None:
        """What an annotator has said of an item; None where no vote of theirs on it stands."""
        findings.refuse(findings.text("annotator", annotator))
        condition = """j.withdrawn = 0 AND j.item = :item AND annotators.name = CAST(:name AS TEXT)"""
        for number, _, vote in self._read_judgements(condition, {"item": item, "name": to_bytes(annotator)}):
            return OwnVote(number, self._shown(item, annotator, 0.0), vote)
        return None

    def progress(self, annotator: str | None = None) -> VoteProgress:
        """How far annotation has come, and how much of it is still open to `annotator`."""
        (who,) = self._db.execute(
            "SELECT max(id) FROM annotators WHERE name = CAST(? AS TEXT)", (to_bytes(annotator or ""),)
        ).fetchone()
        asked = {"who": -1 if who is None else who, "now": self._clock(), "name": to_bytes(annotator or "")}
        row = self._db.execute(_PROGRESS, asked).fetchone()
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

    def _control_is_due(self, annotator: str, who: int) -> bool:
        """Each `CONTROL_EVERY` items have one control question among them, where nobody can guess."""
        own, controls = self._db.execute(
            """SELECT count(*), count(controls.item) FROM judgements AS j LEFT JOIN controls ON controls.item = j.item
            WHERE j.annotator = ? AND j.withdrawn = 0 AND j.item IS NOT NULL""",
            (who,),
        ).fetchone()
        drawn = int(digest("control", annotator, controls)[:8], 16) % CONTROL_EVERY
        return bool(own >= controls * CONTROL_EVERY + drawn)

    def _standing(self, item: int, who: int, key: str) -> int | None:
        """The row of the vote of `who` on `item`; None where there is none, or the key came before."""
        row = self._db.execute(
            """SELECT max(id) FROM judgements WHERE item = ? AND annotator = ? AND withdrawn = 0
            AND NOT EXISTS (SELECT 1 FROM judgements WHERE idempotency_key = CAST(? AS TEXT))""",
            (item, who, to_bytes(key)),
        ).fetchone()
        return None if row[0] is None else int(row[0])

    def _lend(self, item: int, annotator: str, who: int, expires: float) -> Assignment:
        self._db.execute(_LEND, (item, who, expires))
        return self._shown(item, annotator, expires)

    def _shown(self, item: int, annotator: str, expires: float) -> Assignment:
        """The item with its responses in the order that this annotator sees."""
        asked = self._item(item)
        shown = tuple(asked.responses[place] for place in asked.order_for(annotator))
        return Assignment(item, replace(asked, responses=shown), annotator, expires)


def _judgement_of(asked: Item, answer: object, abstain: Reason | None, circumstances: JsonObject) -> Judgement:
    """What somebody says of an item as it was shown. Raises DataError."""
    kind = kind_named(asked.kind)
    criterion = asked.criterion
    if kind.many_criteria and abstain is None:
        findings.refuse(
            (not isinstance(answer, Mapping) or set(answer) != set(asked.criteria))
            and f"{kind.answer[0]}: expected one for each of {', '.join(asked.criteria)}"
        )
        assert isinstance(answer, Mapping)
        answer = {name: score for name, score in answer.items() if score != CANNOT_SAY}
        abstain = None if answer else CANNOT_SAY
    if abstain is not None:
        kind, answer = ABSTENTION, abstain
        criterion = ", ".join(sorted(asked.criteria)) or criterion
    given = {name: value for name, value in circumstances.items() if value not in (None, "") and value is not False}
    findings.refuse(
        *(
            f"{name}: a {kind.name} has none"
            for name in ("margin", "note", "flag")
            if name in given and not kind.takes(name)
        )
    )
    return kind(asked.prompt, asked.responses, answer, **given, criterion=criterion)
