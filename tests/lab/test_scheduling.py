"""The loop over jobs, with workers whose news is written down: no process is started."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.lab.jobs import Job, Progress
from rlhf_env.lab.scheduling import run_jobs


@dataclass(frozen=True)
class Named:
    """A job that is done by nobody; `failed` leaves a result."""

    key: str

    @property
    def title(self) -> str:
        return self.key

    def result_file(self, folder: Path, /) -> Path:
        return folder / self.key

    def leaves(self, folder: Path, /) -> Sequence[Path]:
        return [self.result_file(folder)]

    def reads(self, _folder: Path, /) -> Sequence[str]:
        return []

    def work(self, _folder: Path, _on_update: Callable[..., None], /) -> None:
        raise AssertionError("the crew is to do it")

    def failed(self, folder: Path, why: str, /) -> None:
        self.result_file(folder).write_text(why)


def ends(ended: str, why: str = "", gone: bool = False) -> dict[str, Any]:
    return {"ended": ended, "why": why, "gone": gone}


LOST = ends("died", "its worker died", gone=True)


@dataclass
class Scripted:
    """A backend, and its crew: each attempt of a job begins, and ends as its script says next."""

    scripts: dict[str, list[dict[str, Any]]]
    room: int = 2
    retries: int = 0
    log: list[str] = field(default_factory=list)
    at_once = 1
    _heard: deque[Progress] = field(default_factory=deque)
    _at_work: int = 0

    def require_alike(self, work: Sequence[Job], _folder: Path, /) -> None:
        self.log.append(f"compares {len(work)}")

    def crew(self, _folder: Path, /) -> Scripted:
        return self

    def has_room(self) -> bool:
        return self._at_work < self.room

    def start(self, job: Job, /) -> None:
        assert self.has_room()
        self._at_work += 1
        self.log.append(f"starts {job.key}")
        self._heard += [Progress(job, 0.0), Progress(job, 0.5, **self.scripts[job.key].pop(0))]

    def news(self) -> Progress:
        progress = self._heard.popleft()
        self._at_work -= progress.ended is not None
        if progress.ended == "finished":
            progress.job.result_file(self.folder).write_text("done")
        return progress

    def close(self) -> None:
        self.log.append("closes")


def done(backend: Scripted, folder: Path) -> tuple[list[Progress], list[str]]:
    """What was told, and the names of the results, of one job a script."""
    backend.folder = folder  # type: ignore[attr-defined]
    told: list[Progress] = []
    files = run_jobs([Named(key) for key in backend.scripts], folder, jobs=backend, on_progress=told.append)
    assert [file.name for file in files] == [*backend.scripts]
    return told, sorted(file.name for file in folder.iterdir())


def test_jobs_are_handed_over_in_order_as_far_as_there_is_room(tmp_path: Path) -> None:
    backend = Scripted({name: [ends("finished")] for name in "abc"})
    told, results = done(backend, tmp_path)
    assert backend.log == ["compares 3", "starts a", "starts b", "starts c", "closes"]
    assert results == ["a", "b", "c"]
    heard = [(news.job.key, news.ended) for news in told]
    assert heard == [(name, ended) for name in "abc" for ended in (None, "finished")]


def test_what_has_a_result_is_not_done_again_and_with_nothing_to_do_nobody_is_called(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("of an earlier call")
    backend = Scripted({"a": []})
    told, _ = done(backend, tmp_path)
    assert [(news.fraction, news.ended) for news in told] == [(1.0, "finished")] and backend.log == []


def test_a_job_whose_worker_is_gone_goes_to_another_behind_the_others(tmp_path: Path) -> None:
    backend = Scripted({"a": [LOST, LOST, ends("finished")], "b": [ends("finished")]}, room=1, retries=2)
    told, results = done(backend, tmp_path)
    assert backend.log == ["compares 2", "starts a", "starts b", "starts a", "starts a", "closes"]
    assert results == ["a", "b"]
    of_a = [(news.ended, news.why) for news in told if news.job.key == "a" and (news.ended or news.why)]
    assert of_a == [
        (None, "its worker died; another worker resumes it (1 of 2)"),
        (None, "its worker died; another worker resumes it (2 of 2)"),
        ("finished", ""),
    ]


@pytest.mark.parametrize("retries", [0, 1])
def test_a_job_that_kills_every_worker_is_left_to_the_next_call_after_some(retries: int, tmp_path: Path) -> None:
    backend = Scripted({"a": [LOST] * 3, "b": [ends("finished")]}, retries=retries)
    told, results = done(backend, tmp_path)
    assert backend.log.count("starts a") == 1 + retries
    assert results == ["b"]
    (died,) = [news for news in told if news.ended == "died"]
    assert died.why == "its worker died: the next call resumes it"


def test_a_full_disk_is_not_tried_again_and_a_failure_is_a_result(tmp_path: Path) -> None:
    backend = Scripted({"a": [ends("died", "a full disk")], "b": [ends("failed", "lr is nan")]}, retries=3)
    told, results = done(backend, tmp_path)
    assert backend.log.count("starts a") == backend.log.count("starts b") == 1
    assert results == ["b"] and (tmp_path / "b").read_text() == "lr is nan"
    assert [news.why for news in told if news.ended] == ["a full disk: the next call resumes it", "lr is nan"]


def test_stopped_by_an_exception_the_crew_is_closed(tmp_path: Path) -> None:
    backend = Scripted({"a": [ends("finished")]})

    def stop(_news: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([Named("a")], tmp_path, jobs=backend, on_progress=stop)
    assert backend.log == ["compares 1", "starts a", "closes"]


def test_a_place_in_the_news_is_shown_where_it_runs() -> None:
    from rlhf_env.lab.benchmark.cells import GridCell
    from rlhf_env.lab.benchmark.live_table import GridProgress
    from rlhf_env.learning.experiment import Experiment

    cell = GridCell("b", "echo", "ppo", 0, Experiment())
    clock = iter([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    progress = GridProgress([cell], jobs=1, clock=lambda: next(clock))
    begun = Progress(cell, 0.25, place="node-a/12ab34")
    progress.take_in(begun)
    lines = [line.plain for line in progress.table().renderables[1:]]  # type: ignore[attr-defined]
    assert "echo · ppo · seed 0   25% on node-a/12ab34" in lines[0]
    again = progress.take_in(replace(begun, why="its worker died; another worker resumes it (1 of 3)"))
    assert again == "echo · ppo · seed 0: its worker died; another worker resumes it (1 of 3)"
    ended = progress.take_in(Progress(cell, 1.0, "finished", score=0.5, place="node-b/56cd78"))
    assert " in " in ended and " s on node-b/56cd78 · " in ended
