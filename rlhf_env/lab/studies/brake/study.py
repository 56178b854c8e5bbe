"""The whole study: runs, replay, and what is concluded."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from rlhf_env.errors import ConfigError
from rlhf_env.lab.jobs import Backend
from rlhf_env.lab.progress import job_progress
from rlhf_env.lab.scheduling import run_jobs
from rlhf_env.lab.studies.brake.runs import DESIGNS, EVERY, SAMPLES, TEXTS, UPDATES, WAYS, all_runs
from rlhf_env.learning.folder_lock import hold
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import write_json


def make_records(seeds: int, folder: Path, *, jobs: int | Backend, console: Console) -> None:
    """Train what has no record in `folder` yet. Raises ConfigError where it holds records of other settings."""
    folder = folder.resolve()
    work = all_runs(seeds)
    with hold(folder):
        note, made_with = folder / "brake.json", _settings()
        if note.exists() and json.loads(note.read_text(encoding="utf-8")) != made_with:
            raise ConfigError(f"{folder} holds runs of other settings (see {note}): choose another folder with --out")
        write_json(note, made_with)
        with job_progress(console, work, "runs") as on_progress:
            run_jobs(work, folder, jobs=jobs, on_progress=on_progress)


def _settings() -> JsonObject:
    made: JsonObject = json.loads(
        json.dumps(
            {
                "designs": {name: vars(design) for name, design in DESIGNS.items()},
                "ways": {name: dict(way) for name, way in WAYS.items()},
                "updates": UPDATES,
                "every": EVERY,
                "texts": TEXTS,
                "samples": SAMPLES,
            }
        )
    )
    return made
