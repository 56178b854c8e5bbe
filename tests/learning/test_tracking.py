"""Trackers: what each one gets, one from outside, one that fails, and how a run asks for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tomli_w
import torch

from rlhf_env import plugins
from rlhf_env.cli.main import main
from rlhf_env.errors import ConfigError, DiskRefused
from rlhf_env.lab.evaluation.runs import load_run, run
from rlhf_env.learning import run_folder
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import histogram
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.tracking import bin_edges, drawn, histograms, load_tracker, numbers
from rlhf_env.learning.workplace import build

ROW = {
    "update": 3,
    "rollout/reward": 0.5,
    "train/loss": float("nan"),
    "histogram/reward": {"low": -1.0, "high": 1.0, "counts": [1, 0, 2, 5]},
}


def test_a_histogram_counts_every_value_once() -> None:
    found = histogram(torch.tensor([0.0, 0.1, 0.5, 1.0, 1.0], dtype=torch.float64), bins=4)
    assert found == {"low": 0.0, "high": 1.0, "counts": [2, 0, 1, 2]}
    assert histogram(torch.full((3,), 2.0), bins=2) == {"low": 1.5, "high": 2.5, "counts": [0, 3]}
    nearly = torch.tensor(
        [0.1, 0.10000000000000002, 0.09999999999999999], dtype=torch.float64
    )  # equal but for rounding
    assert histogram(nearly, bins=10)["counts"] == [0, 0, 0, 0, 0, 3, 0, 0, 0, 0] and len({*nearly.tolist()}) == 3
    assert len(json.dumps(histogram(torch.randn(1000, dtype=torch.float64)))) < 150


def test_a_row_taken_apart() -> None:
    row: Any = {**ROW, "train/loss": None, "spent/episodes": 4}
    assert numbers(row) == {"rollout/reward": 0.5, "spent/episodes": 4}
    assert histograms(row) == {"histogram/reward": ROW["histogram/reward"]}
    assert bin_edges({"low": -1.0, "high": 1.0, "counts": [1, 0, 2, 5]}).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_500_updates_more_are_drawn_with_every_doubling() -> None:
    counts = [sum(map(drawn, range(end))) for end in (1000, 2000, 4000, 8000, 64_000)]
    assert counts == [1000, 1500, 2000, 2500, 4000]
    assert all(drawn(update) for update in (0, 1000, 64_000))


# ---------------------------------------------------------------- a tracker from outside


@dataclass
class Notebook:
    """A tracker that somebody else wrote, with a setting of its own."""

    folder: Path
    run_name: str
    experiment: Mapping[str, Any]
    project: str
    colour: str = "red"
    rows: list[Any] = field(default_factory=list)
    open: bool = True
    all: ClassVar[list[Notebook]] = []

    def __post_init__(self) -> None:
        Notebook.all.append(self)

    def log(self, row: Mapping[str, Any], /) -> None:
        self.rows.append(row)

    def close(self) -> None:
        self.open = False


class Rewinding(Notebook):
    """Another one, that can take rows back."""

    def rewind(self, update: int, /) -> None:
        self.rows.append(f"back to {update}")


class Breaks(Notebook):
    """One whose server is gone after the first row."""

    def log(self, row: Mapping[str, Any], /) -> None:
        if self.rows:
            raise TimeoutError("no answer\nfrom the server")
        super().log(row)


class BreaksInTheEnd(Notebook):
    def close(self) -> None:
        raise RuntimeError("the last rows are not there")


class Exits(Notebook):
    def log(self, row: Mapping[str, Any], /) -> None:
        raise SystemExit(0)


class NeverCloses(Notebook):
    def close(self) -> None:
        threading.Event().wait(60.0)


class NoWayBack(Notebook):
    def rewind(self, update: int, /) -> None:
        raise KeyError(update)


class Clears(Notebook):
    def log(self, row: Any, /) -> None:
        row.clear()


class DiskFull(Notebook):
    def log(self, row: Mapping[str, Any], /) -> None:
        raise DiskRefused("no room")


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> list[Notebook]:
    """Trackers of another package are known; those that a test has started."""

    class Module:
        @plugins.hookimpl
        def register_trackers(self, register: plugins.Register) -> None:
            for tracker in (
                Notebook,
                Rewinding,
                Breaks,
                BreaksInTheEnd,
                Exits,
                NeverCloses,
                NoWayBack,
                Clears,
                DiskFull,
            ):
                register(tracker.__name__, tracker)
            register("no tracker", lambda: object())

    host = plugins.PluginHost(plugins.entry_points(group="rlhf_env"))
    host.add_module(Module(), "somebody")
    monkeypatch.setattr(plugins, "host", lambda: host)
    monkeypatch.setattr(Notebook, "all", started := [])
    return started


TOML = 'name = "toy"\n\n[agent]\nname = "ppo"\n'


def folder_with(path: Path, *trackers: str) -> RunFolder:
    return RunFolder(path, TOML, resume=True, tensorboard=False, trackers={name: {"project": "p"} for name in trackers})


def test_it_gets_every_row_as_it_is_logged(outside: list[Notebook], tmp_path: Path) -> None:
    asked = {"Notebook": {"project": "p", "colour": "blue"}}
    with RunFolder(tmp_path, TOML, tensorboard=False, trackers=asked) as opened:
        opened.log(ROW)
        opened.log({"update": 4, "x": 1.0})
        (notebook,) = outside
        assert notebook.open
    assert not notebook.open
    assert (notebook.folder, notebook.run_name) == (tmp_path, tmp_path.name)
    assert (notebook.project, notebook.colour) == ("p", "blue")
    assert notebook.experiment == {"name": "toy", "agent": {"name": "ppo"}}
    assert notebook.rows == read_metrics(tmp_path) == [{**ROW, "train/loss": None}, {"update": 4, "x": 1.0}]


@pytest.mark.parametrize(
    ("tracker", "shown"), [("Notebook", [1, 2, 3, 3, 4]), ("Rewinding", ["back to 2", 3, 4])], ids=["plain", "rewinds"]
)
def test_after_a_resume_rows_come_again_and_who_can_takes_them_back(
    tracker: str, shown: list[Any], outside: list[Notebook], tmp_path: Path
) -> None:
    for updates in ((1, 2, 3), (3, 4)):
        with folder_with(tmp_path, tracker) as opened:
            opened.restore()
            for update in updates:
                opened.log({"update": update})
                if update == 2:
                    opened.save(2, {"x": 1}, threads=1)
    rows = [row if isinstance(row, str) else row["update"] for notebook in outside for row in notebook.rows]
    assert rows[-len(shown) :] == shown


def test_one_that_fails_costs_itself_and_not_the_run(outside: list[Notebook], tmp_path: Path) -> None:
    with folder_with(tmp_path, "Breaks", "Notebook") as opened:
        opened.log({"update": 0})
        with pytest.warns(RuntimeWarning, match=r"'Breaks' failed \(TimeoutError: no answer\): the run goes on"):
            opened.log({"update": 1})
        opened.log({"update": 2})
    said = "the tracker 'Breaks' failed (TimeoutError: no answer): it got no more rows; metrics.jsonl has them all"
    assert opened.lost == [said]
    assert [[row["update"] for row in notebook.rows] for notebook in outside] == [[0], [0, 1, 2]]
    assert [row["update"] for row in read_metrics(tmp_path)] == [0, 1, 2]


def test_one_that_would_end_the_program_costs_itself_too(outside: list[Notebook], tmp_path: Path) -> None:
    with folder_with(tmp_path, "Exits", "Notebook") as opened:
        with pytest.warns(RuntimeWarning, match=r"'Exits' failed \(SystemExit: 0\): the run goes on"):
            opened.log({"update": 0})
        opened.log({"update": 1})
    assert [row["update"] for row in outside[1].rows] == [0, 1]


def test_one_that_never_closes_is_left(
    outside: list[Notebook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "_TO_CLOSE", 0.1)
    said = r"'NeverCloses' failed \(TimeoutError: close\(\) has not come back"
    with pytest.warns(RuntimeWarning, match=said), folder_with(tmp_path, "NeverCloses", "Notebook") as opened:
        opened.log({"update": 0})
    assert not outside[1].open


def test_one_that_cannot_take_its_rows_back_costs_itself_too(outside: list[Notebook], tmp_path: Path) -> None:
    with folder_with(tmp_path, "NoWayBack", "Rewinding") as opened:
        opened.log({"update": 1})
        opened.save(1, {"x": 1}, threads=1)
    with folder_with(tmp_path, "NoWayBack", "Rewinding") as opened:
        with pytest.warns(RuntimeWarning, match=r"'NoWayBack' failed \(KeyError: 1\): the run goes on"):
            opened.restore()
        opened.log({"update": 2})
    assert [notebook.rows for notebook in outside[2:]] == [[], ["back to 1", {"update": 2}]]


def test_one_that_changes_its_row_changes_nobody_elses(outside: list[Notebook], tmp_path: Path) -> None:
    with folder_with(tmp_path, "Clears", "Notebook") as opened:
        opened.log({"update": 0, "x": 1.0})
    assert outside[1].rows == [{"update": 0, "x": 1.0}]


def test_one_that_fails_in_the_end_is_reported_and_the_others_are_closed(
    outside: list[Notebook], tmp_path: Path
) -> None:
    with (
        pytest.warns(RuntimeWarning, match="the last rows are not there"),
        folder_with(tmp_path, "BreaksInTheEnd", "Notebook") as opened,
    ):
        opened.log({"update": 0})
    assert len(opened.lost) == 1
    assert not outside[1].open
    with folder_with(tmp_path):  # the folder was given back
        pass


def test_a_full_disk_ends_the_run_whoever_meets_it(outside: list[Notebook], tmp_path: Path) -> None:
    with folder_with(tmp_path, "DiskFull") as opened, pytest.raises(DiskRefused, match="no room"):
        opened.log({"update": 0})
    assert opened.lost == []
    assert not outside[0].open


@pytest.mark.parametrize(
    ("trackers", "said"),
    [
        ({"wandbb": {}}, r"unknown tracker 'wandbb': did you mean 'wandb'\?"),
        ({"Notebook": {}}, "tracker 'Notebook': the setting 'project' is required"),
        (
            {"Notebook": {"project": "p", "color": "blue"}},
            "tracker 'Notebook': no setting 'color': did you mean 'col",
        ),
        ({"Notebook": "p"}, r"\[trackers\] Notebook: a table of settings is needed, got 'p'"),
        ({"no tracker": {}}, r"tracker 'no tracker': <object .* is no tracker: it must have log\(row\) and close\(\)"),
    ],
)
@pytest.mark.usefixtures("outside")
def test_one_that_cannot_start_is_said_before_anything_is_written(
    trackers: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        RunFolder(tmp_path, TOML, trackers=trackers).__enter__()
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


@pytest.mark.usefixtures("outside")
def test_one_can_be_registered_for_this_process() -> None:
    plugins.register_tracker("mine", Notebook)
    started: Any = load_tracker("mine", {"project": "p"}, folder=Path("run"), run_name="r", experiment_toml="x = 1")
    assert (started.folder, started.run_name, started.experiment) == (Path("run"), "r", {"x": 1})


# ---------------------------------------------------------------- who asks for one


def test_an_experiment_that_asks_is_the_same_run_with_and_without(
    toy: Any, outside: list[Notebook], tmp_path: Path
) -> None:
    plain = toy("ppo", updates=2)
    asking = replace(plain, trackers={"Notebook": {"project": "p"}})
    assert asking.to_toml() == plain.to_toml()
    assert Experiment.from_table({"trackers": asking.trackers}).trackers == asking.trackers
    for experiment in (plain, asking):
        run(experiment, tmp_path, resume=True)
    run(replace(plain, trackers={"Rewinding": {"project": "p"}}), tmp_path, resume=True, name="toy")
    assert [(type(it).__name__, it.run_name) for it in outside] == [("Notebook", tmp_path.name), ("Rewinding", "toy")]
    assert load_run(tmp_path).update == 2
    with pytest.raises(ConfigError, match="only a run with a folder can be tracked: pass `folder`"):
        run(asking)


@pytest.mark.parametrize(
    ("trackers", "said"),
    [
        ({"mlfow": {"project": "p"}}, r"unknown tracker 'mlfow': did you mean 'mlflow'\?"),
        ({"mlflow": "p"}, r"\[trackers\] mlflow: a table of settings is needed, got 'p'"),
    ],
)
def test_a_tracker_that_is_none_is_found_before_a_model_is_loaded(
    trackers: dict[str, Any], said: str, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_env.learning.workplace.load_policy", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=said):
        build(replace(toy("ppo"), trackers=trackers))


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["rlhf-env", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


EXPERIMENT = {
    "task": {"name": "echo"},
    "policy": {"tokenizer": "alphabet:ab="},
    "environment": {"num_envs": 4, "max_new_tokens": 3, "max_prompt_tokens": 4},
    "agent": {"name": "grpo", "group_size": 4},
    "budget": {"updates": 2},
    "evaluation": {"prompts": 2},
}


def test_the_command_line_adds_to_the_trackers_of_the_file(
    outside: list[Notebook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, run = tmp_path / "toy.toml", tmp_path / "run"
    file.write_text(tomli_w.dumps({**EXPERIMENT, "trackers": {"Notebook": {"project": "file", "colour": "blue"}}}))
    words = ["--track", "Notebook=line", "--track", "Rewinding=other=p"]
    assert command(monkeypatch, "train", file, "--out", run, *words) == 0
    assert [(type(it).__name__, it.project, it.colour) for it in outside] == [
        ("Notebook", "line", "blue"),
        ("Rewinding", "other=p", "red"),
    ]
    assert [row["update"] for row in outside[0].rows] == [0, 1, 2] == [row["update"] for row in read_metrics(run)]
    assert "rollout/reward" in outside[0].rows[2]
    assert command(monkeypatch, "train", file, "--out", run, "--resume") == 0, "with other trackers than it began with"
    assert (outside[2].project, len(outside)) == ("file", 3)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("mlfow=p", "--track mlfow=p: unknown tracker 'mlfow': did you mean 'mlflow'?"),
        ("Notebook", "tracker 'Notebook': the setting 'project' is required"),
    ],
)
@pytest.mark.usefixtures("outside")
def test_a_wrong_word_is_one_line(
    word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(tomli_w.dumps(EXPERIMENT))
    assert command(monkeypatch, "train", file, "--out", tmp_path / "run", "--track", word) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
