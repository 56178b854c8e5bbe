"""Plain data, as TOML, JSON and CSV files hold it: how much of it is read, and whether it fits an annotation.

What others wrote is read up to a size: a file that is larger is refused before it fills the memory.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rlhf_env.errors import ConfigError, DataError, Problem

LARGEST_FILE = 2**30  # bytes, which are read as a whole
LONGEST_LINE = 2**22  # bytes of a line, characters of a prompt


def read_file(path: str | Path, largest: int = LARGEST_FILE) -> bytes:
    """The bytes of a file, without the mark that some programs begin it with (a BOM).

    Raises DataError that names it: it cannot be read, or is larger than `largest` bytes.
    """
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(largest + 1)
    except (OSError, ValueError) as error:  # a name with NUL in it is a ValueError
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > largest:
        raise DataError(f"{path} is larger than {largest:,} bytes, of which no more are read: split it")
    return content.removeprefix(b"\xef\xbb\xbf")


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is what the annotation `hint` says; elements of lists, tuples and tables are, too.

    A number is a finite one: no setting means anything at NaN, and what has no limit says so by 0 or is left out.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, (int, float)) and abs(value) < 2**1023
    if hint is int:
        return isinstance(value, int) and -(2**63) <= value < 2**63  # what TOML promises, and what torch takes
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if origin in (list, tuple) and isinstance(value, (list, tuple)):
        each = inner if origin is tuple and inner[-1] is not Ellipsis else inner[:1] * len(value)
        return len(each) == len(value) and all(map(fits, value, each))
    if origin is dict and isinstance(value, dict):
        return all(fits(key, inner[0]) and fits(it, inner[1]) for key, it in value.items())
    plain = (list, tuple) if origin is tuple else origin or hint
    return isinstance(value, plain) if isinstance(plain, (type, tuple)) else True


def refuse_misfits(settings: Any) -> None:
    """For the `__post_init__` of a dataclass: ConfigError for every field that is not what its annotation says."""
    hints = get_type_hints(type(settings))
    problems = [
        Problem(f"{field.name}: {value!r} is not {spoken(hints[field.name])}", (field.name,), "")
        for field in dataclasses.fields(settings)
        if not fits(value := getattr(settings, field.name), hints[field.name])
    ]
    if problems:
        raise ConfigError(*problems)


def is_plain(hint: Any) -> bool:
    """Whether it is made of nothing but what files can hold."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return all(map(is_plain, get_args(hint)))
    return origin is Literal or (origin or hint) in (bool, int, float, str, list, tuple, dict, type(None))


def spoken(hint: Any) -> str:
    """The annotation in words: "a whole number"."""
    names: dict[Any, str] = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        str: "a string",
        dict: "a table",
        list: "a list",
        tuple: "a list",
    }
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(spoken(option) for option in get_args(hint) if option is not type(None))
    if origin is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    if origin in (list, tuple, dict) and (each := get_args(hint)[origin is dict]) is not Any:
        return f"{names[origin]}, each {spoken(each)}"
    if dataclasses.is_dataclass(hint):
        return "a table"
    return str(names.get(hint) or names.get(origin) or getattr(hint, "__name__", hint))


def flat(table: Mapping[str, object], above: str = "") -> dict[str, object]:
    """One level of a table with tables in it: `{"agent": {"lr": 1}}` becomes `{"agent.lr": 1}`."""
    level: dict[str, object] = {}
    for key, value in table.items():
        level |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return level


def read_json(text: str | bytes) -> Any:
    """JSON by the letter: no NaN, and no field twice in an object, since which one was meant cannot be told.

    Raises ValueError (JSONDecodeError where it is no JSON), and RecursionError for brackets too deep.
    """
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{', '.join(map(repr, twice))} stands more than once in one object")
    return table
