"""What MLflow keeps in its default store, a SQLite file in the working directory: no network, no account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import ConfigError
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.tracking import load_tracker

pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
pytest.importorskip("sqlalchemy", reason="the extra `mlflow` is not installed")

TOML = 'name = "toy"\nseed = 3\n\n[agent]\nname = "ppo"\nlevels = [1, 2]\n'
DRAWING = {"low": -1.0, "high": 1.0, "counts": [1, 0, 2, 5]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory whose database is made once: that takes seconds."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("mlflow")
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture
def client(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return MlflowClient(f"sqlite:///{place / 'mlflow.db'}")


def tracked(folder: Path, project: str) -> RunFolder:
    return RunFolder(folder, TOML, resume=True, tensorboard=False, trackers={"mlflow": {"project": project}})


def runs_of(client: Any, project: str) -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name(project).experiment_id]))


def test_a_run_with_its_settings_metrics_and_histograms(
    client: Any, place: Path, tmp_path: Path, no_network: list[Any]
) -> None:
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
        assert [run.info.status for run in runs_of(client, "first")] == ["RUNNING"]
    assert folder.lost == []
    (run,) = runs_of(client, "first")
    assert (run.info.run_name, run.info.status) == ("toy", "FINISHED")
    assert run.data.params == {"name": "toy", "seed": "3", "agent.name": "ppo", "agent.levels": "[1, 2]"}
    assert run.data.metrics == {"rollout/reward": 1.0, "update": 2.0}
    history = client.get_metric_history(run.info.run_id, "rollout/reward")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    kept = sorted((place / "mlruns").glob(f"*/{run.info.run_id}/artifacts/histograms/*.json"))
    assert [file.name for file in kept] == ["000000000.json", "000000001.json", "000000002.json"]
    assert json.loads(kept[0].read_text()) == {"histogram/reward": DRAWING}
    assert no_network == []


def test_a_resumed_run_is_the_same_run_and_has_each_update_once(client: Any, tmp_path: Path) -> None:
    """Killed after update 3, resumed from the checkpoint of update 2. The numbers that it had first stay."""
    for updates, value in (((0, 1, 2, 3), 1.0), ((3, 4), 2.0)):
        with tracked(tmp_path / "toy", "resumed") as folder:
            folder.restore()
            assert [run.info.status for run in runs_of(client, "resumed")] == ["RUNNING"]
            for update in updates:
                folder.log({"update": update, "train/loss": value})
                if update == 2:
                    folder.save(update, {"x": 1}, threads=1)
        assert folder.lost == []
    (run,) = runs_of(client, "resumed")
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert [row["update"] for row in read_metrics(tmp_path / "toy")] == [0, 1, 2, 3, 4]


def test_two_runs_of_one_project_lie_side_by_side(client: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        with tracked(tmp_path / name, "both") as folder:
            folder.log({"update": 0, "x": 1.0})
    assert sorted(run.info.run_name for run in runs_of(client, "both")) == ["one", "two"]


def test_names_that_mlflow_refuses_are_spelled_so_that_it_takes_them(client: Any, tmp_path: Path) -> None:
    names = ["part/a?", "part/a!", "part/..", "part//x", "part/ä b", "x" * 300]
    with tracked(tmp_path / "toy", "names") as folder:
        folder.log({"update": 0, **dict.fromkeys(names, 1.0)})
    assert folder.lost == []
    (run,) = runs_of(client, "names")
    assert run.data.metrics.keys() - {"update"} == {
        "part/a_3f_",
        "part/a_21_",
        "part/_..",
        "part/_/x",
        "part/ä b",
        "x" * 250,
    }


def test_killed_in_a_row_a_resumed_run_has_it_once(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says how far a run came arrives with its numbers or not at all: MLflow writes tags after them."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    class Killed(BaseException): ...

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with tracked(tmp_path / "toy", "killed") as folder, monkeypatch.context() as patch:
        folder.log({"update": 1, "x": 1.0})
        patch.setattr(SqlAlchemyStore, "_set_tags", killed)
        with pytest.raises(Killed):
            folder.log({"update": 2, "x": 2.0})
    with tracked(tmp_path / "toy", "killed") as folder:
        for update in (1, 2, 3):
            folder.log({"update": update, "x": float(update)})
    (run,) = runs_of(client, "killed")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "x")] == [1, 2, 3]


def test_only_updates_that_are_drawn_have_a_file_of_histograms(client: Any, place: Path, tmp_path: Path) -> None:
    with tracked(tmp_path / "toy", "long") as folder:
        for update in (999, 1001, 1002):
            folder.log({"update": update, "x": 1.0, "histogram/reward": DRAWING})
    (run,) = runs_of(client, "long")
    files = (place / "mlruns").glob(f"*/{run.info.run_id}/artifacts/histograms/*.json")
    assert sorted(file.stem for file in files) == ["000000999", "000001002"]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "x")] == [999, 1001, 1002]


def test_a_store_without_the_run_that_is_to_be_continued_is_refused(client: Any, tmp_path: Path) -> None:
    assert client is not None
    with tracked(tmp_path, "gone") as folder:
        folder.log({"update": 0})
    (tmp_path / "mlflow_run").write_text("0" * 32)
    asked = tracked(tmp_path, "gone")
    with pytest.raises(ConfigError, match=r"mlflow cannot start at sqlite.*; .*mlflow_run names the run to continue"):
        asked.__enter__()
    (tmp_path / "mlflow_run").unlink()
    with tracked(tmp_path, "gone"):
        pass


def test_where_the_runs_go_is_a_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mlflow cannot start at nonsense://here: "):
        load_tracker(
            "mlflow", {"project": "p", "uri": "nonsense://here"}, folder=tmp_path, run_name="r", experiment_toml="x = 1"
        )


OPEN = """
import sys
from pathlib import Path
from rlhf_env.learning.tracking import load_tracker
lent = {"folder": Path(sys.argv[1]), "run_name": sys.argv[1], "experiment_toml": "x = 1"}
tracker = load_tracker("mlflow", {"project": "p", "uri": "sqlite:///new.db"}, **lent)
tracker.log({"update": 0, "x": 1.0})
tracker.close()
"""


def test_two_runs_that_make_the_database_at_once_do_not_break_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        runs.append(subprocess.Popen([sys.executable, "-c", OPEN, name], stderr=subprocess.PIPE, text=True))
    for run in runs:
        _, said = run.communicate(timeout=900)
        assert run.returncode == 0, said
    from mlflow import MlflowClient

    assert sorted(run.info.run_name for run in runs_of(MlflowClient("sqlite:///new.db"), "p")) == ["one", "two"]


def test_it_reports_its_use_to_nobody() -> None:
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
