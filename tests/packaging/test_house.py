"""Rules of the house that no linter knows: what may load what, what a command costs, what the files agree on."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlhf_env

HOUSE = Path(__file__).parents[2]
PACKAGE = Path(str(rlhf_env.__file__)).parent
HEAVY = ("torch", "transformers", "stable_baselines3", "matplotlib", "rich")

# Import it all, then name what came along that should not have.
WITHOUT_TORCH = """
import importlib, pkgutil, sys
import rlhf_env.envs, rlhf_env.plugins, rlhf_env.types, rlhf_env.errors, rlhf_env.testing
for module in pkgutil.iter_modules(rlhf_env.envs.__path__, "rlhf_env.envs."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as missing:  # a bridge to a package that is not installed
        assert missing.name in ("reasoning_gym", "textarena"), missing
sys.exit(" ".join({"torch", "transformers"} & set(sys.modules)) or 0)
"""

LIST_PLUGINS = f"""
import contextlib, io, sys, time
with contextlib.redirect_stdout(io.StringIO()) as listed:
    from rlhf_env.cli.main import app
    app(["plugins"], standalone_mode=False)
assert "bradley_terry" in listed.getvalue() and "failed:" not in listed.getvalue(), listed.getvalue()
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, f"listing plugins loaded {{loaded}}"
print(time.process_time())
"""

WHAT_NO_COMMAND_CAN_AVOID = "import gymnasium, typer, time; print(time.process_time())"


def _python(code: str) -> str:
    finished = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_environments_and_plugins_load_without_torch() -> None:
    _python(WITHOUT_TORCH)


@pytest.mark.parametrize(
    "path", [PACKAGE / "plugins.py", *sorted((PACKAGE / "envs").glob("*.py"))], ids=lambda p: p.name
)
def test_environments_and_plugins_never_name_torch(path: Path) -> None:
    """Not in a function either: an environment steps without torch."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    # The one bridge to the library's tokenizers, most of which work without torch: it is crossed in its functions.
    heavy = ("torch",) if path.name == "transformers_tokenizer.py" else ("torch", "transformers")
    assert not {name for name in imported if name.partition(".")[0] in heavy}


def test_listing_plugins_is_quick_and_loads_no_torch() -> None:
    """In processor time and against what it cannot avoid: a busy machine must not fail this.

    It takes 2.2 times that on a quiet machine and took 3.1 on one busy with another worker's tests; torch is 15 times.
    """
    listing = min(float(_python(LIST_PLUGINS)) for _ in range(3))
    unavoidable = min(float(_python(WHAT_NO_COMMAND_CAN_AVOID)) for _ in range(3))
    assert listing < 6 * unavoidable, (
        f"{listing:.2f} s of processor time, importing gymnasium and typer {unavoidable:.2f}"
    )


def test_one_version() -> None:
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == rlhf_env.__version__ == importlib.metadata.version("rlhf-env")
    changelog = (HOUSE / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)[0] == rlhf_env.__version__


def _texts() -> Iterator[tuple[Path, str]]:
    """Every text file of the project, without what builds and runs leave behind."""
    left_behind = {"build", "dist", "runs", "__pycache__"}
    for place, folders, names in os.walk(HOUSE):  # Path.walk is from Python 3.12 on
        folders[:] = [name for name in folders if name not in left_behind and (name == ".ci" or name[0] != ".")]
        for name in names:
            if name == ".git":  # in a work tree of git it is a file, which has the path of the repository
                continue
            file = Path(place, name)
            try:
                yield file, file.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # weights, pictures
                continue


def test_the_glossary_names_modules_that_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)`", (HOUSE / "docs" / "glossary.md").read_text(encoding="utf-8"))
    # The package may be installed elsewhere than beside these tests: its modules are looked for where it is.
    installed = PACKAGE.parent
    missing = [
        name for name in named if not ((HOUSE / name).is_file() or (installed / name.removeprefix("agents/")).is_file())
    ]
    assert len(named) > 40 and missing == []


def test_chosen_is_the_preferred_answer_and_nothing_else() -> None:
    """A function or class that binds the name `chosen` has to know of something rejected, too."""
    scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
    found = []
    for path, text in _texts():
        if path.suffix != ".py":
            continue
        tree = ast.parse(text)
        for node in ast.walk(tree):
            stored = isinstance(node, ast.Name) and node.id == "chosen" and isinstance(node.ctx, ast.Store)
            if stored or (isinstance(node, ast.arg) and node.arg == "chosen"):
                line = node.lineno  # type: ignore[attr-defined]
                around = [scope for scope in ast.walk(tree) if isinstance(scope, scopes)]
                around = [scope for scope in around if scope.lineno <= line <= (scope.end_lineno or line)]
                innermost = max(around, key=lambda scope: scope.lineno, default=tree)
                if "reject" not in ast.unparse(innermost):
                    found.append(f"{path.relative_to(HOUSE)}, line {line}")
    assert not found


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    home = re.compile(r"(?<![\w.:/\])}-])/(?:home|root|work|Users|mnt|tmp)/\w|\b[A-Z]:\\Users")
    found = [f"{path.relative_to(HOUSE)}: {hit.group()}" for path, text in _texts() for hit in home.finditer(text)]
    assert not found
