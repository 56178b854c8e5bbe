"""Make a board of a folder of entries: what `rlhf-env board` does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_env.errors import ConfigError, DataError, RlhfEnvError, RunFailed
from rlhf_env.lab.board.again import SeedAgain
from rlhf_env.lab.board.board_page import write_board
from rlhf_env.lab.board.checking import faults_of
from rlhf_env.lab.board.entry import ENTRY_ENDING, BoardEntry, read_entry
from rlhf_env.lab.board.tracks import load_track
from rlhf_env.lab.board.verdicts import EntryVerdict, few, here, judged, ranked
from rlhf_env.lab.jobs import Backend, Progress
from rlhf_env.lab.processes import LocalProcesses
from rlhf_env.lab.scheduling import run_jobs
from rlhf_env.learning.folder_lock import hold
from rlhf_env.types import JsonView


@dataclass(frozen=True)
class Board:
    """What was found: a verdict for each file, and the page."""

    verdicts: Sequence[EntryVerdict]
    page: Path

    @property
    def refused(self) -> list[EntryVerdict]:
        return [verdict for verdict in self.verdicts if verdict.standing == "refused"]


def make_board(
    folder: str | Path,
    out: str | Path,
    *,
    trust: bool = False,
    only: Sequence[str] = (),
    jobs: int | Backend = 2,
    minutes: float = 30.0,
    on_jobs: Callable[[Sequence[SeedAgain]], Callable[[Progress], None]] | None = None,
) -> Board:
    """Check the entries in `folder` and, with `trust`, run their code again; write the page into `out`.

    What was run again before, of the same file and with the same versions, is read from `out`. `only`: these files, by
    name of entry. A name is nobody's: entries that share one carry the beginning of their file's sha256.

    Each entry has processes of its own, so that none meets what another left, and `minutes` by the clock; then they
    are killed. (A backend that is given as `jobs` has limits of its own.)

    Raises ConfigError where there is no entry. An entry that is refused is a verdict, and no error.
    """
    if not minutes > 0.0:
        raise ConfigError(f"an entry has no time: minutes is {minutes}, and must be above 0")
    files = sorted(Path(folder).glob(f"*{ENTRY_ENDING}"))
    if not files:
        raise ConfigError(f"{folder}: no *{ENTRY_ENDING} in it (rlhf-env submit makes them)")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with hold(out):
        read = _told_apart([_read(file) for file in files])
        if strangers := set(only).difference(*(_names(verdict) for verdict in read)):
            raise ConfigError(f"{folder}: no entry {', '.join(sorted(strangers))} in it")
        read = [verdict for verdict in read if not only or not _names(verdict).isdisjoint(only)]
        sound = [verdict for verdict in read if verdict.entry is not None and not verdict.faults]
        if trust:
            backend = LocalProcesses(max(1, jobs), 60.0 * minutes) if isinstance(jobs, int) else jobs
            _run_again(sound, out, backend, on_jobs)
        verdicts = [_judged(verdict, out) if verdict in sound else verdict for verdict in read]
        verdicts = ranked(verdicts)
        tracks = {verdict.track: load_track(verdict.track) for verdict in verdicts if verdict.track}
        return Board(verdicts, write_board(verdicts, tracks, out))


def _read(file: Path) -> EntryVerdict:
    """A verdict on the tables alone: refused, or not run again."""
    try:
        if not file.is_file():  # a pipe would be waited for
            raise DataError("it is no file")
        entry = read_entry(file)
        track = load_track(entry.track)
        faults = faults_of(entry, track)
    except Exception as error:  # whatever is in a stranger's file, the others are not held up by it
        said = [f"it cannot be checked: {type(error).__name__}: {error}"]
        if isinstance(error, RlhfEnvError):
            said = list(getattr(error, "problems", (str(error),)))
        faults = [problem.removeprefix(f"{file}: ").removeprefix(f"{file} is ") for problem in said]
        return EntryVerdict(file.name, file.name.removesuffix(ENTRY_ENDING), "", "refused", few(faults))
    about = EntryVerdict(file.name, entry.name, track.name, "not run again", entry=entry)
    return replace(about, standing="refused", faults=few(faults)) if faults else about


def _told_apart(verdicts: Sequence[EntryVerdict]) -> list[EntryVerdict]:
    """Entries of a track that share a name are called "NAME (HASH)", by the sha256 of their file.

    So nobody can block a name, or pass for who had it first. A copy of a file is refused: it would be ranked twice.
    """
    by_name: dict[tuple[str, str], list[EntryVerdict]] = {}
    for verdict in verdicts:
        if verdict.entry is not None:
            by_name.setdefault((verdict.track, verdict.name), []).append(verdict)
    shown = {}
    for (_, name), entries in by_name.items():
        first = {it.entry.sha256: it.file for it in reversed(entries) if it.entry}
        digits = next(n for n in (8, 16, 64) if len({sha256[:n] for sha256 in first}) == len(first))
        for it in entries if len(first) > 1 else []:
            assert it.entry is not None
            shown[it.file] = replace(it, name=f"{name} ({it.entry.sha256[:digits]})")
        for it in entries:
            if it.entry and (original := first[it.entry.sha256]) != it.file:
                copy = replace(
                    shown.get(it.file, it), standing="refused", faults=(f"a copy of {original}",), entry=None
                )
                shown[it.file] = copy
    return [shown.get(it.file, it) for it in verdicts]


def _names(verdict: EntryVerdict) -> set[str]:
    """What `only` may call it."""
    return {verdict.name, verdict.name.partition(" (")[0]}


def _run_again(
    sound: Sequence[EntryVerdict],
    out: Path,
    backend: Backend,
    on_jobs: Callable[[Sequence[SeedAgain]], Callable[[Progress], None]] | None,
) -> None:
    work = {verdict.file: _seeds(verdict) for verdict in sound}
    every = [job for seeds in work.values() for job in seeds]
    for file in {job.result_file(out) for job in every}:
        if _result(file).get("status") != "finished":
            file.unlink(missing_ok=True)  # it may have been the machine
    show = (lambda _progress: None) if on_jobs is None else on_jobs(every)

    def tell(news: Progress) -> None:
        if news.gone and news.ended is not None:  # code that ends its process ends no board
            news.job.failed(out, news.why)
        show(news)

    for verdict in sound:
        assert verdict.entry is not None
        if any(not job.result_file(out).exists() for job in work[verdict.file]):
            verdict.entry.unpack(out / _place(verdict.entry) / "sources")
        run_jobs(work[verdict.file], out, jobs=backend, on_progress=tell)
    if missing := [job.title for job in every if not job.result_file(out).exists()]:
        raise RunFailed(f"{', '.join(missing)}: not run to its end (see above): the same command resumes it")


def _seeds(verdict: EntryVerdict) -> list[SeedAgain]:
    assert verdict.entry is not None
    place = _place(verdict.entry)
    return [SeedAgain(verdict.entry, place, run.seed, run.threads) for run in verdict.entry.runs]


def _place(entry: BoardEntry) -> str:
    """Where an entry is run again with the versions of now."""
    now = hashlib.sha256(json.dumps(here(), sort_keys=True).encode()).hexdigest()
    return f"again/{entry.sha256[:16]}-{now[:8]}"


def _judged(verdict: EntryVerdict, out: Path) -> EntryVerdict:
    assert verdict.entry is not None
    jobs, track = _seeds(verdict), load_track(verdict.track)
    return replace(judged(verdict.file, verdict.entry, track, _results(jobs, out)), name=verdict.name)


def _results(jobs: Sequence[SeedAgain], out: Path) -> dict[int, JsonView] | None:
    """What running it again gave, by seed; None where a seed was not run again."""
    files = {job.seed: job.result_file(out) for job in jobs}
    found = {seed: _result(file) for seed, file in files.items()}
    return found if all(found.values()) else None


def _result(file: Path) -> JsonView:
    """What a file of a seed says; nothing of one that is not there, or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "status" in found else {}
