"""One name, one thing: no public name of a module's top level stands in two modules."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import rlhf_agents
import rlhf_rewards

import rlhf_env
from rlhf_env.lab.laws.records import MODULES

# What may, and why.
TWICE = {
    # A law is found by the name of its module.
    "LAW": {f"rlhf_env.lab.laws.{module}" for module in MODULES.values()},
    # A library's objectives are found by the name of its module.
    "objectives": {
        "rlhf_env.lab.studies.referee.ours",
        *(
            f"rlhf_env.lab.studies.referee.libraries.{module}"
            for module in ("areal", "openrlhf", "skyrl", "torchtune", "trl", "verl")
        ),
    },
    # pluggy finds the implementation of a hook by the name of its specification.
    "register_agents": {"rlhf_agents", "rlhf_env.plugins"},
    "register_annotators": {"rlhf_env.feedback.asking", "rlhf_env.plugins"},
    "register_pair_losses": {"rlhf_env.learning", "rlhf_env.plugins"},
    "register_rewards": {"rlhf_env.envs", "rlhf_rewards", "rlhf_env.plugins"},
    "register_stopping_rules": {"rlhf_env.learning", "rlhf_env.plugins"},
    "register_tasks": {"rlhf_env.envs", "rlhf_env.plugins"},
    "register_token_losses": {"rlhf_env.learning", "rlhf_env.plugins"},
    "register_trackers": {"rlhf_env.learning", "rlhf_env.plugins"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in (rlhf_env, rlhf_agents, rlhf_rewards):
        top = Path(str(package.__file__)).parent
        for file in sorted(top.rglob("*.py")):
            name = ".".join((top.name, *file.relative_to(top).with_suffix("").parts)).removesuffix(".__init__")
            yield name, ast.parse(file.read_text(encoding="utf-8"))


def defined(module: ast.Module) -> Iterator[str]:
    """The names of its classes, functions and constants; what it imports is another's."""
    for node in module.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))


def test_no_public_name_stands_in_two_modules() -> None:
    homes: dict[str, set[str]] = defaultdict(set)
    for module, source in modules():
        for name in defined(source):
            if not name.startswith("_"):
                homes[name].add(module)
    assert len(homes) > 800
    assert {name: found for name, found in homes.items() if len(found) > 1} == TWICE
