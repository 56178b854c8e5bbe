"""Tables (TOML, plain dicts) to frozen dataclasses, all problems reported at once."""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

from rlhf_env.errors import ConfigError, Problem, did_you_mean
from rlhf_env.settings import EachChooses, checked, hints_of, is_setting, marks_of, problems_between, settings_class_of
from rlhf_env.types import JsonObject, JsonView

_T = TypeVar("_T")

# Names that a message lists with those of the tables inside; an experiment has twice as many, which nobody would read.
_LISTED = 30


def from_table(cls: type[_T], table: JsonView, where: str) -> _T:
    """Build the dataclass `cls` from `table`; `where` begins each message, as in "[agent] lr: ...".

    A field that is itself a dataclass takes a table of its own, which changes the field's default key by key (or stands
    instead of it: `field(..., metadata={"whole": True})`); its keys may also stand one level up where they are
    unambiguous (`lr` instead of `optimization.lr`) and the table cannot be left out. Raises ConfigError with every
    problem found.
    """
    problems: list[Problem] = []
    value = _build(cls, table, where, (), problems)
    if problems:
        raise ConfigError(*problems)
    return typing.cast(_T, value)


def _build(cls: type[Any], table: JsonView, where: str, keys: tuple[str, ...], problems: list[Problem]) -> Any:
    """`keys` lead to `table` from the outermost one."""
    found_before = len(problems)

    def note(problem: str) -> None:
        within = problem.keys if isinstance(problem, Problem) else ()
        problems.append(Problem(f"{where}: {problem}", (*keys, *within)))

    def take(key: str, value: object, hint: Any) -> None:
        given[key], wrong = checked(value, hint, (key,))
        for problem in wrong:
            note(problem)

    hints = hints_of(cls)
    fields = {field.name: hints.get(field.name, Any) for field in dataclasses.fields(cls) if is_setting(field)}
    nested = {name: kind for name, hint in fields.items() if (kind := settings_class_of(hint)) is not None}
    # A table that may be left out is there only where it is written.
    always = {name: hint for name, hint in nested.items() if fields[name] is hint}
    inner_names = [(inner.name, name) for name, hint in always.items() for inner in dataclasses.fields(hint)]
    times = Counter(inner for inner, _ in inner_names)
    lifted = {inner: name for inner, name in inner_names if inner not in fields and times[inner] == 1}
    given: JsonObject = {}
    tables: dict[str, JsonObject] = {}
    for key, value in table.items():
        if key in nested and isinstance(value, Mapping):
            tables.setdefault(key, {}).update(value)
        elif key in fields:
            for mark in marks_of(fields[key]):
                if isinstance(mark, EachChooses) and isinstance(value, Mapping):
                    value = mark.spelled_out(value)
            take(key, value, fields[key])
        elif key in lifted:
            tables.setdefault(lifted[key], {})[key] = value
        else:
            listed = [*fields, *lifted] if len(fields) + len(lifted) <= _LISTED else fields
            note(Problem(f"no setting {key!r}{did_you_mean(key, listed, lifted)}", (key,)))
    for name, inner_table in tables.items():
        default = next(f for f in dataclasses.fields(cls) if f.name == name)
        base = dataclasses.MISSING if default.metadata.get("whole") else _default_of(default)
        # A nested table changes the default of this place, not the nested class's own.
        known: Any = None if base is dataclasses.MISSING else base
        start = {} if known is None else {f.name: getattr(known, f.name) for f in dataclasses.fields(known)}
        given[name] = _build(nested[name], {**start, **inner_table}, f"{where} {name}", (*keys, name), problems)
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.init and _default_of(field) is dataclasses.MISSING and field.name not in given
    ]
    for name in missing:
        note(f"the setting {name!r} is required")
    if len(problems) > found_before:
        found = [Problem(problem, problem.keys[len(keys) :]) for problem in problems[found_before:]]
        for further in () if missing else problems_between(cls, given, found):
            note(further)
        return None
    try:
        return cls(**given)
    except ValueError as error:
        for problem in error.problems if isinstance(error, ConfigError) else (str(error),):
            note(problem)
        return None


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return dataclasses.MISSING
