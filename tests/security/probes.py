"""What the probes share: the code of the three packages as it stands there, and how a command ends."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import rlhf_agents
import rlhf_rewards

import rlhf_env
from rlhf_env.cli import main as cli

PACKAGES = [Path(str(package.__file__)).parent for package in (rlhf_env, rlhf_agents, rlhf_rewards)]


# Read when a test asks, not when the tests are collected: every process that collects would read and keep them all.
@functools.cache
def sources() -> dict[Path, ast.Module]:
    """Every file of the three packages, read."""
    return {file: ast.parse(file.read_bytes()) for package in PACKAGES for file in package.rglob("*.py")}


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    """(file, node) of the three packages."""
    return ((file, node) for file, tree in sources().items() for node in ast.walk(tree))


@functools.cache
def calls() -> list[tuple[Path, ast.Call, str]]:
    """(file, call, what is called, as it stands there) of the three packages."""
    return [(file, node, ast.unparse(node.func)) for file, node in nodes() if isinstance(node, ast.Call)]


@functools.cache
def imports() -> list[tuple[str, str]]:
    """(file, module) of the three packages."""
    found = [(file.name, node.module or "") for file, node in nodes() if isinstance(node, ast.ImportFrom)]
    return found + [(file.name, it.name) for file, node in nodes() if isinstance(node, ast.Import) for it in node.names]


def exit_of(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rlhf-env", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)
