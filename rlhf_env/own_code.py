"""Code of one's own, named where it is used: `function = "polite.py:polite"`, or `"package.module:name"`.

    [rewards.polite]                    # polite.py, beside this file
    function = "polite.py:polite"       def polite(completions, **columns):
    weight = 0.5                            return [float("please" in text) for text in completions]

A file is known by its content: `pinned` notes the sha256 of it, and of the files beside it that it imports, when a
file of settings is opened, and `load_code` refuses another version. So all processes of a run, and of a grid, run the
same code. A file is imported under a name of its own, made from path and content: two files of one name are two
modules, and a file that was edited is imported anew.

While a file is imported, its folder comes first on Python's path, as when it is run as a script. Afterwards it does
not, so a neighbour that a function imports when it is called would not be found: that is refused.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping
from importlib.abc import SourceLoader
from pathlib import Path
from types import ModuleType

from rlhf_env.errors import TRACEBACK, DataError, PluginError, Problem, RlhfEnvError, RunFailed, did_you_mean
from rlhf_env.plain_data import read_file
from rlhf_env.shown_text import near
from rlhf_env.working_folder import same_folder

KEY = "function"  # of a table that names code
FORM = '"FILE.py:NAME" or "MODULE:NAME"'
_LARGEST = 2**22  # bytes of a file of code
_MOST_FILES = 500  # of a neighbouring package
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")

_turn = threading.RLock()  # sys.path is everybody's
_loading: list[Path] = []  # the files that are being imported, the innermost last
_ours: dict[str, ModuleType] = {}  # by module name, what was imported here
_neighbours: dict[str, dict[str, str]] = {}  # by module name, the files of what they imported from beside them
_OURSELVES = ("rlhf_env", "rlhf_agents", "rlhf_rewards")
_of_plugins: set[Path] = set()  # the files, and the folders of packages, of plugins by name


class OwnCode(str):
    """`"polite.py:polite"`: where code is. `files`: those that make it up, by absolute path, with the sha256 that each
    must have; empty where that was not noted yet."""

    files: Mapping[str, str]

    def __new__(cls, written: str, files: Mapping[str, str] | None = None) -> OwnCode:
        if isinstance(written, cls) and files is None:
            return written
        code = super().__new__(cls, written)
        code.files = dict(files or {})
        return code

    def __reduce__(self) -> tuple[object, ...]:
        return OwnCode, (str(self), dict(self.files))

    @property
    def source(self) -> str:
        """The file or the module."""
        return self.rpartition(":")[0]

    @property
    def attribute(self) -> str:
        return self.rpartition(":")[2]

    @property
    def label(self) -> str:
        """What it is called where nobody gave it a name."""
        return self.attribute.rpartition(".")[2]

    @property
    def is_file(self) -> bool:
        return self.source.endswith(".py") or "/" in self.source

    @property
    def path(self) -> Path:
        return Path(os.path.abspath(Path(self.source).expanduser()))  # noqa: PTH100 - a link's folder is where it is

    @property
    def is_named(self) -> bool:
        """Whether it has the form of a file or a module, and a name in it."""
        return bool(_MODULE.fullmatch(self.attribute)) and (self.is_file or bool(_MODULE.fullmatch(self.source)))

    def shown(self) -> str:
        """As it is said in a message: from the working directory."""
        return f"{near(self.path)}:{self.attribute}" if self.is_file else str(self)


def names_code(value: object) -> bool:
    """Whether something in a list of names says where code is, as no registered name does."""
    return isinstance(value, OwnCode) or (isinstance(value, str) and ":" in value and OwnCode(value).is_named)


def code_named_in(value: object, *lists: str) -> list[str]:
    """What a table of settings names as code, as it is written, at any depth: under `function`, and in the `lists` of
    names. Nothing is imported to find it."""
    if not isinstance(value, Mapping):
        return (
            [code for item in value for code in code_named_in(item, *lists)] if isinstance(value, (list, tuple)) else []
        )
    found: list[str] = []
    for key, item in value.items():
        if key == KEY and isinstance(item, str):
            found.append(item)
        elif key in lists and isinstance(item, (list, tuple)):
            found += [each for each in item if names_code(each)]
        else:
            found += code_named_in(item, *lists)
    return found


def pinned(written: str, folder: str | Path) -> OwnCode:
    """The same led from `folder`, with the files as they are now. What has its files keeps them.

    Nothing is imported. What is wrong with it is said by `load_code`.
    """
    code = OwnCode(written)
    if code.files or not code.is_named:
        return code
    if code.is_file:
        code = OwnCode(f"{Path(folder).absolute() / Path(code.source).expanduser()}:{code.attribute}")
        code = OwnCode(f"{code.path}:{code.attribute}")
    with contextlib.suppress(DataError):
        return OwnCode(str(code), files_of(code))
    return code


def codes_in(value: object) -> Iterator[OwnCode]:
    """All code that plain data names, and has been `pinned`."""
    if isinstance(value, OwnCode):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from codes_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from codes_in(item)


def files_in(value: object) -> dict[str, str]:
    """sha256, by path, of the files of all of it."""
    return {file: sha256 for code in codes_in(value) for file, sha256 in code.files.items()}


def label_of(table: Mapping[str, object], otherwise: str) -> str:
    """What the plugin of a table is called: its name or, of code of one's own, that of the class or function."""
    if isinstance(code := table.get(KEY), str):
        return OwnCode(code).label
    return str(table.get("name", otherwise))


def files_of(code: OwnCode) -> dict[str, str]:
    """sha256 of the files that the code is made of: of a module its own, of a file also the neighbours it imports.

    Found by reading, and not by importing. Raises DataError for a file that cannot be read.
    """
    if not code.is_file:
        file = _file_of_module(code.source)
        return {} if file is None else {file: _sha256(read_file(file))}
    content = read_file(code.path, _LARGEST)
    found = {str(code.path): _sha256(content)}
    for files in _neighbours_of(code.path, content).values():
        found |= files
    return found


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The files that are not the same."""
    return sorted(file for file in before.keys() | now.keys() if before.get(file) != now.get(file))


def require_unchanged(before: Mapping[str, str], table: object) -> None:
    """Refuse code in a table that is `pinned` to another content than `before` says. Raises PluginError."""
    for code in codes_in(table):
        if others := [file for file, sha256 in code.files.items() if before.get(file, sha256) != sha256]:
            raise _refused(f"{', '.join(str(near(Path(file))) for file in others)} changed while it was in use")


def load_code(code: OwnCode) -> object:
    """What the code names. Raises PluginError, which says file and line, in one line."""
    if not code.is_named:
        raise _refused(f"{str(code)!r} is not of the form {FORM}")
    with _turn:
        module = _module_of_file(code) if code.is_file else _installed_module(code)
    try:
        return functools.reduce(getattr, code.attribute.split("."), module)
    except AttributeError as error:
        near_names = [
            name
            for name, value in vars(module).items()
            if name[0] != "_" and getattr(value, "__module__", None) == module.__name__
        ]
        said = did_you_mean(code.attribute, near_names)
        raise _refused(f"{_spoken_source(code)} has no {code.attribute!r}{said}") from error


def is_of_plugin(target: object) -> None:
    """Note whose code a registered plugin is, so that `raised_at` knows its lines: its file's, or its package's."""
    module = sys.modules.get(getattr(target, "__module__", None) or "")
    if module is None or module.__name__.partition(".")[0] in _OURSELVES:
        return  # of our own, under another name
    top = sys.modules.get(module.__name__.partition(".")[0])
    if file := getattr(top if hasattr(top, "__path__") else module, "__file__", None):
        path = Path(file)
        _of_plugins.add(path.parent if path.name == "__init__.py" else path)


def raised_at(error: BaseException) -> str:
    """Where in code of somebody else's an error was raised: "polite.py, line 3"; "" if it was elsewhere.

    That is a file of one's own, or a plugin by name. What it called, of torch for instance, is passed over.
    """
    files = {str(module.__file__) for module in _ours.values()} | {f for it in _neighbours.values() for f in it}
    lines = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in files or not _of_plugins.isdisjoint((path := Path(frame.filename), *path.parents))
    ]
    return f"{near(Path(lines[-1].filename))}, line {lines[-1].lineno}" if lines else ""


def error_in_words(error: BaseException) -> str:
    """In a line: "RuntimeError: not today (polite.py, line 3)"; without the place where it was raised elsewhere."""
    place = raised_at(error)
    said = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    return f"{said} ({place})" if place else said


@contextlib.contextmanager
def naming_who_raised(who: str) -> Iterator[None]:
    """While somebody else's code is asked: what it raises becomes RunFailed, in one line that begins with `who`.

    What our own code raises is our own fault, and keeps its traceback.
    """
    try:
        yield
    except RlhfEnvError:
        raise
    except (Exception, SystemExit) as error:
        if not raised_at(error):
            raise
        said = f"{who} raised {error_in_words(error)}: {TRACEBACK}=1 shows the whole traceback"
        raise RunFailed(said) from error


# ---------------------------------------------------------------- files


class _AsRead(SourceLoader):
    """Imports the bytes that were hashed, and no other version of the file."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content

    def get_filename(self, _fullname: str) -> str:
        return str(self.path)

    def get_data(self, _path: str | bytes) -> bytes:
        return self.content


def _module_of_file(code: OwnCode) -> ModuleType:
    path = code.path
    try:
        content = read_file(path, _LARGEST)
    except DataError as error:
        raise _refused(f"{error}".replace(str(path), str(near(path)))) from error
    neighbours = _neighbours_of(path, content)
    files = {str(path): _sha256(content)} | {file: at for each in neighbours.values() for file, at in each.items()}
    if code.files and (others := changed(code.files, files)):
        those = ", ".join(str(near(Path(file))) for file in others)
        raise _refused(f"{those} changed while it was in use: start anew")
    stem, version = re.sub(r"\W", "_", path.stem), _sha256(json.dumps(files, sort_keys=True).encode())
    name = f"{stem}_{version[:12]}"
    if name in _ours:
        return _ours[name]
    if path in _loading:
        said = f'{near(path)} imports itself: what it runs belongs under `if __name__ == "__main__":`'
        raise _refused(said)
    _refuse_late_imports(files, neighbours)
    _make_room_for(path, neighbours)
    spec = importlib.util.spec_from_file_location(name, path, loader=_AsRead(path, content))
    if spec is None or spec.loader is None:
        raise _refused(f"{near(path)} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for what their annotations mean
    _loading.append(path)
    sys.path.insert(0, str(path.parent))
    importlib.invalidate_caches()  # a neighbour may have been written a moment ago
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # bytecode is known by seconds, and not by content
    try:
        with _contained(code):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        _loading.pop()
        sys.dont_write_bytecode = writes
        with contextlib.suppress(ValueError):
            sys.path.remove(str(path.parent))
        for neighbour, its_files in neighbours.items():
            if str(getattr(sys.modules.get(neighbour), "__file__", None)) in its_files:
                _neighbours[neighbour] = its_files
    _ours[name] = module
    return module


@contextlib.contextmanager
def _contained(code: OwnCode) -> Iterator[None]:
    """While code is imported: what it prints goes to stderr, the working directory stays, errors are one line."""
    try:
        with same_folder(code.shown()), contextlib.redirect_stdout(sys.stderr):
            yield
    except PluginError:
        raise
    except ModuleNotFoundError as error:
        hint = ""
        if not code.is_file and (error.name or "") == code.source.partition(".")[0]:
            hint = ': it is not installed here; a file is named with its path, "FILE.py:NAME"'
        raise _refused(f"{_where(code, error)} cannot be imported: {error}{hint}") from error
    except (Exception, SystemExit) as error:
        kind = "it would end the program (SystemExit)" if isinstance(error, SystemExit) else type(error).__name__
        said = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
        raise _refused(f"{_where(code, error)} cannot be imported: {kind}{f': {said}' if said else ''}") from error


def _where(code: OwnCode, error: BaseException) -> str:
    """The line of the file, or of its neighbour, that is to blame for what happened while it was imported."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{near(Path(error.filename))}, line {error.lineno}"
    if not code.is_file:
        return _spoken_source(code)
    folder = code.path.parent
    frames = [it for it in traceback.extract_tb(error.__traceback__) if Path(it.filename).is_relative_to(folder)]
    own = [frame for frame in frames if frame.filename == str(code.path)] or frames
    return f"{near(Path(own[-1].filename))}, line {own[-1].lineno}" if own else str(near(code.path))


def _refused(said: str) -> PluginError:
    return PluginError(Problem(said, (KEY,)))


def _spoken_source(code: OwnCode) -> str:
    return str(near(code.path)) if code.is_file else f"the module {code.source}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------- neighbours


def _neighbours_of(path: Path, content: bytes) -> dict[str, dict[str, str]]:
    """By name, the modules beside a file that it imports, and that those import: sha256 by path of their files."""
    found: dict[str, dict[str, str]] = {}
    waiting = [content]
    while waiting:
        for name, _ in _imported(_tree(waiting.pop())):
            if name in found or name in sys.stdlib_module_names:
                continue
            if files := _files_beside(path.parent, name):
                found[name] = {str(file): _sha256(text) for file, text in files.items()}
                waiting += files.values()
    return found


def _files_beside(folder: Path, name: str) -> dict[Path, bytes]:
    """The files of the module or package of this name in a folder."""
    if (folder / name / "__init__.py").is_file() or not (folder / f"{name}.py").is_file():
        files = sorted((folder / name).rglob("*.py"))[:_MOST_FILES] if (folder / name).is_dir() else []
    else:
        files = [folder / f"{name}.py"]
    return {file: read_file(file, _LARGEST) for file in files}


def _tree(content: bytes) -> ast.AST:
    """The text as Python reads it; of what is not Python, nothing."""
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module([], [])


def _imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The first word of each absolute import, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], node.lineno


def _refuse_late_imports(files: Iterable[str], neighbours: Mapping[str, object]) -> None:
    """A neighbour that is imported when a function is called would not be found then."""
    for file in files if neighbours else ():
        for function in ast.walk(_tree(read_file(file, _LARGEST))):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for name, line in _imported(function):
                    if name in neighbours:
                        said = f"imports {name!r}, a file beside it, in {function.name}: import it at the top"
                        raise _refused(f"{near(Path(file))}, line {line}: {said}")


def _make_room_for(path: Path, neighbours: Mapping[str, dict[str, str]]) -> None:
    """Forget neighbours of other files, and older versions, that have these names. Refuse a name that is taken."""
    for name, files in neighbours.items():
        there = sys.modules.get(name)
        if there is None or (str(getattr(there, "__file__", None)) in files and _neighbours.get(name, files) == files):
            continue
        if name not in _neighbours:
            where = getattr(there, "__file__", None) or "another module"
            raise _refused(f"{near(path)} imports {name!r}, a file beside it, and {where} has that name: rename it")
        for module in [it for it in sys.modules if it == name or it.startswith(f"{name}.")]:
            del sys.modules[module]


# ---------------------------------------------------------------- modules


def _installed_module(code: OwnCode) -> ModuleType:
    with _contained(code):
        module = importlib.import_module(code.source)
    now = files_of(code) if code.files else {}
    if code.files and (others := changed(code.files, now)):
        raise _refused(f"{', '.join(others)} changed while it was in use: start anew")
    return module


def _file_of_module(name: str) -> str | None:
    """The source file of a module, found without importing it or what it is in; None where there is none."""
    path: list[str] | None = None
    for place, _ in enumerate(parts := name.split(".")):
        full = ".".join(parts[: place + 1])
        specs = (finder.find_spec(full, path) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((it for it in specs if it is not None), None)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    origin = None if spec is None else spec.origin
    return origin if origin is not None and origin.endswith(".py") else None
