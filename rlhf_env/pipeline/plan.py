"""A pipeline's file: its stages in order, each with what it takes from earlier ones, all of it checked before any runs.

    name = "taste"

    [defaults]                    # of every experiment in the file: policy, task, environment, rewards, evaluation, ...
    policy = { model = "rlhf-env/chitchat" }

    [[stage]]
    name = "answers"
    kind = "responses"

    [[stage]]
    name = "votes"
    kind = "annotate"
    from = "answers"

`from` names one earlier stage, several, or says which is which (`from = { model = "sft", reward_model = "taste" }`).
A setting "$NAME" is the output of the stage NAME, and "$NAME.judge" another thing that it gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from rlhf_env.errors import ConfigError, Key, Problem, did_you_mean
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.pipeline.hashing import hash_of
from rlhf_env.pipeline.stages.registry import STAGES, stage_of_kind
from rlhf_env.pipeline.stages.stage import AsksPrompts, Role, Stage, StageOrigin, begun_as
from rlhf_env.settings import Name, PartOf, fault, settings
from rlhf_env.toml_files import narrowed, read_kind
from rlhf_env.types import JsonObject

_FORMAT = 1  # of a stage's record: another one makes every stage anew
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_OUTPUT = re.compile(r"\$([A-Za-z_][\w-]*)(?:\.(\w+))?", re.ASCII)
_TAKEN = ("stages", "replaced", "lock", "report.html", "pipeline.json")  # of a pipeline's folder
_OF_EVERY_STAGE = ("name", "kind", "from")


@settings
class PipelineFile:
    """A pipeline: what its TOML file says beside its stages."""

    name: Name = "pipeline"
    """What the pipeline is called, and its folder in runs/."""
    title: str = ""
    """The report's title."""
    what_gold_is: str = ""
    """A sentence for the report that says what the gold reward measures."""
    defaults: Annotated[JsonObject, PartOf(Experiment)] = field(default_factory=dict)
    """Settings of an experiment that all stages share. Stages that are no experiment take from here what they have in
    common with one: the task, the model, the lengths, the seed, the gold reward."""
    stage: list[JsonObject] = field(default_factory=list)
    """The stages, in order, each a table `[[stage]]` with its `name`, its `kind`, the earlier stages that it takes
    from (`from`), and settings of its own."""

    def problems(self) -> Iterator[Problem]:
        if not _NAME.fullmatch(self.name):
            yield fault("name", f"{self.name!r} is no name for a folder: letters, digits, '_', '.', '-'")
        if not self.stage:
            yield fault("stage", "must be one or more tables [[stage]]")


@dataclass(frozen=True)
class Planned:
    """One stage of a file, with what it takes."""

    place: int
    name: str
    kind: str
    table: JsonObject
    """Its settings, with "$NAME" for what earlier stages give."""
    links: Mapping[Role, Sequence[str]]
    """By role, the names of the stages that it takes from."""

    @property
    def takes_from(self) -> list[str]:
        """Every stage whose output it reads."""
        named = [name for names in self.links.values() for name in names]
        return list(dict.fromkeys([*named, *(name for name, _ in outputs_in(self.table))]))

    def key(self, inputs: Mapping[str, str], files: Mapping[str, str | None]) -> str:
        """What its result is known by: its settings, the outputs that it takes, the content of the files it reads."""
        links = {role: list(names) for role, names in self.links.items()}
        contents = sorted(str(content) for content in files.values())
        taken = {name: inputs[name] for name in self.takes_from}
        return hash_of([_FORMAT, self.kind, self.settings, links, taken, contents])

    @property
    def settings(self) -> JsonObject:
        """Those that its result depends on."""
        aside = STAGES[self.kind].aside
        return {key: _without(value, key, aside) for key, value in self.table.items() if key not in aside}


def _without(value: Any, key: str, aside: frozenset[str]) -> Any:
    """A table without what is set aside in it ("policy.device"); anything else as it is."""
    inner = {name.removeprefix(f"{key}.") for name in aside if name.startswith(f"{key}.")}
    return {name: it for name, it in value.items() if name not in inner} if isinstance(value, dict) and inner else value


@dataclass(frozen=True)
class Plan:
    """A file of stages that is right as far as that can be said before anything runs."""

    file: Path
    about: PipelineFile
    stages: Sequence[Planned]
    changes: Mapping[str, object]
    """What the caller has changed of the file, by "STAGE.SETTING"."""

    @property
    def origin(self) -> StageOrigin:
        return StageOrigin(str(self.file), self.file.resolve().parent)

    def named(self, name: str) -> Planned:
        """Raises ConfigError for a stage that the file does not have."""
        for planned in self.stages:
            if planned.name == name:
                return planned
        raise ConfigError(f"no stage {name!r}{did_you_mean(name, [planned.name for planned in self.stages])}")

    def outputs(self, folder: Path) -> dict[str, Mapping[str, object]]:
        """By stage, what it gives, as far as that is known before it has run: most are paths."""
        given: dict[str, Mapping[str, object]] = {}
        for planned in self.stages:
            given[planned.name] = self.made(planned, given).outputs(folder / planned.name)
        return given

    def made(self, planned: Planned, outputs: Mapping[str, Mapping[str, object]]) -> Stage:
        """The stage itself, with what `outputs` says of earlier stages in its settings. Raises ConfigError."""
        with self.blamed(planned):
            table = filled(planned.table, outputs)
            return stage_of_kind(planned.kind).of(table, self.origin)

    def blamed(self, planned: Planned) -> Blame:
        return Blame(self.about, planned.place)

    def check(self) -> None:
        """Raises ConfigError for all that can be found in any stage before the first one runs.

        It is as if no stage had made anything: what lies in the pipeline's folder may be half of a run that was
        stopped, and its stage resumes it.
        """
        folder = self.origin.folder / f".{self.about.name}: not made"  # absolute, as what stages make is named
        problems: dict[str, None] = {}
        outputs: dict[str, Mapping[str, object]] = {}
        first: dict[str, PolicySettings] = {}  # by what a stage gives, the model that it will have begun with
        for planned in self.stages:
            try:
                made = self.made(planned, outputs)
                outputs[planned.name] = made.outputs(folder / planned.name)
                with self.blamed(planned):
                    made.check()
                    if isinstance(made, AsksPrompts) and (policy := begun_as(made.policy, first)) is not None:
                        made.check_prompts(policy)
                        if "model" in made.gives:
                            first[str(outputs[planned.name][""])] = policy
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
            outputs.setdefault(planned.name, _Anything(folder / planned.name))
        if problems:
            raise ConfigError(*problems)


class _Anything(dict[str, object]):
    """Of a stage that is wrong: whoever takes from it is not blamed for that, and finds a path as if it were right."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> object:
        return str(self._folder) if key == "" else -1.0


class Blame:
    """What is wrong with a stage's settings is wrong in its table, or in [defaults], where it has them from."""

    def __init__(self, about: PipelineFile, place: int) -> None:
        self.about, self.place = about, place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ConfigError):
            error.change(self.placed)

    def placed(self, problem: Problem) -> Problem:
        keys = problem.keys
        if keys[:1] in (("stage",), ("defaults",)):
            return problem
        own = {("stage", self.place): self.about.stage[self.place], ("defaults",): self.about.defaults}
        found: dict[tuple[Key, ...], tuple[Key, ...]] = {}
        for path, table in own.items():
            tries = [narrowed(keys, table)]
            if keys[:1] == ("experiment",):  # of a grid, whose experiment stands in the stage itself
                tries.append(narrowed(keys[1:], table))
            found[path] = max(tries, key=len)
        stage, defaults = found
        path = defaults if len(found[defaults]) > len(found[stage]) else stage
        return Problem(problem, (*path, *found[path]))


def read_plan(file: str | Path, changes: Mapping[str, object] | None = None) -> Plan:
    """The plan of a file, with `changes` by "STAGE.SETTING" (None takes the setting away).

    Raises ConfigError with every problem of names, kinds and links; `naming_lines(file)` around it gives the lines.
    """
    table = _changed(read_kind(file, "pipeline"), changes or {})
    problems: list[str] = []
    about = None
    try:
        about = from_table(PipelineFile, table, str(file))
    except ConfigError as error:
        problems += error.problems
    given = table.get("stage")
    tables = [it for it in given if isinstance(it, dict)] if isinstance(given, list) else []
    heads = [_Head(place, it, str(file)) for place, it in enumerate(tables)]
    defaults = table.get("defaults", {})
    stages: list[Planned] = []
    for head in heads:
        problems += head.problems
        try:
            links = head.links(heads)
            if head.kind is None:
                continue
            own = {key: value for key, value in head.table.items() if key not in _OF_EVERY_STAGE}
            tokens = {role: [f"${name}" for name in names] for role, names in links.items()}
            with _at("stage", head.place):
                settings = STAGES[head.kind].table(own, defaults if isinstance(defaults, dict) else {}, tokens)
            planned = Planned(head.place, head.name, head.kind, settings, links)
            problems += _unknown_outputs(planned, head, heads)
            stages.append(planned)
        except ConfigError as error:
            problems += error.problems
    if problems or about is None:
        raise ConfigError(*dict.fromkeys(problems))
    return Plan(Path(file), about, stages, dict(changes or {}))


class _at:  # noqa: N801 - read as a word: with _at("stage", 3)
    def __init__(self, *keys: Key) -> None:
        self.keys = keys

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ConfigError):
            error.change(lambda it: it if it.keys[:1] == ("defaults",) else it.under(*self.keys))


class _Head:
    """What a stage's table says before its settings: name, kind, and `from`."""

    def __init__(self, place: int, table: JsonObject, where: str) -> None:
        self.place, self.table, self.where = place, table, where
        self.problems: list[Problem] = []
        self.name = self._word("name")
        kind = self._word("kind")
        self.kind: str | None = kind if kind in STAGES else None
        if kind and self.kind is None:
            self._wrong("kind", f"unknown kind of stage {kind!r}{did_you_mean(kind, STAGES)}")
        if self.name and (not _NAME.fullmatch(self.name) or self.name in _TAKEN):
            self._wrong("name", f"{self.name!r} is no name for a stage's folder: letters, digits, '_', '.', '-'")

    def _word(self, key: str) -> str:
        word = self.table.get(key)
        if not isinstance(word, str) or not word:
            said = f"the setting {key!r} is required" if word is None else f"{key} must be a string, got {word!r}"
            self._wrong(key, f"stage {self.place + 1}: {said}")
            return ""
        return word

    def _wrong(self, key: str, said: str) -> None:
        self.problems.append(Problem(f"{self.where}: {said}", ("stage", self.place, key)))

    def links(self, heads: Sequence[_Head]) -> dict[Role, list[str]]:
        """By role, the stages that `from` names. Raises ConfigError."""
        problems: list[str] = []
        twice = next((it for it in heads[: self.place] if it.name and it.name == self.name), None)
        if twice is not None:
            problems.append(self._said("name", f"there is one of this name already (stage {twice.place + 1})"))
        given = self.table.get("from", [])
        pairs: list[tuple[Role | None, object, tuple[Key, ...]]] = []
        if isinstance(given, Mapping):
            for role, names in given.items():
                each = names if isinstance(names, list) else [names]
                pairs += [(role, name, ("from", role)) for name in each]
        else:
            pairs += [(None, name, ("from",)) for name in (given if isinstance(given, list) else [given])]
        found: dict[Role, list[str]] = {}
        for role, name, keys in pairs:
            try:
                taken = self._role_of(role, name, keys, heads)
            except ConfigError as error:
                problems += error.problems
                continue
            if taken is not None and isinstance(name, str):
                found.setdefault(taken, []).append(name)
        takes = STAGES[self.kind].takes if self.kind else {}
        for role, names in found.items():
            if len(names) > 1 and not takes.get(role, True):
                said = f"{self.kind!r} takes one {role}, and {' and '.join(map(repr, names))} give one each"
                problems.append(self._said("from", said))
        if problems:
            raise ConfigError(*problems)
        return found

    def _said(self, key: str, said: str) -> Problem:
        return Problem(f"{self.where}: stage {self.name!r}: {said}", ("stage", self.place, key))

    def _role_of(self, role: Role | None, name: object, keys: tuple[Key, ...], heads: Sequence[_Head]) -> Role | None:
        def refuse(said: str) -> ConfigError:
            return ConfigError(Problem(f"{self.where}: stage {self.name!r}: {said}", ("stage", self.place, *keys)))

        takes = STAGES[self.kind].takes if self.kind else {}
        if role is not None and self.kind and role not in takes:
            raise refuse(f"from: {self.kind!r} takes no {role!r}{did_you_mean(str(role), map(str, takes))}")
        if not isinstance(name, str):
            raise refuse(f"from: the name of an earlier stage is needed, got {name!r}")
        other = next((head for head in heads if head.name == name), None)
        if other is None:
            earlier = [head.name for head in heads[: self.place] if head.name]
            raise refuse(f"from: there is no stage {name!r}{did_you_mean(name, earlier)}")
        if other.place >= self.place:
            what = "itself" if other is self else f"{name!r}, which comes later"
            raise refuse(f"takes from {what}: stages run in order, each from stages above it")
        if self.kind is None or other.kind is None:
            return None
        gives = STAGES[other.kind].gives
        for possible in gives if role is None else [role]:
            if possible in takes and possible in gives:
                return possible
        wanted = " or ".join(str(it) for it in takes) or "nothing"
        given = " or ".join(str(it) for it in gives) or "nothing that another stage takes"
        raise refuse(f"from: a stage of kind {self.kind!r} takes {wanted}, and {name!r} ({other.kind}) gives {given}")


def outputs_in(value: object) -> Iterator[tuple[str, tuple[Key, ...]]]:
    """Every "$NAME" in a table of settings, by name, with the keys that lead to it."""
    if isinstance(value, Mapping):
        inner: Iterator[tuple[Key, object]] = iter(value.items())
    elif isinstance(value, list):
        inner = iter(enumerate(value))
    else:
        if isinstance(value, str) and (found := _OUTPUT.fullmatch(value)):
            yield found[1], ()
        return
    for key, each in inner:
        for name, keys in outputs_in(each):
            yield name, (key, *keys)


def filled(table: object, outputs: Mapping[str, Mapping[str, object]], keys: tuple[Key, ...] = ()) -> Any:
    """`table` with the outputs of stages where "$NAME" stands for them. Raises ConfigError for what none gives."""
    if isinstance(table, Mapping):
        return {key: filled(value, outputs, (*keys, key)) for key, value in table.items()}
    if isinstance(table, list):
        return [filled(value, outputs, (*keys, place)) for place, value in enumerate(table)]
    found = _OUTPUT.fullmatch(table) if isinstance(table, str) else None
    if found is None or found[1] not in outputs:
        return table
    given, part = outputs[found[1]], found[2] or ""
    if part not in given:
        what = ", ".join(f"${found[1]}{'.' if name else ''}{name}" for name in given)
        raise ConfigError(Problem(f"{table!r}: stage {found[1]!r} gives no {part!r}, only {what}", keys))
    return given[part]


def _unknown_outputs(planned: Planned, head: _Head, heads: Sequence[_Head]) -> Iterator[Problem]:
    earlier = [it.name for it in heads[: head.place] if it.name]
    for name, keys in outputs_in(planned.table):
        if name in earlier:
            continue
        later = any(it.name == name for it in heads)
        said = "which comes later: stages run in order"
        if not later:
            said = f"and there is no such stage{did_you_mean(name, earlier)}"
        inner = keys[1:] if keys[:1] == ("experiment",) else keys
        at = narrowed(inner, head.table)
        place: tuple[Key, ...] = ("stage", head.place, *at) if at else ("defaults", *inner)
        yield Problem(f"{head.where}: stage {head.name!r}: ${name} is the output of a stage, {said}", place)


def _changed(table: JsonObject, changes: Mapping[str, object]) -> JsonObject:
    """The file's data with settings of stages changed. Raises ConfigError for a stage that is not there."""
    given = table.get("stage", [])
    if not isinstance(given, list):
        return table
    stages = [dict(it) if isinstance(it, dict) else it for it in given]
    problems = []
    for words, value in changes.items():
        name, _, rest = words.partition(".")
        found = next((it for it in stages if isinstance(it, dict) and it.get("name") == name), None)
        if found is None or not rest:
            known = [str(it.get("name")) for it in stages if isinstance(it, dict)]
            problems.append(f"--set {words}: no stage {name!r}{did_you_mean(name, known)}")
            continue
        *outer, last = rest.split(".")
        at = found
        for key in outer:
            inner = at.get(key, {})
            at[key] = dict(inner) if isinstance(inner, dict) else {}
            at = at[key]
        if value is None:
            at.pop(last, None)
        else:
            at[last] = value
    if problems:
        raise ConfigError(*problems)
    return {**table, "stage": stages}
