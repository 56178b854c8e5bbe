"""The store gives back what it was given, whatever happens in between."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import ConfigError, DataError, RunFailed
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.kinds import Comparison, Verdict
from rlhf_env.feedback.store import database
from rlhf_env.feedback.store.items import Counts, Item
from rlhf_env.feedback.store.split import split_by_prompt
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

SFT = Author("policy", "sft", 0.7)
PERSON = Author("human", "Zoë")
ODD_TEXTS = [
    "",
    "🙂",
    "שלום",
    "nul \0 inside",
    "lone \ud800 surrogate",
    "line\u2028separator\r\n",
    "'; DROP TABLE prompts; --",
]


def comparison(i: int, verdict: Verdict = "first", **settings: Any) -> Comparison:
    first = Response(f"yes {i}", SFT, ids=(7, i, 2), prompt_ids=(1, i), finish_reason="stop")
    second = Response(f"no {i}", PERSON)
    settings = {"created": "2024-05-01T10:00:00+00:00", **settings}
    return Comparison(Prompt(f"p{i}", f"question {i}", {"level": i}), first, second, verdict, "ann", **settings)


def counted(prompts: int, responses: int, annotators: int, **judgements: int) -> Counts:
    words = ("comparisons", "preferences", "ties", "cannot say", "ratings", "rankings", "criteria")
    given = {word.replace("_", " "): count for word, count in judgements.items()}
    return Counts(prompts, responses, annotators, {word: given.get(word, 0) for word in words})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "preferences.sqlite"


def test_what_goes_in_comes_out_in_order(path: Path) -> None:
    verdicts: list[Verdict] = ["second", "tie", "first", "cannot say", "second"]
    given = [comparison(i, verdict, weight=0.1 * (i + 1)) for i, verdict in enumerate(verdicts)]
    with PreferenceStore(path) as store:
        assert store.add(given) == 5
    with PreferenceStore(path) as store:
        assert list(store.comparisons()) == given
        decided = [given[0], given[2], given[4]]
        assert list(store.preferences()) == [it.preference for it in decided]
        assert [Comparison.of(it) for it in store.preferences()] == decided
        assert store.counts() == counted(5, 10, 1, comparisons=5, preferences=3, ties=1, cannot_say=1)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_any_text_is_kept(path: Path, text: str) -> None:
    given = Preference(
        Prompt("id " + text, text, {"note": text}), Response(text, SFT), Response(text + "!", SFT), "a " + text
    )
    with PreferenceStore(path) as store:
        store.add([given])
        (kept,) = store.preferences()
    assert (kept.prompt, kept.chosen, kept.rejected) == (given.prompt, given.chosen, given.rejected)
    assert kept.annotator == given.annotator


def test_adding_again_changes_nothing(path: Path) -> None:
    given = [comparison(i) for i in range(3)]
    with PreferenceStore(path) as store:
        assert [store.add(given), store.add(given), store.add([*given, comparison(3)])] == [3, 0, 1]
        before = store.counts()
        store.add_response(given[0].prompt, given[0].first, given[0].first)
        assert store.counts() == before
        store.add_response(given[0].prompt, Response("a third answer", SFT))
        assert store.counts().responses == before.responses + 1


def test_one_annotator_may_judge_a_pair_again_later(path: Path) -> None:
    with PreferenceStore(path) as store:
        store.add([comparison(0, "first"), comparison(0, "first", created="2024-06-01T10:00:00+00:00")])
        assert store.counts().judgements["comparisons"] == 2


def test_responses_that_differ_only_in_ids_or_author_are_two(path: Path) -> None:
    prompt = Prompt("p", "q")
    with PreferenceStore(path) as store:
        cut = Response("yes", SFT, ids=(7,), prompt_ids=(1,), finish_reason="length")
        ended = Response("yes", SFT, ids=(7, 2), prompt_ids=(1,), finish_reason="stop")
        store.add_response(prompt, cut, ended, Response("yes", PERSON))
        assert [response for _, response in store.responses()] == [cut, ended, Response("yes", PERSON)]


def test_responses_are_kept_all_or_none(path: Path) -> None:
    given = comparison(0)

    def written() -> Any:
        yield given.prompt, given.first
        yield given.prompt, given.second

    with PreferenceStore(path) as store:
        with pytest.raises(DataError):
            store.add_responses([(given.prompt, given.first), (Prompt("", "no name"), given.second)])
        assert store.counts().responses == 0
        store.add_responses(written())
        assert [response for _, response in store.responses()] == [given.first, given.second]
        store.add_responses(written())
        assert store.counts().responses == 2


def test_a_failing_judgement_takes_the_whole_call_with_it(path: Path) -> None:
    def judgements() -> Any:
        yield comparison(0)
        raise KeyboardInterrupt

    with PreferenceStore(path) as store:
        with pytest.raises(KeyboardInterrupt):
            store.add(judgements())
        store._db.execute("CREATE TRIGGER full BEFORE INSERT ON judged BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        with pytest.raises(RunFailed, match=r"preferences\.sqlite: disk full; nothing of this call was kept"):
            store.add([comparison(0)])
        assert store.counts() == counted(0, 0, 0)


def test_a_file_that_was_taken_away_takes_no_judgements(path: Path) -> None:
    """SQLite goes on writing to what has no name any more, and says that all is well."""
    with PreferenceStore(path) as store:
        store.add([comparison(0)])
        path.rename(path.with_suffix(".away"))
        for replaced in (False, True):
            if replaced:
                path.touch()
            with pytest.raises(RunFailed, match="moved, removed or replaced since it was opened; nothing of this call"):
                store.add([comparison(1)])
        path.unlink()
        path.with_suffix(".away").rename(path)
        assert store.add([comparison(1)]) == 1, "it was put back"


def test_a_killed_writer_loses_nothing_it_reported(path: Path) -> None:
    """The child adds one judgement at a time, says so, and is killed with -9 in the middle."""
    code = (
        "import sys\n"
        "from rlhf_env.feedback.judgements import Author, Response\n"
        "from rlhf_env.feedback.kinds import Comparison\n"
        "from rlhf_env.feedback.store.store import PreferenceStore\n"
        "from rlhf_env.types import Prompt\n"
        "store, a = PreferenceStore(sys.argv[1]), Author('human', 'a')\n"
        "for i in range(100_000):\n"
        "    store.add([Comparison(Prompt(str(i), 'q'), Response('yes', a), Response('no', a), 'first', 'ann')])\n"
        "    print(i + 1, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    reported = 0
    while reported < 20:
        reported = int(child.stdout.readline())
    os.kill(child.pid, signal.SIGKILL)
    reported = max([reported, *map(int, child.stdout.read().split())])
    child.wait()
    child.stdout.close()
    with PreferenceStore(path) as store:
        assert reported <= store.counts().judgements["comparisons"] <= reported + 1
        assert store.counts().judgements["comparisons"] == len(list(store.preferences()))
        assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert store._db.execute("PRAGMA foreign_key_check").fetchall() == []


def test_the_file_is_opened_safely(path: Path) -> None:
    with PreferenceStore(path) as store:
        pragmas = {
            name: store._db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        with pytest.raises(sqlite3.IntegrityError):
            store._db.execute("INSERT INTO judged VALUES (1, 0, 1)")


def test_two_stores_on_one_file_see_each_other(path: Path) -> None:
    with PreferenceStore(path) as one, PreferenceStore(path) as two:
        one.add([comparison(0)])
        two.add([comparison(1)])
        assert one.counts() == two.counts()
        assert one.counts().judgements["comparisons"] == 2


def test_writers_wait_for_each_other_from_the_first_look(path: Path) -> None:
    """What a transaction reads holds until it writes, or two people would be lent the last place of one item."""
    with PreferenceStore(path) as one, PreferenceStore(path, timeout=0.05) as two:
        with one._transaction(), pytest.raises(RunFailed, match="locked"):
            two.add([comparison(0)])
        assert two.add([comparison(0)]) == 1


def test_files_that_are_no_store_are_left_alone(tmp_path: Path) -> None:
    text, other, newer = tmp_path / "notes.txt", tmp_path / "other.sqlite", tmp_path / "newer.sqlite"
    text.write_text("not a database, and longer than the header of one " * 10)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE recipes (name TEXT)")
    PreferenceStore(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    contents = [file.read_bytes() for file in (text, other)]
    for file, reason in (
        (text, "not a database"),
        (other, "no preference store"),
        (newer, "schema version 99.*upgrade"),
    ):
        with pytest.raises(DataError, match=reason):
            PreferenceStore(file)
    assert [file.read_bytes() for file in (text, other)] == contents
    with pytest.raises(DataError, match="nowhere"):
        PreferenceStore(tmp_path / "nowhere" / "preferences.sqlite")


def version_1(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.executescript((Path(__file__).parent / "store_version_1.sql").read_text(encoding="utf-8"))
    db.close()


def test_an_older_file_is_migrated(path: Path) -> None:
    version_1(path)
    given = Comparison(
        Prompt("p0", "question", {"level": 1}),
        Response("yes", SFT, ids=(7, 2), prompt_ids=(1,), finish_reason="stop"),
        Response("no", PERSON),
        "second",
        "ann",
        weight=0.5,
        created="2024-05-01T10:00:00+00:00",
    )
    with PreferenceStore(path) as store:
        assert list(store.judgements()) == [given]
        assert store.add([given]) == 0, "the digests of older rows hold"
        item = Item(kind="comparison", prompt=given.prompt, responses=given.responses)
        (name,) = store.add_items([item])
        asked = store.next_item("ann")
        assert asked is not None and asked.id == name
        assert store.submit(name, "ann", "tie", key="k").new
        assert store.counts() == counted(1, 2, 1, comparisons=2, preferences=1, ties=1)
        (version,) = store._db.execute("PRAGMA user_version").fetchone()
    with PreferenceStore(path) as store:
        assert store.counts().judgements["comparisons"] == 2
    assert version == 5


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version_1(path)
    steps = (*database.MIGRATIONS, ("CREATE TABLE more (id INTEGER)", "no SQL"))
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", steps)
        with pytest.raises(DataError, match="syntax error"):
            PreferenceStore(path)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert "items" not in {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    db.close()
    PreferenceStore(path).close()


def test_the_split_never_shows_a_held_out_prompt_in_training(path: Path) -> None:
    given = [comparison(i % 200, created=str(i)) for i in range(600)]
    renamed = [Comparison(Prompt("again", it.prompt.text), it.first, it.second, "first", "ann") for it in given[:200]]
    with PreferenceStore(path) as store:
        store.add(given + renamed)
        training, held_out = store.split(0.25)
        everything = list(store.preferences())
    assert not {it.prompt.text for it in training} & {it.prompt.text for it in held_out}
    assert sorted(training + held_out, key=everything.index) == everything
    assert 30 <= len({it.prompt.text for it in held_out}) <= 70
    assert split_by_prompt(everything[::2], 0.25)[1] == [it for it in everything[::2] if it in held_out]
    assert split_by_prompt(everything, 0.25, salt="other")[1] != held_out
    assert split_by_prompt(everything, 0.0)[1] == split_by_prompt(everything, 1.0)[0] == []
    with pytest.raises(ConfigError, match="held_out"):
        split_by_prompt(everything, 20)


def test_a_judgement_that_makes_no_sense_is_refused_with_every_reason() -> None:
    same = Response("yes", SFT)
    with pytest.raises(DataError, match="chosen equal to rejected") as caught:
        Comparison(Prompt("", "q"), same, same, "first", "", weight=float("nan"))
    assert len(caught.value.problems) == 4
    Comparison(Prompt("p", "q"), same, same, "tie", "ann")  # nobody won, so nothing contradicts
    with pytest.raises(DataError, match="verdict: 'left' is none of first, second, tie, both bad, cannot say"):
        comparison(0, "left")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="prompt: expected text, got null"):
        Comparison(Prompt("p", None), same, Response("no", SFT), "first", "ann")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"author kind.*temperature"):
        Author("robot", "x", -1.0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="ids and prompt_ids: both or neither"):
        Response("yes", SFT, ids=(1, 2))


def test_an_episode_survives_the_store(path: Path, episode: Any) -> None:
    """Ids are kept as they were sampled: the text of these would not give them back."""
    written = episode([300, 5, 5, 258], prompt=[9, 9], ended=False)
    with PreferenceStore(path) as store:
        store.add_response(written.prompt, Response.from_episode(written, SFT))
        ((prompt, response),) = store.responses()
    again = response.episode(prompt)
    assert again.ids.tolist() == written.ids.tolist()
    assert again.ids.dtype == written.ids.dtype
    assert (again.prompt, again.response, again.finish_reason) == (written.prompt, written.response, "length")
    with pytest.raises(DataError, match="no token ids"):
        Response("typed by hand", PERSON).episode(prompt)
