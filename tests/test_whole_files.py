"""Files appear whole or not at all, and what killed writers left goes. Killed for real: tests/faults/files.py."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_env.errors import DiskRefused
from rlhf_env.whole_files import folder_written, write_whole, written


def test_the_name_is_given_last_and_text_is_kept_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "é \ud800\r\n")
    assert file.read_bytes() == b"\xc3\xa9 \xed\xa0\x80\r\n"
    with written(file) as half:
        half.write(b"new")
        half.flush()
        assert file.read_bytes().startswith(b"\xc3\xa9"), "the old content counts until the new one is whole"
    assert file.read_bytes() == b"new"
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_what_goes_wrong_in_between_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_whole(file, "old")
    with pytest.raises(KeyError), written(file) as half:
        half.write(b"new")
        raise KeyError
    assert file.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_the_disk_that_refuses_is_named_with_path_and_bytes(tmp_path: Path) -> None:
    with pytest.raises(DiskRefused, match=r"no/such/a\.json \(1,000 bytes\) cannot be written: No such file") as caught:
        write_whole(tmp_path / "no" / "such" / "a.json", "x" * 1000)
    assert caught.value.exit_code == 3
    assert str(caught.value).endswith(
        f": there is no folder {tmp_path}/no/such (any more): put it back, or write elsewhere"
    )


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room"), (errno.EACCES, "see to the permissions"), (errno.EROFS, "see to the permissions")],
)
def test_what_to_do_is_what_the_error_asks_for(number: int, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(DiskRefused) as caught, written(tmp_path / "a.json"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).endswith(f". The earlier file is whole: {remedy}, or write elsewhere")


def test_what_killed_writers_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    file = tmp_path / "a[1].json"
    stale = [tmp_path / f".a[1].json.{pid}.tmp" for pid in (gone.pid, 2**80)]
    living = [tmp_path / f".a[1].json.{pid}.tmp" for pid in (os.getppid(), 1)]
    others = [tmp_path / f".{name}.tmp" for name in (f"b.json.{gone.pid}", f"a1.json.{gone.pid}", "a[1].json.word")]
    for one in (*stale, *living, *others):
        one.touch()
    write_whole(file, "new")
    assert sorted(tmp_path.iterdir()) == sorted([file, *living, *others])


# ---------------------------------------------------------------- folders


def content(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "above" / "out"
    with folder_written(out) as half:
        (half / "a").write_text("1")
        assert not out.exists()
    assert content(out) == {"a": "1"}
    with pytest.raises(KeyError), folder_written(out, replace=True) as half:
        (half / "a").write_text("2")
        raise KeyError
    assert content(out) == {"a": "1"}
    with pytest.raises(DiskRefused, match="above/out cannot be written"), folder_written(out) as half:
        (half / "a").write_text("3")
    with folder_written(out, replace=True) as half:
        (half / "b").write_text("4")
    assert content(out) == {"b": "4"}
    assert [one.name for one in out.parent.iterdir()] == ["out"]


def test_a_folder_that_was_taken_away_by_a_killed_process_is_put_back(tmp_path: Path) -> None:
    """Killed between the two renames: the older folder has its other name, and the new one never appeared."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in ("before", "tmp"):
        (tmp_path / f".out.{gone.pid}.{name}").mkdir()
        (tmp_path / f".out.{gone.pid}.{name}" / "a").write_text(name)
    with pytest.raises(KeyError), folder_written(tmp_path / "out", replace=True):
        raise KeyError
    assert content(tmp_path / "out") == {"a": "before"}
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_whoever_may_read_the_folder_may_read_its_files(tmp_path: Path) -> None:
    """safetensors makes a file that its owner alone can read: another user's server could not load the model."""
    before = os.umask(0o027)
    try:
        with folder_written(tmp_path / "model") as half:
            (half / "weights").touch(mode=0o600)
            (half / "script").touch(mode=0o700)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert modes == {"weights": 0o640, "script": 0o740}
