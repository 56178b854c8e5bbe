"""A file that somebody else is writing is read once, line by line."""

from __future__ import annotations

from pathlib import Path

from rlhf_env.lab.watching.growing_file import GrowingFile


def lines(growing: GrowingFile, most: int = 1 << 20) -> list[bytes]:
    return [line for _, line in growing.read(most)]


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    file = tmp_path / "f"
    growing = GrowingFile(file)
    assert lines(growing) == [] and growing.left == 0, "it is not there yet"
    file.write_bytes(b"one\ntw")
    assert growing.read() == [(0, b"one")]
    assert lines(growing) == [] and growing.left == 0, "half a line is nothing to wait for"
    with file.open("ab") as stream:
        stream.write(b"o\nthree\n")
    assert growing.read() == [(4, b"two"), (8, b"three")]
    assert lines(growing) == [] and growing.restarts == 0


def test_a_long_file_is_read_piece_by_piece(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"".join(b"%06d\n" % i for i in range(1000)) + b"x" * 500 + b"\nend\n")
    growing, found = GrowingFile(file), []
    while True:
        new = lines(growing, 100)
        found += new
        assert len(new) <= 14
        if growing.left == 0:
            break
    assert found == [*(b"%06d" % i for i in range(1000)), b"x" * 500, b"end"]


def test_a_file_that_was_replaced_or_cut_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"a\nb\n")
    growing = GrowingFile(file)
    lines(growing)
    (tmp_path / "other").write_bytes(b"a\nc\nd\n")
    (tmp_path / "other").replace(file)
    assert lines(growing) == [b"a", b"c", b"d"] and growing.restarts == 1
    with file.open("r+b") as stream:
        stream.truncate(2)
    assert lines(growing) == [b"a"] and growing.restarts == 2
    file.unlink()
    assert lines(growing) == [] and growing.restarts == 3
    file.write_bytes(b"new\n")
    assert lines(growing) == [b"new"]
