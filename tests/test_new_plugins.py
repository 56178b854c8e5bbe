"""What `rlhf-env new` writes, and what it refuses. That it works when it is installed: tests/packaging."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from rlhf_env.errors import ConfigError, DiskRefused
from rlhf_env.new_plugins import write_plugin
from rlhf_env.new_plugins.distribution import WrittenKind

KINDS = get_args(WrittenKind)
HOUSE = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_distribution(kind: WrittenKind, tmp_path: Path) -> None:
    made = write_plugin(kind, "my_one2", tmp_path)
    package = f"rlhf_{kind}_my_one2"
    assert made.folder == tmp_path / package
    files = {str(path.relative_to(made.folder)) for path in made.folder.rglob("*") if path.is_file()}
    assert files == {
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "my_one2.toml",
        f"{package}/__init__.py",
        f"{package}/py.typed",
        f"{package}/my_one2.py",
        "tests/test_my_one2.py",
    }
    assert made.code.is_file()
    project = tomllib.loads((made.folder / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["name"] == package.replace("_", "-")
    assert project["project"]["entry-points"]["rlhf_env"] == {"my_one2": package}
    kinds_class = f"MyOne2{kind.capitalize()}"
    assert (
        f'register("my_one2", "{package}.my_one2:{kinds_class}")' in (made.folder / package / "__init__.py").read_text()
    )
    classes = [node.name for node in ast.parse(made.code.read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    assert classes == [kinds_class]
    texts = [path.read_text("utf-8") for path in made.folder.rglob("*") if path.is_file()]
    assert not [text for text in texts if "$" in text or "NAME" in text or "PACKAGE" in text], "all is filled in"


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_ends_in_its_kind_says_so_once(kind: WrittenKind, tmp_path: Path) -> None:
    assert f"class My{kind.capitalize()}:" in write_plugin(kind, f"my_{kind}", tmp_path).code.read_text("utf-8")


def test_what_is_written_is_as_clean_as_the_house(tmp_path: Path) -> None:
    for kind in KINDS:
        write_plugin(kind, "short_words", tmp_path)
    rules = ["--config", HOUSE / "pyproject.toml", "--no-cache"]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *rules, tmp_path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("reward", "My-Reward", "'My-Reward' cannot name a Python module: .*: did you mean 'my_reward'?"),
        ("reward", "9lives", "did you mean 'lives'?"),
        ("reward", "class", "and no keyword$"),
        ("reward", "", "'' cannot name"),
        ("reward", "../x", "did you mean 'x'?"),
        ("reward", "größe", "cannot name"),
        ("reward", "x_", "did you mean 'x'?"),
        ("reward", "a" * 61, "at most 60"),
        ("reward", "length", "'length' is a reward of rlhf-env already"),
        ("task", "count", "'count' is a task of rlhf-env already"),
        ("agent", "ppo", "'ppo' is an agent of rlhf-env already"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_is_written(
    kind: WrittenKind, name: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        write_plugin(kind, name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_name_of_another_kind_is_free(tmp_path: Path) -> None:
    assert write_plugin("reward", "ppo", tmp_path).folder.is_dir()


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    code = write_plugin("reward", "polite", tmp_path).code
    code.write_text("mine")
    (tmp_path / "rlhf_task_polite").symlink_to("nowhere")
    for kind in ("reward", "task"):
        with pytest.raises(ConfigError, match=f"rlhf_{kind}_polite is there already, and stays as it is"):
            write_plugin(kind, "polite", tmp_path)  # type: ignore[arg-type]
    assert code.read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


def test_where_nothing_can_be_written_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskRefused, match="cannot be written"):
        write_plugin("reward", "polite", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_its_commands_can_be_pasted_from_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [line.partition("#")[0].rstrip() for line in write_plugin("task", "sorting", "my plugins").commands()]
    assert commands == [
        "pip install -e './my plugins/rlhf_task_sorting[test]'",
        "rlhf-env plugins task:sorting",
        "rlhf-env check task:sorting",
        "python -m pytest 'my plugins/rlhf_task_sorting'",
        "rlhf-env train 'my plugins/rlhf_task_sorting/sorting.toml'",
    ]
