"""A pipeline at work: each stage is run, resumed, or passed over because nothing that it depends on has changed.

    ended = rlhf_env.run_pipeline("taste.toml", "runs/taste")
    ended.stages["ppo"].numbers["gold"], ended.waiting, ended.report

A stage is known by a hash of its settings, of the outputs that it takes and of the files that it reads. What is made
anew does not overwrite: the older result is moved to OUT/replaced.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console

from rlhf_env.errors import ConfigError, DataError, Problem
from rlhf_env.lab.jobs import Backend
from rlhf_env.learning.devices import set_threads
from rlhf_env.learning.folder_lock import hold
from rlhf_env.learning.run_record import lead_inputs, led_paths
from rlhf_env.pipeline.hashing import Hashes, changed_among
from rlhf_env.pipeline.plan import Plan, Planned, read_plan
from rlhf_env.pipeline.records import RECORDS, Record
from rlhf_env.pipeline.report import ABOUT, about_pipeline, write_pipeline_report
from rlhf_env.pipeline.stages.registry import STAGES
from rlhf_env.pipeline.stages.stage import Site, Stage
from rlhf_env.shown_text import near
from rlhf_env.toml_files import naming_lines
from rlhf_env.whole_files import write_json, write_whole

REPLACED = "replaced"
Step = Literal["run", "resume", "anew", "look", "skip", "leave"]
_WORDS = {
    "run": "runs",
    "resume": "resumes",
    "anew": "is made anew",
    "look": "is looked at",
    "skip": "is passed over",
    "leave": "is left out",
}


@dataclass(frozen=True)
class Intention:
    """What would be done about a stage, and why."""

    name: str
    kind: str
    step: Step
    why: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}) {_WORDS[self.step]}: {self.why}"


@dataclass(frozen=True)
class PipelineRun:
    """The result of `run_pipeline`: where its files are, what each stage measured, and what it waits for."""

    folder: Path
    stages: Mapping[str, Record]
    """By name, the record of each stage that has begun: its `numbers`, its seconds, ..."""
    waiting: str
    """What it waits for (people's votes), or ""."""
    report: Path | None
    """The page about all stages; None if nothing has run yet."""


def run_pipeline(
    file: str | Path,
    out: str | Path | None = None,
    *,
    changes: Mapping[str, object] | None = None,
    only: str | None = None,
    until: str | None = None,
    again: Sequence[str] = (),
    jobs: int | Backend = 2,
    command: str = "",
    console: Console | None = None,
) -> PipelineRun:
    """Run the stages of a pipeline's file, as far as they are not done; a second call resumes the first.

    Args:
        file: the TOML file (see `rlhf_env.pipeline.plan`).
        out: the folder of everything that it makes (default: runs/NAME).
        changes: settings of stages to change, by "STAGE.SETTING"; None takes one away.
        only: this stage alone, on the outputs of the others as they are.
        until: this stage is the last one.
        again: make these stages anew.
        jobs: processes for a benchmark's runs, or the cluster that does them (`rlhf_env.lab.ray_cluster.connected`).
        command: the words that call it again, for what it says.
        console: where it tells what it does.

    Raises ConfigError, before anything runs, with everything that is wrong in any stage; and where a file that a stage
    reads changes while it runs.
    """
    at_work = _Work.of(file, out, changes, only, until, again)
    folder = at_work.folder
    with naming_lines(file), closing(hold(folder / RECORDS)):
        at_work.refuse_another()
        at_work.follow()
        at_work.hashes.keeps = True
        at_work.require_whole()
        set_threads()
        command = command or f"rlhf-env pipeline {shlex.quote(str(file))}"
        return at_work.run(jobs, command, console or Console(quiet=True))


def intentions(
    file: str | Path,
    out: str | Path | None = None,
    *,
    changes: Mapping[str, object] | None = None,
    only: str | None = None,
    until: str | None = None,
    again: Sequence[str] = (),
) -> list[Intention]:
    """What `run_pipeline` would do about each stage, and why. Writes nothing."""
    at_work = _Work.of(file, out, changes, only, until, again)
    with naming_lines(file):
        at_work.refuse_another()
        at_work.require_whole()
        return list(at_work.intended())


class _Work:
    """A plan in a folder."""

    def __init__(self, plan: Plan, folder: Path, wanted: Sequence[str], again: Sequence[str], alone: bool) -> None:
        self.plan, self.folder = plan, folder
        self.wanted, self.again, self.alone = wanted, again, alone
        self.hashes = Hashes(folder / RECORDS / "hashes.json")
        self.given: dict[str, Mapping[str, object]] = {}  # by stage, its outputs
        self.identities: dict[str, str] = {}  # by stage, what its output is
        self.files: dict[str, str | None] = {str(plan.file): self.hashes.of_path(plan.file)}

    @classmethod
    def of(
        cls,
        file: str | Path,
        out: str | Path | None,
        changes: Mapping[str, object] | None,
        only: str | None,
        until: str | None,
        again: Sequence[str],
    ) -> _Work:
        with naming_lines(file):
            plan = read_plan(file, changes)
            folder = Path(out if out is not None else Path("runs") / plan.about.name).absolute()
            plan.check()
        if only is not None and until is not None:
            raise ConfigError("--only and --until: one of the two")
        for option, names in (("--only", [only]), ("--until", [until]), ("--again", again)):
            for name in names:
                if name is not None:
                    _under(option, partial(plan.named, name))
        names = [planned.name for planned in plan.stages]
        wanted = [only] if only is not None else names[: names.index(until) + 1] if until is not None else names
        work = cls(plan, folder, wanted, again, only is not None)
        work.given = plan.outputs(folder)
        for planned in plan.stages:
            work.files |= work.files_of(planned)
        return work

    # ---------------------------------------------------------------- before it begins

    def refuse_another(self) -> None:
        """Raises ConfigError for a folder in which something else has been made."""
        about, problems = self.folder / ABOUT, []
        name = Record.file(self.folder, "x").parent
        if about.is_file() and (there := about_pipeline(self.folder).name) != self.plan.about.name:
            problems.append(f"{near(self.folder)} holds the pipeline {there!r}: choose another folder with --out")
        if (self.folder / "experiment.toml").is_file():
            problems.append(f"{near(self.folder)} holds a run: choose another folder with --out")
        for planned in self.plan.stages:
            place = self.folder / planned.name
            if place.exists() and not (name / f"{planned.name}.json").is_file():
                said = f"{near(place)} is there, and this pipeline has not made it: move it, or choose another --out"
                problems.append(self._about(planned, said))
        if problems:
            raise ConfigError(*problems)

    def follow(self) -> None:
        """Where the folder has been moved, the runs in it name each other by the place that it has now."""
        about = self.folder / ABOUT
        before = about_pipeline(self.folder).folder if about.is_file() else ""
        if before and before != str(self.folder):
            for planned in self.plan.stages:
                for run in (self.folder / planned.name).rglob("experiment.toml"):  # a benchmark has one in each cell
                    lead_inputs(run.parent, before, self.folder)
                grid = self.folder / planned.name / "benchmark.toml"
                if (led := led_paths(grid, before, self.folder)) is not None:
                    write_whole(grid, led)

    def require_whole(self) -> None:
        """Raises ConfigError for outputs that were made, are needed, and are gone or changed: all of them."""
        problems: list[str] = []
        for planned in self.plan.stages:
            later = not self.alone and planned.name not in self.wanted  # than --until: nothing here needs it
            if planned.name in self.again or later:
                continue
            record = Record.read(self.folder, planned.name)
            if self.alone and planned.name not in self.wanted:
                needed = planned.name in self.plan.named(self.wanted[0]).takes_from
                if needed and (record is None or record.status != "finished"):
                    said = f"takes from {planned.name!r}, which has not been made: run it first, without --only"
                    problems.append(self._about(self.plan.named(self.wanted[0]), said))
                if not needed or record is None:
                    continue
            if record is None or record.status != "finished" or not self._is_as_recorded(planned, record):
                continue
            stage, place = self.made(planned), self.folder / planned.name
            there = stage.identity(place, self.hashes)
            remedy = f"put it back, or make it anew with --again {planned.name}"
            if there is None:
                problems.append(self._about(planned, f"its output in {near(place)} is missing: {remedy}"))
            elif there != record.identity and not stage.is_open():
                problems.append(self._about(planned, f"its output in {near(place)} is not what it made: {remedy}"))
            self.identities[planned.name] = there if there is not None and stage.is_open() else record.identity
        if problems:
            raise ConfigError(*problems)

    def _is_as_recorded(self, planned: Planned, record: Record) -> bool:
        """Whether it would be passed over, as far as that is known before the stages above it have run."""
        if self.alone and planned.name not in self.wanted:
            return True
        known = all(name in self.identities for name in planned.takes_from)
        return known and planned.key(self.identities, self.files_of(planned)) == record.key

    def _about(self, planned: Planned, said: str) -> Problem:
        return Problem(f"{self.plan.file}: stage {planned.name!r}: {said}", ("stage", planned.place))

    # ---------------------------------------------------------------- what is to be done

    def made(self, planned: Planned) -> Stage:
        return self.plan.made(planned, self.given)

    def files_of(self, planned: Planned) -> dict[str, str | None]:
        """What a stage reads beside the outputs of others, by path."""
        given = {str(value) for outputs in self.given.values() for value in outputs.values()}
        paths = [path for path in self.made(planned).paths() if path and path not in given]
        return {path: content for path in paths if (content := self.hashes.of_path(path)) is not None}

    def intention(self, planned: Planned) -> Intention:
        def intended(step: Step, why: str) -> Intention:
            return Intention(planned.name, planned.kind, step, why)

        record = Record.read(self.folder, planned.name)
        if planned.name not in self.wanted:
            return intended("leave", "--only" if self.alone else "--until")
        if record is None:
            return intended("run", "not made yet")
        if planned.name in self.again:
            return intended("anew", "--again")
        unknown = [name for name in planned.takes_from if name not in self.identities]
        if unknown:
            return intended("run", f"takes from {', '.join(unknown)}, which runs")
        if planned.key(self.identities, self.files_of(planned)) != record.key:
            now = (planned.settings, self._inputs(planned), self.files_of(planned))
            if STAGES[planned.kind].takes_larger_budget and (raised := record.raised(*now)):
                return intended("resume", f"{raised} (--again {planned.name} makes it anew)")
            why = record.why_another(*now)
            return intended("anew", why)
        if record.status != "finished":
            return intended("resume", "it waits for votes" if record.status == "waiting" else "it was stopped")
        if self.made(planned).is_open():
            return intended("look", "people may have voted")
        return intended("skip", "nothing that it depends on has changed")

    def intended(self) -> Iterator[Intention]:
        for planned in self.plan.stages:
            found = self.intention(planned)
            if found.step not in ("skip", "leave", "look"):
                self.identities.pop(planned.name, None)
            yield found

    def _inputs(self, planned: Planned) -> dict[str, str]:
        return {name: self.identities[name] for name in planned.takes_from}

    # ---------------------------------------------------------------- work

    def run(self, jobs: int | Backend, command: str, console: Console) -> PipelineRun:
        about, names = self.plan.about, [planned.name for planned in self.plan.stages]
        told = {"title": about.title, "what_gold_is": about.what_gold_is, "stages": names, "command": command}
        write_json(
            self.folder / ABOUT,
            {"name": about.name, "file": str(self.plan.file.absolute()), "folder": str(self.folder), **told},
        )
        waiting = ""
        for number, planned in enumerate(self.plan.stages, start=1):
            if waiting or planned.name not in self.wanted:
                continue
            intended = self.intention(planned)
            console.rule(f"[bold]{number}  {planned.name}[/bold] [dim]{planned.kind}", align="left")
            if intended.step == "skip":
                console.print(f"Passed over: {intended.why}.", highlight=False)
                continue
            if intended.step in ("anew", "resume"):
                console.print(f"{intended.step.capitalize()}: {intended.why}.", highlight=False, soft_wrap=True)
            if intended.step == "anew":
                self._set_aside(planned, console)
            waiting = self._work_on(planned, jobs, command, console)
            if waiting:
                console.print(f"Stage {planned.name!r} waits: {waiting}", highlight=False, soft_wrap=True, markup=False)
        report = write_pipeline_report(self.folder, console)
        records = {p.name: record for p in self.plan.stages if (record := Record.read(self.folder, p.name)) is not None}
        return PipelineRun(self.folder, records, waiting, report)

    def _work_on(self, planned: Planned, jobs: int | Backend, command: str, console: Console) -> str:
        """Work on a stage; what it waits for, or ""."""
        self._refuse_changes(planned)
        stage, place = self.made(planned), self.folder / planned.name
        files, inputs = self.files_of(planned), self._inputs(planned)
        before = Record.read(self.folder, planned.name)
        record = Record(
            name=planned.name,
            kind=planned.kind,
            key=planned.key(self.identities, files),
            status="begun",
            settings=planned.settings,
            inputs=inputs,
            files=files,
            seconds=0.0 if before is None else before.seconds,
        )
        if before is None or before.status != "finished" or before.key != record.key:
            record.save(self.folder)
        values = {name: str(self.given[name][""]) for name in planned.takes_from}
        site = Site(
            name=planned.name,
            folder=place,
            links=planned.links,
            inputs={role: [values[name] for name in names] for role, names in planned.links.items()},
            pipeline=self.plan.about.name,
            title=self.plan.about.title,
            what_gold_is=self.plan.about.what_gold_is,
            command=command,
            jobs=jobs,
            console=console,
        )
        started = time.monotonic()
        with self.plan.blamed(planned):
            outcome = stage.work(site)
        seconds = record.seconds + time.monotonic() - started
        self._refuse_changes(planned)
        curve = [dict(it) for it in outcome.curve]
        record = replace(record, seconds=seconds, numbers=outcome.numbers, curve=curve, texts=outcome.texts)
        if outcome.waiting:
            replace(record, status="waiting").save(self.folder)
            return outcome.waiting
        identity = stage.identity(place, self.hashes)
        if identity is None:
            raise DataError(f"stage {planned.name!r}: its output in {place} is gone")
        replace(record, status="finished", identity=identity).save(self.folder)
        self.identities[planned.name] = identity
        self.given[planned.name] = stage.outputs(place)
        return ""

    def _refuse_changes(self, planned: Planned) -> None:
        """Raises DataError where something that the stage depends on is not what it was when the pipeline began."""
        read = {str(self.plan.file), *(path for path in self.made(planned).paths() if path in self.files)}
        changed = changed_among({path: self.files[path] for path in read if path in self.files}, self.hashes)
        for name in planned.takes_from:
            other = self.plan.named(name)
            if self.made(other).identity(self.folder / name, self.hashes) != self.identities.get(name):
                changed.append(str(self.folder / name))
        if changed:
            what = ", ".join(str(near(Path(path))) for path in changed)
            said = f"{what} changed while the pipeline ran: call again to go on with what is there now"
            raise DataError(self._about(planned, said))

    def _set_aside(self, planned: Planned, console: Console) -> None:
        """Move an older result to OUT/replaced, and forget it."""
        place = self.folder / planned.name
        if place.exists() and any(place.iterdir()):
            kept = self.folder / REPLACED
            kept.mkdir(exist_ok=True)
            numbers = (number for number in range(1, 10_000) if not (kept / f"{planned.name}-{number}").exists())
            to = kept / f"{planned.name}-{next(numbers)}"
            place.rename(to)
            console.print(f"The older result is in {near(to)}.", highlight=False, soft_wrap=True)
        Record.file(self.folder, planned.name).unlink(missing_ok=True)


def _under(option: str, check: Callable[[], object]) -> None:
    try:
        check()
    except ConfigError as error:
        error.found_in(option)
        raise
