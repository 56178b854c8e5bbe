"""The table in the terminal while a grid runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_env.lab.benchmark.cells import GridCell
from rlhf_env.lab.jobs import Backend
from rlhf_env.lab.jobs import Progress as JobProgress
from rlhf_env.lab.progress import note_of, spoken_time
from rlhf_env.lab.scheduling import at_once

LINE_EVERY = 10.0  # seconds, of what is at work, in a log
_ENOUGH = 0.05  # of a run: what it begins with is behind it, and its pace is known


@contextmanager
def benchmark_progress(
    console: Console,
    cells: Sequence[GridCell],
    *,
    jobs: int | Backend = 2,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Callable[[JobProgress], None]]:
    """A live table, agents x tasks, of a benchmark whose `cells` (and trials) run in `jobs` processes, or on a cluster.

    Where nothing can be redrawn (a pipe, a log) it is a line for each that ends, and between them, every few seconds,
    one about those at work.
    """
    seen = GridProgress(cells, jobs=at_once(jobs), clock=clock)
    said = clock()
    live = Live(get_renderable=seen.table, console=console, refresh_per_second=4)

    def tell(news: JobProgress) -> None:
        nonlocal said
        line = seen.take_in(news)
        if not line and not console.is_terminal and clock() - said >= LINE_EVERY:
            line = seen.at_work()
        said = clock() if line else said
        if console.is_terminal and not live.is_started:  # not before: what is prepared first has bars of its own
            live.start()
        if line and (not console.is_terminal or (news.why and news.ended != "finished")):
            console.print(line, highlight=False, soft_wrap=True, markup=False)

    try:
        yield tell
    finally:
        live.stop()


class GridProgress:
    """A benchmark while it runs: how many seeds are done, their mean score, failures, and the time left.

    The time left is what the rest would take in `jobs` processes at the mean duration of runs like them: of the same
    agent on the same task if there are any yet, else of the task, else of all. Of a run under way the duration is what
    it will be at its pace so far.
    """

    def __init__(
        self, cells: Sequence[GridCell], *, jobs: int = 2, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs, self._clock, self._start = jobs, clock, clock()
        self._cells = {cell.key: cell for cell in cells}
        self._done = dict.fromkeys(self._cells, 0.0)
        self._at_work: dict[str, _UnderWay] = {}
        self._took: list[tuple[GridCell, float]] = []
        self._scores: dict[str, float] = {}
        self._failed: set[str] = set()

    def take_in(self, news: JobProgress) -> str:
        """A line for a log about what has ended, "" while it has not and where it had ended before this call."""
        cell, now = cast("GridCell", news.job), self._clock()
        key = cell.key
        self._cells.setdefault(key, cell)
        begun = self._at_work.pop(key, _UnderWay(now, news.fraction, news))
        if news.ended is None:
            self._done[key] = news.fraction
            self._at_work[key] = replace(begun, news=news)
            return f"{cell.title}: {news.why}" if news.why else ""
        begun_here = begun.since < now
        self._done[key] = 1.0
        if begun_here:
            self._took.append((cell, now - begun.since))
        if news.score is not None:
            self._scores[key] = news.score
        if news.ended != "finished":
            self._failed.add(key)
            return f"{self._count()} · {cell.title}: {news.ended}: {news.why}"
        if not begun_here:
            return ""
        score = "" if news.score is None else f" score {news.score:.2f}"
        return f"{self._count()} · {cell.title}:{score} in {now - begun.since:.0f} s{_on(news)} · {self._time_left()}"

    def at_work(self) -> str:
        """A line for a log about what has not ended yet."""
        latest = (it.news for it in self._at_work.values())
        some = ", ".join(f"{news.job.title} {news.fraction:.0%}{_on(news)}" for news in latest)
        return f"{self._count()} · at work: {some} · {self._time_left()}" if some else ""

    def table(self) -> RenderableType:
        """Agents x tasks; below it what is at work, and how far everything is."""
        cells = [cell for cell in self._cells.values() if not cell.trial]
        tasks = list(dict.fromkeys(cell.task for cell in cells))
        table = Table(*["Agent", *tasks], title="Seeds done, mean score", title_justify="left", title_style="bold")
        for agent in dict.fromkeys(cell.agent for cell in cells):
            table.add_row(agent, *(self._place(task, agent) for task in tasks))
        at_work = [
            Text(f"  {news.job.title}  {news.fraction:4.0%}{_on(news)}  {note_of(news.row)}", style="dim")
            for news in (it.news for it in self._at_work.values())
        ]
        taken = spoken_time(self._clock() - self._start)
        return Group(table, *at_work, Text(f"{self._count()} · {taken} so far · {self._time_left()}"))

    def _place(self, task: str, agent: str) -> Text:
        keys = [key for key, cell in self._cells.items() if (cell.task, cell.agent) == (task, agent)]
        runs, trials = ([key for key in keys if self._cells[key].trial is trial] for trial in (False, True))
        done, tried = (sum(self._done[key] >= 1.0 for key in some) for some in (runs, trials))
        if not done and tried < len(trials):
            return Text(f"tuning {tried}/{len(trials)}", style="dim")
        scores = [self._scores[key] for key in runs if key in self._scores]
        failed = sum(key in self._failed for key in runs)
        text = Text(f"{done}/{len(runs)}", style="" if done else "dim")
        if scores:
            text.append(f"  {sum(scores) / len(scores):.2f}", style="bold")
        if failed:
            text.append(f"  {failed} failed", style="red")
        return text

    def _count(self) -> str:
        return f"{sum(done >= 1.0 for done in self._done.values())} of {len(self._done)}"

    def _time_left(self) -> str:
        now = self._clock()
        paced = {key: it.duration(now) for key, it in self._at_work.items() if it.has_a_pace(now)}
        took = [*self._took, *((self._cells[key], seconds) for key, seconds in paced.items())]
        if not took:
            return "time left: not known yet"
        expected: dict[tuple[str, str, bool], float] = {}
        left = 0.0
        for key, done in self._done.items():
            cell = self._cells[key]
            alike = (cell.task, cell.agent, cell.trial)
            if alike not in expected:
                expected[alike] = _expected(cell, took)
            left += (1.0 - done) * paced.get(key, expected[alike])
        return f"about {spoken_time(left / self._jobs)} left"


@dataclass(frozen=True)
class _UnderWay:
    since: float
    fraction: float
    """How far it was then: above 0 where it was resumed."""
    news: JobProgress

    def has_a_pace(self, now: float) -> bool:
        """Whether it has come far enough here to tell."""
        return now > self.since and self.news.fraction - self.fraction >= _ENOUGH

    def duration(self, now: float) -> float:
        """Seconds that the whole of it takes at that pace."""
        return (now - self.since) / (self.news.fraction - self.fraction)


def _expected(cell: GridCell, took: Sequence[tuple[GridCell, float]]) -> float:
    """Seconds that a run takes, from those most like it."""
    for names in (("task", "agent", "trial"), ("task", "trial"), ("trial",), ()):
        alike = [s for other, s in took if all(getattr(other, n) == getattr(cell, n) for n in names)]
        if alike:
            return sum(alike) / len(alike)
    return 0.0


def _on(news: JobProgress) -> str:
    """Where a run is done, where there is more than one machine."""
    return f" on {news.place}" if news.place else ""
