"""Settings: frozen dataclasses whose limits stand beside the field, checked in one place.

    @settings
    class Config:
        epochs: AtLeastOne = 2
        \"\"\"Passes over a rollout.\"\"\"
        clip: NonNegative = 0.2
        \"\"\"How far a ratio may move the loss.\"\"\"
        cap: Positive = 3.0
        \"\"\"Where the ratio is cut off, above 1 + `clip`.\"\"\"

        def problems(self) -> Iterator[Problem]:
            if self.cap <= 1 + self.clip:
                yield fault("cap", f"must be above 1 + clip, got {self.cap}")

The annotation is the limit, the string under a field is its meaning, and `problems` has what concerns several fields.
Whoever makes such an object gets the same check: Python, a TOML file
(`learning.configuration`), a plugin's table (`plugins.call_with`), the command line. The same declaration prints
itself and makes the JSON schema (`declared`).

Nothing is converted, save an integer for a `float`, and a list for a tuple (files have lists only). Numbers are finite.
What no file can hold (a policy, a generator) is between the caller and the class: it is not checked here.

pydantic does the checking. It is imported at the first check and not with this module: listing plugins needs no check.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import operator
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import get_annotations
from pathlib import Path
from types import SimpleNamespace
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen

from rlhf_env.errors import ConfigError, Key, Problem

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

_T = TypeVar("_T")
Target = Callable[..., object]  # a class or a function that is called with settings
Hint = Any
"""An annotation: a class, a union, a list of something; and Any is one, too."""

AtLeastOne = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]
Name = Annotated[str, MinLen(1)]
Seed = Annotated[int, Ge(0), Lt(2**40)]  # seeds are multiplied and added to, and torch takes 64 bits


@dataclass(frozen=True)
class Chooses:
    """Of a table, for its schema: the `name` in it chooses a plugin of this kind, and the rest are its settings."""

    kind: str


@dataclass(frozen=True)
class EachChooses:
    """Of a table: each key chooses a plugin, and its value is a weight or a table of its settings.

    Where it is one plugin alone, the table may also name it under the key `one_by` and hold its settings, as `Chooses`.
    """

    kind: str
    one_by: str = ""

    def spelled_out(self, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """The table with a key for each plugin."""
        name = table.get(self.one_by)
        if not isinstance(name, str):
            return table
        return {name: {key: value for key, value in table.items() if key != self.one_by}}


@dataclass(frozen=True)
class ChoosesByName:
    """Of a list of strings: each is the name of a plugin of this kind, or "FILE.py:NAME", code of one's own."""

    kind: str


@dataclass(frozen=True, eq=False)  # annotations are hashed, and a value may be a table
class Example:
    """What stands for a setting that has no default, in the example of its plugin."""

    value: object


@dataclass(frozen=True)
class PartOf:
    """Of a table, for its schema: some of the settings of another class."""

    whole: type


@dataclass(frozen=True)
class EachPartOf:
    """Of a table, for its schema: each value has some of the settings of another class."""

    whole: type


@dataclass(frozen=True)
class Rows:
    """Of a table, for its schema: each value is the table of an agent, whose `name` is the key where it has none."""


@dataclass(frozen=True)
class IsPath:
    """Of a string, or of a list of them: a path, or a name that may be one, as a model's. In a file of settings a
    relative one is relative to that file (`relative_paths`)."""


_INTEGERS = Ge(-(2**63)), Lt(2**63)  # what TOML promises, and what torch takes
_LONGEST_SHOWN = 120  # characters of a value in a message
_MOST_SHOWN = 20  # problems of one setting


@overload
def settings(cls: type[_T], /) -> type[_T]: ...
@overload
def settings(*, kw_only: bool = ..., frozen: bool = ..., eq: bool = ...) -> Callable[[type[_T]], type[_T]]: ...
@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def settings(cls: type[_T] | None = None, /, *, kw_only: bool = True, frozen: bool = True, eq: bool = True) -> object:
    """Make a class a dataclass that checks itself when it is made, and raises ConfigError with every fault."""

    def decorate(cls: type[_T]) -> type[_T]:
        own = cls.__dict__.get("__post_init__")

        def __post_init__(self: object) -> None:  # noqa: N807 - installed under this name
            check_settings(self)
            if own is not None:
                own(self)

        cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
        return dataclass(frozen=frozen, kw_only=kw_only, eq=eq)(cls)

    return decorate if cls is None else decorate(cls)


def is_setting(given: dataclasses.Field[Any]) -> bool:
    """Whether a file may set it: not what a file cannot know of itself (metadata `{"setting": False}`)."""
    return given.init and bool(given.metadata.get("setting", True))


def fault(name: str, what: str) -> Problem:
    """A problem of one setting: `fault("cap", "must be above 1, got 0")`."""
    return Problem(f"{name} {what}", (name,))


def check_settings(made: object) -> None:
    """Refuse an object of settings that breaks its own declaration: ConfigError with every fault."""
    found: list[Problem] = []
    hints = hints_of(type(made))
    for each in dataclasses.fields(cast("DataclassInstance", made)):
        if each.init and each.name in hints:
            given = getattr(made, each.name)
            value, problems = checked(given, hints[each.name], (each.name,))
            found += problems
            if value is not given:
                object.__setattr__(made, each.name, value)
    if found:
        raise ConfigError(*found, *problems_between(cast("type[DataclassInstance]", type(made)), vars(made), found))
    found += getattr(made, "problems", tuple)()
    if found:
        raise ConfigError(*found)


def problems_between(
    cls: type[DataclassInstance], given: Mapping[str, object], found: Sequence[Problem]
) -> list[Problem]:
    """What `cls.problems` says beside what was found: as if all that is wrong already were at its default.

    What it says of no setting in particular is left for the time when each is right.
    """
    wrong = {problem.keys[0] for problem in found if problem.keys}
    unmade = object.__new__(cls)
    for each in dataclasses.fields(cls):
        value = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        if each.name in given and each.name not in wrong:
            value = given[each.name]
        if value is dataclasses.MISSING:
            return []
        object.__setattr__(unmade, each.name, value)
    ask: Callable[[], Iterable[Problem]] = getattr(unmade, "problems", tuple)
    try:
        return [problem for problem in ask() if problem.keys and problem.keys[0] not in wrong]
    except ConfigError:  # what it looks for outside is found once the settings are right
        return []


def checked(value: object, hint: Hint, keys: tuple[Key, ...]) -> tuple[object, list[Problem]]:
    """The value as the annotation declares it, and what is wrong with it; `keys` lead to it and name it."""
    from pydantic import ValidationError

    try:
        taken = _checker(hint).validate_python(value)
    except ValidationError as error:
        wrong: dict[tuple[Key, ...], str] = {}
        for detail in error.errors(include_url=False):
            path, inner = _place(detail["loc"], hint)
            got = shown(functools.reduce(operator.getitem, path, value))  # type: ignore[arg-type]
            wrong[path] = f"{_spelled((*keys, *path))} must {_wanted(detail, inner)}, got {got}"
        # A list is not called too short when it is an entry of it that is wrong.
        inmost = [path for path in wrong if not any(other[: len(path)] == path for other in wrong if other != path)]
        return value, [Problem(wrong[path], (*keys, *path)) for path in inmost[:_MOST_SHOWN]]
    return (taken if _converted(hint) else value), []


def fits(value: object, hint: Hint) -> bool:
    """Whether the value is what the annotation declares."""
    return not checked(value, hint, ())[1]


def require(**given: tuple[object, Hint]) -> None:
    """Check what a constructor written by hand was given: `require(share=(share, Share))`. Raises ConfigError."""
    problems = [problem for name, (value, hint) in given.items() for problem in checked(value, hint, (name,))[1]]
    if problems:
        raise ConfigError(*problems)


def hints_of(target: Target) -> dict[str, Hint]:
    """The annotation of each parameter of a class or function; of those nothing that cannot be found out."""
    return _hints_of_class(target) if isinstance(target, type) else _find_hints(target)


@functools.cache
def _hints_of_class(target: collections.abc.Hashable) -> dict[str, Hint]:
    return _find_hints(cast(Target, target))


def _find_hints(target: Target) -> dict[str, Hint]:
    owners: Sequence[Target] = (vars(target).get("__init__", target),) if isinstance(target, type) else (target,)
    if dataclasses.is_dataclass(target):
        owners = [cls for cls in reversed(cast(type, target).__mro__) if dataclasses.is_dataclass(cls)]
    found: dict[str, Hint] = {}
    for owner in owners:
        known = getattr(owner, "__globals__", None) or vars(sys.modules[owner.__module__])
        for name, hint in get_annotations(owner).items():
            with suppress(Exception):  # names that only a type checker knows
                single = SimpleNamespace(__annotations__={name: hint})
                found |= get_type_hints(single, known, include_extras=True)
    return found


def apart(hint: Hint) -> tuple[Hint, tuple[Hint, ...]]:
    """An annotation's origin and arguments: (list, (int,)) of list[int]."""
    return get_origin(hint), get_args(hint)


@functools.cache
def _checker(hint: Hint) -> TypeAdapter[object]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(_checkable(hint), config=ConfigDict(strict=True, allow_inf_nan=False))


def _checkable(hint: Hint) -> Hint:
    """The annotation as pydantic is to check it: 64-bit integers, lists for tuples, tables by their class."""
    from pydantic import PlainValidator, Strict

    origin, inner = apart(hint)
    if origin is Annotated:
        return Annotated[(_checkable(inner[0]), *inner[1:])]
    if hint is int:
        return Annotated[int, *_INTEGERS]
    if hint is tuple or origin is tuple:
        parts = tuple(it if it is Ellipsis else _checkable(it) for it in inner)
        return Annotated[cast(Hint, tuple)[parts] if parts else tuple, Strict(False)]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_checkable, inner))]  # noqa: UP007 - made, not written
    if origin in (list, dict, collections.abc.Sequence, collections.abc.Mapping):
        return origin[tuple(map(_checkable, inner))]
    if origin is Literal or hint in (float, str, bool, list, dict, type(None), Hint):
        return hint
    if hint is Path or dataclasses.is_dataclass(hint):
        return Annotated[Hint, PlainValidator(functools.partial(_of_class, cast(type, hint)))]
    return Hint


def _of_class(kind: type, value: object) -> object:
    if not isinstance(value, kind):
        raise ValueError
    return value


def _converted(hint: Hint) -> bool:
    """Whether the checked value stands for the given one: 1 becomes 1.0, and a list a tuple."""
    origin, inner = apart(hint)
    if origin is Annotated:
        return _converted(inner[0])
    return origin is tuple or hint is float or hint is tuple


def _place(loc: Sequence[Key], hint: Hint) -> tuple[tuple[Key, ...], Hint]:
    """The keys within the value that an error is about, and the annotation there; a union is one place."""
    path: tuple[Key, ...] = ()
    for place, key in enumerate(loc):
        inner = unlimited(hint)
        origin, parts = apart(inner)
        if not parts or "[key]" in loc[place + 1 : place + 2]:
            break
        if origin in (dict, collections.abc.Mapping):
            hint = parts[1]
        elif origin in (list, tuple, collections.abc.Sequence):
            if origin is tuple and parts[-1] is not Ellipsis:
                break  # of a fixed length: what is missing has no place
            hint = parts[0]
        else:
            break
        path = (*path, key)
    return path, hint


_LIMITS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}


def _wanted(error: ErrorDetails, hint: Hint) -> str:
    """What a setting must do, so that this error would not be: "be above 0"."""
    kind, context = error["type"], error.get("ctx", {})
    beyond = kind in _LIMITS and abs(context[_LIMITS[kind]]) >= 2**63
    if apart(unlimited(hint))[0] not in (Union, types.UnionType):
        if kind in _LIMITS and not beyond:
            return f"be {limits(hint)}"
        if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
            return f"have {limits(hint)}"
    return f"be {spoken(hint)}"


def unlimited(hint: Hint) -> Hint:
    """The annotation without its limits, and without the None that says nothing was set."""
    origin, inner = apart(hint)
    if origin is Annotated:
        return unlimited(inner[0])
    if origin in (Union, types.UnionType):
        others = [it for it in inner if it is not type(None)]
        return unlimited(others[0]) if len(others) == 1 else hint
    return hint


def marks_of(hint: Hint) -> tuple[object, ...]:
    """What an annotation says beside its type: limits, and what is not for the check (`Chooses`, `IsPath`)."""
    origin, inner = apart(hint)
    if origin is Annotated:
        return (*inner[1:], *marks_of(inner[0]))
    if origin in (Union, types.UnionType):
        others = [it for it in inner if it is not type(None)]
        return marks_of(others[0]) if len(others) == 1 else ()
    return ()


def limits(hint: Hint) -> str:
    """The limits of an annotation in words: "at least 1", "in (0, 1]"; "" where there are none."""
    bounds: dict[str, Hint] = {}
    for limit in _limits_of(hint):
        if isinstance(limit, (Gt, Ge, Lt, Le)):
            name = type(limit).__name__.lower()
            bounds[name] = getattr(limit, name)
        elif isinstance(limit, MinLen):
            bounds["least"] = limit.min_length
        elif isinstance(limit, MaxLen):
            bounds["most"] = limit.max_length
    if "least" in bounds or "most" in bounds:
        return _length(bounds.get("least", 0), bounds.get("most"), "character" if unlimited(hint) is str else "entry")
    low = next((bounds[name] for name in ("ge", "gt") if name in bounds), None)
    high = next((bounds[name] for name in ("le", "lt") if name in bounds), None)
    if low is None and high is None:
        return ""
    if high is None:
        return f"at least {low:,}" if "ge" in bounds else f"above {low:,}"
    if low is None:
        return f"at most {high:,}" if "le" in bounds else f"below {high:,}"
    if unlimited(hint) is int:
        return f"from {low + ('gt' in bounds):,} to {high - ('lt' in bounds):,}"
    return f"in {'[' if 'ge' in bounds else '('}{low:g}, {high:g}{']' if 'le' in bounds else ')'}"


def _length(least: int, most: int | None, of: str) -> str:
    many = "entries" if of == "entry" else f"{of}s"
    if most is None:
        return f"one or more {many}" if least == 1 else f"at least {least} {many}"
    if least == most:
        return f"one {of}" if least == 1 else f"{least} {many}"
    return f"{least} to {most} {many}"


def _limits_of(hint: Hint) -> Iterator[object]:
    origin, inner = apart(hint)
    if origin is Annotated:
        for limit in inner[1:]:
            yield from limit if isinstance(limit, GroupedMetadata) else (limit,)
        yield from _limits_of(inner[0])
    elif origin in (Union, types.UnionType):
        others = [it for it in inner if it is not type(None)]
        if len(others) == 1:
            yield from _limits_of(others[0])


def spoken(hint: Hint) -> str:
    """The annotation in words: "a whole number"."""
    names: dict[Hint, str] = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        str: "a string",
        Path: "a path",
        dict: "a table",
        list: "a list",
        tuple: "a list",
        collections.abc.Sequence: "a list",
        collections.abc.Mapping: "a table",
    }
    hint = unlimited(hint)
    origin, inner = apart(hint)
    if origin in (Union, types.UnionType):
        some = [option for option in inner if option is not type(None)]
        of_files = [option for option in some if is_plain(option)] or some
        return " or ".join(re.sub(r", (each .*)", r" (\1)", spoken(option)) for option in of_files)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin in names:
        each = inner[-1] if origin in (dict, collections.abc.Mapping) else inner[0]
        if origin is tuple and inner[-1] is not Ellipsis:
            return f"a list of {len(inner)}: {', '.join(map(spoken, inner))}"
        return names[origin] if each in (Hint, object) else f"{names[origin]}, each {spoken(each)}"
    if dataclasses.is_dataclass(hint):
        return "a table"
    return names.get(hint) or str(getattr(hint, "__name__", hint))


def is_plain(hint: Hint) -> bool:
    """Whether it is made of nothing but what files can hold."""
    hint = unlimited(hint)
    origin, inner = apart(hint)
    if origin in (Union, types.UnionType):
        return all(is_plain(it) or it is Path for it in inner)  # a path may be given as a string
    plain = (bool, int, float, str, list, tuple, dict, type(None), collections.abc.Sequence, collections.abc.Mapping)
    return origin is Literal or (origin or hint) in plain


def settings_class_of(hint: Hint) -> type | None:
    """The dataclass whose settings a table here gives, of `D` and of `D | None`; None for other annotations."""
    origin, inner = apart(hint)
    if origin in (Union, types.UnionType):
        some = [option for option in inner if option is not type(None)]
        hint = some[0] if len(some) == 1 else hint
    return cast(type, hint) if dataclasses.is_dataclass(hint) else None


def can_be_written(hint: Hint) -> bool:
    """Whether a file can hold something that it allows: a string, where it is a path or a model."""
    hint = unlimited(hint)
    origin, inner = apart(hint)
    if origin in (Union, types.UnionType):
        return any(map(can_be_written, inner))
    if origin in (list, tuple, dict, collections.abc.Sequence, collections.abc.Mapping):
        return can_be_written(inner[-1] if inner[-1] is not Ellipsis else inner[0])
    return hint is Hint or dataclasses.is_dataclass(hint) or is_plain(hint)


def shown(value: object) -> str:
    """A value as a message shows it: as Python writes it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 4]} ..."


def _spelled(keys: Sequence[Key]) -> str:
    """Keys as one would write them: weights[0], optima.echo."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")
