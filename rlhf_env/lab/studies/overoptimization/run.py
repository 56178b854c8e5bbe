"""Over-optimisation measured: how far does a policy get on a learned reward before the true one falls?

After Gao, Schulman and Hilton 2023 (arXiv 2210.10760): a *gold* reward stands for people, *proxies* are fitted to its
noisy labels, agents climb the proxies without any KL penalty, and gold and proxy are measured at many checkpoints
against d = sqrt(KL(policy || reference)), best-of-n on the same axis. Three stages, each made of jobs for worker
processes that leave one file each, so that a second call does what is missing:

    texts     replies of the reference: for pairs, gold scored once for everybody; and a pool for best-of-n
    proxies   reward models of several sizes, label counts and noise rates, each on its seed's own pairs and labels
    runs      cells of a benchmark: agent x proxy x seed

`overoptimization_findings` says what they show.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlhf_env.errors import ConfigError, RunFailed
from rlhf_env.lab.jobs import Backend, Job
from rlhf_env.lab.progress import job_progress
from rlhf_env.lab.scheduling import run_jobs
from rlhf_env.lab.studies.overoptimization.cells import runs
from rlhf_env.lab.studies.overoptimization.proxies import ProxyFit, fittings
from rlhf_env.lab.studies.overoptimization.study import Study
from rlhf_env.lab.studies.overoptimization.texts import text_jobs
from rlhf_env.learning.folder_lock import hold
from rlhf_env.whole_files import write_json

# -------------------------------------------------------------------- what is studied


def run_study(study: Study, folder: str | Path, *, jobs: int | Backend = 2, console: Console) -> None:
    """All three stages; what stands in `folder` already is not done again.

    Raises ConfigError when the folder holds another study, RunFailed when texts or a proxy could not be made.
    """
    folder = Path(folder).resolve()
    stages: dict[str, Sequence[Job]] = {
        "sets of texts": text_jobs(study),
        "reward models": [ProxyFit(study, seed, fitting) for seed in study.seed_numbers for fitting in fittings(study)],
        "runs": runs(study, folder),
    }
    with hold(folder):
        _claim_folder(study, folder)
        for title, work in stages.items():
            with job_progress(console, work, title) as on_progress:
                files = run_jobs(work, folder, jobs=jobs, on_progress=on_progress)
            if missing := [file.name for file in files if not file.exists()]:
                raise RunFailed(f"{missing[0]} is not there, its process died: the same command resumes from here")


def _claim_folder(study: Study, folder: Path) -> None:
    """Note what the folder's files are made with, and refuse to mix them with others'."""
    note = folder / "study.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != study.as_json():
        raise ConfigError(f"{folder} holds a study of other settings (see {note}): choose another folder with --out")
    write_json(note, study.as_json())
