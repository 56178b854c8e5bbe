"""A run folder: one owner, one experiment, whole rows; what does not fit is refused by name."""

from __future__ import annotations

import math
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import ConfigError, DataError, RunFailed
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics

TOML = 'name = "toy"\nseed = 0\n\n[agent]\nname = "ppo"\nlr = 0.1\n'


def run_folder(path: Path, toml: str = TOML, *, resume: bool = True) -> RunFolder:
    return RunFolder(path, toml, resume=resume, tensorboard=False)


def hold(folder: Path, held: Any) -> None:
    with run_folder(folder):
        held.set()
        time.sleep(3600)


def test_a_folder_in_use_is_refused_until_its_process_is_gone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # a process in an instant: it imports nothing
    held = context.Event()
    other = context.Process(target=hold, args=(tmp_path, held))
    other.start()
    try:
        assert held.wait(300)
        with pytest.raises(ConfigError, match=rf"in use \(pid {other.pid}\)"), run_folder(tmp_path):
            pass
    finally:
        other.kill()
        other.join()
    with run_folder(tmp_path):
        pass


def test_a_refused_folder_is_given_back(tmp_path: Path) -> None:
    with run_folder(tmp_path):
        pass
    with pytest.raises(ConfigError, match="--resume"):
        run_folder(tmp_path, resume=False).__enter__()
    refused = run_folder(tmp_path, TOML.replace("0.1", "0.2"))  # kept alive: a lock that it held would stay
    with pytest.raises(ConfigError, match="lr"):
        refused.__enter__()
    with run_folder(tmp_path):
        pass


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_gone_under_a_run_ends_it_with_a_remedy(tmp_path: Path, replaced: bool) -> None:
    """What is written after that would be in no folder, or in somebody else's."""
    for write in ("log", "save"):
        place = tmp_path / f"{write} {replaced}"
        with run_folder(place) as run:
            place.rename(tmp_path / f"moved {write}")
            if replaced:
                place.mkdir()
            with pytest.raises(RunFailed, match=r"was removed, moved or replaced .*: put it back and go on") as ended:
                run.log({"update": 1}) if write == "log" else run.save(1, {}, 1)
        assert ended.value.exit_code == 3
        assert place.exists() == replaced, "nothing is written in its place"


def test_a_link_to_nowhere_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "unplugged")
    with (
        pytest.raises(ConfigError, match=r"run is a link to .*unplugged, which is not there"),
        run_folder(tmp_path / "run"),
    ):
        pass


def test_every_changed_field_is_named(tmp_path: Path) -> None:
    with run_folder(tmp_path):
        pass
    changed = 'name = "toy"\nseed = 1\n\n[agent]\nname = "ppo"\nclip = 0.3\n'
    with pytest.raises(ConfigError) as refused:
        run_folder(tmp_path, changed).__enter__()
    said = [problem.partition("another ")[2] for problem in refused.value.problems]
    assert said == [
        "agent.clip: was not set, now 0.3",
        "agent.lr: was 0.1, now not set",
        "seed: was 0, now 1",
    ]


def test_numbers_that_are_not_finite_are_logged_as_null(tmp_path: Path) -> None:
    with run_folder(tmp_path) as run:
        run.log({"update": 1, "nan": math.nan, "inf": -math.inf, "fine": 0.5})
    assert read_metrics(tmp_path) == [{"update": 1, "nan": None, "inf": None, "fine": 0.5}]


def test_restoring_cuts_the_metrics_back_to_the_checkpoint(tmp_path: Path) -> None:
    with run_folder(tmp_path) as run:
        for update in range(4):
            run.log({"update": update})
            if update == 2:
                run.save(update, {"x": 1}, threads=1)
    with run_folder(tmp_path) as run:
        restored = run.restore()
        assert restored is not None
        assert restored[0] == {"x": 1}
        assert restored[1]["step"] == 2
        assert {"versions", "threads", "config_hash"} <= restored[1].keys()
        run.log({"update": 3, "again": True})
    assert [row["update"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]
    assert read_metrics(tmp_path)[-1]["again"]


def test_without_a_valid_checkpoint_every_damaged_file_is_named(tmp_path: Path) -> None:
    with run_folder(tmp_path) as run:
        run.log({"update": 0})
        for step in (1, 2):
            (run.save(step, {"x": 1}, threads=1) / "state.json").write_bytes(b"{}")
    with run_folder(tmp_path) as run, pytest.raises(DataError, match="no valid checkpoint is left") as refused:
        run.restore()
    assert [("step-00000001" in p, "step-00000002" in p) for p in refused.value.problems[1:]] == [
        (True, False),
        (False, True),
    ]
    assert read_metrics(tmp_path) == [{"update": 0}]
