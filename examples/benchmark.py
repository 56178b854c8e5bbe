"""A benchmark in a file: agents x seeds under equal conditions, one table, one report.

    python examples/benchmark.py [folder]        (default: runs/toy-benchmark)

`quick_benchmark.toml` beside this script says what is compared. Runs go on in two processes; a second call finds their
results and only makes the table and the report again. `rlhf-env bench examples/quick_benchmark.toml` does the same,
with a live table while it works.
"""

import sys
from pathlib import Path

import rlhf_env
from rlhf_env.errors import MissingExtra


def main() -> None:
    grid = rlhf_env.Grid.load(Path(__file__).with_name("quick_benchmark.toml"))
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else f"runs/{grid.name}")
    rlhf_env.run_benchmark(grid, folder, jobs=2, on_progress=show_progress)
    print(rlhf_env.markdown_table(rlhf_env.read_results(folder)))
    try:
        print(f"Learning curves and replies: {rlhf_env.write_report(folder)}")
    except MissingExtra as missing:
        print(f"No report: {missing}")


def show_progress(progress) -> None:
    if progress.ended is not None:
        print(f"{progress.job.title}: {progress.ended} {progress.why}", flush=True)


if __name__ == "__main__":  # the worker processes import this file
    main()
