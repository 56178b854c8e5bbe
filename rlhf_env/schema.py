"""A JSON schema (draft 2020-12) of the TOML files that make an object of settings, for editors and other programs.

It says what the classes declare: types, limits, defaults, meanings, and which keys there are. A table that chooses a
plugin by its name has the settings of that plugin, installed ones included. What concerns several settings at once, and
what only a file system or a model can tell, is found by `rlhf-env check`.

A choice is written twice: as `anyOf`, from which editors complete, and as `if` and `then`, from which they say what is
wrong. The settings of a nested table may also stand one level up, as in `learning.configuration`.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Union, cast

from rlhf_env.declared import Setting, plain, settings_of, settings_of_entry, wraps
from rlhf_env.envs.asked_part import Failures
from rlhf_env.envs.isolation import Limits
from rlhf_env.envs.reward_tables import Mixing
from rlhf_env.errors import ConfigError, MissingExtra, PluginError
from rlhf_env.own_code import KEY
from rlhf_env.plugins import Entry, PluginHost, PluginKind
from rlhf_env.settings import (
    Chooses,
    EachChooses,
    EachPartOf,
    Example,
    Hint,
    PartOf,
    Rows,
    Target,
    apart,
    can_be_written,
    fits,
    marks_of,
    settings_class_of,
    unlimited,
)
from rlhf_env.types import JsonObject

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = JsonObject


def file_schema(host: PluginHost, whole: type, *, title: str, tables: Mapping[str, type] | None = None) -> Schema:
    """The schema of the files that make a `whole`. `tables`: classes of settings that stand under some of its keys,
    where the class itself cannot know them."""
    maker = _Maker(host)
    schema = maker.of_class(whole, partial=False)
    for key, cls in (tables or {}).items():
        described = {name: text for name, text in schema["properties"][key].items() if name == "description"}
        schema["properties"][key] = {**maker.of_class(cls, partial=True), **described}
    return {"$schema": DRAFT, "title": title, **schema, "$defs": maker.definitions}


def one_of_files(schemas: Mapping[str, Schema], title: str) -> Schema:
    """The schema of a file that is of one of several kinds, by a key that only its kind has; "" is of all others."""
    definitions: Schema = {}
    for schema in schemas.values():
        definitions |= schema.get("$defs", {})
    files = {}
    for key, schema in schemas.items():
        name = f"file with {key}" if key else "file"
        definitions[name] = {word: it for word, it in schema.items() if word not in ("$schema", "$defs")}
        files[key] = _reference(name)
    choice: Schema = files[""]
    for key in [key for key in schemas if key]:
        choice = {"if": {"required": [key]}, "then": files[key], "else": choice}
    return {"$schema": DRAFT, "title": title, "anyOf": list(files.values()), **choice, "$defs": definitions}


def staged_schema(
    host: PluginHost, whole: type, kinds: Mapping[str, Sequence[type]], *, title: str, defaults: type
) -> Schema:
    """The schema of files with tables [[stage]], each of a kind that says which classes its settings are of; what is
    set once for all of them, some settings of `defaults`, stands under [defaults]."""
    maker = _Maker(host)
    schema = maker.of_class(whole, partial=False)
    schema["properties"]["defaults"] = maker.of_class(defaults, partial=True)
    names = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    head: Schema = {
        "name": {"type": "string", "description": "The stage's name, and its folder's."},
        "kind": {"enum": list(kinds), "description": "What the stage does."},
        "from": {
            "anyOf": [*names["anyOf"], {"type": "object", "additionalProperties": names}],
            "description": "The earlier stages that it takes from: a name, a list, or a table that says which is what.",
        },
    }
    choices = []
    for kind, classes in kinds.items():
        tables = [maker.of_class(cls, partial=True) for cls in classes]
        properties: Schema = dict(tables[-1]["properties"])
        for cls, table in zip(classes[:-1], tables, strict=False):  # what stands one level up is the last class's
            own = {field.name for field in dataclasses.fields(cls)}
            properties |= {key: value for key, value in table["properties"].items() if key in own}
        about = {"type": "object", "description": tables[0].get("description", "")}
        maker.definitions[f"stage {kind}"] = {
            **about,
            "properties": {**properties, **head},
            "additionalProperties": False,
        }
        of_kind = {"properties": {"kind": {"const": kind}}}
        choices.append({"if": of_kind, "then": _reference(f"stage {kind}")})
    schema["properties"]["stage"] = {
        "type": "array",
        "minItems": 1,
        "items": {"type": "object", "required": ["name", "kind"], "properties": head, "allOf": choices},
    }
    made: Schema = {"$schema": DRAFT, "title": title, **schema, "$defs": maker.definitions}
    return _with_outputs(made)


_OUTPUT: Schema = {"type": "string", "pattern": r"^\$[A-Za-z_]", "description": "What an earlier stage gives: $NAME."}


def _with_outputs(schema: Schema) -> Schema:
    """The same, where the output of an earlier stage may stand for a number too."""

    def widened(part: object) -> object:
        if isinstance(part, list):
            return [widened(each) for each in part]
        if not isinstance(part, dict):
            return part
        if part.get("type") in ("number", "integer"):
            words = {key: part[key] for key in ("description", "default") if key in part}
            return {**words, "anyOf": [{key: it for key, it in part.items() if key not in words}, _OUTPUT]}
        return {key: widened(value) for key, value in part.items()}

    made = widened(schema)
    assert isinstance(made, dict)
    return made


class _Maker:
    """Makes schemas of classes and plugins; `definitions` are those of plugins, each made once."""

    def __init__(self, host: PluginHost) -> None:
        self.host = host
        self.definitions: Schema = {}

    # ---------------------------------------------------------------- classes

    def of_class(self, cls: type, *, partial: bool, extra: Mapping[str, Schema] | None = None) -> Schema:
        """Of a table that makes a `cls`; nothing is required of one that is `partial`ly given."""
        return self._table(settings_of(cls), partial=partial, extra=extra, about=cls.__doc__ or "")

    def _table(
        self, settings: list[Setting], *, partial: bool, extra: Mapping[str, Schema] | None = None, about: str = ""
    ) -> Schema:
        properties = {setting.name: self._setting(setting, partial) for setting in settings}
        inner = [
            (each, setting)
            for setting in settings
            if dataclasses.is_dataclass(setting.hint)
            for each in settings_of(cast(Target, setting.hint))
        ]
        times = Counter(each.name for each, _ in inner)
        for each, outer in inner:  # may stand one level up
            if times[each.name] == 1 and each.name not in properties:
                default = getattr(outer.default, each.name, each.default)
                properties[each.name] = self._setting(dataclasses.replace(each, default=default), partial)
        required = [setting.name for setting in settings if setting.required and not partial]
        table: Schema = {"type": "object", "properties": {**(extra or {}), **properties}, "additionalProperties": False}
        if about:
            table["description"] = about.partition("\n\n")[0].strip()
        return {**table, "required": required} if required else table

    def _setting(self, setting: Setting, partial: bool) -> Schema:
        about: Schema = {"description": setting.meaning} if setting.meaning else {}
        default = plain(setting.default)
        if default is not None and not partial:
            about["default"] = default
        return {**self._hint(setting.hint, partial, may_be_empty=default == {}), **about}

    # ---------------------------------------------------------------- annotations

    def _hint(self, hint: Hint, partial: bool, *, may_be_empty: bool = False) -> Schema:
        for mark in _marks(hint):
            if isinstance(mark, Chooses):
                kind = cast(PluginKind, mark.kind)
                table = self._with_settings(kind, partial)
                if not fits("", hint):
                    return {"type": "object", "if": {"minProperties": 1}, "then": table} if may_be_empty else table
                known = {"enum": [entry.name for entry in self._entries(kind)]}
                return {"if": {"type": "string"}, "then": known, "else": table, "anyOf": [known, table]}
            if isinstance(mark, EachChooses):
                if mark.kind == "reward":
                    return self._parts(partial)
                return self._one_or_named(cast(PluginKind, mark.kind), partial, mark.one_by)
            if isinstance(mark, PartOf):
                return self.of_class(mark.whole, partial=True)
            if isinstance(mark, EachPartOf):
                rows = {"type": "object", "additionalProperties": {"type": "object"}}
                named = {"type": "array", "items": {"type": "string"}, "minItems": 1}
                return {
                    "type": "object",
                    "additionalProperties": self.of_class(
                        mark.whole, partial=True, extra={"agents": rows, "rows": named}
                    ),
                }
            if isinstance(mark, Rows):
                return self._rows()
        if (cls := settings_class_of(hint)) is not None:
            # What is not given is as the default of its place has it.
            return self.of_class(cls, partial=True)
        origin, inner = apart(hint)
        if origin is Annotated and isinstance(inner[1], Example):
            return self._hint(inner[0], partial)
        if origin in (Union, types.UnionType) and any(_marks(part) for it in inner for part in apart(it)[1]):
            return {"anyOf": [self._hint(it, partial) for it in inner if can_be_written(it)]}
        if inner and _marks(inner[-1]):
            within = self._hint(inner[-1], partial)
            if issubclass(origin, Mapping):
                return {"type": "object", "additionalProperties": within}
            return {"type": "array", "items": within}
        return dict(_of_annotation(hint))

    # ---------------------------------------------------------------- plugins

    def _with_settings(self, kind: PluginKind, partial: bool) -> Schema:
        """Of a table whose `name` chooses a plugin. A part of one may leave the name to the rest of it."""
        name = f"{'part of ' if partial else ''}{kind}"
        if name not in self.definitions:
            self.definitions[name] = {}  # one that wraps another of its kind refers to it
            known = {entry.name: self._plugin(entry, partial) for entry in self._entries(kind)}
            choice: Schema = {
                "type": "object",
                "properties": {"name": {"enum": list(known), "description": f"The name of the {kind}."}, KEY: _CODE},
                "allOf": [
                    {"if": {"required": ["name"], "properties": {"name": {"const": name}}}, "then": schema}
                    for name, schema in known.items()
                ],
            }
            if not partial:
                choice |= {"if": _OF_CODE, "then": _NAMELESS, "else": {"required": ["name"]}}
                choice["anyOf"] = [*known.values(), {"type": "object", **_OF_CODE, "properties": {KEY: _CODE}}]
            self.definitions[name] = choice
        return _reference(name)

    def _rows(self) -> Schema:
        """Of the agents of a grid: the key of a row is the agent's name, where the row has none."""
        named = self._with_settings("agent", partial=False)
        rows = {
            entry.name: {
                "if": {"anyOf": [{"required": ["name"]}, _OF_CODE]},
                "then": named,
                "else": self._plugin(entry, partial=False),
                "type": "object",
            }
            for entry in self._entries("agent")
        }
        return {"type": "object", "properties": rows, "additionalProperties": named, "minProperties": 1}

    def _one_or_named(self, kind: PluginKind, partial: bool, one_by: str) -> Schema:
        """As `_named`; or one plugin under the key `one_by` beside its settings, as in [stopping] rule = "brake"."""
        named = self._named(kind, partial)
        if not one_by:
            return named
        word = {
            "enum": [entry.name for entry in self._entries(kind)],
            "description": f"The {kind}, if it is one alone.",
        }
        says_one = {"properties": {one_by: {"type": "string"}}, "required": [one_by]}
        tables = [
            {"if": {"properties": {one_by: {"const": name}}}, "then": table}
            for name, table in self._tables_of(kind, partial, {one_by: word}).items()
        ]
        return {"if": says_one, "then": {"properties": {one_by: word}, "allOf": tables}, "else": named}

    def _tables_of(self, kind: PluginKind, partial: bool, may_say: Mapping[str, Schema]) -> dict[str, Schema]:
        """By plugin: the schema of the table of its settings."""
        tables: dict[str, Schema] = {}
        for entry in self._entries(kind):
            try:
                tables[entry.name] = self._table(settings_of_entry(entry), partial=partial, extra=may_say)
            except (PluginError, MissingExtra):  # what it can be set to is not known here
                tables[entry.name] = {"type": "object"}
        return tables

    def _named(self, kind: PluginKind, partial: bool) -> Schema:
        """Of tables whose keys are plugins: [trackers.mlflow], [stopping.max_kl]. A stopping rule may have another key,
        if its table says which `plugin` it is."""
        plugin: Schema = {
            "enum": [entry.name for entry in self._entries(kind)],
            "description": f"Which {kind} this is.",
        }
        may_say = {"plugin": plugin} if kind == "stopping rule" else {}
        own: Schema = {"type": "object", **_OF_CODE, "properties": {KEY: _CODE}}
        tables = self._tables_of(kind, partial, may_say)
        either = {name: {"if": _OF_CODE, "then": own, "else": table} for name, table in tables.items()}
        named: Schema = {"type": "object", "properties": either, "additionalProperties": own}
        if may_say:
            by_plugin = {
                "type": "object",
                "required": ["plugin"],
                "properties": may_say,
                "allOf": [
                    {"if": {"properties": {"plugin": {"const": name}}}, "then": table} for name, table in tables.items()
                ],
            }
            named["additionalProperties"] = {"if": _OF_CODE, "then": own, "else": by_plugin, "anyOf": [by_plugin, own]}
        return named

    def _parts(self, partial: bool) -> Schema:
        """Of the parts of a reward: the key of a part is the reward's name, where the part has no `plugin`."""
        name = f"{'some ' if partial else ''}rewards"
        if name not in self.definitions:
            known = {entry.name: self._plugin(entry, partial) for entry in self._entries("reward")}
            own = self._table(of_every_reward(), partial=True, about="The task's own score.")
            known["task"] = own
            by_plugin = _reference(f"{name} by plugin")
            self.definitions[f"{name} by plugin"] = {
                "type": "object",
                "required": ["plugin"],
                "properties": {"plugin": {"enum": list(known)}},
                "allOf": [
                    {"if": {"properties": {"plugin": {"const": plugin}}}, "then": schema}
                    for plugin, schema in known.items()
                ],
                "anyOf": list(known.values()),
            }
            shared = self._of_every_reward(partial=True)
            own_code: Schema = {"type": "object", **_OF_CODE, "properties": shared}
            weight = {"type": "number", "description": "The part's weight; the reward has its default settings."}
            parts = {
                part: {
                    "anyOf": [weight, schema, own_code],
                    "if": {"type": "object"},
                    "then": _by_code(own_code, {"if": {"required": ["plugin"]}, "then": by_plugin, "else": schema}),
                    "else": weight,
                }
                for part, schema in known.items()
            }
            some = {} if partial else {"minProperties": 1}
            self.definitions[name] = {
                "type": "object",
                "properties": parts,
                "additionalProperties": {**_by_code(own_code, by_plugin), "anyOf": [by_plugin, own_code]},
                **some,
            }
        return _reference(name)

    def _entries(self, kind: PluginKind) -> Iterable[Entry]:
        return [entry for entry in self.host if entry.kind == kind]

    def _plugin(self, entry: Entry, partial: bool) -> Schema:
        """Of the table of one plugin, its name or weight included."""
        name = f"{'part of ' if partial else ''}{entry.kind} {entry.name}"
        if name not in self.definitions:
            self.definitions[name] = self._made(entry, partial)
        return _reference(name)

    def _of_every_reward(self, partial: bool) -> Schema:
        shared = {setting.name: self._setting(setting, partial) for setting in of_every_reward()}
        return {**shared, KEY: _CODE}

    def _made(self, entry: Entry, partial: bool) -> Schema:
        own = (
            self._of_every_reward(partial)
            if entry.kind == "reward"
            else {"name": {"const": entry.name, "description": f"The {entry.kind}, of {entry.origin}."}}
        )
        try:
            target = entry.load()
            if entry.kind == "agent" and wraps(target):
                own["agent"] = {**self._with_settings("agent", partial), "description": "The agent that is wrapped."}
            table = self._table(settings_of(target), partial=partial, extra=own, about=target.__doc__ or "")
        except ConfigError as error:  # an extra that is not installed, or a plugin that cannot be imported
            return {"type": "object", "properties": own, "description": f"Not checked: {error}"}
        if entry.kind == "agent" and "agent" in own and not partial:
            table["required"] = [*table.get("required", ()), "agent"]
        return table


_CODE: Schema = {
    "type": "string",
    "pattern": "^.+:.+$",
    "description": 'Your own code instead of a registered name: "FILE.py:NAME", or "MODULE:NAME".',
}
_OF_CODE: Schema = {"required": [KEY]}
_NAMELESS: Schema = {"not": {"required": ["name"]}}


def _by_code(own: Schema, otherwise: Schema) -> Schema:
    return {"if": _OF_CODE, "then": own, "else": otherwise}


def of_every_reward() -> list[Setting]:
    """The settings of a part's table that are no plugin's own."""
    return [setting for cls in (Mixing, Failures, Limits) for setting in settings_of(cls)]


def _marks(hint: Hint) -> tuple[Hint, ...]:
    """What an annotation says of itself for its schema."""
    words = (Chooses, EachChooses, PartOf, EachPartOf, Rows)
    return tuple(mark for mark in marks_of(hint) if isinstance(mark, words))


@functools.cache
def _of_annotation(hint: Hint) -> Schema:
    """As pydantic says it, without what no file can hold."""
    from pydantic import TypeAdapter

    return TypeAdapter(_written(hint)).json_schema()


def _written(hint: Hint) -> Hint:
    """The part of an annotation that a file can hold."""
    origin, inner = apart(hint)
    if origin is Annotated:
        return Annotated[(_written(inner[0]), *inner[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(_written(it) for it in inner if it is not type(None) and can_be_written(it))]  # noqa: UP007
    if inner and can_be_written(unlimited(hint)) and _is_container(origin):
        return origin[tuple(it if it is Ellipsis else _written(it) for it in inner)]
    return hint


def _is_container(origin: object) -> bool:
    return isinstance(origin, type) and issubclass(origin, Iterable)


def _reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name.replace(' ', '%20')}"}
