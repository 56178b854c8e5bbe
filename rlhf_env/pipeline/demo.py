"""The whole RLHF pipeline as one script: pretrain -> SFT -> preferences -> reward model -> RL -> table and report.

Every stage leaves its result in the run folder and is passed over when it is there, so a second call goes on where the
first one stopped.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from rlhf_env import assets
from rlhf_env.lab.benchmark.live_table import benchmark_progress
from rlhf_env.lab.benchmark.run import run_benchmark
from rlhf_env.learning.run_folder import versions
from rlhf_env.pipeline.base_model import Recipe, make_models
from rlhf_env.pipeline.reward_model import claim_folder, learn_reward_model
from rlhf_env.pipeline.settings import Demo, Models
from rlhf_env.types import JsonObject
from rlhf_env.whole_files import write_json

# -------------------------------------------------------------------- the shipped models: pretraining and SFT


# -------------------------------------------------------------------- the demo


def run_demo(
    out: Path,
    *,
    from_scratch: bool = False,
    seeds: int = 3,
    jobs: int = 2,
    console: Console,
    settings: Demo | None = None,
    models: Models | None = None,
) -> Path:
    """The demo; the path of its report. `models` stands in for the shipped ones."""
    from rlhf_env.lab.benchmark.reading import read_results
    from rlhf_env.lab.report.formats import rich_table
    from rlhf_env.lab.report.report import write_report
    from rlhf_env.lab.report.samples import rich_samples
    from rlhf_env.learning.engine import set_threads

    settings = settings or Demo()
    set_threads()
    own = assets.cache_folder() / f"chitchat-{Recipe().content_hash}" if from_scratch else None
    models = models or (Models.within(own) if own else Models())
    claim_folder(out, settings, models)
    if own:
        make_models(own, jobs=jobs, console=console)
    reward_model = learn_reward_model(out, settings=settings, models=models, console=console)
    console.rule(f"[bold]4  {len(settings.agents)} agents x {seeds} seeds in one environment")
    grid = settings.grid(models, reward_model, seeds)
    with benchmark_progress(console, grid.cells()) as on_progress:
        run_benchmark(grid, out, jobs=jobs, on_progress=on_progress, on_warning=lambda _: None)  # the table says it
    console.rule("[bold]5-6  Table and report")
    write_json(out / "about.json", _about(seeds))
    results = read_results(out)
    console.print(rich_table(results))
    console.print(rich_samples(results))
    report = write_report(out)
    console.print(f"Report: {report}   TensorBoard: tensorboard --logdir {out / 'cells'}", soft_wrap=True)
    return report


def _about(seeds: int) -> JsonObject:
    return {
        "title": "rlhf-env demo: one environment, four agents, one table",
        "what_gold_is": "upbeat, human-like small talk: sentiment, fluency under an independent language model, "
        "turn-taking, minus repetition and copying. It is not quality, and it cannot tell a relevant reply from an "
        "irrelevant one",
        "claims": f"{seeds} seeds: numbers, no claim" if seeds < 5 else f"{seeds} seeds",
        "command": "rlhf-env demo",
        "versions": versions(),
    }
