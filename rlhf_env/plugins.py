"""The plugin host: who registered which reward, agent, task or annotator under which name.

A plugin is a module with one or more hooks, reached through the entry point group `rlhf_env`:

    # pyproject.toml of any distribution           # haiku/__init__.py
    [project.entry-points.rlhf_env]                from rlhf_env.plugins import hookimpl
    haiku = "haiku"
                                                   @hookimpl
                                                   def register_rewards(register):
                                                       register("haiku", "haiku.reward:Haiku")

Discovery is global, activation explicit: an installed plugin does nothing until a run names it. Targets are strings
"module:Attr", so listing plugins imports none of them. The built-ins come in by the same door.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, Protocol, get_args

import pluggy

from rlhf_env.errors import ConfigError, MissingExtra, PluginError, UnknownName

GROUP = "rlhf_env"
Kind = Literal["reward", "agent", "task", "annotator"]
KINDS: tuple[Kind, ...] = get_args(Kind)

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Register(Protocol):
    """What a hook is handed: call it once per plugin."""

    def __call__(self, name: str, target: str | Callable[..., Any], *, needs: str = "") -> None:
        """`target` is "module:Attr" or the object itself; `needs` names the extra that must be installed."""


@hookspec
def register_rewards(register: Register) -> None:
    """Offer rewards: classes built with a run's parameters, or plain functions in TRL's convention."""


@hookspec
def register_agents(register: Register) -> None:
    """Offer agents: classes built with a `Setup` and their own `Config`."""


@hookspec
def register_tasks(register: Register) -> None:
    """Offer tasks: classes built with a run's parameters."""


@hookspec
def register_annotators(register: Register) -> None:
    """Offer annotators: classes built with their settings; one with a parameter `gold` is lent the gold reward."""


@dataclass(frozen=True)
class Entry:
    """One registered plugin. `origin` is the distribution (or script) that offers it."""

    kind: Kind
    name: str
    target: str | Callable[..., Any]
    origin: str
    needs: str = ""

    def load(self) -> Any:
        """Import and return the target."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
        except ModuleNotFoundError as error:
            if self.needs and not (error.name or "").startswith(module.partition(".")[0]):
                raise MissingExtra(f"{error.name} (needed by the {self.kind} {self.name!r})", self.needs) from error
            raise PluginError(f"{self._who()} cannot be imported: {error}") from error
        except Exception as error:  # a plugin may raise anything while it is imported
            raise PluginError(f"{self._who()} cannot be imported: {type(error).__name__}: {error}") from error

    def _who(self) -> str:
        return f"{self.kind} {self.name!r} of {self.origin} ({self.target})"


@dataclass(frozen=True)
class Failure:
    """An entry point that could not be loaded; it costs nobody else anything."""

    origin: str
    error: str


class PluginHost:
    """All plugins of one process. `entries` are loaded one by one, so one that breaks is listed and passed over."""

    def __init__(self, points: Iterable[EntryPoint]) -> None:
        self._hooks = pluggy.PluginManager(GROUP)
        self._hooks.add_hookspecs(importlib.import_module(__name__))
        self._entries: dict[tuple[Kind, str], list[Entry]] = {}
        self.failures: list[Failure] = []
        for point in points:
            origin = point.dist.name if point.dist else point.value
            try:
                self.add_module(point.load(), origin)
            except Exception as error:
                self.failures.append(Failure(origin, f"{point.value}: {type(error).__name__}: {error}"))

    def add_module(self, module: object, origin: str) -> None:
        """Take in the hooks of one plugin module (or of any object with hook methods)."""
        if self._hooks.is_registered(module):
            return
        self._hooks.register(module)
        for kind in KINDS:
            others = [plugin for plugin in self._hooks.get_plugins() if plugin is not module]
            caller = self._hooks.subset_hook_caller(f"register_{kind}s", others)
            caller(register=functools.partial(self.add, kind, origin=origin))

    def add(
        self, kind: Kind, name: str, target: str | Callable[..., Any], *, origin: str = "this process", needs: str = ""
    ) -> None:
        """Register one plugin. Two of one name from different origins are both kept, and refused when used."""
        if not name or not isinstance(name, str):
            raise PluginError(f"a {kind} of {origin} has no usable name: {name!r}")
        if isinstance(target, str) and ":" not in target:
            raise PluginError(f"{kind} {name!r} of {origin}: target {target!r} is not of the form 'module:Attr'")
        rivals = [entry for entry in self._entries.get((kind, name), []) if entry.origin != origin]
        self._entries[kind, name] = [*rivals, Entry(kind, name, target, origin, needs)]

    def __iter__(self) -> Iterator[Entry]:
        """Every entry, by kind and name."""
        for _, entries in sorted(self._entries.items(), key=lambda item: (KINDS.index(item[0][0]), item[0][1])):
            yield from entries

    def names(self, kind: Kind) -> list[str]:
        return sorted(name for of_kind, name in self._entries if of_kind == kind)

    def conflicts(self) -> list[str]:
        """One sentence for each name that more than one distribution claims."""
        return [_conflict(entries) for entries in self._entries.values() if len(entries) > 1]

    def load(self, kind: Kind, name: str) -> Any:
        """The registered object. Raises UnknownName, PluginError (conflict, import) or MissingExtra."""
        entries = self._entries.get((kind, name))
        if not entries:
            raise UnknownName(kind, name, self.names(kind))
        if len(entries) > 1:
            raise PluginError(_conflict(entries))
        return entries[0].load()


def _conflict(entries: list[Entry]) -> str:
    owners = " and ".join(entry.origin for entry in entries)
    return f"{entries[0].kind} {entries[0].name!r} is offered by {owners}: uninstall one of them, or rename its plugin"


@functools.cache
def host() -> PluginHost:
    """The plugins installed in this process, discovered once."""
    return PluginHost(entry_points(group=GROUP))


def register_reward(name: str, target: str | Callable[..., Any]) -> None:
    """Make a reward known by name in this process, as an installed plugin would be."""
    host().add("reward", name, target)


def register_agent(name: str, target: str | Callable[..., Any]) -> None:
    """Make an agent known by name in this process."""
    host().add("agent", name, target)


def register_task(name: str, target: str | Callable[..., Any]) -> None:
    """Make a task known by name in this process."""
    host().add("task", name, target)


def register_annotator(name: str, target: str | Callable[..., Any]) -> None:
    """Make an annotator known by name in this process."""
    host().add("annotator", name, target)


def build(
    kind: Kind, name: str, parameters: dict[str, Any], provided: dict[str, Any] | None = None, *, where: str = ""
) -> Any:
    """Load the plugin and call it with `parameters`.

    `provided` are things of the run (a frozen reference policy, the tokenizer): each is passed only to a plugin that
    has a parameter of that name which the user left out. Raises ConfigError that names the plugin and the parameter.
    """
    factory = host().load(kind, name)
    return call_with(factory, parameters, provided or {}, where or f"{kind} {name!r}")


def call_with(factory: Callable[..., Any], parameters: dict[str, Any], provided: dict[str, Any], where: str) -> Any:
    """`factory(**parameters)` with what it asks for of `provided`, and errors that say which parameter is wrong."""
    import inspect

    from rlhf_env.errors import did_you_mean

    accepted = inspect.signature(factory).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    unknown = [] if open_ended else [key for key in parameters if key not in accepted]
    if unknown:
        known = [key for key in accepted if key not in provided]
        raise ConfigError(*(f"{where}: no setting {key!r}{did_you_mean(key, known)}" for key in unknown))
    filled = {key: value for key, value in provided.items() if key in accepted and key not in parameters}
    missing = [
        key
        for key, p in accepted.items()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and key not in parameters
        and key not in filled
    ]
    if missing:
        raise ConfigError(*(f"{where}: the setting {key!r} is required" for key in missing))
    try:
        return factory(**parameters, **filled)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: {error}") from error
