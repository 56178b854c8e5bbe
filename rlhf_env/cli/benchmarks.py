"""`rlhf-env bench` and `rlhf-env report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_env.cli.shared import (
    LEARNING,
    Address,
    CpusPerRun,
    GpusPerRun,
    Jobs,
    MemoryPerRun,
    Threads,
    WhichBackend,
    app,
    examples,
    interruptible,
    make_console,
    threads_everywhere,
)
from rlhf_env.errors import ConfigError, RunFailed, under

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_env.lab.benchmark.grid import Grid


@app.command(
    rich_help_panel=LEARNING,
    epilog=examples(
        "rlhf-env bench examples/quick_benchmark.toml --out runs/quick",
        "rlhf-env bench examples/benchmark.toml --only chitchat/ppo --jobs 4",
    ),
)
def bench(
    file: Annotated[
        Path, typer.Argument(help="The grid, a TOML file: [agents.*], [experiment], [tasks.*], seeds, [tuning].")
    ],
    out: Annotated[Path | None, typer.Option(help="Benchmark folder (default: runs/<name>).")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only these runs, as TASK/AGENT/SEED: chitchat/ppo/3, chitchat/ppo, chitchat, '*/ppo'."),
    ] = None,
    jobs: Jobs = None,
    backend: WhichBackend = "local",
    address: Address = None,
    cpus_per_run: CpusPerRun = None,
    gpus_per_run: GpusPerRun = None,
    memory_per_run: MemoryPerRun = None,
    threads: Threads = None,
) -> None:
    """Compare agents at equal budgets: a grid of agents x tasks x seeds. A second call runs only what is missing.

    Prints a table with verdicts, and writes report.html, and the raw results, into the benchmark folder.

    If the file asks for them, the reward model ([reward_model]) and trials of settings for every agent ([tuning]) come
    first. Only one call at a time can work in a folder. After Ctrl-C, the next call resumes the unfinished runs.
    rlhf-env watch FOLDER shows the runs in the browser while they train.
    """
    from rlhf_env.lab.backends import BackendOptions
    from rlhf_env.lab.benchmark.grid import Grid
    from rlhf_env.lab.benchmark.live_table import benchmark_progress
    from rlhf_env.lab.benchmark.reading import read_results
    from rlhf_env.lab.benchmark.run import run_benchmark
    from rlhf_env.toml_files import naming_lines

    threads_everywhere(threads)
    options = BackendOptions(
        backend=backend,
        jobs=jobs,
        threads=threads,
        address=address,
        cpus_per_run=cpus_per_run,
        gpus_per_run=gpus_per_run,
        memory_per_run=memory_per_run,
    )
    options.check()
    grid = Grid.load(file)
    folder = out or Path("runs") / grid.name
    console = make_console()
    with naming_lines(file):
        grid.require_plugins(grid.cells(folder))
    cells = grid.cells(folder, only or ())
    if few := grid.too_few_seeds:
        console.print(f"Note: {few}.", highlight=False, soft_wrap=True)
    prepare = maker_of_reward_model(grid, folder, file, console)
    with (
        interruptible(),
        options.opened() as opened,
        benchmark_progress(console, [*grid.trials(cells), *cells], jobs=opened) as on_progress,
    ):
        results = run_benchmark(
            grid,
            folder,
            jobs=opened,
            only=only or (),
            prepare=prepare,
            on_progress=on_progress,
            on_warning=lambda _: None,  # it has been said
        )
    missing = sum(not file.exists() for file in results)
    if missing < len(results):
        _show_report(folder, console)
        made = read_results(folder).cells
        if all(cell.status == "failed" for cell in made):
            raise RunFailed(f"all {len(made)} runs failed; the first one: {made[0].error}")
    if missing:
        raise RunFailed(f"{missing} of {len(results)} cells are not done (see above): the same command resumes them")


def maker_of_reward_model(grid: Grid, folder: Path, file: Path, console: Console) -> Callable[[], object] | None:
    """A function that makes the model of the grid's [reward_model], if it has one.

    Raises ConfigError for a setting that the demo does not have.
    """
    if grid.reward_model is None:
        return None
    from rlhf_env.learning.configuration import from_table
    from rlhf_env.pipeline.demo import DemoRewardModel, learn_reward_model
    from rlhf_env.toml_files import naming_lines

    with naming_lines(file), under("reward_model"):
        wanted = from_table(DemoRewardModel, grid.reward_model, f"{file} [reward_model]")
    return lambda: learn_reward_model(folder, wanted, console=console)


@app.command(rich_help_panel=LEARNING, epilog=examples("rlhf-env report runs/quick"))
def report(
    folder: Annotated[
        Path, typer.Argument(help="A benchmark folder (with results/ in it), a pipeline's, or that of a run.")
    ],
) -> None:
    """Make the table and report.html of a benchmark, a pipeline or a run again, from its results. Trains nothing.

    Of a run, ended or not: its report.html.
    """
    from rlhf_env.pipeline.report import ABOUT, about_pipeline, write_pipeline_report
    from rlhf_env.runs_on_disk import DESCRIBED

    console = make_console()
    if (folder / DESCRIBED).is_file():
        from rlhf_env.lab.watching.run_report import write_run_report

        console.print(f"Report: {write_run_report(folder)}", highlight=False, soft_wrap=True, markup=False)
        return
    if not (folder / ABOUT).is_file():
        _show_report(folder, console)
        return
    for stage in about_pipeline(folder).stages:
        if any((folder / stage / "results").glob("*.json")):
            _show_report(folder / stage, console)
    write_pipeline_report(folder, console)


def _show_report(folder: Path, console: Console) -> None:
    from rlhf_env.lab.benchmark.reading import read_results
    from rlhf_env.lab.report.formats import rich_table
    from rlhf_env.lab.report.report import write_report

    console.print(rich_table(read_results(folder), console.width))
    try:
        console.print(f"Report: {write_report(folder)}", highlight=False, soft_wrap=True)
    except ConfigError as missing:  # pictures are an extra; the table is not
        console.print(f"No report.html: {missing}", highlight=False, soft_wrap=True)
