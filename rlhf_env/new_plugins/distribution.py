"""Write a whole distribution out of templates: code, tests, entry point, an experiment, a README.

A template is a text with `$name` and the like; its path has PACKAGE and NAME in it. Those of `templates/any` are
shared by all kinds.
"""

from __future__ import annotations

import keyword
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Literal

from rlhf_env.errors import ConfigError
from rlhf_env.plugins import host
from rlhf_env.whole_files import folder_written

WrittenKind = Literal["reward", "task", "agent"]

_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z](?:[a-z0-9_]*[a-z0-9])?")  # a module, and the end of a distribution's name (PEP 508)
_LONGEST = 60

# What the shared templates say of a kind.
_ABOUT: Mapping[WrittenKind, Mapping[str, str]] = {
    "reward": {
        "dependencies": '"annotated-types>=0.6", "numpy>=1.26", "rlhf-env>=0.1"',
        "about": "the share of short words.",
        "attacks": "odd texts, batch mates, its range, global random state",
        "holds": "the reward: its settings and its formula",
        "table": "[rewards.$name]\nweight = 1.0\nlongest = 4",
    },
    "task": {
        "dependencies": '"annotated-types>=0.6", "rlhf-env>=0.1"',
        "about": "the letters of a word, in the order of the alphabet.",
        "attacks": "prompts, ids, what is held out, odd answers, replies without end",
        "holds": "the task: its prompts and its score",
        "table": '[task]\nname = "$name"\nlength = 3',
    },
    "agent": {
        "dependencies": '"rlhf-env>=0.1", "torch>=2.8"',
        "about": "REINFORCE against a moving average of returns.",
        "attacks": "determinism, what a checkpoint holds, log-probabilities, whether it learns",
        "holds": "the agent: its settings, its loss, its state",
        "table": '[agent]\nname = "$name"\nmemory = 0.8\nlr = 1e-2',
    },
}


@dataclass(frozen=True)
class NewPlugin:
    """A distribution that has been written."""

    kind: WrittenKind
    name: str
    folder: Path

    @property
    def code(self) -> Path:
        """The file to change first."""
        return self.folder / self.folder.name / f"{self.name}.py"

    def commands(self, inside: bool = False) -> list[str]:
        """What to do with it, each with what it is for: from where the folder was put, or from inside of it."""
        here = Path() if inside else self.folder
        install = "." if inside else str(here) if here.is_absolute() else f"./{here}"
        tests = "python -m pytest" if inside else f"python -m pytest {shlex.quote(str(here))}"
        lines = [
            (f"pip install -e {shlex.quote(f'{install}[test]')}", "once; what you change in the code holds at once"),
            (f"rlhf-env plugins {self.kind}:{self.name}", "it is known by name, and what can be set"),
            (f"rlhf-env check {self.kind}:{self.name}", "is it sound?"),
            (tests, "its own tests"),
            (f"rlhf-env train {shlex.quote(str(here / f'{self.name}.toml'))}", "a tiny model trains with it"),
        ]
        width = max(len(command) for command, _ in lines)
        return [f"{command:{width}}   # {why}" for command, why in lines]


def write_plugin(kind: WrittenKind, name: str, where: str | Path = ".") -> NewPlugin:
    """Write the folder rlhf_KIND_NAME in `where`.

    Raises ConfigError, and writes nothing, where `name` is no usable name, an installed plugin has it, or the folder is
    there already; DiskRefused where it cannot be written.
    """
    _require_name(kind, name)
    package = f"rlhf_{kind}_{name}"
    folder = Path(where) / package
    made = NewPlugin(kind, name, folder)
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} is there already, and stays as it is: choose another name, or another folder")
    values = {
        "kind": kind,
        "a_kind": f"{'An' if kind == 'agent' else 'A'} {kind}",
        "name": name,
        "Class": _class_of(kind, name),
        "package": package,
        "distribution": package.replace("_", "-"),
        "hook": f"register_{kind}s",
        "commands": "\n".join(f"    {line}" for line in made.commands(inside=True)),
    }
    values |= {key: Template(text).substitute(values) for key, text in _ABOUT[kind].items()}
    with folder_written(folder) as half:
        for root in (_TEMPLATES / "any", _TEMPLATES / kind):
            for template in sorted(root.rglob("*.template")):
                file = half / _filled_path(template.relative_to(root), package, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(Template(template.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
    return made


def _class_of(kind: WrittenKind, name: str) -> str:
    """MyQuestionsTask; of a name that ends in its kind, MyAgent and not MyAgentAgent."""
    words = name.split("_")
    return "".join(word.capitalize() for word in (words if words[-1] == kind else [*words, kind]))


def _filled_path(place: Path, package: str, name: str) -> Path:
    words = place.as_posix().removesuffix(".template").replace("PACKAGE", package).replace("NAME", name)
    return Path(".gitignore" if words == "gitignore" else words)


def _require_name(kind: WrittenKind, name: str) -> None:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name) or "__" in name or len(name) > _LONGEST:
        near = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")[:_LONGEST].rstrip("_")
        usable = bool(near) and near != name and not keyword.iskeyword(near)
        guess = f": did you mean {near!r}?" if usable else ""
        raise ConfigError(
            f"{name!r} cannot name a Python module: small letters, digits and single underscores, from a letter on, at "
            f"most {_LONGEST}, and no keyword{guess}"
        )
    takers = [entry for entry in host() if (entry.kind, entry.name) == (kind, name)]
    if takers:
        of = f"{'an' if kind == 'agent' else 'a'} {kind} of {takers[0].origin}"
        raise ConfigError(f"{name!r} is {of} already, and one name is one {kind}: choose another name")
