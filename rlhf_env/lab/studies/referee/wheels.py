"""The libraries: which versions, where they are unpacked, and how one module of each is imported.

`make referee` puts the wheels under `build/referee/wheels` and their contents under `build/referee/NAME`. Some of them
import, at the top of the module that has the losses, packages of gigabytes that a loss never calls. Those stand in as
empty modules while the referee works, and packages whose `__init__` imports them are entered without running it: what
computes a loss is the library's own file, unchanged.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_env.errors import ConfigError

WHEELS = Path("build/referee")


@dataclass(frozen=True, kw_only=True)
class Library:
    """One release, and how to come to its losses."""

    name: str
    version: str
    sha256: str
    """Of the wheel, as the package index has it."""
    root: str = ""
    """Where in the unpacked wheel its packages are."""
    entered: Sequence[str] = ()
    """Packages whose `__init__` is not run."""
    stand_ins: Sequence[str] = ()
    """Modules that are replaced by empty ones."""

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    def wheel(self, folder: Path) -> Path | None:
        """The file, if `make referee` was called."""
        stem = self.name.replace("-", "_")
        found = sorted((folder / "wheels").glob(f"{stem}-{self.version}-*.whl"))
        return found[0] if found and (folder / stem).is_dir() else None

    def place(self, folder: Path) -> Path:
        return (folder / self.name.replace("-", "_") / self.root).resolve()


LIBRARIES = (
    Library(
        name="trl",
        version="1.16.0",
        sha256="c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
    ),
    Library(
        name="verl",
        version="0.9.1",
        sha256="db6e6f2a8d9d5808d9ec32d357a42319fdc6967df688ff9d9810050f49bfdd14",
        entered=("verl", "verl.trainer", "verl.trainer.ppo", "verl.workers"),
        stand_ins=("codetiming", "hydra", "omegaconf", "orjson", "ray", "tensordict"),
    ),
    Library(
        name="openrlhf",
        version="0.11.2",
        sha256="c969d70db03a70724c3d8a5a01186c6e0728bce624fb3dff95e39b5396acefa6",
        root="openrlhf-0.11.2.data/purelib",
        entered=("openrlhf", "openrlhf.models", "openrlhf.trainer", "openrlhf.trainer.ppo_utils", "openrlhf.utils"),
        stand_ins=("deepspeed", "openrlhf.trainer.ray", "ray"),
    ),
    Library(
        name="skyrl",
        version="0.3.0",
        sha256="0110e9434a58d6eb2aa533dd06e6346c8303757800af3c2b5a0d3f341cbad414",
        entered=(
            "skyrl",
            "skyrl.backends",
            "skyrl.backends.skyrl_train",
            "skyrl.backends.skyrl_train.utils",
        ),
        stand_ins=("jaxtyping", "loguru", "omegaconf", "ray", "skyrl.train"),
    ),
    Library(
        name="areal",
        version="1.0.4",
        sha256="7d7cfab10d9ec0990d9263290a9472366827783b9ad5fce22f56a1add416bdd9",
        entered=("areal", "areal.utils", "areal.utils.functional"),
        stand_ins=("areal.api", "areal.utils.data"),
    ),
    Library(
        name="torchtune",
        version="0.6.1",
        sha256="bcbc4ee9774b5c5829a5ff13df851e0b0e32416c018af8db53faa3472ac256e7",
        entered=("torchtune",),
        stand_ins=("omegaconf", "torchao"),
    ),
)


def missing(folder: Path, of: Sequence[Library]) -> list[str]:
    """The names of libraries that are not under `folder`."""
    return [library.name for library in of if library.wheel(folder) is None]


def require_wheels(folder: Path, of: Sequence[Library]) -> None:
    """ConfigError, of one line, where one is missing or is another file than the one that was measured."""
    absent = missing(folder, of)
    if absent:
        raise ConfigError(f"no wheel of {', '.join(absent)} in {folder}: `make referee` downloads and unpacks them")
    others = [library.requirement for library in of if wheel_sha256(folder, library) != library.sha256]
    if others:
        raise ConfigError(
            f"the wheel of {', '.join(others)} in {folder} is another file than the one that the table is of (sha256 "
            "differs): remove it and call `make referee`"
        )


def wheel_sha256(folder: Path, library: Library) -> str:
    """The sha256 of its wheel."""
    wheel = library.wheel(folder)
    return "" if wheel is None else hashlib.sha256(wheel.read_bytes()).hexdigest()


class _Meta(type):
    """Of what a stand-in holds: any attribute, subscript or alternative of it is another of the kind."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Meta(name, (_Nothing,), {})

    def __getitem__(cls, _item: object) -> Any:
        return cls

    def __or__(cls, _other: object) -> Any:
        return cls

    def __ror__(cls, _other: object) -> Any:
        return cls


class _Nothing(metaclass=_Meta):
    """What a module that stands in has: false, and as a decorator it leaves what it decorates as it is."""

    def __init__(self, *_given: object, **_named: object) -> None:
        pass

    def __bool__(self) -> bool:
        return False

    def __call__(self, *given: Any, **_named: object) -> Any:
        return given[0] if given and callable(given[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Meta(name, (_Nothing,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules that stand in, and none else."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in self.names):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@contextmanager
def importing(library: Library, folder: Path) -> Iterator[None]:
    """Within it, the library's modules can be imported from its wheel, and called."""
    place, before = library.place(folder), set(sys.modules)
    finder = _Finder(library.stand_ins)
    settings = {name: os.environ.get(name) for name in ("VERL_USE_EXTERNAL_PLUGINS", "TRL_EXPERIMENTAL_SILENCE")}
    os.environ.update({"VERL_USE_EXTERNAL_PLUGINS": "none", "TRL_EXPERIMENTAL_SILENCE": "1"})
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, str(place))
    try:
        for name in library.entered:
            module = types.ModuleType(name)
            module.__path__ = [str(place.joinpath(*name.split(".")))]
            module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            sys.modules[name] = module
        yield
    finally:
        sys.path.remove(str(place))
        sys.meta_path.remove(finder)
        for name, value in settings.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        for name in set(sys.modules) - before:
            # What was left of a stand-in would be found by whoever asks whether the package is there.
            if isinstance(sys.modules[name], _StandIn) or name.split(".")[0] == library.name:
                del sys.modules[name]


def of_wheel(name: str, library: Library, folder: Path) -> Any:
    """The module, from the wheel and from nowhere else."""
    module = importlib.import_module(name)
    if not Path(str(module.__file__)).resolve().is_relative_to(library.place(folder)):
        raise ConfigError(
            f"{name} was imported from {module.__file__}, not from the wheel: another version is loaded already"
        )
    return module


if __name__ == "__main__":  # what `make referee` downloads
    print(*(library.requirement for library in LIBRARIES))
