"""The stage `bench`: agents x tasks x seeds at equal budgets, as `rlhf-env bench` compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

from rlhf_env.errors import ConfigError, MissingExtra, RunFailed, under
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.benchmark.live_table import benchmark_progress
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.results import Results
from rlhf_env.lab.benchmark.run import run_benchmark
from rlhf_env.lab.report.formats import rich_table
from rlhf_env.lab.report.report import write_report
from rlhf_env.lab.report.samples import rich_samples
from rlhf_env.learning.configuration import from_table
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.policy_settings import PolicySettings
from rlhf_env.learning.run_record import versions
from rlhf_env.pipeline.hashing import Hashes
from rlhf_env.pipeline.stages.fitting import show_in
from rlhf_env.pipeline.stages.stage import Links, Role, Site, StageOrigin, StageOutcome, merged, with_inputs
from rlhf_env.pipeline.stages.training import require_prompts_of_run_fit
from rlhf_env.relative_paths import paths_of
from rlhf_env.types import JsonObject, JsonView
from rlhf_env.whole_files import write_json

_OF_A_GRID = {field.name for field in fields(Grid) if field.name not in ("folder", "reward_model", "experiment")}


@dataclass(frozen=True)
class BenchStage:
    """A grid: its tables stand in the stage, and so do those of the experiment that all of its cells share."""

    grid: Grid
    kind: ClassVar[str] = "bench"
    takes: ClassVar[Mapping[Role, bool]] = {"model": False, "reward_model": False, "store": False}
    gives: ClassVar[Sequence[Role]] = ()
    aside: ClassVar[frozenset[str]] = frozenset()
    takes_larger_budget: ClassVar[bool] = False

    @staticmethod
    def table(own: JsonView, defaults: JsonView, links: Links) -> JsonObject:
        """What is no word of a grid is a setting of the experiment that all share."""
        of_grid = {key: value for key, value in own.items() if key in _OF_A_GRID}
        shared = {key: value for key, value in own.items() if key not in _OF_A_GRID}
        return {**of_grid, "experiment": with_inputs(merged(defaults, shared), links)}

    @classmethod
    def of(cls, table: JsonView, origin: StageOrigin) -> BenchStage:
        problems: dict[str, None] = {}
        for cls_of, part, keys in ((Grid, table, ()), (Experiment, table["experiment"], ("experiment",))):
            try:
                with under(*keys):
                    from_table(cls_of, part, origin.where)
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
        if problems:
            raise ConfigError(*problems)
        return cls(replace(from_table(Grid, table, origin.where), folder=origin.folder))

    def check(self) -> None:
        cells = self.grid.cells()
        self.grid.require_plugins(cells)
        self.grid.trials(cells)

    @property
    def policy(self) -> PolicySettings:
        return self.grid.cells()[0].experiment.located().policy

    def check_prompts(self, policy: PolicySettings) -> None:
        """Of one cell of each task; cells whose agent's own settings change the policy are asked when they run."""
        asked = {cell.task: cell for cell in self.grid.cells() if cell.experiment.located().policy == self.policy}
        for cell in asked.values():
            with self.grid.blamed(cell.task, cell.agent):
                require_prompts_of_run_fit(cell.experiment, policy)

    def paths(self) -> Sequence[str]:
        return paths_of(self.grid.folder or Path(), self.grid.experiment, Experiment) + [
            path for each in self.grid.tasks.values() for path in paths_of(self.grid.folder or Path(), each, Experiment)
        ]

    def outputs(self, folder: Path) -> Mapping[str, object]:
        return {"": str(folder)}

    def work(self, site: Site) -> StageOutcome:
        console, folder = site.console, site.folder
        if few := self.grid.too_few_seeds:
            console.print(f"Note: {few}.", highlight=False, soft_wrap=True)
        folder.mkdir(parents=True, exist_ok=True)
        for model in site.inputs.get("reward_model", ()):
            show_in(folder, Path(model))
        grid = replace(self.grid, name=site.pipeline)
        title = grid.title or site.title or f"{site.pipeline}: {site.name}"
        about = {"title": title, "what_gold_is": grid.what_gold_is or site.what_gold_is}
        write_json(folder / "about.json", {**about, "command": site.command, "versions": versions()})
        with benchmark_progress(console, [*grid.trials(grid.cells()), *grid.cells()], jobs=site.jobs) as on_progress:
            results = run_benchmark(
                grid, folder, jobs=site.jobs, on_progress=on_progress, on_warning=lambda _: None
            )  # it has been said
        if missing := sum(not file.exists() for file in results):
            raise RunFailed(f"stage {site.name!r}: {missing} of {len(results)} cells are not done: call again")
        found = read_results(folder)
        console.print(rich_table(found, console.width))
        console.print(rich_samples(found))
        try:
            console.print(f"Its report: {write_report(folder)}", highlight=False, soft_wrap=True)
        except MissingExtra as missing_extra:  # pictures are an extra; the table is not
            console.print(f"No report of it: {missing_extra}", highlight=False, soft_wrap=True)
        return _outcome(found)

    def is_open(self) -> bool:
        return False

    def identity(self, folder: Path, hashes: Hashes) -> str | None:
        expected = [cell.result_file(folder) for cell in self.grid.cells()]
        there = [file for file in expected if file.is_file()]
        return hashes.of_files(folder, there) if len(there) == len(expected) else None


def _outcome(results: Results) -> StageOutcome:
    """The best agent by gold (by the proxy where there is none), beside the reference."""
    measure = "gold" if results.has_gold else "proxy"
    by_agent: dict[str, list[Mapping[str, float]]] = {}
    for cell in results.cells:
        if measure in cell.evaluation:
            by_agent.setdefault(cell.agent, []).append(cell.evaluation)
    means = {
        agent: {name: sum(each.get(name, 0.0) for each in found) / len(found) for name in (measure, "proxy", "kl")}
        for agent, found in by_agent.items()
    }
    numbers = {
        "tokens": float(sum(cell.spending.get("generated_tokens", 0) for cell in results.cells)),
        "runs": float(len(results.cells)),
    }
    if not means:
        return StageOutcome(numbers, texts={"agent": "no agent ended"})
    best = max(means, key=lambda agent: means[agent][measure])
    numbers |= means[best]
    if "reference" in means:
        numbers |= {f"{name}_before": value for name, value in means["reference"].items()}
    failed = f", {results.failed} failed" if results.failed else ""
    seeds = "1 seed" if results.seeds == 1 else f"{results.seeds} seeds"
    said = f"best of {len(means)} agents by mean {measure} over {seeds}: {best}{failed}"
    return StageOutcome(numbers, texts={"agent": best, "ended": said})
