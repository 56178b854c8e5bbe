"""TOML files of settings: their plain data, and the line of every setting, for error messages.

`tomllib` does not say on which line a key is, and no library that does is maintained well enough to depend on. A text
that `tomllib` has read is valid TOML, so finding its keys again takes little code. It runs only when there is an error
to report.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from rlhf_env.errors import ConfigError, Key, Problem
from rlhf_env.plain_data import read_file
from rlhf_env.types import JsonObject

FileKind = Literal["experiment", "grid", "pipeline"]

_COMMANDS: Mapping[FileKind, str] = {"experiment": "train", "grid": "bench", "pipeline": "pipeline"}
_LARGEST = 2**20  # bytes of a file


def read_toml(file: str | Path) -> JsonObject:
    """A TOML file as plain data. Raises ConfigError with file and line."""
    content = read_file(file, _LARGEST)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}, line {line}: not UTF-8: byte 0x{content[error.start]:02x}") from error
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(f"{file}, line {_deepest(text)}: brackets too deep to be read") from error
    except ValueError as error:
        said, line = str(error), _longest_word(text)  # a number of thousands of digits, unless it says a place
        if found := re.fullmatch(r"(.*) \(at (?:line (\d+), (column \d+)|end of document)\)", said, re.DOTALL):
            line = int(found[2]) if found[2] else text.rstrip("\n").count("\n") + 1
            said = _twice(text, line) or f"{found[1]} ({found[3] or 'at the end of the file'})"
        raise ConfigError(f"{file}, line {line}: {said}") from error


def file_kind(table: Mapping[str, object]) -> FileKind | None:
    """Which kind of file this is, by the tables that one kind alone has; None where there are none of them."""
    if "stage" in table:
        return "pipeline"
    of_experiments = {"agent", "policy", "task", "environment", "rewards"} & table.keys()
    if "experiment" in table or ("agents" in table and not of_experiments):
        return "grid"
    return "experiment" if of_experiments else None


def read_kind(file: str | Path, kind: FileKind) -> JsonObject:
    """As `read_toml`. Raises ConfigError too where the file is of another kind, with the command that takes it."""
    table = read_toml(file)
    found = file_kind(table)
    if found is not None and found != kind:
        said = "an experiment" if found == "experiment" else f"a {found}"
        raise ConfigError(f"{file} is {said}, and {kind}s are read here: rlhf-env {_COMMANDS[found]} {file}")
    return table


def _twice(text: str, line: int) -> str:
    """What is there a second time on this line, the first that is not valid; "" where that is not what is wrong."""
    reader = _Reader(_tokens("\n".join(text.split("\n")[:line])))
    try:
        reader.read()
    except (IndexError, ValueError):  # something else is wrong with it
        return ""
    if not reader.again:
        return ""
    path, is_table = reader.again[-1]
    name = ".".join(str(key) for key in path)
    if is_table:
        return f"[{name}] stands here a second time, first on line {reader.lines[path]}: put its settings in one place"
    return f"{name} is set a second time, first on line {reader.lines[path]}: leave one of them out"


@contextmanager
def naming_lines(file: str | Path, flags: Mapping[str, str] | None = None) -> Iterator[None]:
    """Errors about settings from `file` get the file and the line of the setting.

    `flags` are settings that the command line has replaced, with its words ({"seed": "--seed -1"}): a message names the
    words instead of the line. A setting that is missing in the file gets the line of its table.
    """
    try:
        yield
    except ConfigError as error:
        table = {**read_toml(file), **(flags or {})}
        lines = lines_of(read_file(file, _LARGEST).decode("utf-8"))

        def located(problem: Problem) -> Problem:
            if problem.startswith(f"{file}, line "):
                return problem
            keys = narrowed(problem.keys, table)
            if keys and keys[0] in (flags or {}):
                return problem.led_by((flags or {})[str(keys[0])])
            line = lines.get(keys)
            return problem.led_by(f"{file}" if line is None else f"{file}, line {line}", instead_of=f"{file}")

        error.change(located)
        raise


def narrowed(keys: Sequence[Key], table: Mapping[str, object]) -> tuple[Key, ...]:
    """Those of `keys`, which lead to a setting, that `table` has.

    Keys that are missing are passed over: the settings of a nested table may stand one level up.
    """
    found: list[Key] = []
    at: object = table
    for key in keys:
        if (isinstance(at, Mapping) and key in at) or (isinstance(at, list) and key in range(len(at))):
            found.append(key)
            at = cast(Any, at)[key]
    return tuple(found)


class _Token(NamedTuple):
    text: str
    line: int


_TOKENS = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'  # multi-line strings; they may end with two more quotes
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\])*"'
    r"|'[^']*'"
    r"|#[^\n]*|\n|[ \t\r]+"
    r"|[][{}=,.]"
    r"|[^][{}=,.\s#\"']+",
    re.DOTALL,
)


def _tokens(text: str) -> list[_Token]:
    """Strings, words, punctuation and line ends of valid TOML, without comments and spaces."""
    tokens, line = [], 1
    for match in _TOKENS.finditer(text):
        token = match[0]
        if token[0] not in " \t\r#":
            tokens.append(_Token(token, line))
        line += token.count("\n")
    return tokens


def lines_of(text: str) -> dict[tuple[Key, ...], int]:
    """The line of each key, by its path; elements of lists are numbered. `text` must be valid TOML.

    A table has the line of its header, or that of its first key where it has no header.
    """
    return _Reader(_tokens(text)).read()


class _Reader:
    """Reads the tokens of valid TOML and fills `lines`."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens, self.at = [*tokens, _Token("\n", 0)], 0
        self.lines: dict[tuple[Key, ...], int] = {}
        self.lengths: dict[tuple[Key, ...], int] = {}  # of arrays of tables
        self.begun: set[tuple[Key, ...]] = set()  # tables that have a header, and settings
        self.again: list[tuple[tuple[Key, ...], bool]] = []  # what is begun twice, which no valid TOML has; a table?

    def read(self) -> dict[tuple[Key, ...], int]:
        table: tuple[Key, ...] = ()
        while self.at < len(self.tokens):
            if self._passed("\n"):
                continue
            if self._passed("["):
                many = self._passed("[")
                table = self._header(many)
            else:
                self._setting(table)
        return self.lines

    def _passed(self, *marks: str) -> bool:
        if self.tokens[self.at].text in marks:
            self.at += 1
            return True
        return False

    def _key(self) -> list[_Token]:
        """The parts of a key, up to "=" or "]"."""
        parts = []
        while self.tokens[self.at].text not in ("=", "]"):
            token = self.tokens[self.at]
            self.at += 1
            if token.text != ".":
                parts.append(_Token(_unquoted(token.text), token.line))
        return parts

    def _header(self, many: bool) -> tuple[Key, ...]:
        """[a.b] or [[a.b]]: the path of the settings below it, in an array of tables that of its last table."""
        path: tuple[Key, ...] = ()
        *outer, (name, line) = self._key()
        self.at += 2 if many else 1
        for part in outer:
            path = (*path, part.text)
            self.lines.setdefault(path, part.line)
            if path in self.lengths:
                path = (*path, self.lengths[path] - 1)
        path = (*path, name)
        if not many:
            if self._begun_before(path, is_table=True):
                return path
            self.lines[path] = line
            return path
        self.lines.setdefault(path, line)
        place = self.lengths.get(path, 0)
        self.lengths[path] = place + 1
        self.lines[(*path, place)] = line
        return (*path, place)

    def _begun_before(self, path: tuple[Key, ...], *, is_table: bool) -> bool:
        before = path in self.begun
        self.begun.add(path)
        if before:
            self.again.append((path, is_table))
        return before

    def _setting(self, table: tuple[Key, ...]) -> None:
        """a.b = value, within `table`."""
        path = table
        for part in self._key():
            path = (*path, part.text)
            self.lines.setdefault(path, part.line)
        self._begun_before(path, is_table=False)
        self.at += 1
        self._value(path)

    def _value(self, path: tuple[Key, ...]) -> None:
        if self._passed("{"):
            while not self._passed("}"):
                if not self._passed(",", "\n"):
                    self._setting(path)
        elif self._passed("["):
            place = 0
            while not self._passed("]"):
                if not self._passed(",", "\n"):
                    self.lines[(*path, place)] = self.tokens[self.at].line
                    self._value((*path, place))
                    place += 1
        else:
            while self.tokens[self.at].text not in (",", "\n", "]", "}"):  # 1.5 and 2020-01-01 12:00 are several tokens
                self.at += 1


def _unquoted(key: str) -> str:
    return str(tomllib.loads(f"key = {key}")["key"]) if key[0] in "\"'" else key


def _deepest(text: str) -> int:
    """The line on which most brackets are open."""
    depth = deepest = 0
    line = 1
    for token in _tokens(text):
        depth += (token.text in ("[", "{")) - (token.text in ("]", "}"))
        if depth > deepest:
            deepest, line = depth, token.line
    return line


def _longest_word(text: str) -> int:
    return max(_tokens(text), key=lambda token: len(token.text), default=_Token("", 1)).line
