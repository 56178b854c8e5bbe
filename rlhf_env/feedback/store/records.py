"""What a preference store keeps: prompts, responses, annotators, criteria, and judgements of every kind.

Prompts and responses are known by a hash of their content, so that adding one again changes nothing, and so are
judgements: the same verdict of the same annotator at the same moment is one row. What was said is kept as JSON, as the
judgement's kind makes it (`JudgementKind.payload_of`): a new kind needs no new column.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import (
    Author,
    Judgement,
    Preference,
    Response,
    prompt_digest,
    prompt_problems,
    response_digest,
)
from rlhf_env.feedback.kinds import Comparison, kind_named, kind_names, kind_of, preferences_of
from rlhf_env.feedback.store.database import Database
from rlhf_env.feedback.store.items import Counts, Criterion
from rlhf_env.feedback.store.schema import to_bytes
from rlhf_env.feedback.store.split import split_by_prompt
from rlhf_env.types import Prompt

DatabaseRow = tuple[Any, ...]

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
RESPONSE_COLUMNS = "r.text, r.ids, r.prompt_ids, r.finish_reason, r.author_kind, r.author, r.temperature"
_JUDGEMENTS = f"""SELECT j.id, p.name, p.text, p.meta, {RESPONSE_COLUMNS},
    j.kind, j.payload, j.criterion, annotators.name, j.weight, j.created, j.seconds, j.item
    FROM judgements AS j
    JOIN prompts AS p ON p.id = j.prompt
    JOIN annotators ON annotators.id = j.annotator
    JOIN judged ON judged.judgement = j.id
    JOIN responses AS r ON r.id = judged.response
    WHERE {{condition}} ORDER BY j.id, judged.position"""
_RESPONSES = f"""SELECT p.name, p.text, p.meta, {RESPONSE_COLUMNS}
    FROM responses AS r JOIN prompts AS p ON p.id = r.prompt ORDER BY r.id"""


class Records(Database):
    """The part of `PreferenceStore` that puts judgements in and gives them back."""

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
        given = [Comparison.of(one) if isinstance(one, Preference) else one for one in judgements]
        dated = [one if one.created else kind_of(one).again(one, created=now) for one in given]
        with self._writing():
            return sum(self._add_judgement(judgement) for judgement in dated)

    def judgements(self, *, kind: str | None = None) -> Iterator[Judgement]:
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
            yield read_prompt(row), read_response(row[3:])

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
        """How much there is of everything; withdrawn judgements are not counted."""
        standing = dict(self._db.execute("SELECT kind, count(*) FROM judgements WHERE withdrawn = 0 GROUP BY kind"))
        judgements: dict[str, int] = {}
        for name in kind_names():
            kind = kind_named(name)
            judgements[kind.plural] = standing.pop(name, 0)
            if kind.tallies:
                by_value = dict(
                    self._db.execute(
                        """SELECT json_extract(payload, '$.' || ?), count(*) FROM judgements
                        WHERE withdrawn = 0 AND kind = ? GROUP BY 1""",
                        (kind.answer[0], name),
                    )
                )
                judgements |= {
                    word: sum(by_value.get(value, 0) for value in values) for word, values in kind.tallies.items()
                }
        return Counts(
            prompts=self._count("SELECT count(*) FROM prompts"),
            responses=self._count("SELECT count(*) FROM responses"),
            annotators=self._count("SELECT count(*) FROM annotators"),
            judgements=judgements | standing,  # a kind that no plugin here knows is counted under its name
        )

    def _keep(self, prompt: Prompt, responses: Sequence[Response]) -> tuple[str, list[str]]:
        """Insert what is new; the digests of the prompt and of the responses."""
        name = prompt_digest(prompt)
        rows = [_response_row(name, response) for response in responses]
        self._db.execute(_ADD_PROMPT, _prompt_row(name, prompt))
        self._db.executemany(_ADD_RESPONSE, rows)
        return name, [row[0] for row in rows]

    def _annotator(self, name: str) -> int:
        self._db.execute(_ADD_ANNOTATOR, (to_bytes(name),))
        (identity,) = self._db.execute(
            "SELECT id FROM annotators WHERE name = CAST(? AS TEXT)", (to_bytes(name),)
        ).fetchone()
        return int(identity)

    def _add_judgement(self, judgement: Judgement, item: int | None = None, key: str | None = None) -> bool:
        """Insert one judgement with all it speaks of; False when it was there."""
        prompt, shown = self._keep(judgement.prompt, judgement.responses)
        annotator = to_bytes(judgement.annotator)
        self._db.execute(_ADD_ANNOTATOR, (annotator,))
        kind = kind_of(judgement)
        name = kind.digest(judgement)
        about = (kind.name, to_bytes(judgement.criterion), float(judgement.weight), to_bytes(judgement.created))
        tag = None if key is None else to_bytes(key)
        payload = findings.as_json(kind.payload_of(judgement))
        row = (name, *about, judgement.seconds, payload, item, tag, prompt, annotator)
        new = self._db.execute(_ADD_JUDGEMENT, row).rowcount > 0
        if new:
            self._db.executemany(_ADD_JUDGED, [(place, name, response) for place, response in enumerate(shown)])
        return new

    def _read_judgements(
        self, condition: str, values: Mapping[str, object]
    ) -> Iterator[tuple[int, int | None, Judgement]]:
        """(id, item, judgement) of those that meet a condition of our own writing."""
        rows = self._db.execute(_JUDGEMENTS.format(condition=condition), values)
        for identity, group in groupby(rows, lambda row: row[0]):
            parts = list(group)
            kind, stored, criterion, annotator, weight, created, seconds, item = parts[0][11:]
            payload = json.loads(stored)
            made = kind_named(kind)
            yield (
                int(identity),
                item,
                made(
                    read_prompt(parts[0][1:]),
                    [read_response(row[4:]) for row in parts],
                    made.answer_in(payload),
                    criterion=criterion,
                    annotator=annotator,
                    weight=weight,
                    created=created,
                    seconds=seconds,
                    group=payload.get("group", ""),
                ),
            )


def _prompt_row(name: str, prompt: Prompt) -> DatabaseRow:
    return name, to_bytes(prompt.id), to_bytes(prompt.text), findings.as_json(dict(prompt.meta))


def _response_row(prompt: str, response: Response) -> DatabaseRow:
    """The parameters of _ADD_RESPONSE; the first is the response's digest. `prompt` is its prompt's."""
    author = response.author
    temperature = None if author.temperature is None else float(author.temperature)
    ids = [None if tokens is None else findings.as_json(tokens) for tokens in (response.ids, response.prompt_ids)]
    by = (author.kind, to_bytes(author.name), temperature)
    return response_digest(prompt, response), to_bytes(response.text), *ids, response.finish_reason, *by, prompt


def read_prompt(row: DatabaseRow) -> Prompt:
    name, text, meta = row[:3]
    return Prompt(name, text, json.loads(meta))


def read_response(row: DatabaseRow) -> Response:
    text, ids, prompt_ids, finish_reason, kind, name, temperature = row[:7]
    read, prompt_read = (None if stored is None else tuple(json.loads(stored)) for stored in (ids, prompt_ids))
    return Response(text, Author(kind, name, temperature), read, prompt_read, finish_reason)
