"""Files of jobs on other machines: what is sent, in which order it is written, and what is put and taken away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlhf_env.errors import DataError
from rlhf_env.lab import moved_files
from rlhf_env.lab.moved_files import (
    contents_of,
    has_checkpoint_beyond,
    link_what_is_read,
    look_at,
    missing_and_others,
    put_where_missing,
    seen_in,
    sha256_of,
    take_away,
    work_folder,
    write_contents,
)
from rlhf_env.learning.folder_lock import hold


def write(folder: Path, **contents: str) -> None:
    """Files by their path, "/" as "__"."""
    for name, content in contents.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def test_what_is_being_written_is_not_sent(tmp_path: Path) -> None:
    write(tmp_path, run__metrics="1", results__a="2", other="3")
    write(tmp_path / "run" / ".tmp-5-77", state="half")
    (tmp_path / "run" / ".metrics.9.tmp").write_text("half")
    seen = seen_in(tmp_path, [tmp_path / "run", tmp_path / "results" / "a", tmp_path / "nothing"])
    assert contents_of(tmp_path, seen) == {"run/metrics": b"1", "results/a": b"2"}


def test_a_checkpoint_is_whole_and_a_result_there_when_all_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(moved_files, "write_whole", lambda file, _content: order.append(file.name))
    run = "cells/t/a/seed-0"
    names = [f"{run}/checkpoints/s/manifest.json", f"{run}/checkpoints/s/tensors", f"{run}/metrics", "results/r"]
    write_contents(tmp_path, dict.fromkeys(names, b""))
    assert order[2:] == ["manifest.json", "r"]
    assert set(order[:2]) == {"tensors", "metrics"}


def test_what_is_gone_there_goes_here_with_its_empty_folders(tmp_path: Path) -> None:
    write(tmp_path, run__checkpoints__5__state="5", run__metrics="1")
    write_contents(tmp_path, {"run/checkpoints/10/state": b"10"}, ["run/checkpoints/5/state"])
    assert contents_of(tmp_path, seen_in(tmp_path, [tmp_path / "run"])) == {
        "run/metrics": b"1",
        "run/checkpoints/10/state": b"10",
    }
    assert not (tmp_path / "run" / "checkpoints" / "5").exists()


@pytest.mark.parametrize("place", ["../outside", "run/../../outside", "/outside"])
def test_nothing_is_written_outside(place: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no place in"):
        write_contents(tmp_path / "folder", {place: b""})
    assert not (tmp_path / "outside").exists()


def test_a_new_checkpoint_is_worth_sending_and_more_metrics_are_not(tmp_path: Path) -> None:
    write(tmp_path, run__metrics="1")
    before = seen_in(tmp_path, [tmp_path])
    write(tmp_path, run__metrics="12", run__checkpoints__5__state="5")
    assert not has_checkpoint_beyond(before, seen_in(tmp_path, [tmp_path]))
    (tmp_path / "run" / "checkpoints" / "5" / "manifest.json").write_text("{}")
    assert has_checkpoint_beyond(before, now := seen_in(tmp_path, [tmp_path]))
    assert not has_checkpoint_beyond(now, now)


def test_a_job_finds_what_it_reads_of_the_folder_in_the_one_it_works_in(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    write(there, texts__pool="replies", proxies__own="other")
    write(here, proxies__own="mine")
    reads = [there / "texts" / "pool", there / "proxies" / "own", tmp_path / "elsewhere", "rlhf-env/chitchat"]
    link_what_is_read(here, there, reads)
    assert contents_of(here, seen_in(here, [here])) == {"texts/pool": b"replies", "proxies/own": b"mine"}


def test_files_are_compared_by_look_and_then_by_content(tmp_path: Path) -> None:
    write(tmp_path, same="1", copied="22", edited="333", lost="4", model__weights="5")
    paths = [tmp_path / name for name in ("same", "copied", "edited", "lost", "model")]
    expected = look_at([*paths, "rlhf-env/chitchat"])
    assert set(expected) == {str(tmp_path / it) for it in ("same", "copied", "edited", "lost", "model/weights")}
    before = sha256_of(str(tmp_path / "copied"))
    os.utime(tmp_path / "copied", ns=(0, 0))
    write(tmp_path, edited="other")
    (tmp_path / "lost").unlink()
    missing, others = missing_and_others(expected)
    assert missing == [str(tmp_path / "lost")]
    assert set(others) == {str(tmp_path / "copied"), str(tmp_path / "edited")}
    assert others[str(tmp_path / "copied")] == before


def test_what_is_missing_is_put_there_and_taken_away_again(tmp_path: Path) -> None:
    write(tmp_path, kept="mine")
    new, kept = tmp_path / "data" / "deep" / "prompts", tmp_path / "kept"
    made = put_where_missing({str(new): b"sent", str(kept): b"sent"})
    assert (new.read_text(), kept.read_text()) == ("sent", "mine")
    take_away(made)
    assert [it.name for it in tmp_path.iterdir()] == ["kept"]


def test_a_folder_that_something_else_came_into_stays(tmp_path: Path) -> None:
    made = put_where_missing({str(tmp_path / "data" / "prompts"): b"sent"})
    write(tmp_path, data__theirs="1")
    take_away(made)
    assert [it.name for it in (tmp_path / "data").iterdir()] == ["theirs"]


def test_what_a_killed_worker_left_is_removed_and_what_one_at_work_has_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moved_files.tempfile, "gettempdir", lambda: str(tmp_path))
    with work_folder() as first:
        home = first.parents[1]
        write(home, left__work__state="1", new__work__state="2", at_work__work__state="3")
        for name in ("left", "at_work"):
            os.utime(home / name, (0, 0))
        with hold(home / "at_work"):
            os.utime(home / "at_work", (0, 0))
            with work_folder() as second:
                assert second != first
                assert {it.name for it in home.iterdir()} == {"new", "at_work", first.parent.name, second.parent.name}
    assert not first.parent.exists() and not second.parent.exists()
