"""Damaged stores: found when they are opened, in one line, and rescued as far as they can be read."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlhf_env.cli.main import app
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.feedback.store.items import Item
from rlhf_env.feedback.store.rescue import rescue
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

PERSON = Author("human", "Zoë")
VOTES = 120


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "s.sqlite"
    with PreferenceStore(path) as store:
        texts = [(Response(f"good {i} " * 9, PERSON), Response(f"bad {i} " * 9, PERSON)) for i in range(VOTES)]
        store.add(Comparison(Prompt(f"p{i}", f"question {i}"), *pair, "first", "ann") for i, pair in enumerate(texts))
        store.add_items([Item(kind="comparison", prompt=Prompt("i", "q"), responses=texts[0])])
    return path.read_bytes()


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def damages(content: bytes) -> list[bytes]:
    rng = random.Random(0)
    pages = len(content) // 4096
    made = [flipped(content, rng.randrange(len(content))) for _ in range(14)]
    made += [content[: 4096 * i] + bytes(4096) + content[4096 * (i + 1) :] for i in range(0, pages, 3)]
    made += [content[: len(content) * share // 10] for share in (1, 4, 7, 9)]
    return made + [flipped(content, place) for place in (0, 16, 18, 24, 28, 40, 56, 60, 68, 100)]


def test_every_damage_ends_in_one_line_or_is_rescued(whole: bytes, tmp_path: Path) -> None:
    given = damages(whole)
    assert len(given) >= 40
    outcomes = []
    for number, content in enumerate(given):
        path, out = tmp_path / f"{number}.sqlite", tmp_path / f"{number} rescued.sqlite"
        path.write_bytes(content)
        try:
            with PreferenceStore(path) as store:
                assert len(list(store.judgements())) == VOTES, "what opens is whole"
            opened = True
        except DataError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            opened = False
        path.write_bytes(content)
        try:
            found = rescue(path, out)
        except DataError as error:
            assert "nothing of it can be read" in str(error)
            kept = 0
        else:
            with PreferenceStore(out) as store:
                kept = len(list(store.judgements()))
            assert kept == found.kept["judgements"]
        assert path.read_bytes() == content, "the damaged file is only read"
        outcomes.append((opened, kept))
    assert sum(not opened for opened, _ in outcomes) >= 25
    assert sum(kept == VOTES for _, kept in outcomes) >= 20
    assert sum(0 < kept < VOTES for _, kept in outcomes) >= 5


@pytest.mark.parametrize("what", ["good 7 ", "question 7{", '"verdict":"first"'])
def test_one_flipped_bit_of_a_text_costs_one_vote(whole: bytes, tmp_path: Path, what: str) -> None:
    """SQLite finds such a file sound."""
    path = tmp_path / "s.sqlite"
    path.write_bytes(flipped(whole, whole.index(what.encode()) + 10 if what[0] == '"' else whole.index(what.encode())))
    with pytest.raises(DataError, match=r"is damaged .*row \d+ .*preferences rescue"):
        PreferenceStore(path)
    found = rescue(path, tmp_path / "out.sqlite")
    assert (found.kept["judgements"], found.lost["judgements"]) == (VOTES - 1, 1)


def test_the_commands(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.sqlite").write_bytes(flipped(whole, whole.index(b"good 7 ")))
    call: Callable[..., object] = CliRunner().invoke
    for words in (["preferences", "show", "s.sqlite"], ["annotate", "--store", "s.sqlite", "--port", "0"]):
        refused = call(app, words)
        assert isinstance(refused.exception, DataError) and "is damaged" in str(refused.exception)  # type: ignore[attr-defined]
    done = call(app, ["preferences", "rescue", "s.sqlite", "out.sqlite"])
    assert "judgements          119 kept        1 lost" in done.stdout  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="there is something at this path"):
        rescue("s.sqlite", "out.sqlite")
    Path("text").write_text("no database " * 1000)
    with pytest.raises(DataError, match="nothing of it can be read"):
        rescue("text", "other.sqlite")
