"""The laws that train models: what they need is made side by side, before it is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import RunFailed
from rlhf_env.lab.jobs import Progress
from rlhf_env.lab.laws import climbs, study_more_labels
from rlhf_env.lab.laws.form import Claim, analyse
from rlhf_env.lab.laws.running import decide

NAMES = ("base", "few-labels")


def test_what_several_processes_make_is_what_a_seed_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts, then the reward models, then the runs that climb them; a file is made once."""
    monkeypatch.setattr(climbs, "WORK", tmp_path)
    made: list[list[Path]] = []

    def run_jobs(work: Any, folder: Path, *, jobs: int, on_progress: Any) -> list[Path]:
        files = [job.result_file(folder) for job in work]
        made.append([file.relative_to(folder) for file in files if not file.exists()])
        for job, file in zip(work, files, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            on_progress(Progress(job, 1.0, "finished"))
        return files

    monkeypatch.setattr(climbs, "run_jobs", run_jobs)
    told: list[float] = []
    climbs.ClimbsOf(NAMES)([5, 6], 2, lambda share, note: told.append(share))
    texts, fits, cells = made
    assert texts and all(file.parts[0] == "texts" for file in texts)
    assert len(fits) == 4 and all(file.parts[0] == "proxies" for file in fits)
    assert len(cells) == 4 and all("rloo" in file.name for file in cells)
    assert len({*texts, *fits, *cells}) == len(texts) + 8
    assert told.count(1.0) == 3, "each of the three comes to its end"
    for seed in (5, 6):
        for name in NAMES:
            made.clear()
            climbs.ClimbsOf([name])([seed], 0, lambda share, note: None)
            assert made == [[], [], []], "it is all there"


def test_a_run_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(climbs, "WORK", tmp_path)
    monkeypatch.setattr(climbs, "run_jobs", lambda work, folder, **_: [job.result_file(folder) for job in work])
    with pytest.raises(RunFailed, match="was not made: the same command resumes from there"):
        climbs.ClimbsOf(["base"])([0], 2, lambda share, note: None)


def test_a_law_prepares_its_pilot_and_its_run(tmp_path: Path) -> None:
    asked: list[tuple[list[int], int]] = []
    law = Claim(
        name="x",
        claim="It is.",
        source="nobody",
        prediction="Above 0.",
        smallest=0.1,
        measure=lambda seed, at: 1.0 + seed / 1000,
        prepare=lambda seeds, jobs, tell: asked.append((list(seeds), jobs)),
        pilot=(7, 8),
    )
    seeds = analyse(replace(law, prepare=None)).seeds
    record = decide(law, tmp_path, jobs=3)
    assert asked == [([7, 8], 3), (list(range(seeds)), 3)]
    assert record["verdict"] == "confirmed"


def test_every_law_of_the_study_says_what_it_climbs() -> None:
    prepare = study_more_labels.LAW.prepare
    assert isinstance(prepare, climbs.ClimbsOf) and {*prepare.names} == {*NAMES} <= {*climbs.PROXIES}
