"""`rlhf-env pipeline` and `rlhf-env demo`."""

from __future__ import annotations

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
from rlhf_env.errors import ConfigError

if TYPE_CHECKING:
    from rlhf_env.pipeline.running import PipelineRun

WAITING = 4
"""The exit status of a pipeline that waits for people's votes."""


@app.command(
    rich_help_panel=LEARNING,
    epilog=examples(
        "rlhf-env pipeline --show demo > mine.toml",
        "rlhf-env pipeline mine.toml --dry-run",
        "rlhf-env pipeline mine.toml --set answers.prompts=200",
    ),
)
def pipeline(
    file: Annotated[
        str | None, typer.Argument(help="The stages, a TOML file; or the name of a shipped one: demo, base-model.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where everything goes (default: runs/<name>).")] = None,
    only: Annotated[
        str | None, typer.Option(metavar="STAGE", help="This stage alone, on the outputs of the others as they are.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="This stage is the last one.")] = None,
    again: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Make this stage anew. May be given several times.")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="STAGE.SETTING=VALUE", help="Change a setting of a stage: --set answers.prompts=200."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and why; run nothing.")] = False,
    show: Annotated[str | None, typer.Option(metavar="NAME", help="Print a shipped file, to copy and change.")] = None,
    jobs: Jobs = None,
    backend: WhichBackend = "local",
    address: Address = None,
    cpus_per_run: CpusPerRun = None,
    gpus_per_run: GpusPerRun = None,
    memory_per_run: MemoryPerRun = None,
    threads: Threads = None,
) -> None:
    """Run the stages of a file: fine-tune, collect answers, have them judged, fit a reward model, train, evaluate.

    A second call does only what is missing or has changed, and resumes what was stopped, inside a stage too. A stage in
    which people judge says where, and ends the call with status 4: the same command goes on when their votes are in.
    """
    from rlhf_env.lab.backends import BackendOptions
    from rlhf_env.pipeline.demo import pipeline_file, shipped_pipeline
    from rlhf_env.pipeline.running import intentions, run_pipeline

    if show is not None:
        if file is not None:
            raise ConfigError("--show prints a shipped file: leave out FILE")
        typer.echo(shipped_pipeline(show).read_text(encoding="utf-8"), nl=False)
        return
    if file is None:
        raise ConfigError("which pipeline? A TOML file, or a shipped one: demo, base-model (--show NAME prints it)")
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
    place, changed = pipeline_file(file), _changes(changes or [])
    if dry_run:
        for intention in intentions(place, out, changes=changed, only=only, until=until, again=again or ()):
            typer.echo(str(intention))
        return
    with interruptible(), options.opened() as opened:
        ended = run_pipeline(
            place,
            out,
            changes=changed,
            only=only,
            until=until,
            again=again or (),
            jobs=opened,
            command=_own_words(),
            console=make_console(),
        )
    _end(ended)


@app.command(rich_help_panel=LEARNING, epilog=examples("rlhf-env demo", "rlhf-env demo --seeds 5 --out runs/five"))
def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Where results go (default: runs/demo). A second call does only what is missing."),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Pretrain and fine-tune the base model here instead of using ours.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Seeds for every agent.", min=1)] = 3,
    jobs: Jobs = None,
    threads: Threads = None,
) -> None:
    """Run the whole RLHF pipeline on real conversations: preferences, reward model, agents, a table and report.html.

    Minutes, offline. The pipeline is a file: `rlhf-env pipeline --show demo` prints it, to copy and change.
    """
    from rlhf_env.pipeline.demo import run_demo

    threads_everywhere(threads)
    with interruptible():
        ended = run_demo(out, from_scratch=from_scratch, seeds=seeds, jobs=jobs or 2, console=make_console())
    _end(ended)


def _own_words() -> str:
    import shlex
    import sys

    return shlex.join(["rlhf-env", *sys.argv[1:]])


def _changes(words: list[str]) -> dict[str, object]:
    """`["answers.prompts=200"]` as TOML reads the values; what is not a TOML value is a string."""
    import tomllib

    changes: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or "." not in key:
            raise ConfigError(f"--set {word}: expected STAGE.SETTING=VALUE")
        try:
            changes[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[key] = value
    return changes


def _end(ended: PipelineRun) -> None:
    if ended.waiting:
        raise typer.Exit(WAITING)
