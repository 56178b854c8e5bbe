"""Agents x tasks x seeds under equal conditions: one result file a cell, and a second call completes them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_env.errors import ConfigError
from rlhf_env.lab.benchmark.cells import GridCell
from rlhf_env.lab.benchmark.grid import Grid, reward_model_of
from rlhf_env.lab.benchmark.reading import read_trials
from rlhf_env.lab.benchmark.results import SCORES
from rlhf_env.lab.benchmark.tuning import what_was_tried
from rlhf_env.lab.jobs import Backend, Progress
from rlhf_env.lab.scheduling import backend_of, run_jobs
from rlhf_env.learning.code_of_runs import as_recorded
from rlhf_env.learning.folder_lock import hold
from rlhf_env.learning.run_record import versions
from rlhf_env.own_code import KEY, changed, files_in
from rlhf_env.whole_files import write_json, write_whole


def run_benchmark(
    grid: Grid,
    folder: str | Path,
    *,
    jobs: int | Backend = 2,
    only: Sequence[str] = (),
    prepare: Callable[[], object] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> list[Path]:
    """Tune, then run what is missing, in `jobs` processes or where a backend does it; the result files of all cells.

    A failed cell is recorded as failed and the others continue; a killed worker costs its cell alone, which the next
    call resumes from its checkpoint. `only`: see `Grid.cells`. `prepare` is called first if a cell that is missing
    needs the grid's reward model, and makes it (`rlhf_env.pipeline.demo.learn_reward_model`). `on_warning` is
    called before anything runs where the seeds are too few for a verdict (default: a Python warning).

    Raises ConfigError when another process is at work in `folder`, or when it holds results of another grid.
    """
    if few := grid.too_few_seeds:
        (on_warning or _warn)(few)
    folder = Path(folder)
    cells = grid.cells(folder, only)
    grid.trials(cells)  # refuses settings that no agent has before anything is written
    backend_of(jobs).require_alike([cell for cell in cells if not cell.result_file(folder).exists()], folder)
    with hold(folder):
        every = cells if not only else grid.cells(folder)
        _describe(grid, folder, files_in([cell.experiment.tables_of_plugins() for cell in every]))
        missing = [cell for cell in cells if not cell.result_file(folder).exists()]
        _prepare(missing, folder, prepare)

        def tell(progress: Progress) -> None:
            if on_progress is not None:
                on_progress(_with_outcome(progress, folder))

        trials = grid.trials(missing)
        run_jobs(trials, folder, jobs=jobs, on_progress=tell)
        unfinished = [trial for trial in trials if not trial.result_file(folder).exists()]
        return run_jobs(list(_tuned(cells, unfinished, folder, tell)), folder, jobs=jobs, on_progress=tell)


def _warn(words: str) -> None:
    warnings.warn(words, RuntimeWarning, stacklevel=3)  # about the line that called `run_benchmark`


def _prepare(missing: Sequence[GridCell], folder: Path, prepare: Callable[[], object] | None) -> None:
    model = reward_model_of(folder)
    if any(str(model) in cell.experiment.to_toml() for cell in missing):
        if prepare is not None and not model.is_dir():
            prepare()
        if not model.is_dir():
            raise ConfigError(f"{model} is not there: `rlhf-env bench` makes it, as pipeline.learn_reward_model does")


def _with_outcome(progress: Progress, folder: Path) -> Progress:
    """How a job ended and what it scored, from its result: also of one that had ended before."""
    if progress.ended in (None, "died"):
        return progress
    result = json.loads(progress.job.result_file(folder).read_text(encoding="utf-8", errors="surrogatepass"))
    tuning = isinstance(progress.job, GridCell) and bool(progress.job.trial)
    measures = ("objective",) if tuning else SCORES  # what it is tuned or ranked by
    score = next((result["evaluation"][name] for name in measures if name in result["evaluation"]), None)
    return replace(progress, ended=result["status"], why=result["error"] or "", score=score)


def _tuned(
    cells: Sequence[GridCell], unfinished: Sequence[GridCell], folder: Path, tell: Callable[[Progress], None]
) -> Iterator[GridCell]:
    """`cells` with the settings that came out best; without those whose tuning is not complete, trials `unfinished`."""
    best_of = {(tried.task, tried.agent): tried for tried in what_was_tried(read_trials(folder)) if tried.best}
    waiting = {(trial.task, trial.agent) for trial in unfinished}
    for cell in cells:
        best = best_of.get((cell.task, cell.agent))
        if (cell.task, cell.agent) in waiting:
            tell(Progress(cell, 0.0, "died", why="its tuning was cut short: the next call resumes it"))
        elif best is None or cell.result_file(folder).exists():
            yield cell
        else:
            agent = cell.experiment.agent  # what code it names, and of which content, is not of the result file
            pinned = {KEY: agent[KEY]} if KEY in agent else {}
            tuned = replace(cell.experiment, agent={**best.settings, **pinned})
            yield replace(cell, experiment=tuned, configuration=best.configuration)


def _describe(grid: Grid, folder: Path, files: Mapping[str, str]) -> None:
    """Keep the grid beside its results, and refuse to mix two grids, or two versions of its code, in one folder."""
    file, about = folder / "benchmark.toml", folder / "about.json"
    begun = [*folder.glob("results/*.json"), *folder.glob("tuning/*.json")]
    if grid.reward_model is not None:
        begun += [*folder.glob("preferences.sqlite"), *folder.glob("stages/*.json")]
    if begun and file.exists() and Grid.load(file) != grid:
        raise ConfigError(f"{folder} holds results of another grid ({file} differs): choose another folder")
    code = as_recorded(files, grid.folder)
    kept = json.loads(about.read_text(encoding="utf-8")).get("code", {}) if about.exists() else code
    begun += folder.glob("cells/*")
    if begun and (others := changed(kept, code)):
        said = f"{folder} holds results of another version of {', '.join(others)}: choose another folder"
        raise ConfigError(f"{said}, or put it back")
    write_whole(file, grid.to_toml())
    if not about.exists() or not begun:
        command = f"rlhf-env bench {file.name}"
        words = {"title": grid.title, "what_gold_is": grid.what_gold_is, "command": command, "versions": versions()}
        write_json(about, {**words, "code": code} if code else words)
