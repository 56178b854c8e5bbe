"""Files appear whole or not at all, and what killed writers left goes. Killed for real: tests/faults/files.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_env.errors import DiskRefused
from rlhf_env.whole_files import write_whole, written


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
