"""The command line. Every command imports what it needs when it runs, so that `--help` and `plugins` are quick."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from rlhf_env.errors import ConfigError, RlhfEnvError

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_env.feedback.preferences import Judgement, PreferenceStore, Progress
    from rlhf_env.lab.health import Alert
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
lab_app = typer.Typer(no_args_is_help=True, help="The enumerable world, where everything can be summed over.")
app.add_typer(lab_app, name="lab")

preferences_app = typer.Typer(no_args_is_help=True, help="Preference stores: what people and annotators say.")
app.add_typer(preferences_app, name="preferences")

StoreFile = Annotated[Path, typer.Argument(help="The preference store, an SQLite file.")]
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
    from rich.markup import escape

    from rlhf_env.lab.benchmark import run_experiment, write_json
    from rlhf_env.lab.evaluation import Evaluator
    from rlhf_env.lab.progress import training_progress
    from rlhf_env.learning.experiment import build
    from rlhf_env.learning.run_folder import RunFolder

    console = _console()
    workplace = build(experiment)
    evaluator = Evaluator.of(workplace)

    def warn(alert: Alert) -> None:
        console.print(f"[yellow]Warning[/yellow] {escape(str(alert))}", highlight=False, soft_wrap=True)

    with RunFolder(folder, experiment.to_toml(), resume=resume) as run, training_progress(console) as on_update:
        reason, final = run_experiment(workplace, evaluator, run, resume=resume, on_update=on_update, on_alert=warn)
    ended = {"reason": reason, "metrics": dict(final.metrics), "samples": list(final.samples)}
    write_json(folder / "evaluation.json", ended)
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
) -> None:
    """Compare a run's agent with its reference: rewards, win rate, KL, diversity, and how its behaviour changed.

    Phrases and formats gained and lost are tested; so is which phrases the reward pays for, and whether they are used
    for that.
    """
    from rlhf_env.lab.run_evaluation import evaluate_run, rich_tables
    from rlhf_env.learning.engine import set_threads

    set_threads()
    found = evaluate_run(run, prompts=prompts)
    file = out or run / "against_reference.json"
    found.save(file)
    console = _console()
    console.print(rich_tables(found))
    console.print(f"Evaluation: {file}", highlight=False, soft_wrap=True)


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
def scorecard(
    model: Annotated[str, typer.Argument(help="A reward model: a folder, or the name of a classification model.")],
    data: Annotated[Path, typer.Argument(help="Judgements: a preference store, or a file as JSONL, CSV, JSON.")],
    held_out: Annotated[
        str, typer.Option(help="Only the prompts held out at this share, as in 1/6 (the demo's): not seen in fitting.")
    ] = "1",
    gold: Annotated[str | None, typer.Option(help="A reward, by name, to compare ranks with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the JSON goes (default: beside MODEL or here).")] = None,
) -> None:
    """How good a reward model is on judgements it has not seen: accuracy, calibration, biases, robustness."""
    from rlhf_env.feedback.scorecard import scorecard_of, scorecard_table
    from rlhf_env.learning.engine import set_threads

    set_threads()
    try:
        share = float(Fraction(held_out))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--held-out {held_out}: a share such as 0.2 or 1/6 is needed") from error
    card = scorecard_of(model, data, held_out=share, gold=gold)
    file = out or Path(f"{model.rstrip('/')}.scorecard.json" if Path(model).is_dir() else "scorecard.json")
    card.save(file)
    console = _console()
    console.print(scorecard_table(card))
    console.print(f"Scorecard: {file}", highlight=False, soft_wrap=True)


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
    """A local web page on which people judge what a store asks for (see `preferences ask`). Ctrl-C ends it."""
    from rlhf_env.feedback.page.server import PageConfig, serve

    config = PageConfig(store=store, host=host, port=port, remote=remote, names=tuple(name or ()), lease=60 * lease)
    with _open_store(store) as opened:
        typer.echo(_progress_line(opened.progress()))
    try:
        serve(config, lambda link: typer.echo(f"Open {link}\nThe link is the key: whoever has it may judge."))
    except KeyboardInterrupt:
        typer.echo("Ended; every vote is in the store.")


@app.command()
def plugins() -> None:
    """List rewards, agents, tasks and annotators, who offers them, and what failed to load."""
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

    if kind == "agent":
        for left_out in check_agent({"name": name, **settings}):
            typer.echo(f"not checked: {left_out}")
    elif kind == "task":
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
    from typing import cast

    import numpy as np

    from rlhf_env.feedback.collecting import items_of
    from rlhf_env.feedback.preferences import Kind

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
    from rlhf_env.learning.experiment import read_toml

    table: dict[str, Any] = read_toml(settings)
    if not all(isinstance(table.get(part), dict) and "name" in table[part] for part in ("gold", "annotator")):
        raise ConfigError(f"{settings}: expected the tables [gold] and [annotator], each with a name")
    gold = dict(table["gold"])
    name = gold.pop("name")
    reward: Any = load_rewards({name: gold}, load_task("count")).parts[name]
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
    with _open_store(store) as opened:
        for name, count in vars(opened.counts()).items():
            typer.echo(f"{name.replace('_', ' '):12} {count:8,}")
        typer.echo(f"pairs        {sum(1 for _ in opened.preferences()):8,}")
        typer.echo(_progress_line(opened.progress()))
        for criterion in opened.criteria():
            typer.echo(f"criterion {criterion.name}: {criterion.guidelines}")


@preferences_app.command("agreement")
def show_agreement(
    store: StoreFile, seed: Annotated[int, typer.Option(help="Seed of the intervals.", min=0)] = 0
) -> None:
    """How far annotators agree with each other and with themselves, with 95 % bootstrap intervals."""
    import numpy as np

    from rlhf_env.feedback.agreement import agreement_of

    with _open_store(store) as opened:
        found = agreement_of(opened.judgements(), np.random.default_rng(seed))
    for it in found:
        typer.echo(
            f"{it.kind} by {it.criterion}: {it.judgements:,} judgements of {len(it.annotators):,} people, "
            f"{it.units:,} judged by two or more"
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

    from rlhf_env.feedback.tournament import tournament
    from rlhf_env.shown_text import for_terminal

    with _open_store(store) as opened:
        made = [it for it in opened.comparisons() if it.criterion == criterion]
    found = tournament(made, np.random.default_rng(seed))
    if not found:
        typer.echo(f"no two authors were compared by {criterion} yet")
        return
    names = []
    for it in found:
        at = "" if it.author.temperature is None else f" at {it.author.temperature:g}"
        names.append(f"{it.author.kind} {for_terminal(it.author.name)}{at}")
    width = max(len(name) for name in names)
    typer.echo(f"{'':{width}}  comparisons  {'win rate':20}  rating")
    for name, it in zip(names, found, strict=True):
        rating = it.rating
        points = "-" if np.isnan(rating.value) else f"{rating.value:.0f} [{rating.low:.0f}, {rating.high:.0f}]"
        typer.echo(f"{name:{width}}  {it.comparisons:11,}  {it.win_rate!s:20}  {points}")


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
