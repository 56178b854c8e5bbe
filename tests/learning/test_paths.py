"""A relative path in a file of settings is relative to that file, wherever one stands when the file is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import rlhf_env
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build

EXPERIMENT = """\
[policy]
tokenizer = "alphabet:ab="

[task]
name = "file"
path = "PATH"

[environment]
num_envs = 4
max_new_tokens = 3
max_prompt_tokens = 4

[rewards]
length = { target = 2 }

[agent]
name = "ppo"

[budget]
updates = 1

[evaluation]
prompts = 2
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`configs/toy.toml` beside `configs/data/prompts.jsonl`; one stands in `elsewhere`."""
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "configs" / "data" / "prompts.jsonl").write_text('{"prompt": "ab"}\n{"prompt": "ba"}\n')
    (tmp_path / "configs" / "toy.toml").write_text(EXPERIMENT.replace("PATH", "data/prompts.jsonl"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def test_a_run_is_made_resumed_and_read_from_wherever_one_stands(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rlhf_env.run("../configs/toy.toml", "run")
    assert 'path = "data/prompts.jsonl"' in (project / "elsewhere/run/experiment.toml").read_text(), "as it was written"
    monkeypatch.chdir(project / "configs")
    again = rlhf_env.load_run("../elsewhere/run")
    assert again.evaluation.metrics == made.evaluation.metrics
    assert again.workplace.env.task.size == 2
    resumed = rlhf_env.run("toy.toml", "../elsewhere/run", resume=True)
    assert resumed.update == 1


def test_every_place_where_a_path_may_stand(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project))
    near = str(Path("../configs/data/prompts.jsonl"))
    file = {"name": "file", "path": "data/prompts.jsonl"}
    table = {
        "policy": {"model": "~/configs/data", "tokenizer": "alphabet:ab"},
        "task": {"name": "mixture", "tasks": {"a": file, "b": {"name": "validation", "task": file}, "c": "echo"}},
        "rewards": {
            "length": 0.5,
            "mine": {"plugin": "bradley_terry", "weight": 1.0, "model": "data"},
            "ensemble": {"weight": 1.0, "model": ["data", "owner/name"]},
        },
        "agent": {"name": "curriculum", "levels": [1], "agent": {"name": "ppo", "ptx_data": file}},
        "preferences": "data/prompts.jsonl",
        "evaluation": {"rewards": {"fairness": {"weight": 0.0, "model": "./nothing/there"}}},
        "budget": {"updates": 1},
    }
    written = Experiment.from_table(table, folder=Path("../configs"))
    led = written.located()
    assert led.policy.model == str(project / "configs/data")
    assert led.policy.tokenizer == "alphabet:ab"
    assert led.task["tasks"] == {
        "a": {**file, "path": near},
        "b": {"name": "validation", "task": {**file, "path": near}},
        "c": "echo",
    }
    assert led.rewards["mine"]["model"] == "../configs/data"
    assert led.rewards["ensemble"]["model"] == ["../configs/data", "owner/name"]
    assert led.agent["agent"]["ptx_data"]["path"] == led.preferences == near
    assert led.evaluation.rewards["fairness"]["model"] == "../configs/nothing/there", "named as it was looked for"
    assert written.task["tasks"]["a"]["path"] == "data/prompts.jsonl"


def test_a_grid_and_its_cells(project: Path) -> None:
    shared = EXPERIMENT.replace("PATH", "data/prompts.jsonl").replace("[agent]\n", "").replace('name = "ppo"\n', "")
    grid = "seeds = 1\n\n[experiment]\n" + shared.replace("\n[", "\n[experiment.").replace(
        "[policy]", "[experiment.policy]"
    )
    (project / "configs/grid.toml").write_text(grid + "\n[agents.ppo]\n")
    (cell,) = Grid.load("../configs/grid.toml").cells()
    assert cell.experiment.task["path"] == "../configs/data/prompts.jsonl"
    assert build(cell.experiment).env.task.size == 2


def test_a_file_beside_its_experiment_is_not_looked_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """What is located is not led again: below a folder, its paths would seem to be the working directory's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "below/questions.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "below/e.toml").write_text('[task]\nname = "file"\npath = "questions.jsonl"\n')
    located = Experiment.load("below/e.toml").located()
    assert located.located().task["path"] == located.task["path"] == "below/questions.jsonl"
    assert not recwarn.list


def test_what_is_only_in_the_working_directory_is_taken_and_said(project: Path) -> None:
    shutil.move(project / "configs/data", project / "elsewhere/data")
    with pytest.warns(RuntimeWarning, match=r"'data/prompts.jsonl' is found in the working directory.*'\.\./else"):
        assert build(Experiment.load("../configs/toy.toml")).env.task.size == 2
