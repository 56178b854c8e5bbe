"""What is no number is refused, by name, wherever a setting is one: of every plugin and every dataclass of settings.

TOML can say nan, inf and true where a number is meant, and Python anything.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import math
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rlhf_env
from rlhf_env import plugins
from rlhf_env.errors import ConfigError
from rlhf_env.learning.configuration import from_table
from rlhf_env.plain_data import is_plain

BAD = (math.nan, math.inf, -math.inf, "x", True)
ENTRIES = [entry for entry in plugins.host() if entry.origin == plugins.OWN]
NO_SETTINGS = {
    "Item": "a row of the store",
    "Check": "a row of the store",
    "RewardTable": "what Failures, Limits and the plugin itself have checked",
}


def _settings_of_the_library() -> Iterator[type[Any]]:
    """Every dataclass(frozen=True, kw_only=True) of rlhf_env: that is how settings are written here."""
    package = Path(str(rlhf_env.__file__)).parent
    for file in sorted(package.rglob("*.py")):
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.ClassDef) and "dataclass(frozen=True, kw_only=True)" in map(
                ast.unparse, node.decorator_list
            ):
                module = ".".join(["rlhf_env", *file.relative_to(package).with_suffix("").parts])
                yield getattr(importlib.import_module(module), node.name)


CLASSES = [cls for cls in _settings_of_the_library() if cls.__name__ not in NO_SETTINGS]
NEEDED: dict[str, dict[str, Any]] = {
    "Grid": {"agents": {"ppo": {}}},
    "PageConfig": {"store": Path("s.db")},
    "Proxy": {"labels": 1, "layers": 1},
    "Climb": {"agent": {}, "updates": 1, "every": 1},
    "Size": {"hidden": 1, "layers": 1, "heads": 1, "intermediate": 1},
    "Course": {"updates": 1, "rows": 1, "lr": 1.0},
    "SimulatedAnnotator": {"gold": len},
    "Budget": {"updates": 1},
    "Change": {"claim": "c", "proxy": "p", "than": "q", "what": "gold", "expected": "better"},
}


def _numeric(hint: Any) -> bool:
    return hint in (int, float) or any(map(_numeric, typing.get_args(hint)))


def _wrong(hint: Any) -> list[Any]:
    """What a number of this annotation cannot be, within a list or a table where it holds numbers."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, tuple):
        return [[value] for value in _wrong(inner[0])]
    if origin is dict:
        return [{"key": value} for value in _wrong(inner[1])]
    return [value for value in BAD if not (isinstance(value, str) and str in inner)]


def _numbers(cls: type[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, a wrong value) for each number among the fields of a dataclass, and of those within it."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _numbers(hint, (*path, field.name))  # type: ignore[arg-type]
        elif _numeric(hint) and is_plain(hint):
            yield from (((*path, field.name), value) for value in _wrong(hint))


def _refused(named: str, build: Any, *arguments: Any, **settings: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        build(*arguments, **settings)
    found = [it for it in refused.value.problems if not it.endswith("is required")]
    assert any(re.search(rf"\b{named}\b", it) for it in found), found


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_a_dataclass_of_settings(cls: type[Any]) -> None:
    """By a file, and by Python."""
    needed = NEEDED.get(cls.__name__, {})
    cls(**needed)
    for path, value in _numbers(cls):
        table: Any = value
        for key in reversed(path):
            table = {key: table}
        _refused(path[-1], from_table, cls, {**needed, **table}, "here")
        if len(path) == 1:
            _refused(path[0], cls, **{**needed, path[0]: tuple(value) if isinstance(value, list) else value})


@pytest.mark.parametrize("entry", [it for it in ENTRIES if it.kind == "agent"], ids=lambda entry: entry.name)
def test_an_agents_settings(entry: plugins.Entry) -> None:
    config = entry.load().Config
    for path, value in _numbers(config):
        table: Any = value
        for key in reversed(path):
            table = {key: table}
        _refused(path[-1], from_table, config, table, "here")
        _refused(path[-1], from_table, config, {path[-1]: value}, "here")


@pytest.mark.parametrize(
    "entry", [it for it in ENTRIES if it.kind != "agent"], ids=lambda entry: f"{entry.kind}:{entry.name}"
)
def test_a_plugins_settings(entry: plugins.Entry) -> None:
    target = pytest.importorskip(entry.target.partition(":")[0]) and entry.load()
    hints = plugins._annotations(target)
    accepted = inspect.signature(target).parameters
    for name in accepted.keys() & hints.keys():
        if _numeric(hints[name]) and is_plain(hints[name]):
            for value in _wrong(hints[name]):
                _refused(name, plugins.call_with, target, {name: value}, {}, "here")


@pytest.mark.parametrize("value", [*BAD, [1.0]], ids=str)
def test_the_weight_of_a_reward(value: Any) -> None:
    from rlhf_env.envs.reward_tables import load_rewards
    from rlhf_env.envs.tasks import load_task

    _refused("weight", load_rewards, {"length": {"weight": value, "target": 3}}, load_task("count"))
    _refused("weight", load_rewards, {"kl": {"weight": value}}, load_task("count"), {"reference": object()})
