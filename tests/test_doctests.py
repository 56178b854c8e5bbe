"""The examples in docstrings are true."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import rlhf_agents
import rlhf_rewards

import rlhf_env

PACKAGES = (rlhf_env, rlhf_agents, rlhf_rewards)


def modules_with_examples() -> list[str]:
    found = []
    for package in PACKAGES:
        root = Path(str(package.__file__)).parent
        for file in sorted(root.rglob("*.py")):
            if ">>> " in file.read_text(encoding="utf-8"):
                found.append(".".join([package.__name__, *file.relative_to(root).with_suffix("").parts]))
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of(name: str) -> None:
    done = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert done.attempted > 0 and done.failed == 0


def test_there_are_examples() -> None:
    assert {"rlhf_env.learning.functional", "rlhf_env.lab.statistics"} <= set(modules_with_examples())
