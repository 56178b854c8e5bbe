"""The whole study: runs that leave records, the replay of every rule on them, and what it comes to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from rlhf_env.errors import ConfigError
from rlhf_env.lab.brake import exact, runs
from rlhf_env.lab.brake.judging import BrakeVerdict, compare_brakes
from rlhf_env.lab.brake.libraries import require_libraries
from rlhf_env.lab.brake.records import SavedRun, read_records, read_study
from rlhf_env.lab.jobs import Backend, Job
from rlhf_env.lab.progress import job_progress
from rlhf_env.lab.scheduling import run_jobs
from rlhf_env.learning.folder_lock import hold
from rlhf_env.plain_data import strict_json
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import write_json


@dataclass(frozen=True)
class BrakeFindings:
    """What the study came to."""

    runs: int
    need_brake: int
    """Runs whose end has less than 90 % of their peak."""
    elsewhere: int
    """Runs of the over-optimisation study."""
    verdicts: Sequence[BrakeVerdict]

    @property
    def winner(self) -> BrakeVerdict | None:
        """Of the rules that meet the bar on the half where settings are chosen, the one of the fewest judgements; of
        equals, that with more runs well kept. The held-out half has no say in it, and judges it."""
        holding = [verdict for verdict in self.verdicts if verdict.on_choice.holds]
        return min(holding, key=lambda it: (it.on_choice.labels, -it.on_choice.kept_well), default=None)

    def as_json(self) -> str:
        return strict_json(self, indent=2) + "\n"


def study_jobs(seeds: int, exact_seeds: int) -> list[Job]:
    """The runs: 20 a seed of a tiny model, 8 a seed exact."""
    worlds = [exact.ExactRun(design, seed) for seed in range(exact_seeds) for design in exact.EXACT_DESIGNS]
    return [*worlds, *runs.letter_runs(seeds)]


def saved_runs(
    seeds: int,
    exact_seeds: int,
    folder: Path,
    *,
    studies: Sequence[Path] = (),
    libraries: bool = True,
    jobs: int | Backend,
    console: Console,
) -> tuple[list[SavedRun], list[SavedRun]]:
    """Make the records that `folder` lacks: those of all seeds, and those of over-optimisation studies.

    Raises ConfigError where the folder holds records of other settings, MissingExtra without the libraries asked for.
    """
    if libraries:
        require_libraries()
    elsewhere = [record for study in studies for record in read_study(study)]
    folder = folder.resolve()
    work = study_jobs(seeds, exact_seeds)
    with hold(folder):
        _claim_folder(folder)
        with job_progress(console, work, "runs") as on_progress:
            files = run_jobs(work, folder, jobs=jobs, on_progress=on_progress)
    return read_records([file for file in files if file.exists()]), elsewhere


def conclude_brake(
    records: Sequence[SavedRun],
    elsewhere: Sequence[SavedRun],
    *,
    libraries: bool = True,
    tell: Callable[[float, str], None] = lambda share, note: None,
) -> BrakeFindings:
    """Replay every rule."""
    verdicts = compare_brakes(records, elsewhere, libraries=libraries, tell=tell)
    return BrakeFindings(len(records), sum(record.needs_brake for record in records), len(elsewhere), verdicts)


def _claim_folder(folder: Path) -> None:
    """Note what the records are made with, and refuse to mix them with others'."""
    note, made_with = folder / "brake.json", _settings()
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != made_with:
        raise ConfigError(f"{folder} holds runs of other settings (see {note}): choose another folder with --out")
    write_json(note, made_with)


def _settings() -> JsonObject:
    plain: JsonObject = json.loads(
        json.dumps(
            {
                "designs": {name: asdict(design) for name, design in runs.LETTER_DESIGNS.items()},
                "ways": {name: dict(way) for name, way in runs.CLIMB_WAYS.items()},
                "exact": {name: asdict(design) for name, design in exact.EXACT_DESIGNS.items()},
                "updates": runs.LETTER_UPDATES,
                "every": runs.LETTER_EVERY,
                "texts": runs.LETTER_TEXTS,
                "samples": runs.SAMPLES,
            }
        )
    )
    return plain
