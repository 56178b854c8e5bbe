"""A whole third-party distribution, installed in an environment of its own, is listed there and works in a run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from rlhf_env import plugins

pytestmark = pytest.mark.packaging

HAIKU = Path(__file__).parents[2] / "examples" / "rlhf_reward_haiku"

LISTING = """
import json
from rlhf_env.plugins import host
print(json.dumps([[e.kind, e.name, e.origin] for e in host()]))
"""

RUN = """
import gymnasium as gym, rlhf_env
poem = "an old silent pond\\na frog jumps into the pond\\nsplash silence again"
env = gym.make("rlhf_env/Response-v0", reward={"haiku": {"weight": 2.0}}, max_new_tokens=80)
env.reset(seed=0)
action = list(poem.encode()) + [258]
*_, info = env.step(action + [259] * (80 - len(action)))
print(info["reward_parts"], info["reward_weights"])
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the haiku distribution; all else is borrowed from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # `addsitedir` reads the borrowed folder's own .pth files too, where editable installs live.
    (own / "borrowed.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    interpreter = folder / "bin" / "python"
    source = tmp_path_factory.mktemp("source") / HAIKU.name  # a build leaves nothing behind in the repository
    shutil.copytree(HAIKU, source, ignore=shutil.ignore_patterns("__pycache__", "dist", "build"))
    _run(interpreter, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q", str(source))
    return interpreter


def _run(*command: object) -> str:
    # Nothing of this process may leak in: neither its path nor its working directory.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    finished = subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, env=clean, cwd="/", timeout=900
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_it_appears_in_the_list_with_its_origin(python: Path) -> None:
    listed = json.loads(_run(python, "-c", LISTING))
    assert ["reward", "haiku", "rlhf-reward-haiku"] in listed
    assert ["reward", "kl", "rlhf-env"] in listed, "the built-ins are still there"


def test_it_works_by_name_in_an_environment(python: Path) -> None:
    assert _run(python, "-c", RUN) == "{'haiku': 1.0} {'haiku': 2.0}\n"


def test_it_is_not_in_the_list_of_the_environment_outside(python: Path) -> None:
    assert python.exists()
    assert "haiku" not in plugins.host().names("reward")
    assert all(point.value != "rlhf_reward_haiku" for point in entry_points(group="rlhf_env"))
    assert "rlhf_reward_haiku" not in sys.modules


def test_its_own_tests_pass_where_it_is_installed(python: Path) -> None:
    _run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", HAIKU, HAIKU / "tests")
