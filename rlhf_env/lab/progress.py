"""Progress on a terminal: bars with the time left, and a live line of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlhf_env.lab.benchmark import Cell
from rlhf_env.lab.benchmark import Progress as CellProgress
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


@contextmanager
def stage(console: Console, title: str) -> Iterator[Callable[[float, str], None]]:
    """One bar for one stage of work; call the result with the share done and a short note."""
    with bars(console) as progress:
        task = progress.add_task(title, total=1.0, note="")

        def tell(fraction: float, note: str = "") -> None:
            progress.update(task, completed=fraction, note=note)

        yield tell
        progress.update(task, completed=1.0)


@contextmanager
def training_progress(console: Console) -> Iterator[Callable[[Row, float], None]]:
    """A bar for one training run; pass the result to `train` as `on_update`."""
    with stage(console, "Training") as tell:
        yield lambda row, fraction: tell(fraction, note_of(row))


@contextmanager
def benchmark_progress(console: Console, cells: Sequence[Cell]) -> Iterator[Callable[[CellProgress], None]]:
    """One bar for the whole grid, one for each cell at work, and a line for each that failed."""
    done = {cell.key: 0.0 for cell in cells}
    with bars(console) as progress:
        overall = progress.add_task(f"All {len(cells)} cells", total=float(len(cells)), note="")
        running: dict[str, TaskID] = {}

        def tell(news: CellProgress) -> None:
            key = news.cell.key
            if news.ended is None and key not in running:
                title = f"  {news.cell.task} · {news.cell.agent} · seed {news.cell.seed}"
                running[key] = progress.add_task(title, total=1.0, note="")
            done[key] = 1.0 if news.ended else news.fraction
            if key in running:
                progress.update(running[key], completed=done[key], note=note_of(news.row))
            if news.ended and key in running:
                progress.remove_task(running.pop(key))
            if news.ended == "failed":
                console.print(f"[red]failed[/red] {news.cell.key}: see its result file")
            progress.update(overall, completed=sum(done.values()))

        yield tell


def note_of(row: Row) -> str:
    """The numbers of an update worth watching."""
    shown = {"rollout/reward": "reward", "rollout/length": "length", "train/loss": "loss"}
    return "  ".join(f"{name} {row[key]:.2f}" for key, name in shown.items() if key in row)
