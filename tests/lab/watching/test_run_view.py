"""A run seen while it is written, when it has ended, when it was killed, and where files are damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_env.lab.watching.run_view import RunView, fraction_spent, is_held
from rlhf_env.learning.folder_lock import hold


def view(folder: Path) -> RunView:
    made = RunView(folder)
    made.refresh()
    return made


def test_a_run_that_has_ended(trained: Path) -> None:
    about = view(trained).about()
    assert (about["name"], about["agent"], about["task"], about["seed"]) == ("seen", "rloo", "echo", 0)
    assert (about["status"], about["reason"], about["update"], about["fraction"]) == ("ended", "budget", 12, 1.0)
    assert about["episodes"] == 96 and about["warnings"] == []


def test_nothing_new_is_the_same_version(trained: Path) -> None:
    seen = view(trained)
    before = seen.version
    seen.refresh()
    assert seen.version == before


def test_it_is_followed_while_it_is_written(seen: Path) -> None:
    """Rows come, the last one by halves; then it is killed, and resumed from an earlier checkpoint."""
    rows = (seen / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (seen / "metrics.jsonl").write_bytes(b"".join(rows[:5]) + rows[5][:40])
    (seen / "evaluation.json").unlink()
    with hold(seen):
        watched = view(seen)
        assert (watched.status, watched.update) == ("running", 4)
        with (seen / "metrics.jsonl").open("ab") as stream:
            stream.write(rows[5][40:] + rows[6])
        before = watched.version
        watched.refresh()
        assert watched.update == 6 and watched.version > before and watched.curves.rows == 7
    watched.refresh()
    assert watched.status == "stopped" and watched.about()["fraction"] == 0.5
    (seen / "again").write_bytes(b"".join(rows[:3]))
    (seen / "again").replace(seen / "metrics.jsonl")
    watched.refresh()
    assert (watched.update, watched.curves.rows) == (2, 3), "what was taken back is not shown any more"


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """The lock's file stays, and names a process: asking does not lock, or a run that starts now would be refused."""
    code = "from rlhf_env.learning.folder_lock import hold; from pathlib import Path; import sys; "
    wait = "held = hold(Path(sys.argv[1])); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code + wait, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_held(tmp_path / "lock")
        process.kill()
        process.wait()
    assert not is_held(tmp_path / "lock")
    assert not is_held(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"reason": 1}', b"\xff\xfe"])
def test_damaged_files_are_as_if_they_were_not_there(seen: Path, content: bytes) -> None:
    for name in ("evaluation.json", "warnings.json", "experiment.toml"):
        (seen / name).write_bytes(content)
    with (seen / "metrics.jsonl").open("ab") as stream:
        stream.write(b"no row\n[1]\n{}\n" + content + b"\n")
    about = view(seen).about()
    assert about["update"] == 12 and about["status"] == "stopped" and about["warnings"] == []


def test_warnings_are_told_with_what_cannot_be_seen_written_out(seen: Path) -> None:
    told = [{"name": "entropy collapse", "update": 7, "message": "\u202ea <b>", "remedy": "x"}, "no alert"]
    (seen / "warnings.json").write_text(json.dumps(told))
    (alert,) = view(seen).about()["warnings"]
    assert alert == {"name": "entropy collapse", "update": 7, "message": "⟨U+202E⟩a <b>", "remedy": "x"}


def test_the_share_of_a_budget_is_that_of_the_nearest_limit() -> None:
    row = {"update": 5, "spent/episodes": 90, "spent/seconds": None}
    assert fraction_spent({"budget": {"updates": 10, "episodes": 100, "seconds": 5}}, row) == 0.9
    assert fraction_spent({"budget": {"epochs": 2}}, row) is None
    assert fraction_spent({"budget": {"updates": 1}}, row) == 1.0
    assert fraction_spent({}, row) is None
