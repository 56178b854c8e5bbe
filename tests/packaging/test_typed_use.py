"""The types that others rely on: mypy --strict over code that uses the public API, and how much of it is `Any`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import rlhf_agents
import rlhf_rewards

import rlhf_env

HERE = Path(__file__).parent
USE = HERE / "typed_use.py"

mypy = pytest.importorskip("mypy", reason="the dev extra is not installed")


def checked(file: Path) -> subprocess.CompletedProcess[str]:
    """By the project's settings, with what its last `mypy` found out: to know nothing takes most of a minute."""
    words = [sys.executable, "-m", "mypy", str(file)]
    return subprocess.run(words, capture_output=True, text=True, cwd=HERE.parents[1], check=False)


def test_typed_code_that_uses_the_public_api_is_understood(tmp_path: Path) -> None:
    found = checked(USE)
    assert found.returncode == 0, found.stdout + found.stderr
    # And what is promised there is looked at: a lie is found.
    lie = tmp_path / "lie.py"
    lie.write_text(USE.read_text(encoding="utf-8").replace("assert_type(score, Score)", "assert_type(score, Episode)"))
    found = checked(lie)
    assert found.returncode == 1 and found.stdout.count("error:") == 1 and '"Score"' in found.stdout, found.stdout


def test_any_is_rare() -> None:
    """At most 8 in 1,000 lines, names for it (`JsonObject`, `HFModel`) counted once: where they are declared."""
    packages = (rlhf_env, rlhf_agents, rlhf_rewards)
    files = [file for package in packages for file in Path(str(package.__file__)).parent.rglob("*.py")]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    lines = sum(text.count("\n") for text in texts.values())
    found = {file.name: len(re.findall(r"\bAny\b", text)) for file, text in texts.items()}
    worst = sorted(found.items(), key=lambda item: -item[1])[:10]
    assert lines > 25_000 and sum(found.values()) <= 8 * lines / 1000, worst
