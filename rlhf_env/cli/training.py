"""`rlhf-env train` and `rlhf-env evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_env.cli.shared import LEARNING, Threads, app, interruptible, make_console
from rlhf_env.errors import ConfigError, under

if TYPE_CHECKING:
    from rlhf_env.lab.evaluation.evaluator import Evaluator
    from rlhf_env.lab.evaluation.health import Alert
    from rlhf_env.learning.experiment import Experiment, Workplace


@app.command("train", rich_help_panel=LEARNING)
def train_one(
    file: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    agent: Annotated[str | None, typer.Option(help="Another agent than the file's, with its default settings.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than the file's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: runs/<name>-<agent>-seed<seed>).")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on from the run folder's last checkpoint; from the start where there is none."
        ),
    ] = False,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial",
            help="Resume a run whose files are damaged or missing with what is whole, and say what is lost.",
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads for tensor work (default: 1, from 5 million parameters on one per idle core; a resumed run "
            "goes on with as many as it had).",
            min=1,
            max=1024,
        ),
    ] = None,
    wandb: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT", help="Log to this Weights & Biases project too (WANDB_MODE=offline: no network)."
        ),
    ] = None,
) -> None:
    """Train one agent as a TOML file says.

    Metrics go to metrics.jsonl and TensorBoard files in the run folder. Ctrl-C finishes the update under way, saves,
    and leaves a run that --resume goes on with.
    """
    from dataclasses import replace

    from rlhf_env.learning.engine import set_threads
    from rlhf_env.learning.experiment import Experiment
    from rlhf_env.toml_files import naming_lines

    set_threads(threads)
    experiment = Experiment.load(file)
    flags = {}
    if agent is not None and agent != experiment.agent.get("name"):
        experiment = experiment.with_agent(agent)
        flags["agent"] = f"--agent {agent}"
    if seed is not None:
        flags["seed"] = f"--seed {seed}"
        with naming_lines(file, flags):
            experiment = replace(experiment, seed=seed)
    name = experiment.agent.get("name", "agent")
    folder = out or _inside_runs(f"{experiment.name}-{name}-seed{experiment.seed}")
    with interruptible(folder):
        with naming_lines(file, flags):
            workplace, evaluator = build_parts(experiment)
        again = resume or allow_partial
        _train(workplace, evaluator, folder, wandb, threads, resume=again, allow_partial=allow_partial)


def _inside_runs(name: str) -> Path:
    """runs/NAME. Raises ConfigError for a name that leads out of `runs`: a file that others wrote says it."""
    folder = Path("runs") / name
    if not folder.resolve().is_relative_to(Path("runs").resolve()):
        raise ConfigError(f"the run {name!r} would lie outside of runs/: give it another name, or say where with --out")
    return folder


def build_parts(experiment: Experiment) -> tuple[Workplace, Evaluator]:
    """`build`, and a look at what is used later only: every prompt, the file of preferences, rewards that evaluate."""
    from rlhf_env.feedback.offline import load_preferences
    from rlhf_env.lab.evaluation.evaluator import Evaluator
    from rlhf_env.learning.experiment import build

    workplace = build(experiment)
    with under("task"):
        workplace.check_prompts()
    if experiment.preferences is not None:
        with under("preferences"):
            load_preferences(experiment.preferences)
    return workplace, Evaluator.of(workplace)


def _train(
    workplace: Workplace,
    evaluator: Evaluator,
    folder: Path,
    wandb: str | None,
    threads: int | None,
    *,
    resume: bool,
    allow_partial: bool,
) -> None:
    from rich.markup import escape

    from rlhf_env.lab.evaluation.runs import run_experiment
    from rlhf_env.lab.progress import training_progress
    from rlhf_env.learning.engine import set_threads
    from rlhf_env.learning.run_folder import RunFolder
    from rlhf_env.whole_files import write_json

    console, experiment = make_console(), workplace.experiment

    def warn(alert: Alert) -> None:
        console.print(f"[yellow]Warning[/yellow] {escape(str(alert))}", highlight=False)

    with (
        RunFolder(folder, experiment.to_toml(), resume=resume, allow_partial=allow_partial, wandb=wandb) as run,
        training_progress(console) as on_update,
    ):
        parameters = sum(parameter.numel() for parameter in workplace.setup.policy.parameters())
        if resume and not any(folder.glob("checkpoints/step-*")):
            console.print(f"No checkpoint in {escape(str(folder))}: from the start", highlight=False, soft_wrap=True)
        set_threads(threads or run.threads, parameters=parameters)
        reason, final = run_experiment(workplace, evaluator, run, resume=resume, on_update=on_update, on_alert=warn)
    ended = {"reason": reason, "metrics": dict(final.metrics), "samples": list(final.samples)}
    write_json(folder / "evaluation.json", ended)
    for line in (*(f"Lost: {lost}" for lost in run.lost), *(f"Not exact: {change}" for change in run.not_exact)):
        console.print(f"[yellow]{escape(line)}[/yellow]", highlight=False, soft_wrap=True)
    console.print(f"Ended: {reason}. On {experiment.evaluation.prompts} held-out prompts:")
    for key, value in sorted(final.metrics.items()):
        console.print(f"  {key:24s} {value:10.4f}", highlight=False)
    console.print(f"Run folder: {folder}", highlight=False, soft_wrap=True)


@app.command(rich_help_panel=LEARNING)
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder of rlhf-env train, finished or not.")],
    prompts: Annotated[
        int | None, typer.Option(help="Held-out prompts (default: as many as the experiment says).", min=2)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes (default: RUN/against_reference.json).")] = None,
    threads: Threads = None,
) -> None:
    """Compare a run's agent with its reference: rewards, win rate, KL, diversity, and how its behaviour changed.

    Phrases and formats gained and lost are tested; so is which phrases the reward pays for, and whether they are used
    for that.
    """
    from rlhf_env.lab.evaluation.against_reference import evaluate_run, evaluation_tables
    from rlhf_env.learning.engine import set_threads

    set_threads(threads)
    found = evaluate_run(run, prompts=prompts)
    file = out or run / "against_reference.json"
    found.save(file)
    console = make_console()
    console.print(evaluation_tables(found))
    console.print(f"Evaluation: {file}", highlight=False, soft_wrap=True)
