"""What the referee finds: one row an objective, measured in two worlds."""

from __future__ import annotations

import inspect
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_env.errors import ConfigError, did_you_mean
from rlhf_env.lab.studies.exact.estimators import MeasuredEstimate, example
from rlhf_env.lab.studies.referee import ours
from rlhf_env.lab.studies.referee.entries import Differs, LibraryObjective
from rlhf_env.lab.studies.referee.measuring import how_far_apart, measure_expected, share_gained
from rlhf_env.lab.studies.referee.texts import Draws
from rlhf_env.lab.studies.referee.wheels import LIBRARIES, Library, importing, of_wheel, require_wheels, wheel_sha256
from rlhf_env.plain_data import strict_json

AGREES = 1e-10
"""Relative: above it, two gradients are not the same."""
_BETA, _SEED = 0.5, 0


@dataclass(frozen=True)
class MeasuredObjective:
    """In one world, on texts that the policy wrote: as `MeasuredEstimate`; `older`: the cosine on texts that the
    reference wrote (None: of pairs)."""

    bias: float
    cosine: float
    noise: float
    older: float | None

    @classmethod
    def of(cls, on: MeasuredEstimate, off: MeasuredEstimate | None) -> MeasuredObjective:
        return cls(on.bias, on.cosine, on.noise, None if off is None else off.cosine)


@dataclass(frozen=True)
class RefereeRow:
    """One objective. `gained` is the share of the attainable gain where it ends, None where no penalty belongs to it.

    `apart`: by how much its gradient differs from that of our second derivation; `line`, "file:number", and `why` say
    where from, if it does; `explained`: by how much they differ with that line in ours.
    """

    maker: str
    name: str
    kind: str
    penalty: str
    ours: str
    large: MeasuredObjective
    small: MeasuredObjective
    gained: float | None
    apart: float | None
    line: str = ""
    source: str = ""
    why: str = ""
    explained: float | None = None

    @property
    def agrees(self) -> bool:
        return self.apart is None or self.apart <= AGREES


@dataclass(frozen=True)
class Release:
    """A library whose code was called."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Refereed:
    """Everything that was found."""

    releases: Sequence[Release]
    rows: Sequence[RefereeRow]
    seconds: float
    """Of processor time."""

    def as_json(self) -> str:
        table: dict[str, Any] = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "processor_seconds": round(self.seconds),
            "libraries": [asdict(release) for release in self.releases],
            "worlds": {
                "large": "85 responses of at most 3 tokens, groups of 2",
                "small": "7 responses of at most 2 tokens, groups of 3",
            },
            "rows": [asdict(row) for row in self.rows],
        }
        return strict_json(table) + "\n"

    @property
    def theirs(self) -> int:
        return sum(row.maker != ours.OURS for row in self.rows)

    @property
    def flagged(self) -> Sequence[RefereeRow]:
        return [row for row in self.rows if not row.agrees]


def read_refereed(text: str) -> Refereed:
    """What `Refereed.as_json` wrote."""
    table = json.loads(text)

    def row(values: Mapping[str, Any]) -> RefereeRow:
        worlds = {name: MeasuredObjective(**values[name]) for name in ("large", "small")}
        return RefereeRow(**{**values, **worlds})

    releases = [Release(**each) for each in table["libraries"]]
    return Refereed(releases, [row(each) for each in table["rows"]], table["processor_seconds"])


class Worlds:
    """The two worlds, all their batches, and the policies at which gradients are compared."""

    def __init__(self) -> None:
        self.large, self.at_large = example(4, 3, _BETA, _SEED)
        self.small, self.at_small = example(2, 2, _BETA, _SEED)

    @cached_property
    def groups(self) -> tuple[Draws, Draws, Draws]:
        """Of the large world, of the small one, and smaller groups of it in which every batch is a call."""
        return Draws.groups(self.large, 2), Draws.groups(self.small, 3), Draws.groups(self.small, 2)

    def pairs(self, wrong: float) -> tuple[Draws, Draws, Draws]:
        small = Draws.pairs(self.small, wrong)
        return Draws.pairs(self.large, wrong), small, small

    def row(self, entry: LibraryObjective, where: Callable[[Differs], str]) -> RefereeRow:
        """Measure one objective; `where` finds a line in its library's source."""
        theirs = entry.theirs
        large, small, few = self.groups if theirs.kind == "tokens" else self.pairs(entry.wrong)

        def numbers(draws: Draws, policy: Tensor) -> MeasuredObjective:
            on = measure_expected(theirs, draws, policy)
            if theirs.kind == "pairs":
                return MeasuredObjective.of(on, None)
            return MeasuredObjective.of(on, measure_expected(theirs, draws, policy, draws.objective.reference))

        far = None if entry.second is None else how_far_apart(theirs, entry.second, few, self.at_small)
        differs = entry.differs if far is not None and far > AGREES else None
        without = entry.penalty == "none" and theirs.kind == "tokens"
        explained = None
        if differs is not None and differs.explained is not None:
            explained = how_far_apart(theirs, differs.explained, few, self.at_small)
        return RefereeRow(
            maker=entry.maker,
            name=entry.name,
            kind=theirs.kind,
            penalty=entry.penalty,
            ours=entry.ours,
            large=numbers(large, self.at_large),
            small=numbers(small, self.at_small),
            gained=None if without else share_gained(theirs, small),
            apart=far,
            line="" if differs is None else where(differs),
            source="" if differs is None else differs.line.strip(),
            why="" if differs is None else differs.why,
            explained=explained,
        )


def entries_of(library: Library, load: Callable[[str], Any]) -> list[LibraryObjective]:
    """A library's objectives; `load` imports its modules."""
    module = import_module(f"rlhf_env.lab.studies.referee.libraries.{library.name}")
    found: list[LibraryObjective] = module.objectives(load)
    return found


def referee(folder: Path, only: str | None = None, tell: Callable[[float, str], None] = lambda *_: None) -> Refereed:
    """Measure the objectives of all libraries whose wheels are in `folder`, or `only` those of a name, and our own.

    Raises ConfigError where a wheel is missing, or nothing has that name.
    """
    begun = time.process_time()
    names = {library.name: library for library in LIBRARIES}
    wanted = [names[only]] if only in names else [] if only == ours.OURS else list(LIBRARIES)
    require_wheels(folder, wanted)
    worlds, rows, seen = Worlds(), list[RefereeRow](), list[str]()
    asked_for = partial(_asked_for, only=None if only in names or only == ours.OURS else only)
    for number, library in enumerate(wanted):
        with importing(library, folder):
            load = partial(of_wheel, library=library, folder=folder)
            entries = entries_of(library, load)
            seen += [entry.name for entry in entries]
            for entry in asked_for(entries):
                share = entries.index(entry) / len(entries)
                tell((number + share) / (len(wanted) + 1), entry.full_name)
                rows.append(worlds.row(entry, partial(_line_of, load=load)))
    own = list(ours.objectives())
    if only in names:
        own = [entry for entry in own if entry.name in {row.ours for row in rows}]
    for entry in asked_for(own):
        tell(len(wanted) / (len(wanted) + 1), entry.full_name)
        rows.append(worlds.row(entry, lambda _: ""))
    if not rows:
        raise ConfigError(
            f"no library and no objective is called {only!r}{did_you_mean(str(only), [*names, *seen])}; the libraries "
            f"are {', '.join([*names, ours.OURS])}"
        )
    used = {row.maker for row in rows}
    releases = [
        Release(library.name, library.version, wheel_sha256(folder, library))
        for library in wanted
        if library.name in used
    ]
    return Refereed(releases, rows, time.process_time() - begun)


def _asked_for(entries: Sequence[LibraryObjective], only: str | None) -> Iterator[LibraryObjective]:
    return (entry for entry in entries if only is None or only.lower() in entry.full_name.lower())


def _line_of(differs: Differs, load: Callable[[str], Any]) -> str:
    """ "file:number" of the line in the source that was imported, or what became of it."""
    module = load(differs.module)
    lines = inspect.getsource(module).splitlines()
    numbers = [number for number, line in enumerate(lines, 1) if differs.line in line]
    name = differs.module.replace(".", "/") + ".py"
    return f"{name}:{numbers[0]}" if numbers else f"{name}: the line is gone"
