"""Every example runs as its docstring says, offline and from any folder, and shows what it promises to show."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import gymnasium
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.processes import FORKING, script, started, warm_up

import rlhf_env
from rlhf_env.lab import processes

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.py"))}

Run = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def _imports_are_done() -> None:
    """Most processes below are forked from this one."""
    warm_up()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a script or `rlhf-env` in an empty folder: what it printed. `fresh`: by an interpreter of its own."""

    def run(*command: object, fresh: bool = False) -> str:
        settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "COLUMNS": "110"}
        first, *arguments = (str(part) for part in command)
        if fresh:
            finished = subprocess.run(
                [sys.executable, first, *arguments],
                check=False,
                capture_output=True,
                encoding="utf-8",
                env=os.environ | settings,
                cwd=tmp_path,
                timeout=900,
            )
            assert finished.returncode == 0, finished.stderr
            return finished.stdout

        def enter() -> None:
            os.environ.update(settings)
            os.chdir(tmp_path)
            processes.multiprocessing = FORKING  # type: ignore[assignment]

        forked = (
            started(*arguments, before=enter) if first == "rlhf-env" else script(Path(first), *arguments, before=enter)
        )
        ended = forked.wait(900)
        assert ended.status == 0, ended.stderr
        return ended.stdout

    return run


def _rewards(output: str) -> list[float]:
    """The rewards that a training run printed, in their order."""
    return [float(number) for number in re.findall(r"update +\d+ +reward +(\S+)", output)]


def test_each_example_has_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))
    for name in (*SCRIPTS, *(path.name for path in EXAMPLES.glob("*.toml"))):
        assert f'"{name}"' in tests, f"no test runs {name}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_says_what_it_shows_and_how_to_run_it(name: str) -> None:
    docstring = ast.get_docstring(ast.parse(SCRIPTS[name]))
    assert docstring and f"python examples/{name}" in docstring


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_imports_what_anybody_may(name: str) -> None:
    """Of this project the public names, its exceptions and its checks; no module that may move."""
    tree = ast.parse(SCRIPTS[name])
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named = {node.module or "": node.names for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {module for module in {*modules, *named} if module.startswith("rlhf_")}
    assert ours <= {"rlhf_env", "rlhf_env.errors", "rlhf_env.testing"}
    used = {alias.name for alias in named.get("rlhf_env", [])}
    used |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rlhf_env"
    }
    assert used <= set(rlhf_env.__all__)
    others = {module.partition(".")[0] for module in {*modules, *named} - ours}
    assert others - sys.stdlib_module_names <= {"gymnasium", "numpy", "torch", "stable_baselines3"}


def test_hello(run: Run, tmp_path: Path) -> None:
    assert len(SCRIPTS["hello.py"].splitlines()) < 25
    output = run(EXAMPLES / "hello.py", fresh=True)
    assert "The prompt is 'a:'" in output
    (written,) = re.findall(r"^a: -> (.*)  \[stop\]  reward (\S+) = \+1\*task\((\S+)\)$", output, re.MULTILINE)
    text, total, part = written
    assert len(text) > 3 and total == part
    assert f"a: -> {text[:1]}\na: -> {text[:2]}\n" in output, "one token a step"
    assert "finish_reason   'stop'" in output and "reward_parts" in output
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_custom_reward(run: Run) -> None:
    output = run(EXAMPLES / "custom_reward.py")
    assert "reward 0.667 = +1*laughter(0.667) +1*exclaims(0.000)" in output
    rewards = _rewards(output)
    assert rewards[-1] > rewards[0] + 1.0
    (after,) = re.findall(r"after: +(.*)", output)
    assert "haha" in after and "!'" in after


def test_loop_by_hand(run: Run) -> None:
    source = SCRIPTS["loop_by_hand.py"]
    assert len(source.splitlines()) < 60
    imported = {
        alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == {"Rollout", "TextVectorEnv", "finished", "tiny_language_model"}, "by hand"
    rewards = _rewards(run(EXAMPLES / "loop_by_hand.py"))
    assert rewards[0] < 0.3 and rewards[-1] > 0.6  # how far depends on the random weights that transformers draws


def test_swap_agents(run: Run) -> None:
    output = run(EXAMPLES / "swap_agents.py")
    table = {line.split()[0]: line.split() for line in output.splitlines()[1:9]}
    assert list(table) == ["ppo", "reinforce", "rloo", "grpo", "dpo", "best_of_n", "reference", "random"]
    objective = {agent: float(cells[1]) for agent, cells in table.items()}
    for agent in ("ppo", "reinforce", "rloo", "grpo", "dpo"):
        assert objective[agent] > objective["reference"] + 0.5, agent
        assert float(table[agent][3]) > 1.0, "it has left the reference"
    assert objective["best_of_n"] > objective["reference"]
    assert table["best_of_n"][3].startswith("≤") and table["random"][5] == "0"


def test_stable_baselines3(run: Run) -> None:
    assert len(SCRIPTS["sb3_ppo.py"].splitlines()) < 40
    output = run(EXAMPLES / "sb3_ppo.py")
    returns = [float(number) for number in re.findall(r"^after +\d+ steps +return (\S+)", output, re.MULTILINE)]
    assert returns[0] < 0.5 and returns[-1] >= 0.9, "of a best return of 1"


def test_agent_curves(run: Run, tmp_path: Path) -> None:
    output = run("rlhf-env", "bench", EXAMPLES / "agent_curves.toml", "--only", "words/random/0", "--out", "curves")
    assert "words" in output
    result = json.loads((tmp_path / "curves/results/words--random--seed-0.json").read_text(encoding="utf-8"))
    assert result["evaluation"]["proxy"] < 0.3


def test_benchmark(run: Run, tmp_path: Path) -> None:
    grid = tomllib.loads((EXAMPLES / "quick_benchmark.toml").read_text(encoding="utf-8"))
    output = run(EXAMPLES / "benchmark.py", "results here", fresh=True)
    folder = tmp_path / "results here"
    assert len(list((folder / "results").glob("*.json"))) == len(grid["agents"]) * grid["seeds"] == 6
    for agent in grid["agents"]:
        assert re.search(rf"^\| {agent} \|", output, re.MULTILINE), f"{agent} is in the table"
    assert "2 seeds: numbers, no claim" in output
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(agent in page for agent in grid["agents"]) and "<svg" in page


def test_the_experiment_file(run: Run, tmp_path: Path) -> None:
    assert tomllib.loads((EXAMPLES / "experiment.toml").read_text(encoding="utf-8"))["agent"]["name"] == "grpo"
    output = run("rlhf-env", "train", EXAMPLES / "experiment.toml")
    found = {name: float(value) for name, value in re.findall(r"^  (\S+) +(-?[\d.]+)(?:  |$)", output, re.MULTILINE)}
    assert found["objective"] > 0.3 and found["kl"] > 1.0
    folder = tmp_path / "runs" / "toy-grpo-seed0"
    assert {"experiment.toml", "metrics.jsonl", "evaluation.json"} <= {path.name for path in folder.iterdir()}


def test_a_reward_of_ones_own_is_a_function_in_a_file(run: Run, tmp_path: Path) -> None:
    """From any folder, by command: nothing is installed and no script registers it."""
    folder = EXAMPLES / "polite"
    assert run("rlhf-env", "check", f"{folder / 'polite.py'}:polite").strip() == "ok"
    assert "wanted: " in run("rlhf-env", "plugins", f"{folder / 'polite.py'}:polite")
    shutil.copytree(folder, tmp_path / "copy")  # the README's own way of beginning
    output = run("rlhf-env", "train", tmp_path / "copy" / "polite.toml")
    found = {name: float(value) for name, value in re.findall(r"^  (\S+) +(-?[\d.]+)(?:  |$)", output, re.MULTILINE)}
    assert found["part/polite"] > 0.8
    rows = (tmp_path / "runs" / "polite-grpo-seed0" / "metrics.jsonl").read_text().splitlines()
    assert "rollout/logged/rude" in rows[-1], "what the function logs is in the run"


def test_the_readmes_reward_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    code, table = re.findall(
        r"```(?:python|toml)\n(.*?)```", page.partition("A reward of your own is a function")[2], re.DOTALL
    )[:2]
    assert "# polite.py" in code
    (tmp_path / "polite.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    env = gymnasium.make("rlhf_env/Response-v0", reward=tomllib.loads(table)["rewards"])
    env.reset(seed=0)
    words = env.unwrapped.tokenizer
    text = [*words.encode("Thanks a lot!"), words.end_id]
    text += [words.end_id] * (env.action_space.shape[0] - len(text))
    assert env.step(text)[4]["reward_parts"] == {"polite": 1.0}
