"""`rlhf-env bench examples/benchmark.toml` beside this library as it was at 1d702d9, in processor time.

    OMP_NUM_THREADS=1 python benchmarks/grid.py          a sample, 3 to 6 minutes; --agents ppo kto for other ones
    OMP_NUM_THREADS=1 python benchmarks/grid.py --all    all 512 cells by the command itself, an hour or two a side

The sample: of each task the reference, best_of_n, and of seed 0 the agents grpo and dpo; and one try of each of the
two. Both sides do them in this order in one process, as a worker of the grid does, and take turns cell by cell. A row
has the ratios of its cells; "all cells" weighs each kind by how many of the 512 it stands for. The reference is
evaluated first, so it alone pays for what later cells share; in the grid one in five cells does. The reward model is
fitted to fewer prompts than the file says, before the clock runs: what it has learned makes no cell faster.

--all runs both commands as a user does, reward model, tuning and report included, and compares the verdicts.
Where a mark is missed the last lines say what our time goes to: of one cell, by kind of operation, and Python the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import earlier_build

FILE = Path(__file__).resolve().parents[1] / "examples" / "benchmark.toml"
COMMAND = (
    "import sys\ntry:\n from rlhf_env.cli.main import main\nexcept ImportError:\n from rlhf_env.cli import main\nmain()"
)
AT_LEAST = 1.5
FEW_PROMPTS = 200
TRAINS = ("ppo", "grpo", "rloo", "reinforce", "dpo", "kto", "rejection")


def every_cell(file: Path, folder: Path) -> dict[str, Any]:
    """The cells of a grid by key, on either side, its tries among them."""
    try:
        from rlhf_env.lab.benchmark.grid import Grid
    except ImportError:  # as it was
        from rlhf_env.lab.benchmark import Grid  # type: ignore[attr-defined,no-redef]
    grid = Grid.load(file)
    cells = grid.cells(folder)
    return {cell.key: cell for cell in (*cells, *grid.trials(cells))}


def worker(file: Path, folder: Path) -> None:
    """Does the cell that a line on standard input names ("profiled KEY": and says what operations took)."""
    try:
        from rlhf_env.learning.devices import set_threads
    except ImportError:  # as it was
        from rlhf_env.learning.engine import set_threads  # type: ignore[attr-defined,no-redef]

    set_threads()
    cells = every_cell(file, folder)
    for line in sys.stdin:
        *how, key = line.split()
        start = time.process_time()
        shares = {}
        if how:
            import torch

            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                cells[key].work(folder, lambda _row, _fraction: None)
            shares = of_kinds(profile)
        else:
            cells[key].work(folder, lambda _row, _fraction: None)
        seconds = time.process_time() - start
        result = json.loads(cells[key].result_file(folder).read_text())
        said = {"seconds": seconds, "shares": shares, "tokens": result["spending"]["generated_tokens"]}
        print(json.dumps({**said, "status": result["status"]}), flush=True)


def of_kinds(profile: Any) -> dict[str, float]:
    """Seconds by kind of operation."""
    import side_by_side as bench  # which needs more than the earlier build has

    found = dict.fromkeys([*bench.KINDS, "other operations"], 0.0)
    for event in profile.key_averages():
        kind = next((kind for kind, names in bench.KINDS.items() if any(name in event.key for name in names)), None)
        found[kind or "other operations"] += event.self_cpu_time_total / 1e6
    return found


def kind_of(cell: Any) -> str:
    if cell.trial:
        return f"{cell.task}, tries"
    return f"{cell.task}, agents that train" if cell.agent in TRAINS else f"{cell.task}, controls and best_of_n"


def bench_command(file: Path, folder: Path, *options: str, build: Path | None) -> float:
    """Runs the command; the processor time of it and of its workers, in seconds."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if build is not None:
        environment |= earlier_build.environment_of(build)
    log = folder.with_suffix(".log")
    with log.open("w") as said:
        command = [sys.executable, "-c", COMMAND, "bench", str(file), "--out", str(folder), *options]
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said, cwd=folder.parent)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: {log.read_text()[-2000:]}")
    return usage.ru_utime + usage.ru_stime


def sample(agents: Sequence[str], build: Path, place: Path) -> None:
    file = place / "benchmark.toml"
    file.write_text(FILE.read_text().replace("[reward_model]", f"[reward_model]\nprompts = {FEW_PROMPTS}", 1))
    folders = {"ours": place / "ours", "before": place / "before"}
    for side, folder in folders.items():  # makes the reward model
        bench_command(file, folder, "--only", "chitchat/random/9", build=build if side == "before" else None)
    sides = {
        side: earlier_build.Side(
            __file__, "--worker", str(file), str(folder), build=build if side == "before" else None
        )
        for side, folder in folders.items()
    }
    cells = every_cell(file, folders["ours"])
    counts = Counter(map(kind_of, cells.values()))
    ratios: dict[str, list[float]] = {}
    took: dict[str, dict[str, list[float]]] = {side: {} for side in sides}
    for side in sides.values():
        side.turn("sparse--random--seed-9"), side.turn("chitchat--random--seed-8")  # what is imported once
    for task in dict.fromkeys(cell.task for cell in cells.values()):
        keys = [f"{task}--{agent}--seed-0" for agent in ("reference", "best_of_n", *agents)]
        for key in [*keys, *(f"{task}--{agent}--try-0--seed-1000" for agent in agents)]:
            said = {side: process.turn(key) for side, process in sides.items()}
            assert said["ours"]["status"] == said["before"]["status"] == "finished", f"{key} has not finished"
            ours, theirs = said["ours"]["tokens"], said["before"]["tokens"]
            assert abs(ours - theirs) <= 0.1 * theirs, f"{key}: the sides did not do the same, {ours} and {theirs}"
            kind = kind_of(cells[key])
            ratios.setdefault(kind, []).append(said["before"]["seconds"] / said["ours"]["seconds"])
            for side, answer in said.items():
                took[side].setdefault(kind, []).append(answer["seconds"])
    whole = {
        side: sum(counts[kind] * statistics.mean(times) for kind, times in kinds.items())
        for side, kinds in took.items()
    }
    for kind, values in ratios.items():
        share = counts[kind] * statistics.mean(took["ours"][kind]) / whole["ours"]
        name = f"{counts[kind]} cells: {kind}, {share:.0%} of our time"
        print(f"{name:64} {statistics.median(values):7.2f} {min(values):7.2f} {max(values):7.2f}", flush=True)
    ratio = whole["before"] / whole["ours"]
    least, most = min(min(values) for values in ratios.values()), max(max(values) for values in ratios.values())
    print(f"{'all cells':64} {ratio:7.2f} {least:7.2f} {most:7.2f} {AT_LEAST:9.2f}")
    print(f"    about {whole['ours'] / 60:.0f} minutes of processor time, before {whole['before'] / 60:.0f}")
    if ratio < AT_LEAST:
        for task in ("chitchat", "arithmetic"):
            key = f"{task}--{agents[0]}--seed-1"
            plain = sides["ours"].turn(f"{task}--{agents[0]}--seed-2")["seconds"]
            shares = sides["ours"].turn(f"profiled {key}")["shares"]
            said_of = ", ".join(f"{seconds / plain:.0%} on {kind}" for kind, seconds in shares.items())
            print(f"    {task}, {agents[0]}: ours spends {said_of}, {1 - sum(shares.values()) / plain:.0%} in Python")
    for side in sides.values():
        side.end()


def all_cells(build: Path, place: Path) -> None:
    from rlhf_env.lab.benchmark.comparison import conclude
    from rlhf_env.lab.benchmark.reading import read_results

    seconds, verdicts = {}, {}
    for side in ("ours", "before"):
        folder = place / side
        seconds[side] = bench_command(FILE, folder, build=build if side == "before" else None)
        verdicts[side] = {
            (ranking.task, standing.agent, opponent): paired.verdict
            for ranking in conclude(read_results(folder)).rankings
            for standing in ranking.standings
            for opponent, paired in standing.against.items()
            if opponent == "reference"
        }
        print(f"    {side}: {seconds[side] / 60:.0f} minutes of processor time", flush=True)
    ratio = seconds["before"] / seconds["ours"]
    print(f"{'all cells, by the command':64} {ratio:7.2f} {ratio:7.2f} {ratio:7.2f} {AT_LEAST:9.2f}")
    others = [key for key in verdicts["before"] if verdicts["ours"].get(key) != verdicts["before"][key]]
    print(
        f"    {len(verdicts['before']) - len(others)} of {len(verdicts['before'])} verdicts beside the reference alike"
    )
    for key in others:
        print(f"    {' '.join(key)}: {verdicts['before'][key]}, now {verdicts['ours'].get(key)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="all 512 cells, by the command, and their verdicts")
    parser.add_argument("--agents", nargs="+", choices=TRAINS, default=["grpo", "dpo"], help="default: grpo dpo")
    parser.add_argument("--out", type=Path, help="where the runs are left (default: nowhere)")
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(*given.worker)
        return
    import side_by_side as bench

    build = earlier_build.required_build()
    print(bench.machine())
    bench.heading("processor time, before / ours")
    with tempfile.TemporaryDirectory() as own:
        place = Path(own) if given.out is None else given.out.resolve()
        place.mkdir(parents=True, exist_ok=True)
        if given.all:
            all_cells(build, place)
        else:
            sample(given.agents, build, place)


if __name__ == "__main__":
    main()
