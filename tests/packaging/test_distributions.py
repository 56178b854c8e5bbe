"""Whole distributions of other people, installed in one environment of their own: they are listed there, and work.

The examples (a reward, a task, an agent), and one of each kind as `rlhf-env new` writes it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from rlhf_env import plugins
from rlhf_env.new_plugins import write_plugin

pytestmark = pytest.mark.packaging

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = {
    ("reward", "haiku"): "rlhf_reward_haiku",
    ("task", "countdown"): "rlhf_task_countdown",
    ("agent", "single_stream"): "rlhf_agent_single_stream",
}
NEW = {
    ("reward", "short_words"): "rlhf_reward_short_words",
    ("task", "sorting"): "rlhf_task_sorting",
    ("agent", "moving"): "rlhf_agent_moving",
}
BOTH = {**EXAMPLE, **NEW}

HAIKU_IN_AN_ENVIRONMENT = """
import gymnasium as gym, rlhf_env
poem = "an old silent pond\\na frog jumps into the pond\\nsplash silence again"
env = gym.make("rlhf_env/Response-v0", reward={"haiku": {"weight": 2.0}}, max_new_tokens=80)
env.reset(seed=0)
action = list(poem.encode()) + [258]
*_, info = env.step(action + [259] * (80 - len(action)))
print(info["reward_parts"], info["reward_weights"])
"""

COUNTDOWN_IN_AN_ENVIRONMENT = """
import gymnasium as gym, rlhf_env
env = gym.make("rlhf_env/Token-v0", task={"name": "countdown", "attempts": 2}, reward={"task": 1.0}, max_new_tokens=40)
env.reset(seed=0)
for token in [*b"1+", 258, *b"1+0", 258]:
    *_, info = env.step(token)
print(info["text_episode"].turns, info["finish_reason"], info["reward_parts"])
"""

# What the commands print, in one process: each of them alone would import torch again.
COMMANDS = """
import json, sys
from rlhf_env.cli.main import app
for words in json.loads(sys.argv[1]):
    app(words, standalone_mode=False)
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], Path]:
    """Copies of them all: a build leaves nothing behind in the repository."""
    folder = tmp_path_factory.mktemp("sources")
    left_behind = shutil.ignore_patterns("__pycache__", "dist", "build", "runs")
    copies = {key: shutil.copytree(EXAMPLES / name, folder / name, ignore=left_behind) for key, name in EXAMPLE.items()}
    for kind, name in NEW:
        copies[kind, name] = write_plugin(kind, name, folder).folder  # type: ignore[arg-type]
    return copies


@pytest.fixture(scope="module")
def python(sources: Mapping[tuple[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with those distributions; all else is borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # `addsitedir` reads the borrowed folder's own .pth files too, where editable installs live.
    (own / "borrowed.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    interpreter = folder / "bin" / "python"
    _run(
        interpreter, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q", *sources.values()
    )
    return interpreter


def _run(*command: object, folder: Path = Path("/")) -> str:
    # Nothing of this process may leak in: neither its path nor its working directory.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    finished = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, env=clean, cwd=folder, timeout=900
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    return finished.stdout


def test_they_are_listed_with_their_origin(python: Path) -> None:
    listed = json.loads(_run(python, "-m", "rlhf_env", "plugins", "--json"))
    known = {(one["kind"], one["name"]): one["origin"] for one in listed["plugins"]}
    assert {key: known.get(key) for key in BOTH} == {key: name.replace("_", "-") for key, name in BOTH.items()}
    assert known["reward", "kl"] == "rlhf-env", "the built-ins are still there"
    assert listed["failed"] == []


def test_they_work_by_name_in_an_environment(python: Path) -> None:
    assert _run(python, "-c", HAIKU_IN_AN_ENVIRONMENT) == "{'haiku': 1.0} {'haiku': 2.0}\n"
    assert _run(python, "-c", COUNTDOWN_IN_AN_ENVIRONMENT) == "('1+', '1+0') task {'task': 0.1}\n"


def test_they_are_not_in_the_list_of_the_environment_outside(python: Path) -> None:
    assert python.exists()
    for (kind, name), module in BOTH.items():
        assert name not in plugins.host().names(kind)  # type: ignore[arg-type]
        assert all(point.value != module for point in entry_points(group="rlhf_env"))
        assert module not in sys.modules


def test_their_own_tests_pass_where_they_are_installed(
    python: Path, sources: Mapping[tuple[str, str], Path], tmp_path: Path
) -> None:
    """All in one process. Each has a test by `check_reward`, `check_task` or `check_agent`."""
    tests = [folder / "tests" for folder in sources.values()]
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    _run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", tmp_path / "pytest.ini", *tests)


def test_the_commands_that_their_readmes_name(
    python: Path, sources: Mapping[tuple[str, str], Path], tmp_path: Path
) -> None:
    words = [["plugins", f"{kind}:{name}"] for kind, name in BOTH]
    words += [
        ["check", f"{kind}:{name}"] for kind, name in BOTH if kind != "agent"
    ]  # the agents' tests do nothing else
    words += [["check", str(folder / f"{name}.toml")] for (_, name), folder in sources.items() if name != "haiku"]
    printed = _run(python, "-c", COMMANDS, json.dumps(words), folder=tmp_path)
    assert printed.splitlines().count("ok") == 4 + 5
    assert "  longest: a whole number, at least 1; default 4\n      The letters that a short word may have." in printed
    for folder in sources.values():
        page = (folder / "README.md").read_text(encoding="utf-8")
        assert "pip install" in page and "rlhf-env check" in page
