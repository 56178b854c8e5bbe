"""What trackio keeps on the user's own machine: no network, no account."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import ConfigError
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics

trackio = pytest.importorskip("trackio", reason="the extra `trackio` is not installed")

TOML = 'name = "toy"\n\n[agent]\nname = "ppo"\n'
DRAWING = {"low": -1.0, "high": 1.0, "counts": [1, 0, 2, 5]}


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """trackio reads where it keeps its files when it is imported, which may have been long ago."""
    from trackio.sqlite_storage import SQLiteStorage

    folder = tmp_path_factory.mktemp("trackio")
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio" and hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", folder)
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_STORAGE_MODE", "sqlite")
    return SQLiteStorage


def tracked(folder: Path, project: str) -> RunFolder:
    return RunFolder(folder, TOML, resume=True, tensorboard=False, trackers={"trackio": {"project": project}})


def test_a_run_with_its_settings_metrics_and_histograms(
    store: Any, tmp_path: Path, no_network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for whoever is logged in at huggingface.co, whose name trackio would ask for."""
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with tracked(tmp_path / "toy", "first") as folder:
        for update in range(3):
            folder.log(
                {
                    "update": update,
                    "rollout/reward": update / 2,
                    "train/loss": float("nan"),
                    "histogram/reward": DRAWING,
                }
            )
    assert folder.lost == []
    (name,) = store.get_runs("first")
    assert name.startswith("toy-")
    rows = store.get_logs("first", name)
    assert [(row["step"], row["rollout/reward"]) for row in rows] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert all("train/loss" not in row for row in rows)
    assert rows[0]["histogram/reward"] == {
        "_type": "trackio.histogram",
        "bins": [-1.0, -0.5, 0.0, 0.5, 1.0],
        "values": [1, 0, 2, 5],
    }
    assert store.get_run_config("first", name)["agent"] == {"name": "ppo"}
    assert no_network == []


def test_a_resumed_run_is_the_same_run_and_has_each_update_once(store: Any, tmp_path: Path) -> None:
    """Killed after update 3, resumed from the checkpoint of update 2. The numbers that it had first stay."""
    for updates, value in (((0, 1, 2, 3), 1.0), ((3, 4), 2.0)):
        with tracked(tmp_path / "toy", "resumed") as folder:
            folder.restore()
            for update in updates:
                folder.log({"update": update, "train/loss": value})
                if update == 2:
                    folder.save(update, {"x": 1}, threads=1)
        assert folder.lost == []
    (name,) = store.get_runs("resumed")
    rows = store.get_logs("resumed", name)
    assert [(row["step"], row["train/loss"]) for row in rows] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert [row["update"] for row in read_metrics(tmp_path / "toy")] == [0, 1, 2, 3, 4]


def test_two_folders_of_one_name_are_two_runs(store: Any, tmp_path: Path) -> None:
    for parent in ("one", "two"):
        with tracked(tmp_path / parent / "toy", "both") as folder:
            folder.log({"update": 0, "x": 1.0})
    names = store.get_runs("both")
    assert len(names) == 2
    assert all(name.startswith("toy-") for name in names)


def test_a_project_that_trackio_refuses_is_said_before_anything_is_written(store: Any, tmp_path: Path) -> None:
    assert store is not None
    with pytest.raises(ConfigError, match=r"trackio cannot start: Project name 'registry-x' is not allowed"):
        tracked(tmp_path, "registry-x").__enter__()
    assert not (tmp_path / "metrics.jsonl").exists()
