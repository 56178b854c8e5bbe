"""A benchmark in a file: agents x seeds under equal conditions, one table, one report.

    python examples/benchmark.py [folder]        (default: runs/toy-benchmark)

`quick_benchmark.toml` beside this script says what is compared. Runs go on in two processes; a second call finds their
results and only makes the table and the report again. `rlhf-env bench examples/quick_benchmark.toml` does the same.
"""

import sys
from pathlib import Path

from rich.console import Console

from rlhf_env.errors import MissingExtra
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.benchmark.live_table import benchmark_progress
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.run import run_benchmark
from rlhf_env.lab.report.formats import rich_table
from rlhf_env.lab.report.report import write_report
from rlhf_env.lab.report.samples import rich_samples


def main() -> None:
    grid = Grid.load(Path(__file__).with_name("quick_benchmark.toml"))
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else f"runs/{grid.name}")
    width = None if sys.stdout.isatty() else 110  # a pipe has no width of its own; the table needs this much
    console = Console(highlight=False, soft_wrap=True, width=width)

    with benchmark_progress(console, grid.cells()) as on_progress:
        run_benchmark(grid, folder, jobs=2, on_progress=on_progress)

    results = read_results(folder)
    console.print(rich_table(results))
    console.print(rich_samples(results, count=1))
    try:
        console.print(f"Learning curves and more replies: {write_report(folder)}")
    except MissingExtra as missing:
        console.print(f"No report: {missing}")


if __name__ == "__main__":  # the worker processes import this file
    main()
