"""Tuning: equal tries, on prompts and seeds no result is of; the best is taken, and everything tried is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from rlhf_env import plugins
from rlhf_env.envs.tasks import held_out, load_task
from rlhf_env.envs.tokenizers import ByteTokenizer
from rlhf_env.envs.validation_task import Validation
from rlhf_env.errors import ConfigError, PluginError
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.benchmark.reading import read_results, read_trials
from rlhf_env.lab.benchmark.results import Trial
from rlhf_env.lab.benchmark.run import run_benchmark
from rlhf_env.lab.benchmark.tuning import FIRST_SEED, Tuning, what_was_tried
from rlhf_env.lab.report.report import write_report
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.ranges import Choice, Multiple, Ranges, Uniform
from rlhf_env.learning.workplace import build
from rlhf_env.testing import check_task

Toy = Mapping[str, Any]


# ---------------------------------------------------------------- ranges and what is drawn from them


def test_draws_stay_in_their_ranges_and_fill_them() -> None:
    stream = np.random.default_rng(0)
    multiples = np.array([Multiple(0.25, 4.0).draw(2e-3, stream) for _ in range(2000)])
    assert multiples.min() >= 0.25 * 2e-3 and multiples.max() <= 4.0 * 2e-3
    # Log-uniform: half of the draws lie below the geometric mean, which is the file's own value here.
    assert abs((multiples < 2e-3).mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    uniform = np.array([Uniform(0.9, 1.0).draw(0.95, stream) for _ in range(2000)])
    assert uniform.min() >= 0.9 and uniform.max() <= 1.0
    assert abs(uniform.mean() - 0.95) < 4 * 0.1 / np.sqrt(12 * 2000)
    drawn = [Choice(1, 2, 4).draw(2, stream) for _ in range(2000)]
    assert set(drawn) == {1, 2, 4} and abs(drawn.count(4) / 2000 - 1 / 3) < 4 * np.sqrt(2 / 9 / 2000)


@pytest.mark.parametrize("make", [lambda: Multiple(0.0, 1.0), lambda: Uniform(1.0, 1.0), lambda: Choice(1)])
def test_a_range_that_holds_nothing_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo", "reinforce", "dpo", "kto", "rejection"])
def test_what_an_agent_declares_fits_its_settings(name: str) -> None:
    own = {"name": name, "lr": 1e-3, "group_size": 8}
    tuning = Tuning(configurations=12)
    tried = tuning.configurations_of(own)
    assert tried[0] == own and len(tried) == 12 and tried == tuning.configurations_of(own)
    config = plugins.host().load("agent", name).Config
    for settings in tried:
        assert settings.keys() <= own.keys() | config.ranges.keys()
        built = from_table(config, {key: value for key, value in settings.items() if key != "name"}, name)
        assert built.optimization.lr == settings["lr"] and built.group_size == 8
    assert len({settings["lr"] for settings in tried}) == 12
    same = tuning.configurations_of({"name": "rloo", "lr": 1e-3})
    assert [s["lr"] for s in tried] == [s["lr"] for s in same], "one range, one stream: the same tries for all"
    assert Tuning(configurations=12, seed=1).configurations_of(own)[1] != tried[1]


@pytest.mark.parametrize("name", ["best_of_n", "reference", "random", "curriculum", "replay", "prompt_sampling"])
def test_an_agent_without_ranges_is_not_tuned(name: str) -> None:
    assert Tuning(configurations=5).configurations_of({"name": name}) == [{"name": name}]


def test_a_default_is_what_is_multiplied_and_a_wrong_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Config:
        ranges: ClassVar[Ranges] = {"width": Multiple(1.999, 2.001)}
        width: float = 8.0

    class Agent:
        pass

    Agent.Config = Config  # type: ignore[attr-defined]
    monkeypatch.setattr(plugins.host(), "load", lambda _kind, _name: Agent)
    assert Tuning(configurations=2).configurations_of({"name": "x"})[1] == {"name": "x", "width": 16.0}
    monkeypatch.setattr(Config, "ranges", {"wdith": Choice(1, 2)})
    with pytest.raises(PluginError, match="there is no setting 'wdith'"):
        Tuning(configurations=2).configurations_of({"name": "x"})


# ---------------------------------------------------------------- prompts and seeds that no result is of


@pytest.mark.parametrize(
    "task", [{"name": "increasing", "length": 1}, {"name": "addition"}, {"name": "echo", "length": 6}], ids=str
)
def test_trials_see_training_prompts_alone_and_evaluate_on_others_than_they_train_on(task: dict[str, Any]) -> None:
    def texts(of: Any) -> set[str]:
        return {of.prompt(index, {}).text for index in range(of.size or 400)}

    whole, trial = load_task(task), Validation(task)
    training, evaluated = texts(trial), texts(held_out(trial))
    assert training and evaluated and not training & evaluated
    assert training | evaluated <= texts(whole), "none of the held-out prompts"
    if whole.size is not None:
        assert training | evaluated == texts(whole) and len(training) > len(evaluated)


def test_validation_is_a_task_like_the_one_it_wraps() -> None:
    check_task(load_task({"name": "validation", "task": {"name": "guess"}}), ByteTokenizer())
    check_task(load_task({"name": "validation", "task": "addition"}), ByteTokenizer())
    one = Validation("count")
    assert (one.size, held_out(one).size) == (1, 1), "a task of one prompt has it on both sides"
    assert not hasattr(one, "reply") and hasattr(Validation("guess"), "reply")


def test_a_trial_has_other_seeds_less_budget_and_is_measured_once(toy: Toy) -> None:
    grid = Grid(agents={"ppo": {}}, experiment=dict(toy), tuning=Tuning(configurations=3, seeds=2, budget=0.33))
    cells = grid.cells()
    trials = grid.trials(cells)
    assert [(trial.configuration, trial.seed) for trial in trials] == [
        (configuration, FIRST_SEED + number) for configuration in range(3) for number in range(2)
    ]
    assert not {trial.seed for trial in trials} & {cell.seed for cell in cells}
    trial = trials[0].experiment
    assert trial.budget.limits() == {"updates": 14} and trial.evaluation.every == 0  # 0.33 of 40, rounded up
    assert trial.task == {"name": "validation", "task": toy["task"]}
    assert trial.rewards == cells[0].experiment.rewards
    assert isinstance(build(trial).env.task, Validation)
    assert Grid(agents={"ppo": {}}, experiment=dict(toy)).trials(cells) == [], "no table, no tuning"


@pytest.mark.parametrize("rules", [{"patience": 2}, {"stopping": {"patience": {"evaluations": 2}}}], ids=str)
def test_a_trial_is_evaluated_on_the_way_where_a_rule_may_read_it(rules: dict[str, Any], toy: Toy) -> None:
    evaluation = {**toy["evaluation"], "every": 5}
    experiment = Experiment.from_table({**toy, **rules, "evaluation": evaluation})
    assert Tuning(configurations=3).trial(experiment, {"name": "ppo"}, 0).evaluation.every == 5


# ---------------------------------------------------------------- choosing


def trial(configuration: int, objective: float | None, seed: int = FIRST_SEED, agent: str = "ppo") -> Trial:
    error = "" if objective is not None else "it diverged"
    return Trial("echo", agent, configuration, seed, {"lr": configuration}, objective, error)


def best_configurations(*trials: Trial) -> list[int]:
    return [tried.configuration for tried in what_was_tried(trials) if tried.best]


def test_the_highest_mean_is_chosen_and_a_failed_run_rules_out() -> None:
    assert best_configurations(trial(0, 0.1), trial(1, 0.3), trial(2, 0.2)) == [1]
    assert best_configurations(trial(0, 0.1), trial(1, 0.1)) == [0], "of equals the first: the file's own"
    two = (trial(0, 0.2, 0), trial(0, 0.2, 1), trial(1, 0.9, 0), trial(1, -0.7, 1))
    assert best_configurations(*two) == [0]
    assert [tried.score for tried in what_was_tried(two)] == [0.2, pytest.approx(0.1, abs=1e-12)]
    (_, ruled_out) = what_was_tried((trial(0, 0.1), trial(1, 0.9, 0), trial(1, None, 1)))
    assert (ruled_out.score, ruled_out.error, ruled_out.best) == (None, "it diverged", False)
    (_, nothing) = what_was_tried((trial(0, -0.1), trial(1, 0.0)))
    assert (nothing.score, nothing.best) == (0.0, True), "0 is an objective like any other"
    assert best_configurations(trial(0, None), trial(1, None)) == [0]
    assert best_configurations(
        trial(0, 0.1), trial(1, 0.2), trial(0, 0.2, agent="dpo"), trial(1, 0.1, agent="dpo")
    ) == [1, 0]


# ---------------------------------------------------------------- from a grid to its results


@pytest.fixture(scope="module")
def tuned(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ppo as it is hardly learns: it is outdone by a bolder try. `wild` diverges with its own settings and others."""
    folder = tmp_path_factory.mktemp("tuned")
    run_benchmark(small(toy), folder, jobs=0)
    return folder


def small(toy: Toy) -> Grid:
    return Grid(
        name="tuned",
        agents={"ppo": {"lr": 3e-3}, "wild": {"name": "ppo", "lr": 1e30}, "reference": {}},
        experiment={**toy, "budget": {"updates": 8}, "checkpoint_every": 0},
        tuning=Tuning(configurations=3, budget=0.5),
        seeds=2,
    )


def test_everything_tried_is_kept_and_results_have_the_best(tuned: Path) -> None:
    tried = what_was_tried(read_trials(tuned))
    assert [(one.agent, one.configuration) for one in tried] == [(a, n) for a in ("ppo", "wild") for n in range(3)]
    assert len(list((tuned / "tuning").glob("*.json"))) == 6
    of_ppo = {one.configuration: one for one in tried if one.agent == "ppo"}
    best = max(of_ppo.values(), key=lambda one: one.score or -9.0)
    assert best.best
    for seed in (0, 1):
        result = json.loads((tuned / "results" / f"echo--ppo--seed-{seed}.json").read_text())
        assert result["agent_settings"] == best.settings and result["configuration"] == best.configuration
        assert Experiment.load(tuned / result["run"] / "experiment.toml").agent == best.settings
    assert read_results(tuned).trials == read_trials(tuned)


def test_the_report_shows_what_was_tried_what_was_spent_and_how_to_run_a_row_again(tuned: Path) -> None:
    pytest.importorskip("matplotlib")
    page = write_report(tuned).read_text(encoding="utf-8")
    table = (tuned / "table.md").read_text(encoding="utf-8")
    spent, tried = (table.split(f"**{title}**")[1].split("\n\n")[1] for title in ("What was spent", "What was tried"))
    assert [cells.strip() for cells in spent.splitlines()[0].split("|")[2:-1]] == [
        "Train tokens", "Reward calls", "Labels", "Gradient steps", "Gradient tokens", "Reply tokens", "Seconds",
    ]  # fmt: skip
    result = json.loads((tuned / "results" / "echo--ppo--seed-0.json").read_text())["spending"]
    ppo = [cells.strip() for cells in next(line for line in spent.splitlines() if "ppo" in line).split("|")[2:-1]]
    assert ppo[1:4] == [str(result["reward_calls"]), "0", str(result["gradient_steps"])]
    assert len(tried.splitlines()) == 2 + 6 and tried.count("as in the file") == tried.count("| yes |") == 2
    assert tried.count("| failed |") == 3
    assert 'id="tuning"' in page and 'id="spending"' in page
    assert "rlhf-env bench benchmark.toml --only echo/ppo/1 --out again" in page


def test_failures_stay_in_at_the_floor_when_agents_are_tuned(tuned: Path) -> None:
    tried = [one for one in what_was_tried(read_trials(tuned)) if one.agent == "wild"]
    assert [one.score for one in tried] == [None, None, None] and [one.best for one in tried] == [True, False, False]
    assert all("lower the learning rate" in one.error for one in tried)
    results = read_results(tuned)
    wild = results.of("echo", "wild")
    assert results.failed == len(wild) == 2
    assert [results.score(cell) for cell in wild] == [results.floor("echo")] * 2


def test_a_second_call_tries_nothing_again_and_one_cut_short_goes_on(tuned: Path, toy: Toy, tmp_path: Path) -> None:
    grid, stamps = small(toy), {file: file.stat().st_mtime_ns for file in (tuned / "tuning").rglob("*.json")}
    run_benchmark(grid, tuned, jobs=0)
    assert stamps == {file: file.stat().st_mtime_ns for file in (tuned / "tuning").rglob("*.json")}

    class Cut(Exception):
        pass

    def cut(progress: Any) -> None:
        if progress.ended and progress.job.configuration == 1:
            raise Cut

    with pytest.raises(Cut):
        run_benchmark(grid, tmp_path, jobs=0, only=["echo/ppo/0"], on_progress=cut)
    assert len(list((tmp_path / "tuning").glob("*.json"))) == 2 and not (tmp_path / "results").exists()
    (file,) = run_benchmark(grid, tmp_path, jobs=0, only=["echo/ppo/0"])
    assert {path.name for path in (tmp_path / "tuning").glob("*.json")} == {
        path.name for path in (tuned / "tuning").glob("*--ppo--*.json")
    }, "what --only does not name is not tuned"
    same, whole = (json.loads(path.read_text()) for path in (file, tuned / "results" / file.name))
    for result in (same, whole):
        result["spending"].pop("seconds")
    assert same == whole, "a row by itself is the row of the whole"
