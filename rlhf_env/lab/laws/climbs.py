"""The over-optimisation study in small, a seed at a time: where climbing a learned reward peaks in gold.

A seed draws its pairs and labels, fits the proxy, and lets RLOO climb it without a KL penalty; the law of Gao et al.
2023 is fitted to gold against d = sqrt(KL). What a seed left in `WORK` is not made again, and laws share it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from rlhf_env.errors import RunFailed
from rlhf_env.lab.jobs import Job
from rlhf_env.lab.scheduling import run_jobs
from rlhf_env.lab.studies.overoptimization.cells import runs
from rlhf_env.lab.studies.overoptimization.laws import fit_law
from rlhf_env.lab.studies.overoptimization.proxies import ProxyFit
from rlhf_env.lab.studies.overoptimization.study import Climb, Proxy, Study
from rlhf_env.lab.studies.overoptimization.texts import pool_of, text_jobs

WORK = Path("runs/laws/overoptimization")
PILOT = range(100, 104)
MOST = 100  # seeds of a law: some twelve seconds for each fit and each climb
LABELS, FEW, LAYERS, MANY_LAYERS, FLIPPED, MEMBERS = 1000, 60, 1, 4, 0.35, 3
_BASE = Proxy(labels=LABELS, layers=LAYERS)
_NOISY = replace(_BASE, flips=FLIPPED)
PROXIES: Mapping[str, Proxy] = {
    "base": _BASE,
    "few-labels": replace(_BASE, labels=FEW),
    "large": replace(_BASE, layers=MANY_LAYERS),
    "noisy": _NOISY,
    "worst-case": replace(_NOISY, members=MEMBERS, combination="worst"),
    "uncertainty": replace(_NOISY, members=MEMBERS, combination="uncertainty"),
}
"""As in the study, with larger contrasts: 60 labels against 1,000, 35 % of labels turned around."""


@cache
def peak(seed: int, name: str) -> tuple[float, float]:
    """(d, gold) where RLOO peaks on a proxy of `PROXIES`, gold in standard deviations of the reference's replies.

    The highest point of the fitted law within the run's own data.
    """
    study = Study(
        seeds=1,
        first_seed=seed,
        pair_prompts=1024,
        measured_prompts=64,
        pool=32,
        proxies=dict(PROXIES),
        claims=(),
        climbs={"rloo": Climb(agent={"name": "rloo", "lr": 3e-4}, updates=24, every=3, num_envs=32)},
    )
    folder = WORK.resolve()
    (cell,) = (cell for cell in runs(study, folder) if cell.task == name)
    jobs: list[Job] = [*text_jobs(study), *(ProxyFit(study, seed, fitting) for fitting in PROXIES[name].fits), cell]
    missing = [file.name for file in run_jobs(jobs, folder, jobs=0) if not file.exists()]
    if missing:
        raise RunFailed(f"{missing[0]} was not made: the same command resumes from there")
    result = json.loads(cell.result_file(folder).read_text(encoding="utf-8"))
    if result["error"]:
        raise RunFailed(f"{cell.title}: {result['error']}")
    replies = np.array([reply.gold for reply in pool_of(study, folder)])
    distance = np.sqrt([max(point["kl"], 0.0) for point in result["curve"]])
    gold = (np.array([point["gold"] for point in result["curve"]]) - replies.mean()) / replies.std()
    return fit_law("rl", distance, gold).best_within(float(distance.max()))
