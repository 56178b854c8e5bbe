"""What TensorBoard is shown: scalars and histograms, fewer rows of a long run, each update once after a resume."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env import plugins
from rlhf_env.errors import DiskRefused, MissingExtra
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.tracking import Rewinds

reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

ROW = {
    "update": 3,
    "rollout/reward": 0.5,
    "train/loss": float("nan"),
    "histogram/reward": {"low": -1.0, "high": 1.0, "counts": [1, 0, 2, 5]},
}


def events_of(folder: Path) -> Any:
    return reader.EventAccumulator(str(folder / "tensorboard")).Reload()


def test_tensorboard_shows_the_histogram(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "x = 1") as run:
        run.log(ROW)
    events = events_of(tmp_path)
    assert events.Tags()["scalars"] == ["rollout/reward"]
    (event,) = events.Histograms("histogram/reward")
    shown = event.histogram_value
    assert (event.step, shown.min, shown.max, shown.num) == (3, -1.0, 1.0, 8)
    assert shown.sum == pytest.approx(np.dot([1, 0, 2, 5], [-0.75, -0.25, 0.25, 0.75]))
    assert shown.sum_squares == pytest.approx(np.dot([1, 0, 2, 5], [0.5625, 0.0625, 0.0625, 0.5625]))
    assert list(shown.bucket) == [0, 1, 0, 2, 5]
    assert list(shown.bucket_limit) == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_of_a_row_that_is_not_drawn_tensorboard_gets_the_evaluation(tmp_path: Path) -> None:
    with RunFolder(tmp_path, "x = 1") as run:
        for update in (999, 1001, 1002):
            run.log({"update": update, "train/loss": 1.0, "eval/gold": 2.0})
    events = events_of(tmp_path)
    assert [point.step for point in events.Scalars("eval/gold")] == [999, 1001, 1002]
    assert [point.step for point in events.Scalars("train/loss")] == [999, 1002]
    assert [row["train/loss"] for row in read_metrics(tmp_path)] == [1.0, 1.0, 1.0], "the log has all of them"


def test_after_a_resume_tensorboard_shows_each_update_once(tmp_path: Path) -> None:
    """Killed after update 3, resumed from the checkpoint of update 2."""
    for updates, before in (((1, 2, 3), 1.0), ((3, 4, 5), 2.0)):
        with RunFolder(tmp_path, "x = 1", resume=True) as run:
            assert isinstance(run._trackers["tensorboard"], Rewinds)
            run.restore()
            for update in updates:
                run.log({"update": update, "train/loss": before})
                if update == 2:
                    run.save(update, {"x": 1}, threads=1)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    points = events_of(tmp_path).Scalars("train/loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_it_is_there_unless_it_was_not_wanted(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "without", "x = 1", tensorboard=False) as run:
        run.log(ROW)
    assert not (tmp_path / "without" / "tensorboard").exists()
    with RunFolder(tmp_path / "asked", "x = 1", tensorboard=False, trackers={"tensorboard": {}}) as run:
        run.log(ROW)
    assert events_of(tmp_path / "asked").Tags()["scalars"] == ["rollout/reward"]


def test_where_it_is_not_installed_only_who_asks_for_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch.utils.tensorboard", "rlhf_env.learning.trackers.tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with RunFolder(tmp_path / "run", "x = 1") as run:
        run.log(ROW)
    assert read_metrics(tmp_path / "run")
    assert run.lost == []
    asked = RunFolder(tmp_path / "asked", "x = 1", trackers={"tensorboard": {}})
    with pytest.raises(MissingExtra, match=r"tensorboard .*is not installed: pip install \"rlhf-env\[demo\]\""), asked:
        pass


def test_a_disk_that_refuses_ends_the_run(tmp_path: Path) -> None:
    """As it does for the log itself: no room for one is no room for the other."""

    class Full:
        @property
        def file_writer(self) -> Any:
            return self

        def add_summary(self, *_: Any) -> None:
            raise OSError("No space left on device")

        def close(self) -> None: ...

    tracker = plugins.build_plugin("tracker", "tensorboard", {}, {"folder": tmp_path})
    tracker._opened = Full()
    with pytest.raises(DiskRefused, match="tensorboard cannot be written: No space left on device"):
        tracker.log({"update": 1, "x": 1.0})
