"""A grid of runs: the same numbers however it is run, one failure costs one cell, and nothing is done twice."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, RunFailed
from rlhf_env.lab.benchmark import run as benchmark
from rlhf_env.lab.benchmark.cells import run_cell
from rlhf_env.lab.benchmark.comparison import conclude
from rlhf_env.lab.benchmark.grid import REWARD_MODEL, Grid
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.run import run_benchmark
from rlhf_env.lab.evaluation.evaluator import Evaluator
from rlhf_env.lab.jobs import Progress
from rlhf_env.lab.report.formats import rich_table
from rlhf_env.lab.report.report import write_report
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.folder_lock import hold
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.workplace import build
from rlhf_env.whole_files import write_json

Toy = Mapping[str, Any]
EXAMPLES = Path(__file__).parents[3] / "examples"

GOOD = {"ppo": {"lr": 1e-2}, "best_of_n": {"n": 2}}
BAD = {
    "groups-of-3": {"name": "grpo", "group_size": 3},  # refused when its worker builds it
    "diverges": {"name": "ppo", "lr": 1e30},  # fails in the middle of its run
}

UPDATES = 20  # with an evaluation every 10


def grid_of(toy: Toy, agents: Mapping[str, Any], seeds: int = 2) -> Grid:
    experiment = {**toy, "budget": {"updates": UPDATES}}
    return Grid(name="toy-grid", agents=dict(agents), experiment=experiment, seeds=seeds, optima={"echo": 1.0})


def results_of(folder: Path) -> dict[str, dict[str, Any]]:
    """By file name, without what a clock decides."""
    found = {}
    for file in sorted((folder / "results").iterdir()):
        result = json.loads(file.read_text(encoding="utf-8"))
        assert result["spending"].pop("seconds") >= 0.0
        found[file.name] = result
    return found


def stamps(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def finished(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows by two seeds, half of them bad, in this process."""
    folder = tmp_path_factory.mktemp("here")
    run_benchmark(grid_of(toy, {**GOOD, **BAD}), folder, jobs=0)
    return folder


# ---------------------------------------------------------------- what is in a result


def test_every_cell_has_a_result(finished: Path) -> None:
    assert set(results_of(finished)) == {
        f"echo--{agent}--seed-{seed}.json" for agent in (*GOOD, *BAD) for seed in (0, 1)
    }


def test_a_result_says_what_was_run_spent_and_measured(finished: Path, toy: Toy) -> None:
    result = results_of(finished)["echo--ppo--seed-1.json"]
    assert (result["status"], result["reason"], result["error"]) == ("finished", "budget", None)
    assert (result["task"], result["agent"], result["seed"]) == ("echo", "ppo", 1)
    assert result["agent_settings"] == {"name": "ppo", "lr": 1e-2}
    assert result["weights"] == {"length": 1.0, "kl": 0.05, "diversity": 0.1}
    assert result["optimum"] == 1.0
    assert (result["spending"]["updates"], result["spending"]["episodes"]) == (UPDATES, UPDATES * 8)
    assert [point["update"] for point in result["curve"]] == [0, 10, 20]
    # The last evaluation is of the same parameters, prompts and random numbers as the one of the last update.
    assert {name: result["curve"][-1][name] for name in result["evaluation"]} == result["evaluation"]
    assert len(result["samples"]) == 12
    assert (finished / result["run"] / "metrics.jsonl").is_file()
    assert Experiment.load(finished / result["run"] / "experiment.toml").seed == 1
    assert result["experiment"] == (finished / result["run"] / "experiment.toml").read_text(encoding="utf-8")
    (cell,) = Grid.load(finished / "benchmark.toml").cells(finished, ["echo/ppo/1"])
    assert cell.experiment.to_toml() == result["experiment"], "what --only runs is what ran"
    assert result["evaluation"]["objective"] > result["curve"][0]["objective"], "it learns"


def test_an_agent_that_does_not_train_spends_nothing(finished: Path) -> None:
    result = results_of(finished)["echo--best_of_n--seed-0.json"]
    assert (result["status"], result["reason"]) == ("finished", "does not train")
    assert set(result["spending"].values()) == {0}
    assert [point["update"] for point in result["curve"]] == [0]


def test_seeds_are_shared_and_differ(finished: Path) -> None:
    results = results_of(finished)
    for seed in (0, 1):
        first, other = (results[f"echo--{agent}--seed-{seed}.json"]["curve"][0] for agent in ("ppo", "diverges"))
        assert first == other, "the same initial weights, prompts and random numbers"
    assert results["echo--ppo--seed-0.json"]["curve"][0] != results["echo--ppo--seed-1.json"]["curve"][0]


# ---------------------------------------------------------------- the same however it is run


def test_processes_give_the_same_results_and_one_that_is_killed_costs_its_cell_alone(
    finished: Path, toy: Toy, tmp_path: Path
) -> None:
    """ppo's worker is killed on the way, and a new one goes on. What they and the next call leave is what was above."""
    grid = grid_of(toy, {**GOOD, **BAD}, seeds=1)
    two = ["echo/ppo", "echo/groups-of-3"]
    ppo, other = grid.cells(only=two)
    told: list[Progress] = []

    def kill(progress: Progress) -> None:
        told.append(progress)
        if progress.job == ppo and 0.0 < progress.fraction < 1.0:
            for worker in multiprocessing.active_children():
                worker.kill()

    run_benchmark(grid, tmp_path, jobs=1, only=two, on_progress=kill)
    died, failed = (progress for progress in told if progress.ended)
    assert (died.job, died.ended, failed.job, failed.ended) == (ppo, "died", other, "failed")
    assert "process died (exit code -9)" in died.why
    assert not multiprocessing.active_children()
    assert not ppo.result_file(tmp_path).exists()
    begun = read_metrics(tmp_path / ppo.run)
    assert begun and len(begun) < UPDATES + 1
    told.clear()
    files = run_benchmark(grid, tmp_path, jobs=0, on_progress=told.append)
    expected = results_of(finished)
    assert results_of(tmp_path) == {file.name: expected[file.name] for file in files}
    scores = {progress.job.key: progress.score for progress in told if progress.ended}
    assert scores[ppo.key] == expected[ppo.result_file(tmp_path).name]["evaluation"]["gold"]


def test_a_second_call_does_nothing_and_says_how_everything_ended(finished: Path, toy: Toy) -> None:
    grid, told, before = grid_of(toy, {**GOOD, **BAD}), list[Progress](), stamps(finished)
    files = run_benchmark(grid, finished, jobs=2, on_progress=told.append)
    changed = {file.name for file, stamp in stamps(finished).items() if before.get(file) != stamp}
    assert changed <= {"benchmark.toml", "lock"}
    assert [progress.ended for progress in told] == ["finished", "finished", "failed", "failed"] * 2
    assert told[2].why == "[agent] grpo: group_size 3 does not divide the batch of 8 rows (num_envs)"
    assert files == [cell.result_file(finished) for cell in grid.cells()]


def test_only_the_cells_that_are_named_are_run(toy: Toy, tmp_path: Path) -> None:
    grid = grid_of(toy, {"reference": {}, "random": {}}, seeds=3)
    for only, seeds in ((["echo/random/2"], {("random", 2)}), (["*/reference"], {("reference", s) for s in range(3)})):
        assert {(cell.agent, cell.seed) for cell in grid.cells(only=only)} == seeds
    assert len(grid.cells(only=["echo/r*"])) == len(grid.cells(only=["echo"])) == 6
    (one, other) = problems_of(grid.cells, None, ["echo/rando", "echo", "echo/random/3"])
    assert one.startswith("--only echo/rando: no such task/agent/seed; tasks are echo; agents reference, random")
    assert other.startswith("--only echo/random/3") and other.endswith("seeds 0 to 2")
    run_benchmark(grid, tmp_path, jobs=0, only=["echo/random/2"])
    assert list(results_of(tmp_path)) == ["echo--random--seed-2.json"]


def test_a_row_has_changes_of_its_own_which_come_after_the_tasks(toy: Toy) -> None:
    grid = Grid(
        agents={"ppo": {}, "shaped": {"name": "ppo"}},
        experiment=toy,
        tasks={"short": {"environment": {"max_new_tokens": 3}}, "plain": {}},
        rows={"shaped": {"rewards": {"task": 1.0, "length": 0.5}, "environment": {"max_new_tokens": 2}}},
        seeds=1,
    )
    made = {(cell.task, cell.agent): cell.experiment for cell in grid.cells()}
    assert {key: it.environment.max_new_tokens for key, it in made.items() if key[0] == "short"} == {
        ("short", "ppo"): 3,
        ("short", "shaped"): 2,
    }
    assert made["plain", "shaped"].rewards == {"task": 1.0, "length": 0.5}
    assert made["plain", "ppo"].rewards == toy["rewards"]
    assert made["plain", "shaped"].environment.num_envs == toy["environment"]["num_envs"]
    assert "rows" not in grid_of(toy, GOOD).to_toml(), "folders of benchmarks from before say the same of themselves"


def test_what_is_wrong_with_a_row_is_said_of_its_table() -> None:
    with pytest.raises(ConfigError) as refused:
        Grid(agents={"ppo": {}}, rows={"ppo": {"policy": {"modle": "tiny"}}}).cells()
    (problem,) = refused.value.problems
    assert problem.keys == ("rows", "ppo", "policy", "modle")


LOCKED = """\
import sys, time
from pathlib import Path
from rlhf_env.learning.folder_lock import hold
lock = hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(3600)
"""


def test_two_calls_do_not_work_in_one_folder(finished: Path, toy: Toy, tmp_path: Path) -> None:
    grid = grid_of(toy, {"reference": {}}, seeds=1)
    held = subprocess.Popen([sys.executable, "-c", LOCKED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert held.stdout is not None and held.stdout.readline() == "held\n"
    (problem,) = problems_of(run_benchmark, grid, tmp_path)
    assert problem == f"{tmp_path} is in use (pid {held.pid}): wait for it, or choose another folder"
    assert ConfigError.exit_code == 2
    held.kill()  # as kill -9 does: nothing is cleaned up
    held.wait()
    with closing(hold(tmp_path)):
        assert (tmp_path / "lock").read_text() == f"pid {os.getpid()}"
    run_benchmark(grid, tmp_path, jobs=0)
    assert len(results_of(tmp_path)) == 1


# ---------------------------------------------------------------- failures


def test_a_failed_cell_is_written_as_such_and_the_others_go_on(finished: Path) -> None:
    results = results_of(finished)
    assert {name for name, result in results.items() if result["status"] == "failed"} == {
        f"echo--{agent}--seed-{seed}.json" for agent in BAD for seed in (0, 1)
    }
    refused, diverged = (results[f"echo--{agent}--seed-0.json"] for agent in BAD)
    assert refused["error"] == "[agent] grpo: group_size 3 does not divide the batch of 8 rows (num_envs)"
    assert refused["curve"] == []
    assert "lower the learning rate" in diverged["error"]
    assert [point["update"] for point in diverged["curve"]] == [0]
    assert diverged["spending"]["generated_tokens"] >= 0


def test_the_report_of_a_benchmark_with_failures(finished: Path) -> None:
    pytest.importorskip("matplotlib")
    results = read_results(finished)
    assert (results.failed, results.seeds, len(results.cells)) == (4, 2, 8)
    assert rich_table(results).row_count == 4
    assert write_report(finished).stat().st_size > 10_000


def test_the_reward_ledger_of_real_runs_adds_up(finished: Path) -> None:
    (ledger,) = (check for check in conclude(read_results(finished)).checks if "sum of its parts" in check.name)
    assert ledger.outcome == "holds", ledger.finding
    # ppo: 20 rollouts, evaluations at 0, 10, 20 and the last; best_of_n: at 0 and the last; for two seeds.
    assert ledger.finding.startswith(f"{2 * (20 + 3 + 1 + 1 + 1)} stored rewards")


def test_a_cell_goes_to_the_trackers_of_the_grid_under_its_own_name(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Names:
        def __init__(self, *, run_name: str, project: str) -> None:
            self.updates: list[Any] = []
            started[project, run_name] = self.updates

        def log(self, row: Any, /) -> None:
            self.updates.append(row["update"])

        def close(self) -> None: ...

    started: dict[tuple[str, str], list[Any]] = {}
    host = plugins.PluginHost(plugins.entry_points(group="rlhf_env"))
    host.add("tracker", "names", Names)
    monkeypatch.setattr(plugins, "host", lambda: host)
    (cell,) = grid_of(toy, {"ppo": {}}, seeds=1).cells()
    run_cell(replace(cell, experiment=replace(cell.experiment, trackers={"names": {"project": "p"}})), tmp_path)
    assert started == {("p", cell.key): [row["update"] for row in read_metrics(tmp_path / cell.run)]}


class Diverged:
    """An evaluation of a model that has gone to pieces."""

    metrics = {"gold": math.nan, "kl": math.inf, "length": 3.0}  # noqa: RUF012
    samples = ()


def test_an_evaluation_that_is_not_finite_is_a_failure(toy: Toy, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Evaluator, "__call__", lambda *_arguments: Diverged())
    (cell,) = grid_of(toy, {"ppo": {}}, seeds=1).cells()
    with pytest.raises(RunFailed, match="not finite: gold, kl"):
        run_cell(cell, tmp_path)
    assert not cell.result_file(tmp_path).exists()


def test_what_json_cannot_hold_is_written_as_null(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "x.json"
    write_json(file, {"a": [math.nan, 1.5, {"b": -math.inf}], "c": (math.inf,), "d": "NaN", "e": "lone \ud83d"})
    text = file.read_text(encoding="utf-8", errors="surrogatepass")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": [None, 1.5, {"b": None}],
        "c": [None],
        "d": "NaN",
        "e": "lone \ud83d",
    }
    assert [path.name for path in file.parent.iterdir()] == ["x.json"]


def test_a_cell_whose_folder_holds_another_experiment_is_refused(toy: Toy, tmp_path: Path) -> None:
    (cell,) = grid_of(toy, {"ppo": {}}, seeds=1).cells()
    with RunFolder(tmp_path / cell.run, Experiment(seed=4).to_toml(), tensorboard=False):
        pass
    with pytest.raises(ConfigError, match="cannot resume with another"):
        run_cell(cell, tmp_path)


# ---------------------------------------------------------------- the file of a grid


def problems_of(call: Any, *arguments: Any) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        call(*arguments)
    return list(refused.value.problems)


def test_a_grid_round_trips_through_its_file(toy: Toy, tmp_path: Path) -> None:
    grid = Grid(
        name="g", agents=dict(GOOD), experiment=dict(toy), tasks={"short": {"task": {"name": "count"}}}, seeds=2
    )
    (tmp_path / "grid.toml").write_text(grid.to_toml())
    assert Grid.load(tmp_path / "grid.toml") == grid


def test_cells_are_agents_by_tasks_by_seeds(toy: Toy) -> None:
    tasks = {"short": {"task": {"name": "echo", "length": 1}}, "wide": {"environment": {"num_envs": 4}}}
    cells = Grid(name="g", agents={"a": {"name": "ppo"}, "ppo": {}}, experiment=dict(toy), tasks=tasks, seeds=2).cells()
    assert [(cell.seed, cell.task, cell.agent) for cell in cells] == [
        (seed, task, agent) for seed in (0, 1) for task in ("short", "wide") for agent in ("a", "ppo")
    ]
    short, wide = cells[0].experiment, cells[2].experiment
    assert (short.task, short.environment.num_envs) == ({"name": "echo", "length": 1}, 8)
    assert (wide.task, wide.environment.num_envs, wide.environment.max_new_tokens) == (toy["task"], 4, 4)
    assert {cell.experiment.agent["name"] for cell in cells} == {"ppo"}
    assert [cell.experiment.seed for cell in cells] == [0] * 4 + [1] * 4
    assert len({cell.run for cell in cells}) == len({cell.key for cell in cells}) == 8


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"agents": {}}, "agents must be one or more tables, as in [agents.ppo]"),
        ({"agents": {"ppo": {}}, "tasks": {"t": {"agents": {"pp": {}}}}}, "tasks.t.agents.pp: no row of this name"),
        ({"agents": {"ppo": {}}, "tasks": {"t": {"agents": {"ppo": 1}}}}, "tasks.t.agents.ppo must be a table, got 1"),
        ({"agents": {"ppo": {}}, "tuning": {"budget": 2}}, "tuning: budget must be in (0, 1], got 2"),
        (
            {"agents": {"ppo": {}}, "experiment": {"rewards": {"x": {"model": "$reward_model"}}}},
            "there is no such table",
        ),
        ({"agents": {"ppo": {}}, "seeds": 0}, "seeds must be from 1 to 1,000, got 0"),
        ({"agents": {"ppo": 3}}, "agents.ppo must be a table, got 3"),
        ({"agents": {"ppo": {}}, "tasks": {"t": 3}}, "tasks.t must be a table, got 3"),
        ({"agents": {"ppo": {}}, "tasks": {"t": {}}, "optima": {"u": 1.0}}, "optima.u: no task of this name, only t"),
        ({"agents": {"..": {}}}, "'..' is no name for a file"),
        ({"agents": {"a--b": {}}}, "'a--b' is no name for a file"),
        ({"agents": {"a/b": {}}}, "'a/b' is no name for a file"),
        ({"agents": {"ppo": {}}, "name": "../out"}, "'../out' is no name for a file"),
        ({"agents": {"ppo": {}}, "experiment": {"task": {"name": "a/b"}}}, "'a/b' is no name for a file"),
        ({"agents": {"ppo": {}}, "sedes": 3}, "no setting 'sedes': did you mean 'seeds'?"),
        ({}, "the setting 'agents' is required"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_grid_that_does_not_fit_is_refused_with_its_file(table: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(tomli_w.dumps(table))
    (problem,) = problems_of(Grid.load, tmp_path / "grid.toml")
    assert problem.startswith(str(tmp_path / "grid.toml"))
    assert said in problem


@pytest.mark.parametrize(
    ("experiment", "said"),
    [
        ({"task": "count"}, "task must be a table, got 'count'"),
        ({"environment": 3}, "environment must be a table, got 3"),
        ({"buget": {}}, "no setting 'buget': did you mean 'budget'?"),
    ],
)
def test_the_shared_experiment_is_checked_before_anything_runs(
    experiment: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (problem,) = problems_of(run_benchmark, Grid(name="g", agents={"ppo": {}}, experiment=experiment), tmp_path / "out")
    assert said in problem
    assert not (tmp_path / "out").exists()


def test_two_grids_do_not_mix_in_one_folder(finished: Path, toy: Toy) -> None:
    (problem,) = problems_of(run_benchmark, grid_of(toy, GOOD), finished)
    assert "another grid" in problem


def test_settings_on_a_task_change_the_agents_own(toy: Toy) -> None:
    grid = Grid(
        agents={"ppo": {"lr": 1e-3, "epochs": 3}, "reference": {}},
        experiment=dict(toy),
        tasks={"plain": {}, "big": {"agents": {"ppo": {"lr": 1e-5}}, "environment": {"num_envs": 4}}},
        seeds=1,
    )
    settings = {(cell.task, cell.agent): cell.experiment.agent for cell in grid.cells()}
    assert settings["plain", "ppo"] == {"name": "ppo", "lr": 1e-3, "epochs": 3}
    assert settings["big", "ppo"] == {"name": "ppo", "lr": 1e-5, "epochs": 3}
    assert settings["big", "reference"] == {"name": "reference"}


def test_a_reward_model_is_made_once_where_a_cell_needs_it(toy: Toy, tmp_path: Path) -> None:
    """What is made stands in for a model here: what is seen is when it is called for, and that the cells find it."""
    learned = {"rewards": {"bradley_terry": {"model": REWARD_MODEL}}}
    grid = Grid(
        agents={"reference": {}},
        experiment=dict(toy),
        tasks={"plain": {}, "learned": learned},
        seeds=1,
        reward_model={},
    )
    model = benchmark.reward_model_of(tmp_path)
    (cell,) = grid.cells(tmp_path, ["learned"])
    assert cell.experiment.rewards == {"bradley_terry": {"model": str(model)}}
    made: list[str] = []
    run_benchmark(grid, tmp_path, jobs=0, only=["plain"], prepare=lambda: made.append("plain"))
    assert made == []
    (problem,) = problems_of(run_benchmark, grid, tmp_path)
    assert problem.startswith(f"{model} is not there")

    def learn() -> None:
        made.append("learned")
        model.mkdir()

    run_benchmark(grid, tmp_path, jobs=0, prepare=learn)
    assert made == ["learned"]
    errors = {name: result["error"] for name, result in results_of(tmp_path).items()}
    assert errors["plain--reference--seed-0.json"] is None
    assert str(model) in errors["learned--reference--seed-0.json"], "an empty folder is no model"
    run_benchmark(grid, tmp_path, jobs=0, prepare=lambda: made.append("again"))
    assert made == ["learned"]


def test_the_shipped_benchmark_is_what_it_says() -> None:
    grid = Grid.load(EXAMPLES / "benchmark.toml")
    agents = {"ppo", "grpo", "rloo", "reinforce", "dpo", "kto", "rejection", "best_of_n"}
    assert set(grid.agents) == agents | {"reference", "random"} and grid.seeds == 10 and len(grid.tasks) >= 4
    cells = grid.cells(Path("nowhere"))
    assert len(cells) == 10 * len(grid.agents) * len(grid.tasks)
    trials = grid.trials(cells)
    tries = {(t.task, t.agent): len([u for u in trials if (u.task, u.agent) == (t.task, t.agent)]) for t in trials}
    tuned = agents - {"best_of_n"}
    assert tries == {(task, agent): grid.tuning.configurations for task in grid.tasks for agent in tuned}
    for task, optimum in grid.optima.items():
        (cell,) = grid.cells(None, [f"{task}/reference/0"])
        task_ = build(cell.experiment).env.task
        assert optimum == max(task_.rewards) if hasattr(task_, "rewards") else optimum == 1.0


def test_the_shipped_mechanisms_stand_beside_others_at_an_equal_budget() -> None:
    grid = Grid.load(EXAMPLES / "mechanisms.toml")
    cells = grid.cells()
    grid.require_plugins(cells)
    rows = {task: [cell.agent for cell in cells if (cell.task, cell.seed) == (task, 0)] for task in grid.tasks}
    assert rows == {task: changes["rows"] for task, changes in grid.tasks.items()}
    assert {name for names in rows.values() for name in names} == set(grid.agents)
    assert all(1 < len(names) < len(grid.agents) for names in rows.values()), "a mechanism stands beside something"
    assert grid.seeds == 10 and not grid.too_few_seeds
    for task in grid.tasks:
        assert len({cell.experiment.budget for cell in cells if cell.task == task}) == 1, "an equal budget"
