"""The command line. Every command imports what it needs when it runs, so that `--help` and `plugins` are quick."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from rlhf_env.errors import ConfigError, MissingExtra, Problem, RlhfEnvError, RunFailed, UnknownName, under

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_env.feedback.preferences import Judgement, PreferenceStore, Progress, Response
    from rlhf_env.lab.benchmark import Grid
    from rlhf_env.lab.evaluation import Evaluator
    from rlhf_env.lab.health import Alert
    from rlhf_env.learning.experiment import Experiment, Workplace
    from rlhf_env.types import Prompt

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
lab_app = typer.Typer(no_args_is_help=True, help="Studies: sums over everything, labels, over-optimisation.")
app.add_typer(lab_app, name="lab")

preferences_app = typer.Typer(no_args_is_help=True, help="Preference stores: what people and annotators say.")
app.add_typer(preferences_app, name="preferences")

StoreFile = Annotated[Path, typer.Argument(help="The preference store, an SQLite file.")]
Jobs = Annotated[int, typer.Option(help="Processes to run cells in.", min=1)]
Threads = Annotated[
    int | None, typer.Option(help="Threads for tensor work in each process (default 1).", min=1, max=1024)
]


@app.callback()
def options(
    no_plugins: Annotated[
        bool,
        typer.Option("--no-plugins", help="Leave other distributions' plugins alone, as with RLHF_ENV_PLUGINS=''."),
    ] = False,
) -> None:
    ranks = os.environ.get("WORLD_SIZE", "")
    if ranks.isdecimal() and int(ranks) > 1:
        raise ConfigError(
            f"WORLD_SIZE is {ranks}: a run is one process, and a launcher such as torchrun would start {ranks} of them "
            "that do the same work: start rlhf-env alone (--jobs spreads a benchmark's cells), without WORLD_SIZE"
        )
    if no_plugins:
        os.environ["RLHF_ENV_PLUGINS"] = ""  # for the processes that a command starts, too


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
    threads: Threads = None,
) -> None:
    """The whole RLHF pipeline on real conversations: preferences, reward model, four agents, one table, one report."""
    from rlhf_env.pipeline import run_demo

    _threads_everywhere(threads)
    folder = out or Path("runs/demo-from-scratch" if from_scratch else "runs/demo")
    with _interruptible():
        run_demo(folder, from_scratch=from_scratch, seeds=seeds, jobs=jobs, console=_console())


def _threads_everywhere(threads: int | None) -> None:
    """What `set_threads` goes by, in this process and in those it starts."""
    if threads is not None:
        os.environ["RLHF_ENV_THREADS"] = str(threads)


@app.command()
def train(
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
    with _interruptible(folder):
        with naming_lines(file, flags):
            workplace, evaluator = _built(experiment)
        again = resume or allow_partial
        _train(workplace, evaluator, folder, wandb, threads, resume=again, allow_partial=allow_partial)


def _inside_runs(name: str) -> Path:
    """runs/NAME. Raises ConfigError for a name that leads out of `runs`: a file that others wrote says it."""
    folder = Path("runs") / name
    if not folder.resolve().is_relative_to(Path("runs").resolve()):
        raise ConfigError(f"the run {name!r} would lie outside of runs/: give it another name, or say where with --out")
    return folder


def _built(experiment: Experiment) -> tuple[Workplace, Evaluator]:
    """`build`, and a look at what is used later only: every prompt, the file of preferences, rewards that evaluate."""
    from rlhf_env.feedback.offline import load_preferences
    from rlhf_env.lab.evaluation import Evaluator
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

    from rlhf_env.lab.benchmark import run_experiment, write_json
    from rlhf_env.lab.progress import training_progress
    from rlhf_env.learning.engine import set_threads
    from rlhf_env.learning.run_folder import RunFolder

    console, experiment = _console(), workplace.experiment

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


@app.command()
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
    from rlhf_env.lab.run_evaluation import evaluate_run, rich_tables
    from rlhf_env.learning.engine import set_threads

    set_threads(threads)
    found = evaluate_run(run, prompts=prompts)
    file = out or run / "against_reference.json"
    found.save(file)
    console = _console()
    console.print(rich_tables(found))
    console.print(f"Evaluation: {file}", highlight=False, soft_wrap=True)


@app.command()
def bench(
    file: Annotated[
        Path, typer.Argument(help="The grid, a TOML file: [agents.*], [experiment], [tasks.*], seeds, [tuning].")
    ],
    out: Annotated[Path | None, typer.Option(help="Benchmark folder (default: runs/<name>).")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only these cells, as TASK/AGENT/SEED: chitchat/ppo/3, chitchat/ppo, chitchat, '*/ppo'."),
    ] = None,
    jobs: Jobs = 2,
    threads: Threads = None,
) -> None:
    """Compare agents at equal budgets: a grid of agents x tasks x seeds. A second call does only what is missing.

    First comes what the file asks for: its reward model ([reward_model]), and tries of settings for every agent
    ([tuning]). One call at a time works in a folder; Ctrl-C leaves what is done, and runs that the next call goes on
    with.
    """
    from rlhf_env.lab.benchmark import Grid, run_benchmark
    from rlhf_env.lab.progress import benchmark_progress
    from rlhf_env.toml_files import naming_lines

    _threads_everywhere(threads)
    grid = Grid.load(file)
    folder = out or Path("runs") / grid.name
    console = _console()
    with naming_lines(file):
        grid.require_plugins(grid.cells(folder))
    cells = grid.cells(folder, only or ())
    prepare = _maker_of_reward_model(grid, folder, file, console)
    with _interruptible(), benchmark_progress(console, [*grid.trials(cells), *cells], jobs=jobs) as on_progress:
        results = run_benchmark(grid, folder, jobs=jobs, only=only or (), prepare=prepare, on_progress=on_progress)
    left = sum(not file.exists() for file in results)
    if left < len(results):
        _show_report(folder, console)
    if left:
        raise RunFailed(f"{left} of {len(results)} cells are not done (see above): the same command goes on with them")


def _maker_of_reward_model(grid: Grid, folder: Path, file: Path, console: Console) -> Callable[[], object] | None:
    """What makes the model of the grid's [reward_model]. Raises ConfigError for a setting that the demo lacks."""
    if grid.reward_model is None:
        return None
    from rlhf_env.learning.configuration import from_table
    from rlhf_env.pipeline import Demo, learn_reward_model
    from rlhf_env.toml_files import naming_lines

    with naming_lines(file), under("reward_model"):
        settings = from_table(Demo, grid.reward_model, f"{file} [reward_model]")
    return lambda: learn_reward_model(folder, settings=settings, console=console)


class Terminated(KeyboardInterrupt):
    """SIGTERM: it stops what Ctrl-C stops, at the same places."""


@contextmanager
def _interruptible(run: Path | None = None) -> Iterator[None]:
    """Ctrl-C or SIGTERM in work that is kept piece by piece: say with which command it goes on.

    The same one; with --resume where it trains in the folder `run`. Before there is anything in it, nothing is said.
    """
    from rlhf_env.learning.loop import Interrupted

    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        if run is not None and not (run / "experiment.toml").exists():
            raise
        said = f"{stop}" if isinstance(stop, Interrupted) else "stopped, what is done is saved"
        words = ["rlhf-env", *sys.argv[1:]]
        if run is not None and "--resume" not in words:
            words.append("--resume")
        raise Interrupted(_signal_of(stop), f"{said}; go on with: {shlex.join(words)}") from stop


def _signal_of(stop: BaseException) -> int:
    code: int | None = getattr(stop, "exit_code", None)
    if code is not None:
        return code - 128
    return signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT


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
def scorecard(
    model: Annotated[str, typer.Argument(help="A reward model: a folder, or the name of a classification model.")],
    data: Annotated[Path, typer.Argument(help="Judgements: a preference store, or a file as JSONL, CSV, JSON.")],
    held_out: Annotated[
        str, typer.Option(help="Only the prompts held out at this share, as in 1/6 (the demo's): not seen in fitting.")
    ] = "1",
    gold: Annotated[str | None, typer.Option(help="A reward, by name, to compare ranks with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes (default: beside MODEL or here).")] = None,
    html: Annotated[Path | None, typer.Option(help="Where the page goes (default: beside the JSON).")] = None,
) -> None:
    """How good a reward model is on judgements it has not seen: accuracy, calibration, biases, robustness.

    Writes the numbers as JSON and a page with pictures. `rlhf-env report` shows the scorecard of the model in a
    benchmark's or demo's folder.
    """
    from rlhf_env.feedback.scorecard import scorecard_of, scorecard_table
    from rlhf_env.lab.scorecard_page import write_page
    from rlhf_env.learning.engine import set_threads

    set_threads()
    try:
        above, _, below = held_out.partition("/")
        share = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--held-out {held_out}: a share such as 0.2 or 1/6 is needed") from error
    card = scorecard_of(model, data, held_out=share, gold=gold)
    file = out or Path(f"{model.rstrip('/')}.scorecard.json" if Path(model).is_dir() else "scorecard.json")
    card.save(file)
    console = _console()
    console.print(scorecard_table(card))
    console.print(f"Scorecard: {file}", highlight=False, soft_wrap=True)
    shown = html or file.with_suffix(".html")
    try:
        write_page(card, shown, name=model)
        console.print(f"Page: {shown}", highlight=False, soft_wrap=True)
    except MissingExtra as missing:  # pictures are an extra; the numbers are not
        console.print(f"No page: {missing}", highlight=False, soft_wrap=True)


@app.command()
def annotate(
    store: Annotated[Path, typer.Option(help="The preference store, an SQLite file with items to judge.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8765,
    remote: Annotated[
        bool, typer.Option("--remote", help="Allow a HOST that other machines reach: unencrypted.")
    ] = False,
    name: Annotated[list[str] | None, typer.Option(help="A host name by which other machines reach the page.")] = None,
    lease: Annotated[float, typer.Option(help="Minutes for which an item is kept for whoever sees it.")] = 10.0,
) -> None:
    """A local web page on which people judge what a store asks for. Ctrl-C ends it, and the same command goes on.

    `preferences ask`, `evaluate` and `verify` make what is to be judged. The second link shows results while judging
    goes on: not for judges, who see them when everything is judged.
    """
    from rlhf_env.feedback.page.server import PageConfig, serve

    config = PageConfig(store=store, host=host, port=port, remote=remote, names=tuple(name or ()), lease=60 * lease)
    with _open_store(store) as opened:
        typer.echo(_progress_line(opened.progress()))
    with _interruptible():
        serve(config, _announce)


def _announce(judge: str, results: str) -> None:
    typer.echo(f"Open {judge}\nThe link is the key: whoever has it may judge.")
    typer.echo(f"Results, for whoever does not judge: {results}")


@app.command()
def plugins() -> None:
    """List rewards, agents, tasks and annotators, who offers them, and what failed to load.

    RLHF_ENV_PLUGINS=a,b lets in only the distributions (or entry points) a and b beside the built-ins, -a,-b all but
    those, and an empty one nobody.
    """
    from rlhf_env.plugins import host
    from rlhf_env.shown_text import for_terminal

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
        typer.echo(f"failed: {for_terminal(conflict)}")
    for failure in known.failures:
        typer.echo(f"failed: {for_terminal(f'{failure.origin}: {failure.error}')}")
    for origin in known.left_out:
        typer.echo(f"kept out: {origin} (RLHF_ENV_PLUGINS)")


@app.command()
def check(
    what: Annotated[
        str, typer.Argument(help="A TOML file (experiment or grid), or reward:NAME, task:NAME, agent:NAME.")
    ],
    settings: Annotated[list[str] | None, typer.Argument(help="The plugin's settings, as in target=20.")] = None,
) -> None:
    """Check an experiment file, or attack a plugin with generated episodes. Says what is wrong, changes nothing."""
    kind, _, name = what.partition(":")
    if kind in ("reward", "task", "agent") and name:
        _check_plugin(kind, name, _settings(settings or []))
    elif settings:
        raise ConfigError(f"{' '.join(settings)}: settings are for reward:, task: and agent:NAME; a file has its own")
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
        if key in settings:
            raise ConfigError(f"{word!r}: {key!r} is set twice")
        try:
            settings[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key] = value
    return settings


def _check_plugin(kind: str, name: str, settings: dict[str, Any]) -> None:
    from rlhf_env.envs.rewards import load_rewards
    from rlhf_env.envs.tasks import load_task
    from rlhf_env.envs.tokenizers import ByteTokenizer
    from rlhf_env.testing import check_agent, check_reward, check_task

    chosen_by = "plugin" if kind == "reward" else "name"
    if chosen_by in settings:
        raise ConfigError(f"{chosen_by}={settings[chosen_by]}: {kind}:{name} says already which {kind} it is")
    if kind == "agent":
        for left_out in check_agent({"name": name, **settings}):
            typer.echo(f"not checked: {left_out}")
    elif kind == "task":
        check_task(load_task({"name": name, **settings}), ByteTokenizer())
    else:
        check_reward(load_rewards({name: settings}, load_task("count")).parts[name])


def _check_file(file: Path) -> None:
    from rlhf_env.lab.benchmark import REWARD_MODEL, Grid
    from rlhf_env.learning.experiment import Experiment
    from rlhf_env.toml_files import naming_lines, read_toml

    if "agents" not in read_toml(file):
        experiment = Experiment.load(file)
        with naming_lines(file):
            _built(experiment)
        return
    grid = Grid.load(file)
    with naming_lines(file):
        # Building one cell of each row finds what reading alone cannot: models, plugins, settings.
        cells = [cell for cell in grid.cells() if cell.seed == 0]
    _maker_of_reward_model(grid, Path(), file, _console())
    whole = [cell for cell in cells if REWARD_MODEL not in cell.experiment.to_toml()]
    if len(whole) < len(cells):
        typer.echo("not checked: cells with the reward model that `rlhf-env bench` makes first")
    problems: dict[str, None] = {}
    for cell in whole:
        try:
            with naming_lines(file), grid.blamed(cell.task, cell.agent):
                _built(cell.experiment)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
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


@pipeline_app.command("reward-model")
def reward_model(
    out: Annotated[Path, typer.Option(help="Folder for the preferences and the model.")] = Path("runs/reward-model"),
    prompts: Annotated[
        int | None,
        typer.Option(help="Prompts to compare replies to; each gives up to 3 pairs (default: the demo's).", min=10),
    ] = None,
    epochs: Annotated[
        int, typer.Option(help="Passes that change the trunk, too, after those over the head: slower, better.", min=0)
    ] = 0,
    threads: Threads = None,
) -> None:
    """The demo's reward model alone: how its accuracy grows with more pairs, beside what the annotator's noise allows.

    The shipped base model answers, a simulated annotator compares, a model is fitted. A second call does only what is
    missing; use the model as bradley_terry = {model = "OUT/reward_model"}. About 30 seconds for every 1,000 prompts.
    """
    from dataclasses import replace

    from rlhf_env.learning.engine import set_threads
    from rlhf_env.pipeline import Demo, learn_reward_model

    set_threads(threads)
    settings = Demo()
    settings = replace(
        settings,
        prompts=prompts or settings.prompts,
        reward_model=replace(settings.reward_model, epochs=epochs),
    )
    with _interruptible():
        learn_reward_model(out, settings=settings, console=_console())


@lab_app.command("exact")
def exact(
    symbols: Annotated[int, typer.Option(help="Symbols beside the end token.", min=1, max=26)] = 4,
    longest: Annotated[int, typer.Option(help="Symbols of the longest response.", min=1)] = 3,
    batch: Annotated[int, typer.Option(help="Responses in a batch, all of one group.", min=2)] = 2,
    beta: Annotated[float, typer.Option(help="Weight of the KL penalty.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Draws the rewards, the reference and the policy.", min=0)] = 0,
) -> None:
    """The known optimum, and the exact bias and noise of every policy-gradient estimator and KL placement.

    Sums over every batch of responses to one prompt: nothing here is sampled.
    """
    from rlhf_env.lab.estimators import Batches, example, rich_tables
    from rlhf_env.learning.engine import set_threads
    from rlhf_env.policies import ResponseTree

    set_threads()
    batches = Batches.of(ResponseTree(symbols, longest), batch)  # first: it refuses what is too large
    _console().print(rich_tables(*example(symbols, longest, beta, seed), batches))


@lab_app.command("agents")
def exact_agents(
    seeds: Annotated[int, typer.Option(help="Seeds for every agent.", min=1)] = 10,
) -> None:
    """Train agents on the enumerable task through the real loop: how near do they come to the exact optimum?"""
    from rlhf_env.lab.exact_agents import reach, rich_table
    from rlhf_env.learning.engine import set_threads

    set_threads()
    found = list(reach(seeds))
    console = _console()
    console.print(rich_table(found))
    hits, trials = sum(one.hits for one in found), seeds * len(found)
    console.print(f"{hits} of {trials} within 1 %", highlight=False)


@lab_app.command("labels")
def labels(
    quick: Annotated[bool, typer.Option("--quick", help="Made-up pairs in place of real replies: seconds.")] = False,
    seeds: Annotated[int | None, typer.Option(help="Seeds for every strategy (default 12).", min=1)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder (default: runs/labels). A second call does only what is missing.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Which pair next? How many labels a reward model needs when pairs are chosen at random, by the model's own
    uncertainty, or by an ensemble's disagreement.

    Replies of the shipped base model, judged by a noisy annotator; the head of a reward model learns from them on
    frozen features. Writes labels.json, labels.png and labels.svg. A few minutes.
    """
    from dataclasses import replace

    from rlhf_env.lab.labels import QUICK, Study, rich_table, run_study
    from rlhf_env.lab.labels_figure import write_pictures
    from rlhf_env.lab.progress import stage
    from rlhf_env.learning.engine import set_threads

    set_threads(threads)
    study = QUICK if quick else Study()
    study = study if seeds is None else replace(study, seeds=seeds)
    folder = out or Path("runs/labels-quick" if quick else "runs/labels")
    console = _console()
    with _interruptible(), stage(console, "Labels needed") as tell:
        found = run_study(study, folder, tell)
    console.print(rich_table(found))
    console.print(f"In short: {found.sentence}.", highlight=False)
    try:
        write_pictures(found, folder)
    except MissingExtra as missing:  # pictures are an extra; the numbers are not
        console.print(f"No picture: {missing}", highlight=False, soft_wrap=True)
    console.print(f"Results: {folder}/labels.json", highlight=False, soft_wrap=True)


@lab_app.command("overoptimization")
def overoptimization(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where everything goes (default: runs/overoptimization). A second call does only what is missing."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small form in a few minutes, of two seeds: it allows no claim.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds (default 8: the fewest with which one of five claims can be made).", min=1)
    ] = None,
    jobs: Jobs = 2,
) -> None:
    """How far can a learned reward be climbed before the true one falls, and what moves that peak?

    A gold reward labels pairs, and proxies of several sizes, label counts and noise rates are fitted to them.
    Agents climb the proxies (without a KL penalty, but for DPO), and best-of-n beside them; gold and proxy are
    measured against d = sqrt(KL to the reference), and the laws of Gao et al. 2023 fitted. Five claims are tested
    over seeds: more labels or a larger proxy move the peak outwards, label noise inwards, two kinds of ensemble
    raise it. What is not so is said to be not so.

    Leaves overoptimization.md (in words), .json (all numbers), .png and .svg in the folder.
    """
    from dataclasses import replace

    from rlhf_env.lab.overoptimization import Study, run_study
    from rlhf_env.lab.overoptimization_figure import save_picture
    from rlhf_env.lab.overoptimization_findings import conclude, rich_table, save_findings
    from rlhf_env.learning.engine import set_threads

    set_threads()
    study = Study.quick() if quick else Study()
    study = study if seeds is None else replace(study, seeds=seeds)
    folder = out or Path("runs/overoptimization-quick" if quick else "runs/overoptimization")
    console = _console()
    with _interruptible():
        run_study(study, folder, jobs=jobs, console=console)
    findings = conclude(study, folder)
    console.print(rich_table(findings))
    try:
        save_picture(findings, folder)
    except ConfigError as missing:  # pictures are an extra; the numbers are not
        console.print(f"No picture: {missing}", highlight=False, soft_wrap=True)
    console.print(f"In words: {save_findings(findings, folder)}", highlight=False, soft_wrap=True)


@lab_app.command("regularisation")
def regularisation(
    seeds: Annotated[int, typer.Option(help="Seeds for every restraint.", min=1)] = 8,
    threads: Threads = None,
) -> None:
    """What keeps a reward model from learning noisy labels by heart: dropout, weight decay, early stopping and a
    penalty on large scores, each against none. Half a minute.
    """
    from rlhf_env.lab.progress import stage
    from rlhf_env.lab.regularisation import compare_restraints, rich_table
    from rlhf_env.learning.engine import set_threads

    set_threads(threads)
    console = _console()
    with stage(console, "Fitting") as tell:
        found = compare_restraints(seeds, tell)
    console.print(rich_table(found))


@preferences_app.command("import")
def import_preferences(
    store: StoreFile,
    files: Annotated[
        list[Path], typer.Argument(help=".jsonl, .csv, .json (Argilla, Label Studio), a datasets folder.")
    ],
    annotator: Annotated[str, typer.Option(help="Who judged what does not say who (default: the file's name).")] = "",
) -> None:
    """Take judgements into a store, made if need be: all of the files, or nothing where one line is bad."""
    from rlhf_env.feedback.interchange import read_judgements
    from rlhf_env.feedback.preferences import PreferenceStore

    judgements: list[Judgement] = []
    problems: list[str] = []
    for file in files:
        try:
            judgements += read_judgements(file, annotator=annotator)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    with PreferenceStore(store) as opened:
        new = opened.add(judgements)
    typer.echo(f"{new:,} new of {len(judgements):,} judgements are in {store}")


@preferences_app.command("responses")
def import_responses(
    store: StoreFile,
    file: Annotated[Path, typer.Argument(help=".jsonl or .csv with the columns prompt and response.")],
    human: Annotated[str, typer.Option(help="The person who wrote them (default: the file is their source).")] = "",
) -> None:
    """Take in responses that people wrote or that exist already, to be judged later."""
    from rlhf_env.feedback.collecting import read_responses
    from rlhf_env.feedback.preferences import Author, PreferenceStore

    found = read_responses(file, Author("human", human) if human else None)
    with PreferenceStore(store) as opened:
        for prompt, response in found:
            opened.add_response(prompt, response)
    typer.echo(f"{len(found):,} responses are in {store}")


@preferences_app.command("export")
def export_preferences(
    store: StoreFile,
    file: Annotated[Path, typer.Argument(help="The file to write, or the folder of the format datasets.")],
    format: Annotated[
        str,
        typer.Option(help="jsonl, csv, trl, trl-conversational, trl-unpaired, datasets, argilla or label-studio."),
    ] = "jsonl",
    emails: Annotated[bool, typer.Option("--emails", help="Keep names that are e-mail addresses.")] = False,
) -> None:
    """Write the judgements of a store for other programs. jsonl, csv, argilla and label-studio hold all kinds."""
    from typing import cast

    from rlhf_env.feedback.interchange import Format, without_emails, write_judgements

    with _open_store(store) as opened:
        judgements = opened.judgements() if emails else without_emails(opened.judgements())
        count = write_judgements(file, judgements, cast(Format, format))
    typer.echo(f"{count:,} {'rows' if format == 'datasets' else 'records'} are in {file}")


@preferences_app.command("ask")
def ask_for_judgements(
    store: StoreFile,
    kind: Annotated[str, typer.Option(help="comparison, rating, ranking or criteria.")] = "comparison",
    overlap: Annotated[int, typer.Option(help="How many people judge each.", min=1)] = 1,
    per_prompt: Annotated[int, typer.Option(help="Items of each prompt, 0 for all there are.", min=0)] = 1,
    size: Annotated[int, typer.Option(help="Responses in one ranking.", min=2)] = 4,
    criterion: Annotated[str, typer.Option(help="What to judge by.")] = "overall",
    criteria: Annotated[str, typer.Option(help="Of the kind criteria: their names, with commas.")] = "",
    repeat: Annotated[int, typer.Option(help="1, 2, ... asks the same people again.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Draws the items and the order they are shown in.", min=0)] = 0,
) -> None:
    """Make items for annotators out of the responses of a store."""
    from typing import cast, get_args

    import numpy as np

    from rlhf_env.feedback.collecting import items_of
    from rlhf_env.feedback.preferences import Kind

    if kind not in get_args(Kind):
        raise UnknownName("kind of judgement", kind, get_args(Kind))
    names = tuple(name.strip() for name in criteria.split(",") if name.strip())
    with _open_store(store) as opened:
        settings = {"overlap": overlap, "criterion": criterion, "criteria": names, "repeat": repeat, "seed": seed}
        rng = np.random.default_rng(seed)
        items = items_of(
            opened.responses(), cast(Kind, kind), rng, per_prompt=per_prompt or None, size=size, **settings
        )
        opened.add_items(items)
        typer.echo(f"{len(items):,} items asked for; {_progress_line(opened.progress())}")


@preferences_app.command("simulate")
def simulate_annotators(
    store: StoreFile,
    settings: Annotated[Path, typer.Argument(help="A TOML file with the tables [gold] (a reward) and [annotator].")],
    people: Annotated[int, typer.Option(help="How many annotators, called NAME 1, NAME 2, ...", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of their noise.", min=0)] = 0,
) -> None:
    """Have simulated annotators judge the open items of a store."""
    import numpy as np

    from rlhf_env.envs.rewards import load_rewards
    from rlhf_env.envs.tasks import load_task
    from rlhf_env.feedback.annotators import load_annotator
    from rlhf_env.feedback.collecting import judge_items
    from rlhf_env.toml_files import naming_lines, read_toml

    table: dict[str, Any] = read_toml(settings)
    with naming_lines(settings):
        parts = {part: table.get(part) for part in ("gold", "annotator")}
        nameless = [
            part for part, it in parts.items() if not (isinstance(it, dict) and isinstance(it.get("name"), str))
        ]
        if nameless:
            raise ConfigError(*(Problem(f"expected a table [{part}] with a name", (part,), "") for part in nameless))
        gold = dict(table["gold"])
        name = gold.pop("name")
        with under("gold"):
            reward: Any = load_rewards({name: gold}, load_task("count")).parts[name]
        with under("annotator"):
            crowd = [
                load_annotator(table["annotator"], reward, person=f"{table['annotator']['name']} {number}")
                for number in range(1, people + 1)
            ]
    with _open_store(store) as opened:
        votes = [
            judge_items(opened, annotator, np.random.default_rng([seed, place]))
            for place, annotator in enumerate(crowd)
        ]
        typer.echo(f"{sum(votes):,} votes; {_progress_line(opened.progress())}")


@preferences_app.command("show")
def show_preferences(store: StoreFile) -> None:
    """What a store holds, and how far annotation has come."""
    from rlhf_env.shown_text import for_terminal

    with _open_store(store) as opened:
        for name, count in vars(opened.counts()).items():
            typer.echo(f"{name.replace('_', ' '):12} {count:8,}")
        typer.echo(f"pairs        {sum(1 for _ in opened.preferences()):8,}")
        typer.echo(_progress_line(opened.progress()))
        for criterion in opened.criteria():
            typer.echo(f"criterion {for_terminal(criterion.name)}: {for_terminal(criterion.guidelines)}")


@preferences_app.command("agreement")
def show_agreement(
    store: StoreFile, seed: Annotated[int, typer.Option(help="Seed of the intervals.", min=0)] = 0
) -> None:
    """How far annotators agree with each other and with themselves, with 95 % bootstrap intervals."""
    import numpy as np

    from rlhf_env.feedback.agreement import agreement_of
    from rlhf_env.shown_text import for_terminal

    with _open_store(store) as opened:
        found = agreement_of(opened.judgements(), np.random.default_rng(seed))
    for it in found:
        typer.echo(
            f"{it.kind} by {for_terminal(it.criterion)}: {it.judgements:,} judgements of {len(it.annotators):,} "
            f"people, {it.units:,} judged by two or more"
        )
        for name in ("agreement", "alpha", "fleiss", "cohen", "self_consistency", "seconds"):
            typer.echo(f"  {name.replace('_', ' '):17} {getattr(it, name)}")
    if not found:
        typer.echo("no judgements yet")


@preferences_app.command("tournament")
def show_tournament(
    store: StoreFile,
    criterion: Annotated[str, typer.Option(help="The criterion that was judged by.")] = "overall",
    seed: Annotated[int, typer.Option(help="Seed of the intervals.", min=0)] = 0,
) -> None:
    """Who writes the better responses: win rate and Bradley-Terry rating (Elo's scale), with 95 % intervals."""
    import numpy as np

    from rlhf_env.feedback.tournament import contests, tournament
    from rlhf_env.shown_text import for_terminal

    with _open_store(store) as opened:
        made = contests(opened).get(criterion, [])
    found = tournament(made, np.random.default_rng(seed))
    if not found:
        typer.echo(f"no two authors were compared by {for_terminal(criterion)} yet")
        return
    names = [for_terminal(it.name) for it in found]
    width = max(len(name) for name in names)
    typer.echo(f"{'':{width}}  comparisons  {'win rate':20}  rating")
    for name, it in zip(names, found, strict=True):
        rating = it.rating
        span = "(every prompt alike)" if np.isnan(rating.low) else f"[{rating.low:.0f}, {rating.high:.0f}]"
        points = "-" if np.isnan(rating.value) else f"{rating.value:.0f} {span}"
        typer.echo(f"{name:{width}}  {it.comparisons:11,}  {it.win_rate!s:20}  {points}")


@preferences_app.command("evaluate")
def ask_who_is_better(
    store: StoreFile,
    answers: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH...",
            help="Two or more: a run folder, a JSONL or CSV file with the columns prompt and response, or the "
            "evaluation.json or result file of a run. NAME (default: the file's) is who the results speak of.",
        ),
    ],
    overlap: Annotated[int, typer.Option(help="How many people judge each pair.", min=1)] = 1,
    criterion: Annotated[str, typer.Option(help="What to judge by.")] = "overall",
    prompts: Annotated[
        int | None, typer.Option(help="Held-out prompts of a run folder (default: as many as it says).", min=2)
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the order that pairs are shown in.", min=0)] = 0,
) -> None:
    """Have people judge, blind, who answers the same prompts better: agents, models, other people.

    Makes items for `rlhf-env annotate`, in STORE (made if need be). The page never says who wrote a response; win rates
    and ratings are on its page of results and in `preferences tournament`.
    """
    from rlhf_env.feedback.preferences import PreferenceStore
    from rlhf_env.feedback.tournament import blind_pairs
    from rlhf_env.learning.engine import set_threads

    set_threads()
    named = [word.rpartition("=")[::2] for word in answers]
    sources = {name or Path(path).stem: Path(path) for name, path in named}
    if len(sources) != len(answers) or len(sources) < 2:
        raise ConfigError("two or more sources are needed, each with a name of its own: say NAME=PATH")
    with _stage("Reading what they wrote") as tell:
        written = []
        for place, (name, path) in enumerate(sources.items()):
            tell(place / len(sources), f"{place + 1} of {len(sources)}")
            written.append(_answers(path, name, prompts))
    pairs = blind_pairs(written, overlap=overlap, criterion=criterion, seed=seed)
    with PreferenceStore(store) as opened:
        opened.add_items(pairs.items)
        typer.echo(
            f"{len(pairs.items):,} pairs on {pairs.prompts:,} prompts asked for, {pairs.same:,} left out that say "
            f"the same; {_progress_line(opened.progress())}"
        )


def _answers(path: Path, name: str, prompts: int | None) -> list[tuple[Prompt, Response]]:
    """What a source wrote, under the name of a policy: a run writes anew, at its newest checkpoint."""
    import json

    from rlhf_env.feedback.collecting import read_responses
    from rlhf_env.feedback.interchange.provenance import prompt_from
    from rlhf_env.feedback.preferences import Author, Response

    author = Author("policy", name)
    if path.is_dir():
        from dataclasses import replace

        from rlhf_env.lab.evaluation import Evaluator
        from rlhf_env.lab.run_evaluation import load_run

        workplace, _ = load_run(path)
        if prompts is not None:
            evaluation = replace(workplace.experiment.evaluation, prompts=prompts)
            workplace = replace(workplace, experiment=replace(workplace.experiment, evaluation=evaluation))
        rollout, _ = Evaluator.of(workplace).texts(workplace.agent)
        return [(episode.prompt, Response.from_episode(episode, author)) for episode in rollout.episodes]
    if path.suffix.lower() == ".json":
        try:
            samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
            return [(prompt_from(it["prompt"], {}), Response(it["response"], author)) for it in samples]
        except (OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, ConfigError):
                error.found_in(str(path))
                raise
            raise ConfigError(f"{path}: no samples of a run can be read from it: {error!r}") from error
    return read_responses(path, author)


@preferences_app.command("verify")
def ask_about_a_reward_model(
    store: StoreFile,
    model: Annotated[
        list[str],
        typer.Option(help="A reward model: a folder or hub name. Several are one ensemble.", show_default=False),
    ],
    count: Annotated[int, typer.Option(help="Pairs for each reason.", min=1)] = 20,
    overlap: Annotated[int, typer.Option(help="How many people judge each pair.", min=1)] = 1,
    criterion: Annotated[str, typer.Option(help="What to judge by.")] = "overall",
    confidence: Annotated[
        float, typer.Option(help="A model surer than this that contradicts a judgement is to be checked.")
    ] = 0.8,
    name: Annotated[str, typer.Option(help="What results call the model (default: as given).")] = "",
    seed: Annotated[int, typer.Option(help="Draws the random pairs and the order they are shown in.", min=0)] = 0,
) -> None:
    """Put a reward model's most doubtful opinions before people; `preferences verified` shows what came out.

    Scores every response in STORE and asks for blind judgements of pairs, COUNT for each reason:

    - disagreement: the members of the ensemble disagree most

    - above people: a policy's response is scored above all that people wrote for the prompt

    - repetitive, long: the favourite of its prompt is among the most repetitive, or longest, twentieth

    - contradicted: a judgement in STORE says the opposite of a confident model

    - random: any pair, what the others are to be compared with
    """
    import numpy as np

    from rlhf_env.feedback.scorer import load_scorer
    from rlhf_env.feedback.verification import REASONS, checks_of, opinions, recorded
    from rlhf_env.learning.engine import set_threads

    set_threads()
    with _open_store(store) as opened:
        models = [load_scorer(it) for it in model]
        with _stage("Scoring responses") as tell:
            candidates = opinions(models, opened.responses(), on_progress=tell)
        checks = checks_of(
            candidates,
            recorded(opened, criterion),
            np.random.default_rng(seed),
            model=name or " + ".join(model),
            count=count,
            confidence=confidence,
            overlap=overlap,
            criterion=criterion,
            seed=seed,
        )
        items = opened.add_checks(checks)
        for reason in REASONS:
            pairs = [check for check in checks if check.reason == reason]
            surest = f", the first by {pairs[0].log_odds:.2f} log-odds" if pairs else ""
            typer.echo(f"{reason:13} {len(pairs):5,} pairs{surest}")
        typer.echo(f"{len(set(items)):,} different pairs to verify; {_progress_line(opened.progress())}")


@preferences_app.command("verified")
def show_verified(store: StoreFile) -> None:
    """How often people share a reward model's opinion, by the reason they were asked, with 95 % intervals.

    `expected` is the model's own mean probability for the response it favours: people agree less often where it is too
    sure. Reasons are those of `preferences verify`; read the others against `random`.
    """
    from itertools import groupby

    from rlhf_env.feedback.verification import outcomes
    from rlhf_env.shown_text import for_terminal

    with _open_store(store) as opened:
        found = outcomes(opened)
    for model, rows in groupby(found, lambda it: it.model):
        typer.echo(f"{for_terminal(model)}\n  {'':13}  pairs  votes  {'people agree':20}  expected")
        for it in rows:
            expected = f"{it.stated:.2f}" if it.votes else "-"
            typer.echo(f"  {for_terminal(it.reason):13}  {it.pairs:5,}  {it.votes:5,}  {it!s:20}  {expected}")
    if not found:
        typer.echo("no reward model was put before people yet: preferences verify does it")


@contextmanager
def _stage(title: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr: what a command says stays clean on stdout."""
    from rich.console import Console

    from rlhf_env.lab.progress import stage

    with stage(Console(stderr=True), title) as tell:
        yield tell


@contextmanager
def _open_store(file: Path) -> Iterator[PreferenceStore]:
    """A store that is there: reading must not make one."""
    from rlhf_env.feedback.preferences import PreferenceStore

    if not file.is_file():
        raise ConfigError(f"preference store {file}: there is no such file (import or responses make one)")
    with PreferenceStore(file) as store:
        yield store


def _progress_line(progress: Progress) -> str:
    return (
        f"{progress.votes:,} of {progress.wanted:,} votes on {progress.items:,} items, {progress.complete:,} complete"
    )


def _console() -> Console:
    from rich.console import Console

    # A pipe has no width of its own, and 80 columns would cut the table short.
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 110)


_THE_DISK_REFUSES = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)
_NO_SUCH_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM)  # what --out may name


def main() -> None:
    """Run a command; what went wrong is one line (or one per problem) on stderr and an exit status."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    terminated = False

    def terminate(_number: int, _frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    sys.excepthook = _traceback
    try:
        status = app(standalone_mode=False)
    except RlhfEnvError as error:
        problems = error.problems if isinstance(error, ConfigError) else (str(error),)
        _complain(problems, error.exit_code)
    except (KeyboardInterrupt, EOFError, typer.Abort):
        status = 130
    except OSError as error:
        if error.errno in _NO_SUCH_PLACE and error.filename:
            _complain([f"cannot work in {error.filename}: {error.strerror}: name another place"], 2)
        if error.errno not in _THE_DISK_REFUSES:
            raise
        where = f"cannot write {error.filename}" if error.filename else "cannot write"
        _complain([f"{where}: {error.strerror}: make room (what was whole before still is)"], 3)
    except Exception as error:
        # Typer may bring its own copy of click, so that its errors are known by what they can do.
        say: Callable[[], str] | None = getattr(error, "format_message", None)
        if say is None:
            raise
        words = say()  # none where a group was called without a command: its help was shown
        _complain([words] if words else [], getattr(error, "exit_code", 2))
    if status == 130:  # where no run was under way that would have saved itself
        _complain(["stopped"], 143 if terminated else 130)
    sys.exit(status if isinstance(status, int) else 0)


def _traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A fault of ours keeps its traceback, without what opens doors: it will be sent to somebody."""
    import traceback

    from rlhf_env.shown_text import without_secrets

    sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, error, trace))))


_LONGEST_LINE = 2_000  # characters of a problem


def _complain(problems: Sequence[str], status: int) -> NoReturn:
    """One line on stderr for each of the first 20 problems, none of them longer than a page."""
    from rlhf_env.shown_text import for_terminal, without_secrets

    for problem in problems[:20]:
        line = for_terminal(without_secrets(problem))
        print(f"rlhf-env: {line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + ' ...'}", file=sys.stderr)
    if len(problems) > 20:
        print(f"rlhf-env: and {len(problems) - 20} more", file=sys.stderr)
    sys.exit(status)
