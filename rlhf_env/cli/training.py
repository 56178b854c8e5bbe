"""`rlhf-env train` and `rlhf-env evaluate`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_env.cli.shared import (
    LEARNING,
    Device,
    Threads,
    TrustCode,
    WhichCheckpoint,
    app,
    examples,
    interruptible,
    make_console,
)
from rlhf_env.errors import ConfigError
from rlhf_env.types import JsonObject, JsonView

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_env.lab.evaluation.runs import Run


@app.command(
    "train",
    rich_help_panel=LEARNING,
    epilog=examples(
        "rlhf-env train experiment.toml --out runs/grpo",
        "rlhf-env train experiment.toml --agent ppo --seed 1",
        "rlhf-env train experiment.toml --out runs/grpo --resume",
    ),
)
def train_one(
    file: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    agent: Annotated[str | None, typer.Option(help="Another agent than the file's, with its default settings.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than the file's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: in runs/, by name, agent and seed).")] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="Another device than that of the file's [policy]: cpu, cuda, cuda:N, mps, auto. A run may be resumed "
            "on another one.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume from the run folder's last checkpoint; start from the beginning if there is none."
        ),
    ] = False,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial",
            help="Resume a run whose files are damaged or missing with what is whole, and say what is lost.",
        ),
    ] = False,
    allow_changed_code: Annotated[
        bool,
        typer.Option(
            "--allow-changed-code",
            help="Resume a run whose own code (function = ...) changed since: the updates before were trained with "
            "another.",
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads for tensor work (default: 1, or one per idle core for 5 million parameters or more; a "
            "resumed run keeps its number).",
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
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=PROJECT]",
            help="Log to this tracker too: mlflow=PROJECT, trackio=PROJECT, wandb=PROJECT, tensorboard or a plugin's. "
            "May be given several times; a table [trackers.NAME] in the file does the same, with more settings.",
        ),
    ] = None,
) -> None:
    """Train one agent, as an experiment file (TOML) describes.

    The run folder gets metrics.jsonl, TensorBoard files, texts, checkpoints and, at the end, report.html;
    rlhf-env watch FOLDER shows the run, also while it trains. Ctrl-C finishes the running update and saves;
    the same command with --resume continues the run.

    Several processes train one run: torchrun --nproc-per-node 2 -m rlhf_env train FILE, or accelerate launch
    (docs/scale.md).
    """
    from dataclasses import replace

    from rlhf_env.lab.evaluation.preparing import prepare
    from rlhf_env.lab.evaluation.runs import run
    from rlhf_env.learning.devices import find_device, set_threads
    from rlhf_env.learning.experiment import Experiment
    from rlhf_env.learning.processes import join
    from rlhf_env.toml_files import naming_lines

    processes = join()
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
    if device is not None:
        flags["device"] = f"--device {device}"
        with naming_lines(file, flags):
            experiment = replace(experiment, policy=replace(experiment.policy, device=find_device(device)))
    asked_for = [*(track or []), *([] if wandb is None else [f"wandb={wandb}"])]
    experiment = replace(experiment, trackers=_with_trackers(experiment.trackers, asked_for))
    folder = out or _inside_runs(f"{experiment.name}-{experiment.agent_label}-seed{experiment.seed}")
    with interruptible(folder):
        with naming_lines(file, flags):
            workplace = prepare(experiment)
            workplace.start_writer()
        console = make_console()
        for note in workplace.notes if processes.is_first else ():
            console.print(f"Note: {note}", highlight=False, soft_wrap=True, markup=False)
        finished = run(
            workplace,
            folder,
            resume,
            allow_partial=allow_partial,
            allow_changed_code=allow_changed_code,
            threads=threads,
            console=console,
        )
    if processes.is_first:
        _say_how_it_ended(finished, console)
    processes.leave()


def _with_trackers(tables: JsonView, words: Sequence[str]) -> JsonObject:
    """The file's tables of trackers, and those of the command line's words: NAME or NAME=PROJECT."""
    from rlhf_env.learning.tracking import check_trackers

    found = dict(tables)
    for word in words:
        name, says_project, project = word.partition("=")
        found[name] = {**found.get(name, {}), **({"project": project} if says_project else {})}
        try:
            check_trackers({name: found[name]})
        except ConfigError as error:
            error.found_in(f"--track {word}")
            raise
    return found


def _inside_runs(name: str) -> Path:
    """runs/NAME. Raises ConfigError if the name, which may come from somebody else's file, leads out of `runs`."""
    folder = Path("runs") / name
    if not folder.resolve().is_relative_to(Path("runs").resolve()):
        raise ConfigError(
            f"the run {name!r} would lie outside of runs/: give it another name, or name a folder with --out"
        )
    return folder


def _say_how_it_ended(finished: Run, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    from rlhf_env.lab.evaluation.asked import PromptsAsked
    from rlhf_env.lab.evaluation.likelihood import MEASURES
    from rlhf_env.lab.evaluation.metrics import meaning_of, metrics_of
    from rlhf_env.lab.watching.run_report import write_run_report
    from rlhf_env.shown_text import near

    lost = [f"Lost: {line}" for line in finished.lost]
    not_exact = [f"Not exact: {change}" for change in finished.not_exact]
    for line in (*lost, *not_exact):
        console.print(f"[yellow]{escape(line)}[/yellow]", highlight=False, soft_wrap=True)
    measured = finished.evaluation.metrics
    evaluation = finished.experiment.located().evaluation
    asked = PromptsAsked.of(measured, int(measured.get("answers", evaluation.prompts * evaluation.samples)))
    drawn = finished.workplace.evaluation_sampling
    said = "" if drawn is None else f", written {drawn}"
    console.print(f"Ended: {finished.reason}. On {asked or 'the prompts of the evaluation'}{said}:")
    own = MEASURES if "answers" in measured else ()  # of an agent that imitates
    metrics = (*own, *metrics_of(evaluation))
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, min_width=24)
    table.add_column(no_wrap=True, min_width=10, justify="right")
    table.add_column(overflow="fold")
    for key, value in sorted(finished.evaluation.metrics.items()):
        row = f"  {key}", f"{value:.4f}", escape(meaning_of(key, metrics))
        if console.is_terminal:
            table.add_row(*row)
        else:  # a line each, for whoever reads them by a program
            line = f"{row[0]:26s} {row[1]:>10s}  {row[2]}"
            console.print(line.rstrip(), highlight=False, soft_wrap=True)
    if table.row_count:
        console.print(table, highlight=False)
    folder = None if finished.folder is None else near(finished.folder)
    console.print(f"Run folder: {folder}", highlight=False, soft_wrap=True)
    if finished.folder is not None and folder is not None:
        report = near(write_run_report(finished.folder))
        console.print(f"Report: {report}", highlight=False, soft_wrap=True, markup=False)
        see = f"rlhf-env watch {shlex.quote(str(folder))}"
        console.print(f"See it, text by text: {see}", highlight=False, soft_wrap=True, markup=False)


@app.command(
    rich_help_panel=LEARNING,
    epilog=examples(
        "rlhf-env evaluate runs/grpo", "rlhf-env evaluate runs/grpo --reference runs/ppo --samples 8 --pass-at 1,8"
    ),
)
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder of rlhf-env train, finished or not.")],
    prompts: Annotated[
        int | None, typer.Option(help="How many prompts (default: as many as the experiment says).", min=2)
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Answers to each prompt (default: as the experiment says).", min=1)
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always the likeliest token; one answer to each prompt.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(help="What logits are divided by (default: as in training).")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from this many of the likeliest tokens (0: all).")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that together are this probable.")
    ] = None,
    pass_at: Annotated[
        str | None,
        typer.Option(
            metavar="K,K",
            help="How often one of k answers is a success, such as 1,8: without bias, from --samples of K or more.",
        ),
    ] = None,
    success: Annotated[
        str | None,
        typer.Option(
            help="What a success is: a part of the reward that is 0 or 1 (default: task), or 'PART >= NUMBER'."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes (default: RUN/against_reference.json).")] = None,
    checkpoint: WhichCheckpoint = "best",
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Compare with this model, or with that of this run, instead of the one that the run began with.",
        ),
    ] = None,
    trust_code: TrustCode = False,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Compare a run's agent with its reference: rewards, win rate, KL, diversity, and changes of behaviour.

    It tests which phrases and formats became more or less frequent, which phrases raise the reward, and whether the
    agent uses those more often. Drawn otherwise than in training (--greedy, --temperature, ...), objective and KL are
    those of the texts that were drawn, and not what training maximises.
    """
    from rlhf_env.lab.evaluation.against_reference import evaluate_run, evaluation_tables
    from rlhf_env.learning.devices import set_threads

    set_threads(threads)
    drawn = {"top_k": 1 if greedy else top_k, "temperature": temperature, "top_p": top_p}
    if greedy and [name for name in ("temperature", "top_p") if drawn[name] is not None] + [top_k] * (
        top_k is not None
    ):
        raise ConfigError("--greedy draws nothing: leave out --temperature, --top-k and --top-p")
    found = evaluate_run(
        run,
        prompts=prompts,
        samples=samples,
        decoding={name: value for name, value in drawn.items() if value is not None} or None,
        pass_at=None if pass_at is None else _whole_numbers("--pass-at", pass_at),
        success=success,
        checkpoint=checkpoint,
        reference=reference,
        trust_code=trust_code,
        device=device,
    )
    file = out or run / "against_reference.json"
    found.save(file)
    console = make_console()
    console.print(evaluation_tables(found))
    console.print(f"Evaluation: {file}", highlight=False, soft_wrap=True)


def _whole_numbers(option: str, words: str) -> list[int]:
    """Those of "1,8". Raises ConfigError."""
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {words}: whole numbers with commas between them are needed, such as 1,8") from None
