"""What a class of settings, or a plugin, declares about itself: for people, the JSON schema and the reference page.

A setting's type, limits and default are its annotation and default. Its meaning is the string under the field:

    epochs: AtLeastOne = 2
    \"\"\"Passes over a rollout.\"\"\"

or, of a function or a constructor written by hand, its line in the docstring's "Args:". The papers are those that the
plugin's module names in its header, "(Schulman et al. 2017, arXiv 1707.06347)".
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import functools
import inspect
import itertools
import re
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Union, cast

import tomli_w
from annotated_types import Ge, Gt, MinLen

from rlhf_env.errors import PluginError, UnknownName
from rlhf_env.own_code import KEY, OwnCode, load_code, names_code
from rlhf_env.plugins import PLUGIN_KINDS, Entry, PluginHost, PluginKind
from rlhf_env.settings import (
    Example,
    Hint,
    Target,
    apart,
    can_be_written,
    hints_of,
    is_setting,
    limits,
    marks_of,
    settings_class_of,
    spoken,
    unlimited,
)
from rlhf_env.types import GIVEN_TO_FUNCTIONS

REQUIRED = inspect.Parameter.empty
TABLES: Mapping[PluginKind, str] = {"agent": "agent", "task": "task", "reward": "rewards", "annotator": "annotator"}
# Kinds whose tables are named by the plugin, [trackers.mlflow], and what is in such a table's place in a file.
NAMED_TABLES: Mapping[PluginKind, str] = {"tracker": "trackers", "stopping rule": "stopping"}
# Kinds that an agent's table names, and an agent that does so in an example.
LOSSES: Mapping[PluginKind, str] = {"token loss": "grpo", "pair loss": "dpo"}
# What a run lends to plugins of a kind, so that a file cannot set it.
LENT: Mapping[PluginKind, tuple[str, ...]] = {"tracker": ("folder", "run_name", "experiment")}


@dataclass(frozen=True)
class Setting:
    """One setting. `name` has the table it stands in: "optimization.lr", which may also stand one level up, as "lr"."""

    name: str
    hint: Hint
    default: object
    meaning: str

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    def as_dict(self) -> dict[str, object]:
        about: dict[str, object] = {"name": self.name, "type": spoken(self.hint), "limits": limits(self.hint)}
        return {**about, "required": self.required, "default": plain(self.default), "meaning": self.meaning}


@dataclass(frozen=True)
class Declaration:
    """What a plugin says about itself. `example` is a table for a TOML file, with every setting at its default."""

    kind: PluginKind
    name: str
    origin: str
    about: str
    header: str
    papers: tuple[str, ...]
    settings: tuple[Setting, ...]
    example: str

    def as_dict(self) -> dict[str, object]:
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**own, "papers": list(self.papers), "settings": [setting.as_dict() for setting in self.settings]}


def code_in(words: str) -> tuple[PluginKind | None, OwnCode] | None:
    """The code that "FILE.py:NAME" or "KIND:FILE.py:NAME" names, and its kind where that is said; None of others."""
    first, _, rest = words.partition(":")
    kind = next((kind for kind in PLUGIN_KINDS if kind == first), None)
    code = words if kind is None else rest
    return (kind, OwnCode(code)) if names_code(code) else None


def kind_of_code(target: object) -> PluginKind:
    """What code of one's own seems to be, by what it has: a function, for example, is a reward.

    One of an agent's methods is enough: what it lacks of the others is then said of an agent.
    """
    if any(hasattr(target, method) for method in ("act", "update")):
        return "agent"
    return "task" if hasattr(target, "prompt") else "reward"


def find(host: PluginHost, words: str) -> Entry:
    """The plugin of a name, or of `kind:name` where more than one kind has it; or code of one's own, "FILE.py:NAME".

    Raises UnknownName, or PluginError for code that cannot be imported.
    """
    if found := code_in(words):
        said, code = found
        return host.entry(said or kind_of_code(load_code(code)), code)
    if words.endswith(".py"):
        raise PluginError(f'{words} is a file: name what is in it, "{words}:NAME"')
    kind, _, name = words.rpartition(":")
    entries = [entry for entry in host if entry.name == name and kind in ("", entry.kind)]
    kinds = {entry.kind for entry in entries}
    if not entries and kind in PLUGIN_KINDS:
        raise UnknownName(kind, name, host.names(kind), host.absent())
    if not entries:
        raise UnknownName("plugin", words, [entry.name for entry in host], host.absent())
    if len(kinds) > 1:
        raise UnknownName("plugin", words, [f"{kind}:{name}" for kind in PLUGIN_KINDS if kind in kinds])
    return host.entry(entries[0].kind, name)


def declaration(entry: Entry) -> Declaration:
    """What a plugin says about itself. Raises PluginError or MissingExtra where it cannot be imported."""
    target = entry.load()
    settings = tuple(nested(settings_of_entry(entry)))
    header = inspect.getdoc(sys.modules.get(getattr(target, "__module__", ""), None)) or ""
    texts = [header, inspect.getdoc(target) or "", *(setting.meaning for setting in settings)]
    return Declaration(
        kind=entry.kind,
        name=entry.name,
        origin=entry.origin,
        about=_prose(inspect.getdoc(target) or ""),
        header=header,
        papers=tuple(_each_once(paper for text in texts for paper in _papers(text))),
        settings=settings,
        example=_example(entry, target, settings),
    )


def wraps(target: Target) -> bool:
    """Whether an agent plugin takes another agent."""
    return "agent" in inspect.signature(target).parameters


def settings_of_entry(entry: Entry) -> list[Setting]:
    """The settings that a file can give to a plugin. Raises PluginError or MissingExtra where it cannot be imported."""
    if entry.kind in ("judgement", "metric"):  # objects, with nothing to set
        return []
    return [setting for setting in settings_of(entry.load()) if setting.name not in LENT.get(entry.kind, ())]


def settings_of(target: Target) -> list[Setting]:
    """The settings that a file can give to a dataclass, a class, a function, or to an agent (its `Config`)."""
    target = getattr(target, "Config", target)
    hints, said = hints_of(target), meanings(target)
    return [
        Setting(name, hints.get(name, Hint), default, said.get(name, ""))
        for name, default in _parameters(target)
        if can_be_written(hints.get(name, Hint))
    ]


def nested(settings: list[Setting]) -> Iterator[Setting]:
    """The same, tables of settings replaced by what is in them."""
    for setting in settings:
        inner = settings_class_of(setting.hint)
        if inner is None:
            yield setting
            continue
        for each in settings_of(cast(Target, inner)):
            given = setting.default is not REQUIRED and hasattr(setting.default, each.name)
            default = getattr(setting.default, each.name) if given else each.default
            yield from nested([dataclasses.replace(each, name=f"{setting.name}.{each.name}", default=default)])


def _parameters(target: Target) -> Iterator[tuple[str, object]]:
    """(name, default) of what can be set."""
    if dataclasses.is_dataclass(target):
        for field in dataclasses.fields(target):
            if is_setting(field) and field.default_factory is not dataclasses.MISSING:
                yield field.name, field.default_factory()
            elif is_setting(field):
                yield field.name, REQUIRED if field.default is dataclasses.MISSING else field.default
        return
    for parameter in inspect.signature(target).parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        # Of a function that scores texts, what has no default is the texts or a column of the task, which are no
        # settings; nor is what every such function may ask for.
        of_texts = not isinstance(target, type) and (
            parameter.default is REQUIRED or parameter.name in GIVEN_TO_FUNCTIONS
        )
        if named and not of_texts:
            yield parameter.name, parameter.default


# -------------------------------------------------------------------- meanings


@functools.cache
def meanings(target: Target) -> dict[str, str]:
    """By setting, or key of a TypedDict: the string under the field, or its line in "Args:"; none where there is no
    source to read."""
    found: dict[str, str] = {}
    for owner in reversed(target.__mro__ if isinstance(target, type) else (target,)):
        if owner is not object:
            found |= _arguments(inspect.getdoc(owner) or "") | _under_fields(owner)
    return found


def _arguments(docstring: str) -> dict[str, str]:
    _, _, lines = docstring.partition("\nArgs:\n")
    section = re.match(r"(?:(?: +.*)?\n)*(?: +.*)?", lines)
    text = textwrap.dedent(section[0] if section else "")
    return {name: _joined(said) for name, said in re.findall(r"^(\w+): (.*(?:\n +.*)*)", text, re.MULTILINE)}


def _under_fields(owner: Target) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    return {
        field.target.id: _joined(under.value.value)
        for field, under in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(under, ast.Expr)
        and isinstance(under.value, ast.Constant)
        and isinstance(under.value.value, str)
    }


def _joined(text: str) -> str:
    return " ".join(text.split())


def _prose(docstring: str) -> str:
    """A docstring without its "Args:", which the settings say."""
    return docstring.partition("\nArgs:\n")[0].strip()


CITATION = re.compile(
    r"[A-Z][\w'-]+(?: et al\.| (?:and|&) [A-Z][\w'-]+)? (?:\((?:19|20)\d\d\)|(?:19|20)\d\d)"  # who and when
    r'(?:, (?:"[^"]*"(?: \(\d{4}\.\d{5})?|(?:arXiv )?\d{4}\.\d{5}|[A-Z]+ \d+\(\d+\)|[A-Z]{3,}))*'  # where
)


def _each_once(papers: Iterable[str]) -> Iterable[str]:
    """The first of those that have the same number of arXiv; one without a number by its words."""
    known: dict[str, str] = {}
    for paper in papers:
        number = re.search(r"\d{4}\.\d{5}", paper)
        known.setdefault(number[0] if number else paper, paper)
    return known.values()


def _papers(text: str) -> list[str]:
    return [re.sub(r" \((\d[\d.]+)\)?", r" \1", paper) for paper in CITATION.findall(_joined(text))]


# -------------------------------------------------------------------- an example


def _example(entry: Entry, target: Target, settings: tuple[Setting, ...]) -> str:
    """A table of a TOML file that is this plugin at its defaults; what has none is filled in by its type."""
    table: dict[str, object] = {}
    for setting in settings:
        *outer, name = setting.name.split(".")
        given = next((mark.value for mark in marks_of(setting.hint) if isinstance(mark, Example)), None)
        value = given or (_sample(setting.hint) if setting.required else plain(setting.default))
        if value is not None and value != {}:
            place = table
            for key in outer:
                place = cast(dict[str, object], place.setdefault(key, {}))
            place[name] = value
    if isinstance(entry.target, OwnCode):
        table = {KEY: entry.target.shown(), **table}
    elif entry.kind in TABLES and entry.kind != "reward":
        table = {"name": entry.name, **table}
    if entry.kind == "reward":
        return tomli_w.dumps({"rewards": {entry.name: {"weight": 1.0, **table}}}).replace("[rewards]\n\n", "")
    if entry.kind in NAMED_TABLES:
        return tomli_w.dumps({NAMED_TABLES[entry.kind]: {entry.name: table}}).replace(
            f"[{NAMED_TABLES[entry.kind]}]\n\n", ""
        )
    if entry.kind in LOSSES:
        return tomli_w.dumps({"agent": {"name": LOSSES[entry.kind], "loss": {"name": entry.name, **table}}})
    if entry.kind not in TABLES:
        return ""
    if entry.kind == "agent" and wraps(target):
        table["agent"] = {"name": "ppo"}
    return tomli_w.dumps({TABLES[entry.kind]: table})


def plain(value: object) -> object:
    """As files hold it; None for what they cannot."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str)) else None


def _sample(hint: Hint) -> object:
    """Something that the annotation allows, for an example; "..." where it must be a string."""
    low: float = next((getattr(it, "ge", getattr(it, "gt", 0)) for it in marks_of(hint) if isinstance(it, (Ge, Gt))), 1)
    least = next((it.min_length for it in marks_of(hint) if isinstance(it, MinLen)), 1)
    hint = unlimited(hint)
    origin, inner = apart(hint)
    if origin in (Union, types.UnionType):
        return _sample(next(option for option in inner if can_be_written(option)))
    if origin is Literal:
        return inner[0]
    if origin in (list, tuple, collections.abc.Sequence):
        return [_sample(inner[0])] * least
    plain = {bool: True, int: low, float: low + 1.0 if low != 1 else 1.0, str: "..."}
    return plain.get(hint, {})
