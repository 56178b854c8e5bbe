"""Jobs that each leave a result file, what is heard of them, and what a backend is that does them.

There are three: this process, processes of this machine (`rlhf_env.lab.processes`), a Ray cluster
(`rlhf_env.lab.ray_cluster`). `rlhf_env.lab.scheduling` is the loop that all share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from rlhf_env.errors import DiskRefused, RlhfEnvError
from rlhf_env.learning.loop import Row
from rlhf_env.learning.signals import Interrupted
from rlhf_env.shown_text import without_secrets


class Job(Protocol):
    """A piece of work for a process of its own; it is done when its result file is there. It can be pickled."""

    @property
    def key(self) -> str:
        """Its name, unlike any other's of the folder."""

    @property
    def title(self) -> str:
        """Its name in words."""

    def result_file(self, folder: Path, /) -> Path: ...

    def leaves(self, folder: Path, /) -> Sequence[Path]:
        """The files and folders in `folder` that it writes, and resumes from: a worker elsewhere sends them back."""

    def reads(self, folder: Path, /) -> Sequence[str | Path]:
        """What else it reads, by absolute paths, in `folder` or elsewhere. Names of models may be among them."""

    def work(self, folder: Path, on_update: Callable[[Row, float], None], /) -> object:
        """Do the job, report progress, and leave the result file. A job that was cut short is resumed."""

    def failed(self, folder: Path, why: str, /) -> None:
        """`work` raised: leave a result that says so where the others can go on without it, or nothing."""


@dataclass(frozen=True)
class Progress:
    """How far a job is: `fraction` of it, the last `row` of metrics, and how it `ended`, None while it is at work.

    "died": its process is gone, or found no room on the disk. No result is written, and the next call resumes from its
    last checkpoint. `why`: it failed, or died. `score`: of a run that has been evaluated, if whoever runs the jobs
    knows of one. `place`: where it is done, where there is more than one machine. `gone`: it died because its worker
    did, so another may do better.
    """

    job: Job
    fraction: float
    ended: Literal["finished", "failed", "died"] | None = None
    row: Row = field(default_factory=dict)
    why: str = ""
    score: float | None = None
    place: str = ""
    gone: bool = False


class Crew(Protocol):
    """Workers in a folder."""

    def has_room(self) -> bool:
        """Whether it takes another job."""

    def start(self, job: Job, /) -> None: ...

    def news(self) -> Progress:
        """Wait for what is next heard of a job that was started: the first is that it has begun, the last how it
        ended."""

    def close(self) -> None:
        """End the workers. Those at work save what they have, so that the next call resumes it."""


class Backend(Protocol):
    """A place for jobs."""

    retries: int
    """How many times a job goes to another worker when its own is gone."""

    @property
    def at_once(self) -> int:
        """How many jobs are done at the same time, for a guess of the time left."""

    def require_alike(self, work: Sequence[Job], folder: Path, /) -> None:
        """Raises ConfigError where the jobs cannot be done, or would not be the same, on one of its machines."""

    def crew(self, folder: Path, /) -> Crew: ...


def outcome_of(job: Job, folder: Path, report: Callable[[Row, float], None]) -> tuple[Any, ...]:
    """Do the job: what comes after `job` in the last Progress of it. Raises Interrupted and KeyboardInterrupt only."""
    try:
        job.work(folder, report)
    except Interrupted:
        raise
    except DiskRefused as error:  # not the job's fault: a result that says it failed would stand for good
        return 0.0, "died", {}, f"{error}"
    except RlhfEnvError as error:
        return 1.0, "failed", {}, without_secrets(str(error))
    except (Exception, SystemExit) as error:  # a plugin may raise anything; the other jobs go on
        return 1.0, "failed", {}, without_secrets(f"{type(error).__name__}: {error}")
    return 1.0, "finished"
