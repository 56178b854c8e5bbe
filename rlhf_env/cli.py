"""The command line. Every command imports what it needs when it runs, so that `--help` and `plugins` are quick."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from rlhf_env.errors import ConfigError, RlhfEnvError

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_env.learning.experiment import Experiment

app = typer.Typer(
    name="rlhf-env",
    help="Text generation as a Gymnasium environment, rewards and RLHF agents as plugins, and a laboratory.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
pipeline_app = typer.Typer(no_args_is_help=True, help="Single stages of the RLHF pipeline.")
app.add_typer(pipeline_app, name="pipeline")

Jobs = Annotated[int, typer.Option(help="Processes to run cells in.", min=1)]
Threads = Annotated[int | None, typer.Option(help="Threads for tensor work in each process (default 1).", min=1)]


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Where results go (default: runs/demo). A second call does only what is missing."),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Pretrain and fine-tune the base model here instead of using ours.")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Seeds for every agent.", min=1)] = 3,
    jobs: Jobs = 2,
) -> None:
    """The whole RLHF pipeline on real conversations: preferences, reward model, four agents, one table, one report."""
    from rlhf_env.pipeline import run_demo

    folder = out or Path("runs/demo-from-scratch" if from_scratch else "runs/demo")
    with _interruptible():
        run_demo(folder, from_scratch=from_scratch, seeds=seeds, jobs=jobs, console=_console())


@app.command()
def train(
    file: Annotated[Path, typer.Argument(help="The experiment, a TOML file.")],
    agent: Annotated[str | None, typer.Option(help="Another agent than the file's, with its default settings.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than the file's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: runs/<name>-<agent>-seed<seed>).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    threads: Threads = None,
) -> None:
    """Train one agent as a TOML file says.

    Metrics go to metrics.jsonl and TensorBoard files in the run folder. Ctrl-C finishes the update under way, saves,
    and leaves a run that --resume goes on with.
    """
    from dataclasses import replace

    from rlhf_env.learning.engine import set_threads
    from rlhf_env.learning.experiment import Experiment

    set_threads(threads)
    experiment = Experiment.load(file)
    if agent is not None and agent != experiment.agent.get("name"):
        experiment = experiment.with_agent(agent)
    if seed is not None:
        experiment = replace(experiment, seed=seed)
    name = experiment.agent.get("name", "agent")
    folder = out or Path("runs") / f"{experiment.name}-{name}-seed{experiment.seed}"
    _train(experiment, folder, resume)


def _train(experiment: Experiment, folder: Path, resume: bool) -> None:
    from rlhf_env.lab.benchmark import run_experiment, write_json
    from rlhf_env.lab.evaluation import Evaluator
    from rlhf_env.lab.progress import training_progress
    from rlhf_env.learning.experiment import build
    from rlhf_env.learning.run_folder import RunFolder

    console = _console()
    workplace = build(experiment)
    evaluator = Evaluator.of(workplace)
    with RunFolder(folder, experiment.to_toml(), resume=resume) as run, training_progress(console) as on_update:
        reason, final = run_experiment(workplace, evaluator, run, resume=resume, on_update=on_update)
    write_json(folder / "evaluation.json", {"metrics": dict(final.metrics), "samples": list(final.samples)})
    console.print(f"Ended: {reason}. On {experiment.evaluation.prompts} held-out prompts:")
    for key, value in sorted(final.metrics.items()):
        console.print(f"  {key:24s} {value:10.4f}", highlight=False)
    console.print(f"Run folder: {folder}", highlight=False, soft_wrap=True)


@app.command()
def bench(
    file: Annotated[Path, typer.Argument(help="The grid, a TOML file: [agents.*], [experiment], seeds.")],
    out: Annotated[Path | None, typer.Option(help="Benchmark folder (default: runs/<name>).")] = None,
    jobs: Jobs = 2,
) -> None:
    """Compare agents at equal budgets: a grid of agents x tasks x seeds. A second call does only what is missing."""
    from rlhf_env.lab.benchmark import Grid, run_benchmark
    from rlhf_env.lab.progress import benchmark_progress

    grid = Grid.load(file)
    folder = out or Path("runs") / grid.name
    console = _console()
    with _interruptible(), benchmark_progress(console, grid.cells()) as on_progress:
        run_benchmark(grid, folder, jobs=jobs, on_progress=on_progress)
    _show_report(folder, console)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C in work that is kept piece by piece: say how to go on."""
    from rlhf_env.learning.loop import Interrupted

    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        number = stop.exit_code - 128 if isinstance(stop, Interrupted) else signal.SIGINT
        raise Interrupted(number, "stopped and saved; the same command goes on from here") from stop


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A benchmark folder (with results/ in it).")]) -> None:
    """Make the table and report.html of a benchmark folder from its results, again."""
    _show_report(folder, _console())


def _show_report(folder: Path, console: Console) -> None:
    from rlhf_env.lab.report import read_results, rich_table, write_report

    console.print(rich_table(read_results(folder)))
    try:
        console.print(f"Report: {write_report(folder)}", highlight=False, soft_wrap=True)
    except ConfigError as missing:  # pictures are an extra; the table is not
        console.print(f"No report.html: {missing}", highlight=False, soft_wrap=True)


@app.command()
def plugins() -> None:
    """List rewards, agents and tasks, who offers them, and what failed to load."""
    from rlhf_env.plugins import host

    known = host()
    width = max((len(entry.name) for entry in known), default=0)
    kind = ""
    for entry in known:
        if entry.kind != kind:
            kind = entry.kind
            typer.echo(f"{kind}s")
        target = entry.target if isinstance(entry.target, str) else repr(entry.target)
        needs = f"  (needs the extra {entry.needs!r})" if entry.needs else ""
        typer.echo(f"  {entry.name:{width}}  {entry.origin}  {target}{needs}")
    for conflict in known.conflicts():
        typer.echo(f"conflict: {conflict}")
    for failure in known.failures:
        typer.echo(f"failed: {failure.origin}: {failure.error}")


@app.command()
def check(
    what: Annotated[str, typer.Argument(help="A TOML file (experiment or grid), or reward:NAME, task:NAME.")],
    settings: Annotated[list[str] | None, typer.Argument(help="The plugin's settings, as in target=20.")] = None,
) -> None:
    """Check an experiment file, or attack a plugin with generated episodes. Says what is wrong, changes nothing."""
    kind, _, name = what.partition(":")
    if kind in ("reward", "task") and name:
        _check_plugin(kind, name, _settings(settings or []))
    elif settings:
        raise ConfigError(f"{' '.join(settings)}: settings are for reward:NAME and task:NAME; a file has its own")
    else:
        _check_file(Path(what))
    typer.echo("ok")


def _settings(words: Sequence[str]) -> dict[str, Any]:
    """`["target=20", "letter=a"]` as TOML would read them; what is no TOML value is a string."""
    import tomllib

    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ConfigError(f"{word!r} is not of the form KEY=VALUE")
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = value
    return settings


def _check_plugin(kind: str, name: str, settings: dict[str, Any]) -> None:
    from rlhf_env.envs.rewards import load_rewards
    from rlhf_env.envs.tasks import load_task
    from rlhf_env.envs.tokenizers import ByteTokenizer
    from rlhf_env.testing import check_reward, check_task

    if kind == "task":
        check_task(load_task({"name": name, **settings}), ByteTokenizer())
    else:
        check_reward(load_rewards({name: settings}, load_task("count")).parts[name])


def _check_file(file: Path) -> None:
    from rlhf_env.lab.benchmark import Grid
    from rlhf_env.learning.experiment import Experiment, build, read_toml

    table: dict[str, Any] = read_toml(file)
    if "agents" in table:
        # Building one cell of each row finds what reading alone cannot: models, plugins, settings.
        experiments = [cell.experiment for cell in Grid.load(file).cells() if cell.seed == 0]
    else:
        experiments = [Experiment.load(file)]
    problems: list[str] = []
    for experiment in experiments:
        try:
            build(experiment)
        except ConfigError as error:
            problems.extend(problem for problem in error.problems if problem not in problems)
    if problems:
        raise ConfigError(*problems)


@pipeline_app.command("base-model")
def base_model(
    out: Annotated[Path, typer.Option(help="Folder for the two models and their recipe.")] = Path("runs/base-model"),
    threads: Threads = None,
    jobs: Annotated[int, typer.Option(help="2: the judge learns alongside, in a process of its own.", min=1)] = 2,
) -> None:
    """Make the shipped models anew: tokenizer, base model (pretraining, SFT) and the independent judge of fluency."""
    from rlhf_env.learning.engine import set_threads
    from rlhf_env.pipeline import make_models

    set_threads(threads)
    with _interruptible():
        make_models(out, jobs=jobs, console=_console())


def _console() -> Console:
    from rich.console import Console

    # A pipe has no width of its own, and 80 columns would cut the table short.
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 110)


def main() -> None:
    """Run a command; what went wrong is one line (or one per problem) on stderr and an exit status."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        status = app(standalone_mode=False)
    except RlhfEnvError as error:
        problems = error.problems if isinstance(error, ConfigError) else (str(error),)
        _complain(problems, error.exit_code)
    except (KeyboardInterrupt, EOFError, typer.Abort):
        status = 130
    except Exception as error:
        # Typer may bring its own copy of click, so that its errors are known by what they can do.
        say: Callable[[], str] | None = getattr(error, "format_message", None)
        if say is None:
            raise
        _complain([say()], getattr(error, "exit_code", 2))
    if status == 130:  # Ctrl-C where no run was under way that would have saved itself
        _complain(["stopped"], 130)
    sys.exit(status if isinstance(status, int) else 0)


def _complain(problems: Sequence[str], status: int) -> NoReturn:
    """One line on stderr for each of the first 20 problems."""
    for problem in problems[:20]:
        print(f"rlhf-env: {' '.join(problem.split())}", file=sys.stderr)
    if len(problems) > 20:
        print(f"rlhf-env: and {len(problems) - 20} more", file=sys.stderr)
    sys.exit(status)
