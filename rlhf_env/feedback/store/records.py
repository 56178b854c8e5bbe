"""What a preference store keeps: prompts, responses, annotators, criteria, and judgements of every kind.

Prompts and responses are known by a hash of their content, so that adding one again changes nothing. A text that comes
without an author is the text that is there already, whoever wrote it and whichever file it came from. Judgements are
known by what they say: the same verdict of the same annotator at the same moment is one row. Where nobody said when,
equal judgements of one batch (the rows of a file) are as many votes as there are, and the batch comes in once. What was
said is kept as JSON, as the judgement's kind makes it (`JudgementKind.payload_of`): a new kind needs no new column.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rlhf_env.feedback import findings
from rlhf_env.feedback.judgements import (
    Author,
    Judgement,
    Preference,
    Response,
    digest,
    id_of_text,
    kept_meta,
    prompt_digest,
    prompt_problems,
    response_digest,
)
from rlhf_env.feedback.kinds import Comparison, kind_named, kind_names, kind_of, preferences_of
from rlhf_env.feedback.kinds.kind import LATER
from rlhf_env.feedback.store.database import Database
from rlhf_env.feedback.store.items import Counts, Criterion, Origin
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
# Who is known once stays known: a person of the page whose votes come back from a file is a person.
_ADD_ANNOTATOR = """INSERT INTO annotators (name, origin) VALUES (CAST(? AS TEXT), ?)
    ON CONFLICT (name) DO UPDATE SET origin = excluded.origin
    WHERE annotators.origin = 'unknown' OR (annotators.origin = 'file' AND excluded.origin IN ('page', 'simulated'))"""
_PROMPT_OF_TEXT = """SELECT name, text, meta FROM prompts
    WHERE substr(text, 1, 100) = substr(CAST(:text AS TEXT), 1, 100) AND text = CAST(:text AS TEXT)
    ORDER BY id LIMIT 1"""
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
_RESPONSE_OF_TEXT = f"""SELECT {RESPONSE_COLUMNS} FROM responses AS r JOIN prompts AS p ON p.id = r.prompt
    WHERE p.digest = ? AND r.text = CAST(? AS TEXT) ORDER BY r.id LIMIT 1"""
# Whether a judgement `j` is one of this store, and no answer to a question whose answer was known.
NO_CONTROL = "(j.item IS NULL OR j.item NOT IN (SELECT item FROM controls))"
_STANDING = f"j.withdrawn = 0 AND {NO_CONTROL}"
_JUDGEMENTS = f"""SELECT j.id, p.name, p.text, p.meta, {RESPONSE_COLUMNS},
    j.kind, j.payload, j.criterion, annotators.name, j.weight, j.created, j.seconds, j.item
    FROM judgements AS j
    JOIN prompts AS p ON p.id = j.prompt
    JOIN annotators ON annotators.id = j.annotator
    JOIN judged ON judged.judgement = j.id
    JOIN responses AS r ON r.id = judged.response
    WHERE {{condition}} ORDER BY j.id, judged.position"""
_RESPONSES = f"""SELECT p.name, p.text, p.meta, {RESPONSE_COLUMNS}
    FROM responses AS r JOIN prompts AS p ON p.id = r.prompt
    WHERE r.id NOT IN (SELECT s.response FROM item_responses AS s JOIN controls AS c ON c.item = s.item)
    OR r.id IN (SELECT s.response FROM item_responses AS s WHERE s.item NOT IN (SELECT item FROM controls))
    OR r.id IN (SELECT o.response FROM judged AS o JOIN judgements AS j ON j.id = o.judgement WHERE j.item IS NULL)
    ORDER BY r.id"""


class Records(Database):
    """The part of `PreferenceStore` that puts judgements in and gives them back."""

    def add_response(self, prompt: Prompt, *responses: Response) -> None:
        """Keep a prompt and responses to it (none: the prompt alone). What is there already is left as it is."""
        findings.refuse(*prompt_problems(prompt))
        with self._writing():
            self._keep(prompt, responses)

    def add_responses(self, written: Iterable[tuple[Prompt, Response]]) -> None:
        """The same of many, each with its prompt: all of them, or none when one fails."""
        written = list(written)
        findings.refuse(*(problem for prompt, _ in written for problem in prompt_problems(prompt)))
        with self._writing():
            for prompt, response in written:
                self._keep(prompt, (response,))

    def add(self, *batches: Iterable[Judgement | Preference], origin: Origin = "unknown") -> int:
        """Keep judgements with their prompts, responses and annotators: all of them, or none when one fails.

        Each batch is what one file says, or one call of a script: of judgements in it that are equal and say no time,
        each is a vote, and the same batch again adds nothing. Returns how many were new. `origin` is who gave them, as
        far as that is known. Raises RunFailed when the disk is full or another process holds the file.
        """
        given = [[Comparison.of(one) if isinstance(one, Preference) else one for one in batch] for batch in batches]
        with self._writing():
            return sum(self._add_batch(batch, origin) for batch in given)

    def _add_batch(self, judgements: Sequence[Judgement], origin: Origin) -> int:
        equals: Counter[str] = Counter()
        new = 0
        for given in judgements:
            judgement = self._known(given)
            name = kind_of(judgement).digest(judgement)
            if not judgement.created:
                equals[name] += 1
                if equals[name] > 1:
                    name = digest("again", name, equals[name])
            new += self._add_judgement(judgement, origin, name=name)
        return new

    def _known(self, judgement: Judgement) -> Judgement:
        """The judgement about the texts that the store has already, where it names no author for them."""
        prompt = self._known_prompt(judgement.prompt)
        kind = kind_of(judgement)
        responses = [self._known_response(prompt, response) for response in judgement.responses]
        if prompt is judgement.prompt and all(
            one is other for one, other in zip(responses, judgement.responses, strict=True)
        ):
            return judgement
        return kind(prompt, responses, kind.answer_of(judgement), **kind.circumstances_of(judgement))

    def _known_prompt(self, prompt: Prompt) -> Prompt:
        if prompt.meta or prompt.id != id_of_text(prompt.text):
            return prompt  # it has a name of its own
        row = self._db.execute(_PROMPT_OF_TEXT, {"text": to_bytes(prompt.text)}).fetchone()
        known = prompt if row is None else read_prompt(row)
        return prompt if known == prompt else known

    def _known_response(self, prompt: Prompt, response: Response) -> Response:
        if response.author.kind != "dataset" or response.ids is not None or response.finish_reason is not None:
            return response
        name = prompt_digest(prompt)
        same = self._db.execute("SELECT 1 FROM responses WHERE digest = ?", (response_digest(name, response),))
        if same.fetchone():
            return response
        row = self._db.execute(_RESPONSE_OF_TEXT, (name, to_bytes(response.text))).fetchone()
        return response if row is None else read_response(row)

    def judgements(self, *, kind: str | None = None) -> Iterator[Judgement]:
        """Every judgement that stands, of one kind or of all, in the order they were added."""
        condition = _STANDING + (" AND j.kind = :kind" if kind else "")
        return (judgement for _, _, judgement in self._read_judgements(condition, {"kind": kind}))

    def comparisons(self) -> Iterator[Comparison]:
        """Every comparison, ties too, in the order they were added."""
        for judgement in self.judgements(kind="comparison"):
            assert isinstance(judgement, Comparison)
            yield judgement

    def votes(self) -> Iterator[tuple[int | None, Judgement]]:
        """Every judgement that stands, with the id of the item that it was made through; None for one that came in."""
        return ((item, judgement) for _, item, judgement in self._read_judgements(_STANDING, {}))

    def preferences(self) -> Iterator[Preference]:
        """All judgements as weighted pairs (`preferences_of`): decided comparisons in the order they were added."""
        return preferences_of(self.judgements())

    def responses(self) -> Iterator[tuple[Prompt, Response]]:
        """Every response with its prompt, in the order they were added, but for those of control questions alone."""
        for row in self._db.execute(_RESPONSES):
            yield read_prompt(row), read_response(row[3:])

    def origins(self) -> dict[str, Origin]:
        """Where each annotator's votes come from: `annotators()` with what is known of them."""
        return dict(self._db.execute("SELECT name, origin FROM annotators ORDER BY id"))

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
        standing = dict(
            self._db.execute(f"SELECT j.kind, count(*) FROM judgements AS j WHERE {_STANDING} GROUP BY j.kind")
        )
        judgements: dict[str, int] = {}
        for name in kind_names():
            kind = kind_named(name)
            count = standing.pop(name, 0)
            if count or kind.is_asked:
                judgements[kind.plural] = count
            if kind.tallies:
                by_value = dict(
                    self._db.execute(
                        f"""SELECT json_extract(j.payload, '$.' || ?), count(*) FROM judgements AS j
                        WHERE {_STANDING} AND j.kind = ? GROUP BY 1""",
                        (kind.answer[0], name),
                    )
                )
                tallies = {word: sum(by_value.get(it, 0) for it in values) for word, values in kind.tallies.items()}
                judgements |= {it: count for it, count in tallies.items() if count or it not in kind.rare_tallies}
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

    def _annotator(self, name: str, origin: Origin = "unknown") -> int:
        self._db.execute(_ADD_ANNOTATOR, (to_bytes(name), origin))
        (identity,) = self._db.execute(
            "SELECT id FROM annotators WHERE name = CAST(? AS TEXT)", (to_bytes(name),)
        ).fetchone()
        return int(identity)

    def _add_judgement(
        self,
        judgement: Judgement,
        origin: Origin = "unknown",
        item: int | None = None,
        key: str | None = None,
        name: str | None = None,
    ) -> bool:
        """Insert one judgement with all it speaks of, under its digest (or `name`); False when it was there."""
        prompt, shown = self._keep(judgement.prompt, judgement.responses)
        annotator = to_bytes(judgement.annotator)
        self._db.execute(_ADD_ANNOTATOR, (annotator, origin))
        kind = kind_of(judgement)
        name = kind.digest(judgement) if name is None else name
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
            *said, item = parts[0][11:]
            responses = [read_response(row[4:]) for row in parts]
            yield int(identity), item, read_judgement(read_prompt(parts[0][1:]), responses, *said)


def _prompt_row(name: str, prompt: Prompt) -> DatabaseRow:
    return name, to_bytes(prompt.id), to_bytes(prompt.text), findings.as_json(kept_meta(prompt), in_order=True)


def _response_row(prompt: str, response: Response) -> DatabaseRow:
    """The parameters of _ADD_RESPONSE; the first is the response's digest. `prompt` is its prompt's."""
    author = response.author
    temperature = None if author.temperature is None else float(author.temperature)
    ids = [None if tokens is None else findings.as_json(tokens) for tokens in (response.ids, response.prompt_ids)]
    by = (author.kind, to_bytes(author.name), temperature)
    return response_digest(prompt, response), to_bytes(response.text), *ids, response.finish_reason, *by, prompt


def read_judgement(
    prompt: Prompt,
    responses: Sequence[Response],
    kind: str,
    stored: str,
    criterion: str,
    annotator: str,
    weight: float,
    created: str,
    seconds: float | None,
) -> Judgement:
    """Of the columns of its row, in the order of _JUDGEMENTS."""
    payload = json.loads(stored)
    made = kind_named(kind)
    return made(
        prompt,
        responses,
        made.answer_in(payload),
        criterion=criterion,
        annotator=annotator,
        weight=weight,
        created=created,
        seconds=seconds,
        **{name: payload[name] for name in LATER if name in payload},
    )


def read_prompt(row: DatabaseRow) -> Prompt:
    name, text, meta = row[:3]
    return Prompt(name, text, json.loads(meta))


def read_response(row: DatabaseRow) -> Response:
    text, ids, prompt_ids, finish_reason, kind, name, temperature = row[:7]
    read, prompt_read = (None if stored is None else tuple(json.loads(stored)) for stored in (ids, prompt_ids))
    return Response(text, Author(kind, name, temperature), read, prompt_read, finish_reason)
