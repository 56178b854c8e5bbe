"""The plugin host: who registered which plugin under which name.

Plugins are rewards, agents, tasks, annotators, kinds of judgement, metrics, trackers, stopping rules, and losses of
tokens and of pairs.

A plugin is a module with one or more hooks, reached through the entry point group `rlhf_env`:

    # pyproject.toml of any distribution           # haiku/__init__.py
    [project.entry-points.rlhf_env]                from rlhf_env.plugins import hookimpl
    haiku = "haiku"
                                                   @hookimpl
                                                   def register_rewards(register):
                                                       register("haiku", "haiku.reward:Haiku")

What one experiment alone needs takes no distribution: its file of settings names the code itself (`own_code`).

Discovery is global, activation explicit: an installed plugin does nothing until a run names it. Targets are strings
"module:Attr", so listing plugins imports none of them. The built-ins come in by the same door.

The environment variable `RLHF_ENV_PLUGINS` says who is let in, by the names of distributions or entry points: `a,b`
only these, `-a,-b` all but these, empty nobody (`rlhf-env --no-plugins`). The built-ins always are. A module may say
for which version of these hooks it was made, `RLHF_ENV_API = 1`; one of another version is not asked.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, version
from types import ModuleType
from typing import Any, Literal, Protocol, get_args

import pluggy

from rlhf_env import own_code
from rlhf_env.errors import (
    ConfigError,
    DataError,
    MissingExtra,
    PluginError,
    Problem,
    RlhfEnvError,
    UnknownName,
    did_you_mean,
    under,
)
from rlhf_env.own_code import OwnCode
from rlhf_env.plugin_faults import fault_of_group, fault_of_hooks, fault_of_version
from rlhf_env.time_limit import TimeIsOver, at_most
from rlhf_env.types import JsonObject
from rlhf_env.working_folder import same_folder

GROUP = "rlhf_env"
OWN = "rlhf-env"  # the distribution of the built-ins
API = 1  # of the hooks below
CHOICE = "RLHF_ENV_PLUGINS"
PATIENCE = 3.0  # seconds that one plugin module may take to be imported: everybody waits for it at every command
PluginKind = Literal[
    "reward", "agent", "task", "annotator", "judgement", "metric", "tracker", "stopping rule", "token loss", "pair loss"
]
PLUGIN_KINDS: tuple[PluginKind, ...] = get_args(PluginKind)
YOUR_OWN = "your own code"  # the origin of what a file of settings names by where it is
# Kinds that people write for an experiment of theirs, and how such code looks.
_OF_ONES_OWN: Mapping[PluginKind, str] = {
    "reward": "a function of lists, NAME(prompts, completions, **columns), that returns a number for each text, "
    "or a class whose objects are called with episodes (rlhf_env.Reward)",
    "task": "a class, or a function that makes it, with `size` and `prompt(index, options)` (rlhf_env.Task)",
    "agent": "a class NAME(setup, config) with a dataclass `Config` and begin, act, update, state_dict and "
    "load_state_dict (rlhf_env.Agent)",
    "annotator": "a class, or a function that makes it, with the methods of an annotator",
    "metric": "an object rlhf_env.Metric",
    "stopping rule": "a class whose objects are called with a row and have state_dict() and load_state_dict()",
    "tracker": "a class whose objects have log(row) and close()",
    "token loss": "a function NAME(tokens, **settings) that returns the loss of each token (docs/losses.md)",
    "pair loss": "a function NAME(pairs, **settings) that returns the loss of each pair (docs/losses.md)",
}

_METHODS: Mapping[PluginKind, Sequence[str]] = {
    "agent": ("begin", "act", "update", "state_dict", "load_state_dict"),
    "task": ("size", "prompt"),
}

# Where a file of settings names such code; not of kinds that most people have no code of.
_TABLES_OF_ONES_OWN: Mapping[PluginKind, str] = {
    "reward": "[rewards.NAME]",
    "task": "[task]",
    "agent": "[agent]",
    "annotator": "annotator:",
}

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Register(Protocol):
    """The function that a plugin hook receives; call it once for each plugin that the package offers."""

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


@hookspec
def register_judgements(register: Register) -> None:
    """Offer kinds of judgement: each a `rlhf_env.feedback.kinds.JudgementKind` of the name it is registered under."""


@hookspec
def register_metrics(register: Register) -> None:
    """Offer metrics: each a `rlhf_env.lab.evaluation.metric.Metric`, measured where an experiment names it."""


@hookspec
def register_trackers(register: Register) -> None:
    """Offer trackers: classes built with their settings; a run lends its `folder` and its `experiment`."""


@hookspec
def register_stopping_rules(register: Register) -> None:
    """Offer stopping rules: classes built with their settings."""


@hookspec
def register_token_losses(register: Register) -> None:
    """Offer token losses: functions of `rlhf_env.learning.losses.declaring.TokenBatch` and of their settings."""


@hookspec
def register_pair_losses(register: Register) -> None:
    """Offer pair losses: functions of `rlhf_env.learning.losses.declaring.Pairs` and of their settings."""


def plural(kind: str) -> str:
    """Several plugins of a kind: "rewards", "token losses"."""
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


def hook_of(kind: PluginKind) -> str:
    """The name of the hook that offers plugins of this kind."""
    return f"register_{plural(kind).replace(' ', '_')}"


@dataclass(frozen=True)
class Entry:
    """One registered plugin. `origin` is the distribution (or script) that offers it."""

    kind: PluginKind
    name: str
    target: str | Callable[..., Any]
    origin: str
    needs: str = ""

    def load(self) -> Any:
        """Import and return the target."""
        if isinstance(self.target, OwnCode):
            return own_code.load_code(self.target)
        target = self._imported() if isinstance(self.target, str) else self.target
        if self.origin != OWN:
            own_code.is_of_plugin(target)
        return target

    def _imported(self) -> Any:
        assert isinstance(self.target, str)
        module, _, attribute = self.target.partition(":")
        try:
            with same_folder(self._who()):
                return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
        except ModuleNotFoundError as error:
            if self.needs and not (error.name or "").startswith(module.partition(".")[0]):
                raise MissingExtra(f"{error.name} (needed by the {self.kind} {self.name!r})", self.needs) from error
            raise PluginError(f"{self._who()} cannot be imported: {error}") from error
        except (Exception, SystemExit) as error:  # a plugin may raise anything while it is imported
            raise PluginError(f"{self._who()} cannot be imported: {type(error).__name__}: {error}") from error

    def _who(self) -> str:
        return f"{self.kind} {self.name!r} of {self.origin} ({self.target})"


def wrong_kind(kind: PluginKind, code: OwnCode, what: object) -> PluginError:
    """That code of one's own is no plugin of the kind, and how one looks."""
    name = getattr(what, "__name__", "")
    of_kind = "module" if isinstance(what, ModuleType) else "class"
    is_what = f"the {of_kind} {name}" if isinstance(what, (ModuleType, type)) else _a(type(what).__name__)
    said = f"{code.shown()} is {is_what}, and {_a(kind)} is {_OF_ONES_OWN[kind]}"
    needed = _METHODS.get(kind, ())
    lacks = [method for method in needed if not hasattr(what, method)]
    if lacks and len(lacks) < len(needed):
        said += f"; what it lacks: {', '.join(lacks)}"
    return PluginError(Problem(said, (own_code.KEY,)))


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def name_in(table: JsonObject, kind: PluginKind, default: object = None, *, key: str | None = "name") -> str | None:
    """Take out of a plugin's table which one it is: a registered name, as its `key` says (None: no entry does), or code
    of one's own, as `function` says. None where neither does. Raises ConfigError where both do, or where `function` is
    no string."""
    named, function = table.pop(key, None) if key else None, table.pop(own_code.KEY, None)
    if function is None:
        named = default if named is None else named
        return named if isinstance(named, str) else None
    if not isinstance(function, str):
        raise ConfigError(Problem(f"function must be {own_code.FORM}, got {function!r}", (own_code.KEY,)))
    if named is not None:
        said = f"{key} and function are both set: {key} is that of a registered {kind}, and function your own code"
        raise ConfigError(Problem(f"{said}: leave one out", (own_code.KEY,)))
    return OwnCode(function)


@dataclass(frozen=True)
class Failure:
    """An entry point that could not be loaded; it costs nobody else anything."""

    origin: str
    error: str


class PluginHost:
    """All plugins of one process. `points` are loaded one by one, so one that breaks is listed and passed over.

    `of_all_groups`: the entry points of whatever is installed; those of a group that is almost ours are failures.
    `choice`: as RLHF_ENV_PLUGINS says; None lets everybody in. `left_out`: whom it kept out, who was not imported.
    """

    def __init__(
        self, points: Iterable[EntryPoint], *, of_all_groups: Iterable[EntryPoint] = (), choice: str | None = None
    ) -> None:
        self._hooks = pluggy.PluginManager(GROUP)
        self._hooks.add_hookspecs(importlib.import_module(__name__))
        self._entries: dict[tuple[PluginKind, str], list[Entry]] = {}
        self.failures: list[Failure] = []
        self.left_out: list[str] = []
        self._others: dict[str, EntryPoint] = {}
        for point in self._let_in(list(points), choice):
            origin = _origin(point)
            if origin != OWN:
                self._others[origin] = point
            try:
                with at_most(PATIENCE), same_folder(f"the plugin {origin}"):
                    module = point.load()
                    if (made_for := getattr(module, "RLHF_ENV_API", API)) != API:
                        raise PluginError(f"made for version {made_for!r} of the plugin hooks, and this is {API}")
                    self.add_module(module, origin)
                    if fault := fault_of_hooks(module, self._marked(module), [hook_of(kind) for kind in PLUGIN_KINDS]):
                        raise PluginError(fault)
            except (Exception, SystemExit) as error:
                self.failures.append(Failure(origin, f"{point.value}: {type(error).__name__}: {error}"))
            except TimeIsOver:
                slow = f"not imported within {PATIENCE:g} s: it should import what is heavy when a plugin is built"
                self.failures.append(Failure(origin, f"{point.value}: {slow}"))

        groups = {(_origin(point), fault_of_group(point.group, GROUP)) for point in of_all_groups}
        self.failures += [Failure(origin, fault) for origin, fault in sorted(groups) if fault and choice is None]

    def misfits(self) -> list[Failure]:
        """The distributions that ask for another version of this one. They are used all the same."""
        faults = {name: fault_of_version(point.dist, OWN, version(OWN)) for name, point in self._others.items()}
        return [Failure(name, fault) for name, fault in faults.items() if fault]

    def versions_of(self, words: Collection[str]) -> dict[str, str]:
        """The version of each other distribution that offers a plugin of which the name is among `words`."""
        offering = {entry.origin for entry in self if entry.name in words}
        dists = {name: point.dist for name, point in self._others.items() if name in offering}
        return {name: dist.version for name, dist in sorted(dists.items()) if dist is not None}

    def _let_in(self, points: Sequence[EntryPoint], choice: str | None) -> Iterator[EntryPoint]:
        words = [word.strip() for word in (choice or "").split(",") if word.strip()]
        wanted = {_canonical(word) for word in words if word[0] != "-"}
        unwanted = {_canonical(word[1:]) for word in words if word[0] == "-"}
        known = {_canonical(name) for point in points for name in (point.name, _origin(point))}
        for name in sorted((wanted | unwanted) - known):
            self.failures.append(Failure(CHOICE, f"{choice!r} names {name!r}, and no such plugin is installed"))
        everybody = choice is None or (bool(unwanted) and not wanted)
        for point in points:
            names = {_canonical(point.name), _canonical(_origin(point))}
            if _origin(point) == OWN or (not names & unwanted and (everybody or names & wanted)):
                yield point
            else:
                self.left_out.append(_origin(point))

    def add_module(self, module: object, origin: str) -> None:
        """Take in the hooks of one plugin module (or of any object with hook methods)."""
        if self._hooks.is_registered(module):
            return
        self._hooks.register(module)
        for kind in PLUGIN_KINDS:
            others = [plugin for plugin in self._hooks.get_plugins() if plugin is not module]
            caller = self._hooks.subset_hook_caller(hook_of(kind), others)
            caller(register=functools.partial(self.add, kind, origin=origin))

    def _marked(self, module: object) -> list[str]:
        return [caller.name for caller in self._hooks.get_hookcallers(module) or []]

    def add(
        self,
        kind: PluginKind,
        name: str,
        target: str | Callable[..., Any],
        *,
        origin: str = "this process",
        needs: str = "",
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
        for _, entries in sorted(self._entries.items(), key=lambda item: (PLUGIN_KINDS.index(item[0][0]), item[0][1])):
            yield from entries

    def names(self, kind: PluginKind) -> list[str]:
        return sorted(name for of_kind, name in self._entries if of_kind == kind)

    def conflicts(self) -> list[str]:
        """One sentence for each name that more than one distribution claims."""
        return [_conflict(entries) for entries in self._entries.values() if len(entries) > 1]

    def load(self, kind: PluginKind, name: str) -> Any:
        """The registered object. Raises UnknownName, PluginError (conflict, import) or MissingExtra."""
        return self.entry(kind, name).load()

    def entry(self, kind: PluginKind, name: str) -> Entry:
        """Who offers it, not imported; of `OwnCode`, that code. Raises UnknownName, or PluginError for a conflict."""
        if isinstance(name, OwnCode):
            return Entry(kind, name.label, name, YOUR_OWN)
        entries = self._entries.get((kind, name))
        if not entries:
            absent = self.absent()
            known = self.names(kind)
            if kind in _TABLES_OF_ONES_OWN and "did you mean" not in did_you_mean(name, known):
                absent.append(
                    f'code of your own in a file is named by it: {_TABLES_OF_ONES_OWN[kind]} function = "FILE.py:NAME" '
                    f"(Python: rlhf_env.register_{kind}; to share it: a distribution, which `rlhf-env new` begins)"
                )
            raise UnknownName(kind, name, known, absent)
        if len(entries) > 1:
            raise PluginError(_conflict(entries))
        return entries[0]

    def absent(self) -> list[str]:
        """Of the installed distributions, those that offer nothing, and why: what a name nobody knows may be of."""
        absent = [f"failed to load: {one.origin} ({one.error})" for one in self.failures if one.origin != CHOICE]
        absent += [f"of another version: {one.origin} ({one.error})" for one in self.misfits()]
        return [*absent, *([f"kept out by {CHOICE}: {', '.join(self.left_out)}"] if self.left_out else [])]


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def _canonical(name: str) -> str:
    """As installers compare names of distributions (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _conflict(entries: list[Entry]) -> str:
    owners = " and ".join(entry.origin for entry in entries)
    return f"{entries[0].kind} {entries[0].name!r} is offered by {owners}: uninstall one of them, or rename its plugin"


@functools.cache
def host() -> PluginHost:
    """The plugins installed in this process, discovered once."""
    installed = entry_points()
    all_of_them = [point for group in installed.groups for point in installed.select(group=group)]
    return PluginHost(installed.select(group=GROUP), of_all_groups=all_of_them, choice=os.environ.get(CHOICE))


def register_reward(name: str, target: str | Callable[..., Any]) -> None:
    """Make a reward known by name in this process, as an installed plugin is.

    `target` is a class, a function in TRL's convention, or where it is, as "module:Attr". A second one of the same name
    takes the place of the first; a name that an installed plugin has is refused when it is used. Worker processes know
    a name only if they import the file that registers it. Raises PluginError for an empty name, or for a string that
    is not "module:Attr".
    """
    host().add("reward", name, target)


def register_agent(name: str, target: str | Callable[..., Any]) -> None:
    """Make an agent known by name in this process: its class, or "module:Attr" (see `register_reward`)."""
    host().add("agent", name, target)


def register_task(name: str, target: str | Callable[..., Any]) -> None:
    """Make a task known by name in this process: its class, or "module:Attr" (see `register_reward`)."""
    host().add("task", name, target)


def register_annotator(name: str, target: str | Callable[..., Any]) -> None:
    """Make an annotator known by name in this process: its class, or "module:Attr" (see `register_reward`)."""
    host().add("annotator", name, target)


def register_judgement(name: str, target: str | Callable[..., Any]) -> None:
    """Make a kind of judgement known by name in this process: a `JudgementKind`, or "module:Attr"."""
    host().add("judgement", name, target)


def register_metric(name: str, target: str | Callable[..., Any]) -> None:
    """Make a metric known by name in this process: a `Metric`, or where it is, as "module:Attr"."""
    host().add("metric", name, target)


def register_tracker(name: str, target: str | Callable[..., Any]) -> None:
    """Make a tracker known by name in this process: its class, or "module:Attr" (see `register_reward`)."""
    host().add("tracker", name, target)


def register_stopping_rule(name: str, target: str | Callable[..., Any]) -> None:
    """Make a stopping rule known by name in this process: its class, or "module:Attr" (see `register_reward`)."""
    host().add("stopping rule", name, target)


def register_token_loss(name: str, target: str | Callable[..., Any]) -> None:
    """Make a token loss known by name in this process: a function, or where it is, as "module:Attr"."""
    host().add("token loss", name, target)


def register_pair_loss(name: str, target: str | Callable[..., Any]) -> None:
    """Make a pair loss known by name in this process: a function, or where it is, as "module:Attr"."""
    host().add("pair loss", name, target)


def build_plugin(
    kind: PluginKind, name: str, parameters: JsonObject, provided: JsonObject | None = None, *, where: str = ""
) -> Any:
    """Load the plugin and call it with `parameters`.

    `provided` are things of the run (a frozen reference policy, the tokenizer): each is passed only to a plugin that
    has a parameter of that name which the user left out. Raises ConfigError that names the plugin and the parameter.
    """
    called = name.shown() if isinstance(name, OwnCode) else repr(name)
    with under("name"):
        factory = host().load(kind, name)
    if isinstance(name, OwnCode) and not isinstance(factory, type) and not inspect.isroutine(factory):
        if parameters:  # it is made already
            said = (f"{called} is made already, and has no setting {key!r}" for key in parameters)
            raise ConfigError(*(Problem(text, (key,)) for text, key in zip(said, parameters, strict=True)))
        return factory
    return call_with(factory, parameters, provided or {}, where or f"{kind} {called}")


_PLAIN = (bool, int, float, str, list, dict)  # what a file can hold; other objects are between caller and plugin


def call_with(factory: Callable[..., Any], parameters: JsonObject, provided: JsonObject, where: str) -> Any:
    """`factory(**parameters)` with what it asks for of `provided`, and errors that say which parameter is wrong."""
    from rlhf_env.settings import checked, hints_of, is_plain

    accepted = inspect.signature(factory).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    unknown = [] if open_ended else [key for key in parameters if key not in accepted]
    known = [key for key in accepted if key not in provided]
    problems = [Problem(f"{where}: no setting {key!r}{did_you_mean(key, known)}", (key,)) for key in unknown]
    hints = hints_of(factory)
    taken = dict(parameters)
    for key, value in parameters.items():
        if key in hints and isinstance(value, _PLAIN) and is_plain(hints[key]):
            taken[key], wrong = checked(value, hints[key], (key,))
            problems += [problem.led_by(where) for problem in wrong]
    if problems:
        raise ConfigError(*problems)
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
        with same_folder(where):
            return factory(**taken, **filled)
    except SystemExit as error:
        raise PluginError(f"{where}: it would end the program while it is made (SystemExit: {error})") from error
    except (DataError, UnknownName):  # they say what they are about
        raise
    except ConfigError as error:
        error.found_in(where)
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    except (RlhfEnvError, OSError, MemoryError):  # a disk, say: what is wrong is not the plugin
        raise
    except Exception as error:
        raise PluginError(f"{where}: {own_code.error_in_words(error)}") from error
