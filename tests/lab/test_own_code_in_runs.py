"""Runs, resumed runs and grids with code of one's own: all of it is one version, and the record says which."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import rlhf_env
from rlhf_env.errors import ConfigError, RewardError
from rlhf_env.learning.experiment import Experiment
from rlhf_env.own_code import files_in

POLITE = """\
def polite(completions, strictness: float = 1.0, **columns):
    return [text.count("a") / strictness for text in completions]
"""
QUESTIONS = """\
from rlhf_env import Prompt


class Questions:
    size = 2

    def prompt(self, index, options, /):
        return Prompt(id=str(index), text=["a", "aa"][index])
"""
MINE = """\
from dataclasses import dataclass

from rlhf_agents.reinforce import Reinforce


class Mine(Reinforce):
    pass
"""
MEASURES = """\
from rlhf_env import Metric

LOUD = Metric(name="loud", title="Loud", unit="share", meaning="replies with an a",
              measure=lambda replies: sum("a" in text for text in replies.texts) / len(replies.texts), form="share")
"""
STOP = """\
class Stop:
    def __init__(self, after: int):
        self.after = after

    def __call__(self, row):
        return "enough" if row["update"] >= self.after else None

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
"""
TOML = """\
name = "toy"
[task]
function = "questions.py:Questions"
[policy]
tokenizer = "alphabet:ab "
[environment]
num_envs = 4
max_new_tokens = 3
max_prompt_tokens = 3
[rewards.polite]
function = "polite.py:polite"
[agent]
function = "mine.py:Mine"
[budget]
updates = 3
[evaluation]
prompts = 4
metrics = ["measures.py:LOUD"]
[evaluation.rewards.gold]
function = "polite.py:polite"
strictness = 2.0
"""
GRID = """\
name = "g"
seeds = 1
[experiment.task]
function = "questions.py:Questions"
[experiment.policy]
tokenizer = "alphabet:ab "
[experiment.environment]
num_envs = 4
max_new_tokens = 3
max_prompt_tokens = 3
[experiment.rewards.polite]
function = "polite.py:polite"
[experiment.budget]
updates = 1
[experiment.evaluation]
prompts = 4
[agents.reinforce]
[agents.mine]
function = "mine.py:Mine"
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    files = {"polite": POLITE, "questions": QUESTIONS, "mine": MINE, "measures": MEASURES, "stop": STOP}
    for name, content in files.items():
        (tmp_path / f"{name}.py").write_text(content)
    (tmp_path / "toy.toml").write_text(TOML)
    (tmp_path / "grid.toml").write_text(GRID)
    return tmp_path


def test_every_part_of_an_experiment_may_be_ones_own(project: Path) -> None:
    (project / "toy.toml").write_text(TOML + '[stopping.early]\nfunction = "stop.py:Stop"\nafter = 2\n')
    run = rlhf_env.run(project / "toy.toml", project / "run")
    assert (run.reason, run.update) == ("enough", 2)
    assert run.experiment.agent_label == "Mine"
    assert run.evaluation.metrics["gold"] == run.evaluation.metrics["part/polite"] / 2
    assert 0 <= run.evaluation.metrics["loud"] <= 1
    record = json.loads((project / "run" / "record.json").read_text())
    assert set(record["code"]) == {"polite.py", "questions.py", "mine.py", "measures.py", "stop.py"}
    assert 'function = "polite.py:polite"' in (project / "run" / "experiment.toml").read_text()


def test_a_run_resumes_with_the_code_that_it_began_with(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rlhf_env.run(project / "toy.toml", project / "whole")
    (project / "toy.toml").write_text(TOML.replace("updates = 3", "updates = 2"))
    rlhf_env.run(project / "toy.toml", project / "run")
    (project / "toy.toml").write_text(TOML)
    monkeypatch.chdir("/")
    resumed = rlhf_env.run(project / "toy.toml", project / "run", resume=True)
    assert [row["rollout/reward"] for row in resumed.metrics[1:]] == [
        row["rollout/reward"] for row in whole.metrics[1:]
    ]


def test_a_run_does_not_resume_with_another_reward_unless_told(project: Path) -> None:
    rlhf_env.run(project / "toy.toml", project / "run")
    (project / "polite.py").write_text(POLITE.replace('"a"', '"b"'))
    (project / "toy.toml").write_text(TOML.replace("updates = 3", "updates = 4"))
    before = (project / "run" / "record.json").read_bytes()
    with pytest.raises(ConfigError, match=r"cannot resume: .*polite.py is not what the run was started with"):
        rlhf_env.run(project / "toy.toml", project / "run", resume=True)
    assert (project / "run" / "record.json").read_bytes() == before
    resumed = rlhf_env.run(project / "toy.toml", project / "run", allow_changed_code=True)
    assert resumed.update == 4
    assert any("polite.py changed" in said for said in resumed.not_exact)
    record = json.loads((project / "run" / "record.json").read_text())
    assert [set(code) == set(record["code"]) for code in record["code_before"]] == [True]
    assert record["code_before"][0]["polite.py"] != record["code"]["polite.py"]
    assert rlhf_env.load_run(project / "run").update == 4, "it is one's own with the new code"


def test_a_reward_that_failed_at_once_is_mended_and_the_run_resumed(project: Path) -> None:
    (project / "polite.py").write_text("def polite(completions):\n    return 1 / 0\n")
    (project / "toy.toml").write_text(TOML.replace("strictness = 2.0\n", ""))
    with pytest.raises(RewardError):
        rlhf_env.run(project / "toy.toml", project / "run")
    (project / "polite.py").write_text(POLITE)
    run = rlhf_env.run(project / "toy.toml", project / "run", resume=True)
    assert (run.update, run.not_exact) == (3, ()), "nothing was trained or measured with what it was"
    assert rlhf_env.load_run(project / "run").update == 3


def test_an_absolute_path_is_pinned_too(project: Path) -> None:
    """It equals what was written, and has a content all the same."""
    rewards = {"polite": {"function": f"{project / 'polite.py'}:polite"}}
    located = Experiment.from_table({"rewards": rewards}).located()
    assert located.rewards == rewards
    assert set(files_in(located.tables_of_plugins())) == {str(project / "polite.py")}
    cell = pickle.loads(pickle.dumps(replace(located, folder=None))).located()
    assert files_in(cell.rewards) == files_in(located.rewards), "what a worker is sent"


def test_what_is_used_later_is_the_same_version(project: Path) -> None:
    workplace = rlhf_env.build(Experiment.load(project / "toy.toml"))
    (project / "polite.py").write_text(POLITE + "\n")
    with pytest.raises(ConfigError, match=r"polite.py changed while it was in use"):
        _ = workplace.evaluation_rewards


def test_an_error_of_the_reward_says_its_line(project: Path) -> None:
    (project / "polite.py").write_text("def polite(completions):\n    return [1 / len(t) for t in completions]\n")
    (project / "toy.toml").write_text(TOML.replace("strictness = 2.0\n", ""))
    with pytest.raises(RewardError, match=r"raised ZeroDivisionError: division by zero \(.*polite.py, line 2\)"):
        rlhf_env.run(project / "toy.toml")


def test_a_grid_runs_it_in_its_workers_and_keeps_to_one_version(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = rlhf_env.Grid.load(project / "grid.toml")
    assert [cell.key for cell in grid.cells()] == ["Questions--reinforce--seed-0", "Questions--mine--seed-0"]
    rlhf_env.run_benchmark(grid, project / "bench", jobs=2, on_warning=print)
    results = rlhf_env.read_results(project / "bench")
    assert [cell.finished for cell in results.cells] == [True, True]
    assert set(json.loads((project / "bench" / "about.json").read_text())["code"]) == {
        "polite.py",
        "questions.py",
        "mine.py",
    }
    (project / "polite.py").write_text("open('ran', 'w')\n" + POLITE)
    monkeypatch.chdir(project)
    rlhf_env.write_report(project / "bench")
    assert not (project / "ran").exists(), "a report is made of the results, and runs no code"
    with pytest.raises(ConfigError, match=r"holds results of another version of polite.py: choose another folder"):
        rlhf_env.run_benchmark(rlhf_env.Grid.load(project / "grid.toml"), project / "bench", on_warning=print)


def test_a_worker_refuses_another_version_than_the_grid_read(project: Path) -> None:
    (cell,) = rlhf_env.Grid.load(project / "grid.toml").cells(only=["*/mine"])
    (project / "polite.py").write_text(POLITE + "\n")
    with pytest.raises(ConfigError, match=r"polite.py changed while it was in use: start anew"):
        rlhf_env.build(cell.experiment)
    assert os.path.isabs(cell.experiment.rewards["polite"]["function"])  # noqa: PTH117


def test_a_reward_that_abstains_is_evaluated_where_it_speaks(project: Path) -> None:
    abstaining = "def polite(completions):\n    return [float(len(t)) if 'a' in t else None for t in completions]\n"
    (project / "polite.py").write_text(abstaining)
    (project / "toy.toml").write_text(TOML.replace("strictness = 2.0\n", "").replace("prompts = 4", "prompts = 32"))
    rlhf_env.run(project / "toy.toml", project / "run")
    found = rlhf_env.evaluate_run(project / "run")
    assert "of them left out, where an answer has no score" in found.asked
    assert 0 < found.win_rate["proxy"].value < 1
    (project / "polite.py").write_text("def polite(completions):\n    return [None for _ in completions]\n")
    with pytest.raises(RewardError, match="no part of the reward has anything to say"):
        rlhf_env.evaluate_run(project / "run", trust_code=True)
