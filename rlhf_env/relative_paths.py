"""Paths in files of settings: a relative one is relative to the file that it stands in, and `~` is somebody's home.

Which settings are paths is declared beside them (`settings.IsPath`). A plugin's are declared in the same way, so a
table that chooses a plugin is walked by what that plugin says of itself. Code of one's own (`function`, "FILE.py:NAME")
is led in the same way, and from then on it has the content that its file has now (`own_code.pinned`).
"""

from __future__ import annotations

import dataclasses
import os
import types
import warnings
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Union, cast

from rlhf_env import plugins
from rlhf_env.envs.reward_tables import RewardTable
from rlhf_env.errors import RlhfEnvError
from rlhf_env.own_code import KEY, OwnCode, codes_in, names_code, pinned
from rlhf_env.plugins import PluginKind
from rlhf_env.settings import (
    Chooses,
    ChoosesByName,
    EachChooses,
    Hint,
    IsPath,
    Target,
    apart,
    hints_of,
    marks_of,
    settings_class_of,
    unlimited,
)
from rlhf_env.types import JsonObject

_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)  # the paths met on the way, for `paths_of`


def relative_to(folder: str | Path, table: object, hint: Hint) -> object:
    """The value of a setting, with each relative path in it led from `folder`, where its file is.

    `hint` is the setting's annotation. The given value is not changed. What cannot be understood is left as it is:
    what is wrong with it is said where it is used.
    """
    return _value(table, hint, Path(folder))


def _value(value: object, hint: Hint, folder: Path) -> object:
    if value is None:
        return None
    for mark in marks_of(hint):
        if isinstance(mark, IsPath):
            if isinstance(value, (list, tuple)):
                return [_led(each, folder) for each in value]
            return _led(value, folder)
        if isinstance(mark, Chooses) and isinstance(value, Mapping):
            return _table_of(mark.kind, value.get("name"), value, folder)
        if isinstance(mark, ChoosesByName) and isinstance(value, (list, tuple)):
            return [_pinned(each, folder) if names_code(each) else each for each in value]
        if isinstance(mark, EachChooses) and isinstance(value, Mapping):
            return {key: _part(mark.kind, key, table, folder) for key, table in value.items()}
    inner = unlimited(hint)
    origin, parts = apart(inner)
    if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
        return _fields(value, hints_of(cast(Target, inner)), folder)
    if dataclasses.is_dataclass(inner) and isinstance(value, inner if isinstance(inner, type) else ()):
        return _settings(value, folder)
    if origin in (Union, types.UnionType):
        for option in parts:
            if (led := _value(value, option, folder)) is not value:
                return led
        return value
    if isinstance(value, (list, tuple)) and parts and parts[0] is not value:
        return [_value(each, parts[0], folder) for each in value]
    if isinstance(value, Mapping) and len(parts) == 2:
        return {key: _value(each, parts[1], folder) for key, each in value.items()}
    return value


def _settings(made: object, folder: Path) -> object:
    """An object of settings, with the paths in it led from `folder`; itself where there are none."""
    hints = hints_of(type(made))
    changed: JsonObject = {}
    for name, hint in hints.items():
        before = getattr(made, name, None)
        after = _value(before, hint, folder)
        if after != before or any(codes_in(after)):  # code that was pinned equals what was written
            changed[name] = after
    return dataclasses.replace(made, **changed) if changed else made  # type: ignore[type-var]


def _part(kind: str, key: str, table: object, folder: Path) -> object:
    """A part of the reward, or another table that its key names: a weight has no paths."""
    if not isinstance(table, Mapping):
        return table
    if kind != "reward":
        return _table_of(kind, key, table, folder)
    table = _with_code_pinned(table, folder)
    try:
        read = RewardTable.read(key, table)
        apart = read.limits is not None and plugins.host().entry("reward", read.plugin).origin != plugins.OWN
    except RlhfEnvError:
        return table
    # A stranger's reward in a process of its own is not imported in this one: its paths are its own business.
    return table if apart else _table_of(kind, read.plugin, table, folder)


def _table_of(kind: str, name: object, table: Mapping[str, object], folder: Path) -> Mapping[str, object]:
    """The table of a plugin's settings, by the plugin's own declaration; as it is where there is no such plugin."""
    table = _with_code_pinned(table, folder)
    name = table.get(KEY, name)
    try:
        target = plugins.host().load(cast(PluginKind, kind), name if isinstance(name, OwnCode) else str(name))
    except RlhfEnvError:
        return table
    target = getattr(target, "Config", target)
    led = _fields(table, hints_of(target) if callable(target) else {}, folder)
    if kind == "agent" and isinstance(table.get("agent"), Mapping):  # one that wraps another
        inner = cast(Mapping[str, object], table["agent"])
        led["agent"] = _table_of(kind, inner.get("name"), inner, folder)
    return led


def _with_code_pinned(table: Mapping[str, object], folder: Path) -> Mapping[str, object]:
    code = table.get(KEY)
    return {**table, KEY: _pinned(code, folder)} if isinstance(code, str) else table


def _pinned(written: str, folder: Path) -> OwnCode:
    code = pinned(written, folder)
    if (noted := _noted.get()) is not None:
        noted += code.files
    return code


def _fields(table: Mapping[str, object], hints: Mapping[str, Hint], folder: Path) -> JsonObject:
    nested = [kind for hint in hints.values() if (kind := settings_class_of(hint)) is not None]
    # Settings of a nested table may stand one level up (see `learning.configuration`).
    known = {name: hint for kind in nested for name, hint in hints_of(cast(Target, kind)).items()} | dict(hints)
    return {key: _value(value, known[key], folder) if key in known else value for key, value in table.items()}


def _led(value: object, folder: Path) -> object:
    """A path led from `folder`. What names no file there is left: it may be the name of a model, or of a data set."""
    led = _led_if_there(value, folder)
    if (noted := _noted.get()) is not None and isinstance(led, str):
        noted.append(led)
    return led


def _led_if_there(value: object, folder: Path) -> object:
    if not isinstance(value, str):
        return value
    written = str(Path(value).expanduser()) if value.startswith("~") else value
    path = Path(written)
    if path.is_absolute():
        return written
    led = folder / path
    if led.exists() or (written.startswith(("./", "../")) and not path.exists()):
        return str(led) if folder != Path() else written
    if path.exists() and folder.resolve() != Path.cwd():
        instead = os.path.relpath(path, folder)
        said = f"{value!r} is found in the working directory, and not beside the file that names it: write {instead!r}"
        warnings.warn(said, RuntimeWarning, stacklevel=2)
    return written


def paths_of(folder: str | Path, table: object, hint: Hint) -> list[str]:
    """Every path that a value of settings has in it, led from `folder`: files, folders, and names that may be such."""
    noted: list[str] = []
    before = _noted.set(noted)
    try:
        relative_to(folder, table, hint)
    finally:
        _noted.reset(before)
    return list(dict.fromkeys(noted))
