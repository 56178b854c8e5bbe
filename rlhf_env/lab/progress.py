"""Progress on a terminal: bars with the time left, a live table of a benchmark, and lines where it is a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlhf_env.lab.jobs import Job
from rlhf_env.lab.jobs import Progress as JobProgress
from rlhf_env.learning.loop import Row


def bars(console: Console) -> Progress:
    """The project's one style of progress bar."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
    )


class _Log:
    """Where no bar can move, as in a pipe or a log file: a line of it every few seconds."""

    EVERY = 5.0  # seconds

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._began = self._said = clock()

    def __call__(self, title: str, fraction: float, note: str) -> None:
        now = self._clock()
        if self._console.is_terminal or self._console.quiet or now - self._said < self.EVERY:
            return
        self._said = now
        known = fraction >= 0.02  # before, the guess is made of the start alone
        left = f", about {spoken_time((now - self._began) * (1 / fraction - 1))} left" if known else ""
        line = f"{title}: {fraction:.0%}{left}  {note}".rstrip()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._console.file.flush()


@contextmanager
def stage(console: Console, title: str) -> Iterator[Callable[[float, str], None]]:
    """One bar for one stage of work; call the result with the share done and a short note."""
    with bars(console) as progress:
        task = progress.add_task(title, total=1.0, note="")

        log = _Log(console)

        def tell(fraction: float, note: str = "") -> None:
            progress.update(task, completed=fraction, note=note)
            log(title, fraction, note)

        yield tell
        progress.update(task, completed=1.0)


@contextmanager
def training_progress(console: Console) -> Iterator[Callable[[Row, float], None]]:
    """A bar for one training run; pass the result to `train` as `on_update`."""
    with stage(console, "Training") as tell:
        yield lambda row, fraction: tell(fraction, note_of(row))


@contextmanager
def job_progress(console: Console, jobs: Sequence[Job], title: str) -> Iterator[Callable[[JobProgress], None]]:
    """One bar for all `jobs` (`title` says what they are), one for each at work, and a line for each that failed."""
    done = {job.key: 0.0 for job in jobs}
    with bars(console) as progress:
        overall = progress.add_task(f"All {len(jobs)} {title}", total=float(len(jobs)), note="")
        running: dict[str, TaskID] = {}
        log = _Log(console)

        def tell(news: JobProgress) -> None:
            key = news.job.key
            if news.ended is None and key not in running:
                where = f" on {news.place}" if news.place else ""
                running[key] = progress.add_task(f"  {news.job.title}{where}", total=1.0, note="")
            done[key] = 1.0 if news.ended else news.fraction
            if key in running:
                progress.update(running[key], completed=done[key], note=note_of(news.row))
            if news.ended and key in running:
                progress.remove_task(running.pop(key))
            if news.why and news.ended != "finished":
                console.print(f"[red]{news.ended or 'again'}[/red] {escape(news.job.title)}: {escape(news.why)}")
            progress.update(overall, completed=sum(done.values()))
            log(f"{len(jobs)} {title}", sum(done.values()) / max(len(jobs), 1), news.job.title)

        yield tell


def spoken_time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def note_of(row: Row) -> str:
    """The numbers of an update worth watching."""
    shown = {"rollout/reward": "reward", "rollout/length": "length", "train/loss": "loss"}
    return "  ".join(f"{name} {row[key]:.2f}" for key, name in shown.items() if key in row)
