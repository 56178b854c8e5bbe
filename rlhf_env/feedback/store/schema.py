"""The tables of the preference store, version by version, and how texts are kept in them."""

from __future__ import annotations

# One tuple of statements per schema version, run once each. Never edit an entry that was released: append one.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
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
    (
        """CREATE TABLE criteria (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            guidelines TEXT NOT NULL)""",
        # `criteria` is a JSON list of names.
        """CREATE TABLE items (
            id INTEGER PRIMARY KEY,
            digest TEXT NOT NULL UNIQUE,
            kind TEXT NOT NULL,
            prompt INTEGER NOT NULL REFERENCES prompts,
            criterion TEXT NOT NULL,
            criteria TEXT NOT NULL,
            overlap INTEGER NOT NULL CHECK (overlap > 0),
            seed INTEGER NOT NULL,
            repeat INTEGER NOT NULL,
            priority REAL NOT NULL)""",
        "CREATE INDEX items_by_priority ON items (priority DESC, id)",
        """CREATE TABLE item_responses (
            item INTEGER NOT NULL REFERENCES items ON DELETE CASCADE,
            position INTEGER NOT NULL,
            response INTEGER NOT NULL REFERENCES responses,
            PRIMARY KEY (item, position)) WITHOUT ROWID""",
        """CREATE TABLE leases (
            item INTEGER NOT NULL REFERENCES items ON DELETE CASCADE,
            annotator INTEGER NOT NULL REFERENCES annotators,
            expires REAL NOT NULL,
            PRIMARY KEY (item, annotator)) WITHOUT ROWID""",
        "ALTER TABLE judgements ADD COLUMN seconds REAL",
        # Of judgements made through an item; `idempotency_key` is made by the client. A vote that was taken back stays
        # as a record, out of every count and reading.
        "ALTER TABLE judgements ADD COLUMN item INTEGER REFERENCES items",
        "ALTER TABLE judgements ADD COLUMN idempotency_key TEXT",
        "ALTER TABLE judgements ADD COLUMN withdrawn INTEGER NOT NULL DEFAULT 0",
        "CREATE UNIQUE INDEX one_vote ON judgements (item, annotator) WHERE item IS NOT NULL AND withdrawn = 0",
        "CREATE UNIQUE INDEX one_request ON judgements (idempotency_key) WHERE idempotency_key IS NOT NULL",
    ),
    (
        "ALTER TABLE items ADD COLUMN purpose TEXT NOT NULL DEFAULT 'collection'",
        # Never shown to who judges the item.
        """CREATE TABLE checks (
            item INTEGER NOT NULL REFERENCES items ON DELETE CASCADE,
            model TEXT NOT NULL,
            reason TEXT NOT NULL,
            favoured INTEGER NOT NULL REFERENCES responses,
            log_odds REAL NOT NULL CHECK (log_odds >= 0),
            PRIMARY KEY (item, model, reason)) WITHOUT ROWID""",
    ),
    (
        # 'page': a person there; 'simulated'; 'file': whoever it was, a file says so.
        "ALTER TABLE annotators ADD COLUMN origin TEXT NOT NULL DEFAULT 'unknown'",
        # A text without an author or an id is looked for by what it says; the beginning is enough to find it.
        "CREATE INDEX prompts_by_start ON prompts (substr(text, 1, 100))",
        # Judgements of schema version 1, whose digests may speak of what that version had no column for.
        "CREATE TABLE unverified (judgement INTEGER PRIMARY KEY REFERENCES judgements ON DELETE CASCADE)",
    ),
    (
        # Items whose answer is known: what the kind's `answer_of` gives, of the responses in the item's own order.
        """CREATE TABLE controls (
            item INTEGER PRIMARY KEY REFERENCES items ON DELETE CASCADE,
            answer TEXT NOT NULL)""",
        # An item with rows here is for these people alone; they may not have come yet, so they are names.
        """CREATE TABLE assignees (
            item INTEGER NOT NULL REFERENCES items ON DELETE CASCADE,
            annotator TEXT NOT NULL,
            PRIMARY KEY (item, annotator)) WITHOUT ROWID""",
    ),
)

LEAVE_UNVERIFIED = "INSERT INTO unverified SELECT id FROM judgements"

APPLICATION_ID = 0x726C6866  # "rlhf": tells our files from anybody else's


def to_bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


def from_bytes(stored: bytes) -> str:
    return stored.decode("utf-8", errors="surrogatepass")
