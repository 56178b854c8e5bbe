"""What reaches TensorBoard and Weights & Biases beside metrics.jsonl."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError, MissingExtra
from rlhf_env.learning.loop import histogram
from rlhf_env.learning.run_folder import RunFolder, read_metrics

ROW = {
    "update": 3,
    "rollout/reward": 0.5,
    "train/loss": float("nan"),
    "histogram/reward": {"low": -1.0, "high": 1.0, "counts": [1, 0, 2, 5]},
}


class FakeWandb(SimpleNamespace):
    """As much of the module as is used; it remembers what it was asked."""

    def __init__(self, refuses: str = "") -> None:
        super().__init__(started=[], logged=[], finished=0, refuses=refuses)

    def init(self, **settings: Any) -> FakeWandb:
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.started.append(settings)
        return self

    def log(self, values: dict[str, Any], *, step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802 - their name
        return settings

    def Histogram(self, *, np_histogram: Any) -> tuple[list[int], list[float]]:  # noqa: N802 - their name
        counts, edges = np_histogram
        return counts.tolist(), edges.tolist()


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_is_told_every_row_and_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path, wandb: FakeWandb) -> None:
    toml = 'name = "toy"\n[agent]\nname = "ppo"\n'
    for resume in (False, True):
        with RunFolder(tmp_path / "run", toml, resume=resume, tensorboard=False, wandb="rlhf") as run:
            run.log(ROW)
        assert wandb.finished == 1 + resume
    first, second = wandb.started
    assert first["project"] == "rlhf"
    assert first["config"] == {"name": "toy", "agent": {"name": "ppo"}}
    assert (first["id"], first["resume"]) == (second["id"], "allow")
    step, values = wandb.logged[0]
    assert step == 3
    assert values == {
        "rollout/reward": 0.5,
        "histogram/reward": ([1, 0, 2, 5], [-1.0, -0.5, 0.0, 0.5, 1.0]),
    }, "neither what was not finite nor the number of the update"
    assert [row["update"] for row in read_metrics(tmp_path / "run")] == [3, 3]


def test_the_command_sends_the_whole_run(tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = {
        "task": {"name": "echo"},
        "policy": {"tokenizer": "alphabet:ab="},
        "environment": {"num_envs": 4, "max_new_tokens": 3, "max_prompt_tokens": 4},
        "agent": {"name": "grpo", "group_size": 4},
        "budget": {"updates": 2},
        "evaluation": {"prompts": 2},
    }
    (tmp_path / "toy.toml").write_text(tomli_w.dumps(experiment))
    asked = ["train", str(tmp_path / "toy.toml"), "--out", str(tmp_path / "run"), "--wandb", "rlhf"]
    monkeypatch.setattr("sys.argv", ["rlhf-env", *asked])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert [step for step, _ in wandb.logged] == [0, 1, 2]
    assert "eval/objective" in wandb.logged[0][1]
    assert {"rollout/reward", "train/grad_norm", "histogram/part/task"} <= wandb.logged[2][1].keys()
    assert wandb.started[0]["config"]["agent"] == experiment["agent"]


def test_without_being_asked_for_wandb_is_not_touched(tmp_path: Path, wandb: FakeWandb) -> None:
    with RunFolder(tmp_path / "run", "x = 1", tensorboard=False) as run:
        run.log(ROW)
    assert (wandb.started, wandb.logged) == ([], [])


def test_a_wandb_that_cannot_start_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(refuses="No API key configured.\nlong advice"))
    with (
        pytest.raises(ConfigError, match=r"wandb cannot start: No API key configured\. \(WANDB_MODE=offline"),
        RunFolder(tmp_path / "run", "x = 1", wandb="rlhf"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(MissingExtra, match=r"rlhf-env\[wandb\]"),
        RunFolder(tmp_path / "run", "x = 1", wandb="rlhf"),
    ):
        pass
    with RunFolder(tmp_path / "run", "x = 1", tensorboard=False) as run:  # the folder is free and holds no run
        run.log(ROW)


def test_a_histogram_counts_every_value_once() -> None:
    found = histogram(torch.tensor([0.0, 0.1, 0.5, 1.0, 1.0], dtype=torch.float64), bins=4)
    assert found == {"low": 0.0, "high": 1.0, "counts": [2, 0, 1, 2]}
    assert histogram(torch.full((3,), 2.0), bins=2) == {"low": 1.5, "high": 2.5, "counts": [0, 3]}
    assert len(json.dumps(histogram(torch.randn(1000, dtype=torch.float64)))) < 150


def test_tensorboard_shows_the_histogram(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunFolder(tmp_path, "x = 1") as run:
        run.log(ROW)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["rollout/reward"]
    (event,) = events.Histograms("histogram/reward")
    shown = event.histogram_value
    assert (event.step, shown.min, shown.max, shown.num) == (3, -1.0, 1.0, 8)
    assert shown.sum == pytest.approx(np.dot([1, 0, 2, 5], [-0.75, -0.25, 0.25, 0.75]))
    assert list(shown.bucket) == [0, 1, 0, 2, 5]
    assert list(shown.bucket_limit) == [-1.0, -0.5, 0.0, 0.5, 1.0]
