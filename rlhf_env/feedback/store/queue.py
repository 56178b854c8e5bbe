"""What a preference store asks people: items, checks of a reward model, control questions, and who they are for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from rlhf_env.errors import DataError
from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import Judgement, prompt_digest, response_digest
from rlhf_env.feedback.kinds import kind_named, kind_of
from rlhf_env.feedback.store.items import Item, VerificationItem
from rlhf_env.feedback.store.records import NO_CONTROL, RESPONSE_COLUMNS, Records, read_prompt, read_response
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
_ITEMS = f"""SELECT i.id, p.name, p.text, p.meta, {RESPONSE_COLUMNS},
    i.kind, i.criterion, i.criteria, i.overlap, i.seed, i.repeat, i.priority, i.purpose
    FROM items AS i
    JOIN prompts AS p ON p.id = i.prompt
    JOIN item_responses AS shown ON shown.item = i.id
    JOIN responses AS r ON r.id = shown.response
    {{condition}} ORDER BY i.id, shown.position"""
_ASSIGN = "INSERT INTO assignees (item, annotator) VALUES (?, CAST(? AS TEXT)) ON CONFLICT DO NOTHING"
_ADD_CONTROL = """INSERT INTO controls (item, answer) VALUES (?, ?)
    ON CONFLICT (item) DO UPDATE SET answer = excluded.answer"""


class Queue(Records):
    """The part of `PreferenceStore` that says what is to be judged."""

    def add_items(self, items: Iterable[Item], *, to: Sequence[str] = ()) -> list[int]:
        """Ask for judgements; the ids, in order. An item that is there already keeps its id and settings.

        `to` names the people whom the items are put before, and nobody else; () is everybody. An item that is for some
        people already is for these, too.
        """
        given = list(items)
        most = max((item.overlap for item in given), default=0)
        findings.refuse(
            *(findings.text("to", name) for name in to),
            0 < len(set(to)) < most and f"to: {len(set(to))} named, and {most} people are to judge each item",
        )
        with self._writing():
            ids = [self._add_item(item) for item in given]
            self._db.executemany(_ASSIGN, [(item, to_bytes(name)) for item in ids for name in to])
            return ids

    def assignees(self) -> dict[int, tuple[str, ...]]:
        """By item, whom it is for; an item for everybody is left out."""
        rows = self._db.execute("SELECT item, annotator FROM assignees ORDER BY item, annotator")
        return {int(item): tuple(name for _, name in group) for item, group in groupby(rows, lambda row: row[0])}

    def add_controls(self, known: Iterable[Judgement]) -> list[int]:
        """Ask everybody what is known: an item for each judgement, whose answer theirs are held against.

        Nothing on the page tells a control question from others. Votes on it are no judgements of this store: they
        teach no reward model, and no export has them. Returns the items' ids, in order.
        """
        with self._writing():
            return [self._add_control(judgement) for judgement in list(known)]

    def controls(self) -> dict[int, Judgement]:
        """By item, the answer that is known, as a judgement of the annotator "known"."""
        answers = dict(self._db.execute("SELECT item, answer FROM controls"))
        return {
            item: kind_named(asked.kind)(
                asked.prompt,
                asked.responses,
                json.loads(answers[item]),
                annotator="known",
                criterion=asked.criterion,
            )
            for item, asked in self._read_items("WHERE i.purpose = 'control'", {})
            if item in answers
        }

    def control_votes(self) -> Iterator[tuple[int, Judgement]]:
        """What people answered to control questions, with the item's id."""
        for _, item, judgement in self._read_judgements(f"j.withdrawn = 0 AND NOT {NO_CONTROL}", {}):
            assert item is not None
            yield item, judgement

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

    # ---------------------------------------------------------------- inside

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

    def _add_control(self, judgement: Judgement) -> int:
        kind = kind_of(judgement)
        answer = kind.answer_of(judgement)
        names = tuple(answer) if kind.many_criteria and isinstance(answer, Mapping) else ()
        item = self._add_item(
            Item(
                kind=kind.name,
                prompt=judgement.prompt,
                responses=judgement.responses,
                criterion="overall" if names else judgement.criterion,
                criteria=names,
                purpose="control",
            )
        )
        findings.refuse(
            self._item(item).responses != judgement.responses
            and f"control: the question {judgement.prompt.text[:60]!r} is there already, its responses in another order"
        )
        self._db.execute(_ADD_CONTROL, (item, findings.as_json(answer)))
        return item

    def _add_check(self, check: VerificationItem) -> int:
        item = self._add_item(check.item)
        favoured = response_digest(prompt_digest(check.item.prompt), check.favoured)
        row = (item, to_bytes(check.model), to_bytes(check.reason), float(check.log_odds), favoured)
        self._db.execute(_ADD_CHECK, row)
        return item

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
