"""A reward part of any printable name goes all the way: from TOML through training and evaluation to the report."""

from __future__ import annotations

import math
import tomllib
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.lab.benchmark.comparison import conclude
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.run import run_benchmark
from rlhf_env.lab.report.report import write_report
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.run_record import read_metrics

# The KL penalty is one of them, and "kl" is none.
KL = "stay near"
NAMES = ("_short", "a.b", "a b", "x/y", 'it\'s "q"', "$m_1$", "<b>", "a", "a_std", "50 %", "ü", "kl")


@pytest.fixture(scope="module")
def bench(toy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    rewards: dict[str, Any] = {
        name: {"plugin": "length", "target": 1 + place % 4, "weight": 0.5 + place} for place, name in enumerate(NAMES)
    }
    rewards[KL] = {"plugin": "kl", "weight": 0.05}
    experiment = {**toy, "rewards": rewards, "budget": {"updates": 2}}
    experiment["evaluation"] = {"prompts": 4, "every": 1, "rewards": {"_gold": {"plugin": "task"}}}
    grid = Grid(name="names", agents={"ppo": {"lr": 1e-3}, "dpo": {"group_size": 2}}, experiment=experiment, seeds=1)
    run_benchmark(grid, folder, jobs=0)
    return folder


def test_the_file_of_a_run_says_them_as_they_are(bench: Path) -> None:
    file = next(bench.glob("runs/*/experiment.toml"), None) or next(bench.rglob("experiment.toml"))
    experiment = Experiment.load(file)
    assert set(experiment.rewards) == {*NAMES, KL}
    assert Experiment.from_table(tomllib.loads(experiment.to_toml())) == experiment


def test_every_part_is_paid_logged_and_evaluated(bench: Path) -> None:
    results = read_results(bench)
    assert [cell.error for cell in results.cells] == [None, None]
    for cell in results.cells:
        assert set(cell.weights) == {*NAMES, KL}
        (_, *rows) = read_metrics(bench / str(cell.run))
        for row in rows:
            paid = [cell.weights[name] * row[f"rollout/part/{name}"] for name in cell.weights]
            assert math.fsum(paid) == pytest.approx(row["rollout/reward"], abs=1e-12)
            assert row["rollout/kl"] == pytest.approx(-row[f"rollout/part/{KL}"], abs=1e-12)
        measured = [cell.weights[name] * cell.evaluation[f"part/{name}"] for name in cell.weights]
        assert math.fsum(measured) == pytest.approx(cell.evaluation["objective"], abs=1e-12)
        assert cell.evaluation["kl"] == pytest.approx(-cell.evaluation[f"part/{KL}"], abs=1e-9)


def test_the_report_shows_each_of_them_once(bench: Path) -> None:
    from rlhf_env.lab.report import figures

    results = read_results(bench)
    assert figures.reward_parts(results, "echo") == sorted((*NAMES, KL))
    held = {check.name: check.outcome for check in conclude(results).checks}
    assert "does not hold" not in held.values() and "holds" in held.values(), held
    page = write_report(bench).read_text(encoding="utf-8")
    assert [name for name in NAMES if f"Reward part {name} along training" not in unescape(page)] == []
    assert "part <b>" not in page
    pictures = {file.name for file in bench.rglob("echo--part-*.svg")}
    assert len(pictures) == len(NAMES) + 1
