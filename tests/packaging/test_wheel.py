"""What the installed wheel holds: `make test-wheel` asks. An editable install has no wheel to look at."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

PACKAGES = ("rlhf_env", "rlhf_agents", "rlhf_rewards")
FILES = {path.as_posix() for path in distribution("rlhf-env").files or []}

pytestmark = pytest.mark.skipif("rlhf_env/__init__.py" not in FILES, reason="an editable install: see make test-wheel")


@pytest.mark.parametrize("package", PACKAGES)
def test_it_is_the_wheel_that_is_imported(package: str) -> None:
    home = Path(str(importlib.import_module(package).__file__))
    assert home.is_relative_to(sys.prefix)


def test_three_packages_and_nothing_else_at_the_top() -> None:
    top = {name.partition("/")[0] for name in FILES if not name.startswith("../")}  # ../ is the script, in bin
    information = {name for name in top if name.endswith(".dist-info")}
    assert top - information == set(PACKAGES) and len(information) == 1
    ours = [name for name in FILES if "/templates/" not in name]  # of `rlhf-env new`, which hold tests for others
    assert not [name for name in ours if "tests/" in name], "tests stay in the source distribution"


def test_its_files_are_those_of_the_sources_to_the_byte() -> None:
    """So whatever a test says of a module or a page holds of the wheel too; what is left to try is the installation."""
    found = {name: Path(str(distribution("rlhf-env").locate_file(name))) for name in FILES}
    sources = Path(os.environ["RLHF_ENV_SOURCES"])
    for home, package in zip((".", "agents", "reward_plugins"), PACKAGES, strict=True):
        there = {
            file.relative_to(sources / home).as_posix(): file.read_bytes()
            for file in (sources / home / package).rglob("*")
            if file.is_file() and "__pycache__" not in file.parts
        }
        ours = {name for name in FILES if name.startswith(f"{package}/") and "__pycache__" not in name}
        assert len(there) > 10 and ours ^ there.keys() == set()
        assert [name for name, content in there.items() if found[name].read_bytes() != content] == []


def test_every_file_that_is_no_module_came_along() -> None:
    expected = {f"{package}/py.typed" for package in PACKAGES}
    page = ("index.html", "page.css", "page.js", "forms.js", "server.js")
    expected |= {f"rlhf_env/feedback/page/static/{name}" for name in page}
    expected |= {f"rlhf_env/local_page/static/{name}" for name in ("base.css", "elements.js")}
    watch = ("watch.html", "watch.css", "watch.js", "run.js", "grid.js", "chart.js", "texts.js")
    expected |= {f"rlhf_env/lab/watching/static/{name}" for name in watch}
    expected.add("rlhf_env/lab/watching/run_report.html.jinja")
    expected |= {f"rlhf_env/lab/report/{name}.html.jinja" for name in ("report", "scorecard", "benchmark_sections")}
    expected |= {"rlhf_env/assets/__init__.py", "rlhf_env/assets/recipe.json"}
    for kind in ("reward", "task", "agent"):
        names = ("PACKAGE/NAME.py", "tests/test_NAME.py", "NAME.toml")
        expected |= {f"rlhf_env/new_plugins/templates/{kind}/{name}.template" for name in names}
    for name in ("PACKAGE/__init__.py", "PACKAGE/py.typed", "README.md", "gitignore", "pyproject.toml"):
        expected.add(f"rlhf_env/new_plugins/templates/any/{name}.template")
    names = ("README.md", "experiment.toml", "grid.toml", "overlap.py", "takes_up.py", "prompts.jsonl")
    expected |= {f"rlhf_env/new_experiment/templates/{name}.template" for name in names}
    for model in ("chitchat", "chitchat-judge"):
        expected |= {
            f"rlhf_env/assets/{model}/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")
        }
    assert expected <= FILES
    assert [name for name in FILES if name.endswith(".dist-info/licenses/LICENSE")]


def test_what_it_says_of_itself() -> None:
    about = distribution("rlhf-env")
    points = {(point.group, point.name, point.value) for point in about.entry_points}
    assert points == {
        ("console_scripts", "rlhf-env", "rlhf_env.cli.main:main"),
        ("rlhf_env", "tasks", "rlhf_env.envs"),
        ("rlhf_env", "agents", "rlhf_agents"),
        ("rlhf_env", "rewards", "rlhf_rewards"),
        ("rlhf_env", "annotators", "rlhf_env.feedback.asking"),
        ("rlhf_env", "learning", "rlhf_env.learning"),
    }
    assert about.metadata["License-Expression"] == "Apache-2.0"
    assert {"demo", "dev", "all"} <= set(about.metadata.get_all("Provides-Extra") or [])
