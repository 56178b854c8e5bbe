"""What a benchmark shows while it runs: who is how far, what fails, and how long it will take."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from rlhf_env.lab.benchmark.cells import GridCell
from rlhf_env.lab.benchmark.live_table import GridProgress, benchmark_progress
from rlhf_env.lab.jobs import Progress
from rlhf_env.lab.progress import _Log
from rlhf_env.learning.experiment import Experiment


def cells(agent: str, task: str = "echo", seeds: int = 3) -> list[GridCell]:
    return [GridCell("b", task, agent, seed, Experiment()) for seed in range(seeds)]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(progress: GridProgress) -> list[str]:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(progress.table())
    return console.export_text().splitlines()


def test_the_table_and_the_time_left_by_hand() -> None:
    clock = Clock()
    ppo, dpo = cells("ppo"), cells("dpo")
    trial = replace(dpo[0], seed=1000, trial=True)
    progress = GridProgress([trial, *ppo, *dpo], jobs=2, clock=clock)
    assert "time left: not known yet" in shown(progress)[-1]
    row = {line.split()[1]: line for line in shown(progress) if "/" in line}
    assert "tuning 0/1" in row["dpo"] and "0/3" in row["ppo"]

    assert progress.take_in(Progress(ppo[0], 0.0)) == ""
    clock.now = 10.0
    line = progress.take_in(Progress(ppo[0], 1.0, "finished", score=0.4))
    # Six jobs are left, each expected to take the only duration known, in two processes: 30 s.
    assert line == "1 of 7 · echo · ppo · seed 0: score 0.40 in 10 s · about 30 s left"
    progress.take_in(Progress(ppo[1], 0.0))
    clock.now = 14.0
    assert progress.take_in(Progress(ppo[1], 1.0, "failed", why="it diverged")).endswith("seed 1: failed: it diverged")
    assert progress.take_in(Progress(ppo[2], 1.0, "finished", score=0.6)) == "", "it had ended before this call"
    progress.take_in(Progress(trial, 0.0))
    clock.now = 15.0
    progress.take_in(Progress(trial, 1.0, "finished", score=9.0))
    progress.take_in(Progress(dpo[0], 0.5, row={"rollout/reward": 0.25}))
    lines = shown(progress)
    row = {line.split()[1]: line for line in lines if "/" in line}
    assert "3/3  0.50  1 failed" in row["ppo"], "the mean of what has a score, trials apart"
    assert "0/3" in row["dpo"] and "9.00" not in row["dpo"]
    assert any("echo · dpo · seed 0" in line and "50%" in line and "reward 0.25" in line for line in lines)
    # Two and a half runs of dpo: of its task, runs took 10 and 4 s, and a trial counts for trials alone.
    assert "4 of 7 · 15 s so far · about 9 s left" in lines[-1]


def test_a_run_under_way_tells_what_others_like_it_will_take() -> None:
    clock = Clock()
    (quick,), slow = cells("reference", seeds=1), cells("ppo", seeds=2)
    progress = GridProgress([quick, *slow], jobs=2, clock=clock)
    progress.take_in(Progress(quick, 0.0))
    clock.now = 2.0
    progress.take_in(Progress(quick, 1.0, "finished"))
    progress.take_in(Progress(slow[0], 0.5))  # it was resumed
    assert progress.at_work().endswith(" · about 2 s left"), "two runs, one of them half, of 2 s each"
    clock.now = 12.0
    progress.take_in(Progress(slow[0], 0.6))
    # A tenth in ten seconds: 40 s are left of it, and 100 s of the other.
    assert progress.at_work().endswith(" · about 70 s left")


def test_a_log_has_a_line_for_each_run_that_ends_and_a_terminal_a_table() -> None:
    for terminal in (False, True):
        console = Console(width=100, file=io.StringIO(), force_terminal=terminal)
        first, second = cells("[red]ppo", seeds=2)
        with benchmark_progress(console, [first, second]) as tell:
            for cell, ended in ((first, "finished"), (second, "failed")):
                tell(Progress(cell, 0.0))
                tell(Progress(cell, 1.0, ended, why="[bold]why", score=0.5))  # type: ignore[arg-type]
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "2 of 2 · echo · [red]ppo · seed 1: failed: [bold]why" in text, "a failure is kept in both"
        assert ("1 of 2 · echo · [red]ppo · seed 0: score 0.50 in" in text) is not terminal
        assert ("Seeds done, mean score" in text) is terminal


def test_between_the_ends_of_long_runs_a_log_says_what_is_at_work() -> None:
    clock, file = Clock(), io.StringIO()
    (cell,) = cells("ppo", seeds=1)
    with benchmark_progress(Console(width=100, file=file), [cell], jobs=1, clock=clock) as tell:
        for now, share in ((0.0, 0.0), (9.0, 0.1), (12.0, 0.2), (13.0, 0.3), (25.0, 0.5)):
            clock.now = now
            tell(Progress(cell, share))
    assert file.getvalue().splitlines() == [
        "0 of 1 · at work: echo · ppo · seed 0 20% · about 48 s left",
        "0 of 1 · at work: echo · ppo · seed 0 50% · about 25 s left",
    ]


def test_where_no_bar_can_move_there_is_a_line_every_few_seconds() -> None:
    clock, file = Clock(), io.StringIO()
    log = _Log(Console(file=file, width=40), clock)
    log("Training", 0.1, "reward 0.10")
    clock.now = 6.0
    log("Training", 0.25, "reward [b] 0.25")
    clock.now = 9.0
    log("Training", 0.5, "reward 0.50")
    clock.now = 12.0
    log("Training", 0.5, "reward 0.50")
    assert file.getvalue().splitlines() == [
        "Training: 25%, about 18 s left  reward [b] 0.25",
        "Training: 50%, about 12 s left  reward 0.50",
    ]
    on_a_terminal = io.StringIO()
    _Log(Console(file=on_a_terminal, force_terminal=True), Clock())("Training", 0.5, "")
    assert on_a_terminal.getvalue() == ""
