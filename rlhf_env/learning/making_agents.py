"""Agents by name and settings, as a table [agent] has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from inspect import signature
from typing import Any

from rlhf_env import plugins
from rlhf_env.errors import TRACEBACK, ConfigError, PluginError, Problem, RlhfEnvError, under
from rlhf_env.learning.agent import Agent, Setup
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.pretraining_mix import mixing
from rlhf_env.own_code import OwnCode, error_in_words, label_of
from rlhf_env.types import JsonView

_METHODS = ("begin", "act", "update", "state_dict", "load_state_dict")


def make_agent(spec: str | JsonView, setup: Setup) -> Agent:
    """An agent by name and settings: `{"name": "ppo", "lr": 1e-4}`. One that wraps another has it in `agent`:
    `{"name": "curriculum", "levels": [1, 2], "agent": {"name": "ppo"}}`.

    Raises ConfigError for what does not fit.
    """
    return agent_factory(spec)(setup)


def agent_factory(spec: Any, where: str = "[agent]") -> Callable[[Setup], Agent]:
    """What builds the agent from what a run lends. Names and settings, a wrapped agent's too, are checked here."""
    table = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = plugins.name_in(table, "agent")
    if name is None:
        raise ConfigError(Problem(f"{where} needs a name", ("name",)))
    with under("name"):
        target = plugins.host().load("agent", name)
    is_ours = plugins.host().entry("agent", name).origin == plugins.OWN
    code = name if isinstance(name, OwnCode) else None
    if code is not None:
        name = code.label
        if not (callable(target) and is_dataclass(getattr(target, "Config", None))):
            raise plugins.wrong_kind("agent", code, target)
    if not is_dataclass(getattr(target, "Config", None)):
        said = f"agent {name!r}: {target!r} has no dataclass `Config`, as an agent plugin must"
        raise ConfigError(Problem(said, ("name",)))
    wraps = "agent" in signature(target).parameters
    inner = table.pop("agent", None) if wraps else None
    problems: list[str] = []
    config = wrapped = None
    try:
        config = from_table(target.Config, table, f"{where} {name}")
    except ConfigError as error:
        problems.extend(error.problems)
    try:
        if wraps and inner is None:
            raise ConfigError(f'{where} {name} wraps another agent: agent = {{ name = "ppo" }}, with its settings')
        with under("agent"):
            wrapped = agent_factory(inner, f"{where} {name}: agent") if wraps else None
    except ConfigError as error:
        problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)

    def make(setup: Setup) -> Agent:
        inside = () if wrapped is None else (wrapped(setup),)
        try:
            made: Agent = target(mixing(setup), config, *inside)
        except ConfigError as error:
            error.found_in(f"{where} {name}")
            raise
        except (RlhfEnvError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            if is_ours:  # a fault of this project's, which keeps its traceback
                raise
            said = f"{where} {name} raised {error_in_words(error)} while it was made"
            raise PluginError(f"{said}: {TRACEBACK}=1 shows the whole traceback") from error
        if code is not None and not all(callable(getattr(made, method, None)) for method in _METHODS):
            raise plugins.wrong_kind("agent", code, made)
        return made

    return make


def learns_off_policy(table: object) -> bool:
    """Whether the agent of a table learns rightly from texts that a copy of its policy in low precision wrote.

    So do controls, which do not learn; who wraps another agent does as that one does. Raises UnknownName.
    """
    while isinstance(table, Mapping):
        target = plugins.host().load("agent", plugins.name_in(dict(table), "agent") or "")
        if getattr(target, "off_policy", False) is True or getattr(target, "trains", True) is False:
            return True
        table = table.get("agent")
    return False


def imitates(table: object) -> bool:
    """Whether the agent of a table, or the one that it wraps, learns from given answers. Raises UnknownName."""
    while isinstance(table, Mapping):
        target = plugins.host().load("agent", plugins.name_in(dict(table), "agent") or "")
        if getattr(target, "imitates", False) is True:
            return True
        table = table.get("agent")
    return False


def cannot_shard(table: object) -> str:
    """Which agent of a table, or one that it wraps, cannot train a model that is divided among processes, and why; ""
    if it can. Raises UnknownName."""
    while isinstance(table, Mapping):
        name = plugins.name_in(dict(table), "agent") or ""
        if why := getattr(plugins.host().load("agent", name), "cannot_shard", ""):
            return f"{label_of(dict(table), 'agent')} {why}"
        table = table.get("agent")
    return ""


def agent_trains(table: JsonView) -> bool:
    """Whether the agent of a table trains. False where it is a control, and where nobody knows it."""
    try:
        target = plugins.host().load("agent", plugins.name_in(dict(table), "agent") or "")
    except ConfigError:
        return False
    return bool(getattr(target, "trains", True))
