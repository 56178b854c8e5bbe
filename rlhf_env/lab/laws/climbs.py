"""The over-optimisation study in small, a seed at a time: where climbing a learned reward peaks in gold.

A seed draws its pairs and labels, fits the proxy, and lets RLOO climb it without a KL penalty; the law of Gao et al.
2023 is fitted to gold against d = sqrt(KL). What a seed left in `WORK` is not made again, and laws share it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from rlhf_env.errors import RunFailed
from rlhf_env.lab.jobs import Job, Progress
from rlhf_env.lab.scheduling import run_jobs
from rlhf_env.lab.studies.overoptimization.cells import runs
from rlhf_env.lab.studies.overoptimization.laws import fit_law
from rlhf_env.lab.studies.overoptimization.proxies import ProxyFit
from rlhf_env.lab.studies.overoptimization.study import Climb, Proxy, Study
from rlhf_env.lab.studies.overoptimization.texts import pool_of, text_jobs

WORK = Path("runs/laws/overoptimization")
PILOT = range(100, 104)
MOST_SEEDS = 100  # seeds of a law: some twelve seconds for each fit and each climb
LABELS, FEW, LAYERS, MANY_LAYERS, FLIPPED_SHARE, MEMBERS = 1000, 60, 1, 4, 0.35, 3
_BASE = Proxy(labels=LABELS, layers=LAYERS)
_NOISY = replace(_BASE, flips=FLIPPED_SHARE)
PROXIES: Mapping[str, Proxy] = {
    "base": _BASE,
    "few-labels": replace(_BASE, labels=FEW),
    "large": replace(_BASE, layers=MANY_LAYERS),
    "noisy": _NOISY,
    "worst-case": replace(_NOISY, members=MEMBERS, combination="worst"),
    "uncertainty": replace(_NOISY, members=MEMBERS, combination="uncertainty"),
}
"""As in the study, with larger contrasts: 60 labels against 1,000, 35 % of labels turned around."""


@dataclass(frozen=True)
class ClimbsOf:
    """What a law needs before it measures: its reward models fitted and climbed, several seeds at a time."""

    names: Sequence[str]
    """Of `PROXIES`."""

    def __call__(self, seeds: Sequence[int], jobs: int, tell: Callable[[float, str], None]) -> None:
        """In up to `jobs` processes; in this one where that is 0. Raises RunFailed where one of them died."""
        folder = WORK.resolve()
        studies = [_study(seed) for seed in seeds]
        for phase in zip(*(_phases(study, self.names, folder) for study in studies), strict=True):
            work = list({job.result_file(folder): job for some in phase for job in some}.values())
            done: dict[Path, float] = {}

            def hear(news: Progress, done: dict[Path, float] = done, of: int = len(work)) -> None:
                done[news.job.result_file(folder)] = news.fraction
                tell(sum(done.values()) / of, news.job.title)

            missing = [file.name for file in run_jobs(work, folder, jobs=jobs, on_progress=hear) if not file.exists()]
            if missing:
                raise RunFailed(f"{missing[0]} was not made: the same command resumes from there")


@cache
def trained_peak(seed: int, name: str) -> tuple[float, float]:
    """(d, gold) where RLOO peaks on a proxy of `PROXIES`, gold in standard deviations of the reference's replies.

    The highest point of the fitted law within the run's own data.
    """
    study, folder = _study(seed), WORK.resolve()
    ClimbsOf([name])([seed], 0, lambda share, note: None)
    (cell,) = (cell for cell in runs(study, folder) if cell.task == name)
    result = json.loads(cell.result_file(folder).read_text(encoding="utf-8"))
    if result["error"]:
        raise RunFailed(f"{cell.title}: {result['error']}")
    replies = np.array([reply.gold for reply in pool_of(study, folder)])
    distance = np.sqrt([max(point["kl"], 0.0) for point in result["curve"]])
    gold = (np.array([point["gold"] for point in result["curve"]]) - replies.mean()) / replies.std()
    return fit_law("rl", distance, gold).best_within(float(distance.max()))


def _study(seed: int) -> Study:
    return Study(
        seeds=1,
        first_seed=seed,
        pair_prompts=1024,
        measured_prompts=64,
        pool=32,
        proxies=dict(PROXIES),
        claims=(),
        climbs={"rloo": Climb(agent={"name": "rloo", "lr": 3e-4}, updates=24, every=3, num_envs=32)},
    )


def _phases(study: Study, names: Sequence[str], folder: Path) -> tuple[Sequence[Job], ...]:
    """Texts, then the reward models of them, then the runs that climb those."""
    fits = [ProxyFit(study, study.first_seed, fitting) for name in names for fitting in study.proxies[name].fits]
    return text_jobs(study), fits, [cell for cell in runs(study, folder) if cell.task in names]
