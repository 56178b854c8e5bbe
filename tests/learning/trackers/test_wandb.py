"""What reaches Weights & Biases: with the library itself where it is installed, and what it is asked in any case."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli_w

from rlhf_env.cli.main import main
from rlhf_env.errors import ConfigError, MissingExtra
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics

ROW = {
    "update": 3,
    "rollout/reward": 0.5,
    "train/loss": float("nan"),
    "histogram/reward": {"low": -1.0, "high": 1.0, "counts": [1, 0, 2, 5]},
}
BRIDGE = "rlhf_env.learning.trackers.wandb"
TO_WANDB = {"wandb": {"project": "rlhf"}}


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
        return counts, edges.tolist()


@pytest.fixture
def bridge_anew() -> Iterator[None]:
    """The module that imports `wandb` is imported by the test, and not kept for the next one."""
    kept = sys.modules.pop(BRIDGE, None)
    yield
    sys.modules.pop(BRIDGE, None)
    if kept is not None:
        sys.modules[BRIDGE] = kept


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, bridge_anew: None) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_is_told_every_row_and_a_resumed_run_continues_the_same_run(tmp_path: Path, wandb: FakeWandb) -> None:
    toml = 'name = "toy"\n[agent]\nname = "ppo"\n'
    for resume in (False, True):
        with RunFolder(tmp_path / "run", toml, resume=resume, tensorboard=False, trackers=TO_WANDB) as run:
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


@pytest.mark.parametrize("words", [["--wandb", "rlhf"], ["--track", "wandb=rlhf"]], ids=" ".join)
def test_the_command_sends_the_whole_run(
    words: list[str], tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = {
        "task": {"name": "echo"},
        "policy": {"tokenizer": "alphabet:ab="},
        "environment": {"num_envs": 4, "max_new_tokens": 3, "max_prompt_tokens": 4},
        "agent": {"name": "grpo", "group_size": 4},
        "budget": {"updates": 2},
        "evaluation": {"prompts": 2},
    }
    (tmp_path / "toy.toml").write_text(tomli_w.dumps(experiment))
    asked = ["train", str(tmp_path / "toy.toml"), "--out", str(tmp_path / "run"), *words]
    monkeypatch.setattr("sys.argv", ["rlhf-env", *asked])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert [step for step, _ in wandb.logged] == [0, 1, 2]
    assert "eval/objective" in wandb.logged[0][1]
    assert {"rollout/reward", "train/grad_norm", "histogram/part/task"} <= wandb.logged[2][1].keys()
    assert wandb.started[0]["project"] == "rlhf"
    assert wandb.started[0]["config"]["agent"] == experiment["agent"]


def test_without_being_asked_for_wandb_is_not_touched(tmp_path: Path, wandb: FakeWandb) -> None:
    with RunFolder(tmp_path / "run", "x = 1", tensorboard=False) as run:
        run.log(ROW)
    assert (wandb.started, wandb.logged) == ([], [])


@pytest.mark.usefixtures("bridge_anew")
def test_a_wandb_that_cannot_start_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(refuses="No API key configured.\nlong advice"))
    with (
        pytest.raises(ConfigError, match=r"wandb cannot start: No API key configured\. \(WANDB_MODE=offline"),
        RunFolder(tmp_path / "run", "x = 1", trackers=TO_WANDB),
    ):
        pass
    monkeypatch.delitem(sys.modules, BRIDGE)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(MissingExtra, match=r"rlhf-env\[wandb\]"),
        RunFolder(tmp_path / "run", "x = 1", trackers=TO_WANDB),
    ):
        pass
    with RunFolder(tmp_path / "run", "x = 1", tensorboard=False) as run:  # the folder is free and holds no run
        run.log(ROW)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the extra `wandb` is not installed")
def test_with_the_library_itself_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for resume in (False, True):
        with RunFolder(tmp_path, "x = 1", resume=resume, tensorboard=False, trackers=TO_WANDB) as run:
            tracker: Any = run._trackers["wandb"]
            run.log({**ROW, "update": 3 + resume, "rollout/reward": 0.5 + resume})
            run.log({**ROW, "update": 4 + resume, "rollout/reward": 0.5 + resume})
            summary = dict(tracker._run.summary)
            assert summary["rollout/reward"] == 0.5 + resume
            assert tracker._run.config["x"] == 1
            known = tracker._run.id
        assert run.lost == []
    kept = [folder.name for folder in (tmp_path / "wandb").glob("offline-run-*")]
    assert kept
    assert {name.rpartition("-")[2] for name in kept} == {known} == {(tmp_path / "wandb_id").read_text()}
