"""A store that another process writes to is not taken for a damaged one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.store import integrity
from rlhf_env.feedback.store import store as store_module
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt


def pair(i: int) -> Preference:
    sides = (Response(f"{side} {i}", Author("dataset", "file")) for side in ("a", "b"))
    return Preference(Prompt(f"p{i}", f"ask {i}"), *sides, annotator="ann")


def test_rows_that_come_in_between_are_not_held_against_what_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prefs.sqlite"
    with PreferenceStore(file) as store:
        store.add([pair(0)])
    read = integrity._read
    added: list[int] = []

    def with_a_writer(*parts: Any) -> object:
        if not added:  # the prompts have been read up to the first: now somebody adds one, and its answers
            added.append(1)
            with PreferenceStore(file, check=False) as other:
                other.add([pair(1)])
        return read(*parts)

    def rows(db: sqlite3.Connection) -> Iterator[integrity.Damage]:
        list(db.execute("SELECT id FROM prompts"))
        yield from integrity.damaged_rows(db)

    monkeypatch.setattr(integrity, "_read", with_a_writer)
    monkeypatch.setattr(store_module, "damaged_rows", rows)
    with PreferenceStore(file) as store:
        assert added
        assert len(list(store.judgements())) == 2
