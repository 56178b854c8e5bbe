"""`rlhf-env plugins`, `rlhf-env schema` and `rlhf-env check`: what there is, and whether it is right."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rlhf_env.cli.benchmarks import maker_of_reward_model
from rlhf_env.cli.shared import LEARNING, PLUGINS, AsJson, app, echo_json, examples, make_console
from rlhf_env.errors import ConfigError, RlhfEnvError, under
from rlhf_env.types import JsonObject

if TYPE_CHECKING:
    from rlhf_env.declared import Setting


@app.command(
    rich_help_panel=PLUGINS,
    epilog=examples("rlhf-env plugins", "rlhf-env plugins ppo", "rlhf-env plugins polite.py:polite"),
)
def plugins(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One plugin (kind:name where two kinds have it), or your own code, FILE.py:NAME: what it is and can "
            "be set to."
        ),
    ] = None,
    as_json: AsJson = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="All settings of all files and plugins, as one page of Markdown.")
    ] = False,
) -> None:
    """List all plugins by kind, with their packages and what failed to load; or describe one, with all its settings.

    RLHF_ENV_PLUGINS=a,b loads only the built-ins and the distributions (or entry points) a and b, -a,-b all but those
    two, and an empty value the built-ins alone.
    """
    from rlhf_env.plugins import host, plural
    from rlhf_env.shown_text import for_terminal

    known = host()
    if as_markdown:
        if name is not None or as_json:
            raise ConfigError("--markdown is the page of all plugins: leave out the name and --json")
        from rlhf_env.reference import settings_page

        typer.echo(settings_page(kinds_of_file(), known), nl=False)
        return
    if name is not None:
        _describe(name, as_json)
        return
    if as_json:
        listed = [{word: str(getattr(entry, word)) for word in ("kind", "name", "origin", "target")} for entry in known]
        echo_json({"plugins": listed, "failed": [f"{it.origin}: {it.error}" for it in known.failures]})
        return
    width = max((len(entry.name) for entry in known), default=0)
    kind = ""
    for entry in known:
        if entry.kind != kind:
            kind = entry.kind
            typer.echo(plural(kind))
        target = entry.target if isinstance(entry.target, str) else repr(entry.target)
        needs = f"  (needs the extra {entry.needs!r})" if entry.needs else ""
        typer.echo(f"  {entry.name:{width}}  {entry.origin}  {target}{needs}")
    for conflict in known.conflicts():
        typer.echo(f"failed: {for_terminal(conflict)}")
    for failure in known.failures:
        typer.echo(f"failed: {for_terminal(f'{failure.origin}: {failure.error}')}")
    for misfit in known.misfits():
        typer.echo(f"note: {for_terminal(f'{misfit.origin}: {misfit.error}')}")
    for origin in known.left_out:
        typer.echo(f"kept out: {origin} (RLHF_ENV_PLUGINS)")


@app.command(
    rich_help_panel=LEARNING, epilog=examples("rlhf-env metrics train/approx_kl", "rlhf-env metrics 'rollout/*'")
)
def metrics(
    key: Annotated[
        str | None, typer.Argument(help="One of them, such as train/approx_kl; * stands for anything.")
    ] = None,
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="All of them as one page of Markdown.")] = False,
) -> None:
    """Explain the numbers that a run logs in metrics.jsonl, in trackers and on curves."""
    from rlhf_env.lab.evaluation.explained import logged_numbers, numbers_matching, numbers_page, said_of

    if as_markdown:
        if key is not None or as_json:
            raise ConfigError("--markdown is the page of all numbers: leave out the key and --json")
        typer.echo(numbers_page(), nl=False)
        return
    found = logged_numbers() if key is None else numbers_matching(key)
    if as_json:
        echo_json(found)
        return
    for entry in found:
        typer.echo(entry.key)
        typer.echo(
            textwrap.fill(said_of(entry).replace("`", ""), width=78, initial_indent="    ", subsequent_indent="    ")
        )


def kinds_of_file() -> dict[str, type]:
    """What is made of a file, by what such a file is called."""
    from rlhf_env.lab.benchmark.grid import Grid
    from rlhf_env.learning.experiment import Experiment
    from rlhf_env.pipeline.demo import DemoRewardModel
    from rlhf_env.pipeline.plan import PipelineFile
    from rlhf_env.pipeline.reward_settings import RewardModelFile
    from rlhf_env.pipeline.stages.registry import settings_by_kind

    return {
        "An experiment (`rlhf-env train`)": Experiment,
        "A grid of experiments (`rlhf-env bench`)": Grid,
        "A reward model of votes (`rlhf-env reward-model --config`)": RewardModelFile,
        "The demo's reward model (`[reward_model]` of a grid)": DemoRewardModel,
        "A pipeline (`rlhf-env pipeline`)": PipelineFile,
        **{
            f"A stage of kind `{kind}`": classes[0]
            for kind, classes in settings_by_kind().items()
            if classes[0] not in (Experiment, Grid)
        },
    }


def _describe(name: str, as_json: bool) -> None:
    from rlhf_env import declared
    from rlhf_env.plugins import host
    from rlhf_env.schema import of_every_reward
    from rlhf_env.shown_text import for_terminal

    told = declared.declaration(declared.find(host(), name))
    shared = of_every_reward() if told.kind == "reward" else []
    if as_json:
        also = {"settings_of_every_reward": [setting.as_dict() for setting in shared]} if shared else {}
        echo_json({**told.as_dict(), **also})
        return
    lines = [f"{told.kind} {told.name}, of {told.origin}", "", *told.about.splitlines()]
    lines += ["", "Papers", *(f"  {paper}" for paper in told.papers)] if told.papers else []
    lines += ["", "Settings", *_lines(told.settings)] if told.settings else ["", "There is nothing to set."]
    if any("." in setting.name for setting in told.settings):
        lines += ["", "The settings of a table may also stand without it: lr instead of optimization.lr."]
    lines += ["", "Settings of every reward", *_lines(shared)] if shared else []
    lines += ["", "As a table, with every setting at its default", *(f"  {line}" for line in told.example.splitlines())]
    for line in lines:
        text = line.lstrip()
        typer.echo(f"{' ' * (len(line) - len(text))}{for_terminal(text)}")


def _lines(settings: Sequence[Setting]) -> Iterator[str]:
    """Two or more lines for each setting: its name, type, limits and default; its meaning."""
    from rlhf_env.declared import plain
    from rlhf_env.settings import limits, spoken

    width = min(100, get_terminal_size(fallback=(100, 24)).columns)
    for setting in settings:
        what = ", ".join(word for word in (spoken(setting.hint), limits(setting.hint)) if word)
        default = "required" if setting.required else f"default {_as_toml(plain(setting.default))}"
        yield f"  {setting.name}: {what}; {default}"
        yield from textwrap.wrap(setting.meaning, width, initial_indent="      ", subsequent_indent="      ")


def _as_toml(value: object) -> str:
    """As a file would have it; TOML has no word for what is not set."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


@app.command(rich_help_panel=PLUGINS, epilog=examples("rlhf-env schema > experiment.schema.json"))
def schema(
    kind: Annotated[
        Literal["any", "experiment", "grid", "reward-model", "pipeline"],
        typer.Argument(
            help="Of which files: an experiment (train), a grid (bench), or either of them, told apart by the tables "
            "of agents that a grid has; reward-model: its --config; pipeline: stages, one after the other."
        ),
    ] = "any",
) -> None:
    """Write the JSON schema (draft 2020-12) of TOML files to stdout, installed plugins included.

    With it an editor (VS Code with Even Better TOML, or any with Taplo) completes and checks a file whose first line
    is #:schema ./experiment.schema.json.
    """
    from rlhf_env.lab.benchmark.grid import Grid
    from rlhf_env.learning.experiment import Experiment
    from rlhf_env.pipeline.demo import DemoRewardModel
    from rlhf_env.pipeline.plan import PipelineFile
    from rlhf_env.pipeline.reward_settings import RewardModelFile
    from rlhf_env.pipeline.stages.registry import settings_by_kind
    from rlhf_env.plugins import host
    from rlhf_env.schema import file_schema, one_of_files, staged_schema

    of_grids = {"reward_model": DemoRewardModel}
    stages = settings_by_kind()
    makers = {
        "experiment": partial(file_schema, host(), Experiment, title="An experiment"),
        "grid": partial(file_schema, host(), Grid, title="A grid of experiments", tables=of_grids),
        "reward-model": partial(file_schema, host(), RewardModelFile, title="A reward model of votes"),
        "pipeline": partial(staged_schema, host(), PipelineFile, stages, title="A pipeline", defaults=Experiment),
    }
    if kind == "any":
        either = {"": makers["experiment"](), "agents": makers["grid"]()}
        made = one_of_files(either, "An experiment or a grid of experiments")
    else:
        made = makers[kind]()
    echo_json(made)


_KINDS = ("reward", "task", "agent")


@app.command(
    "check",
    rich_help_panel=PLUGINS,
    epilog=examples(
        "rlhf-env check experiment.toml",
        "rlhf-env check polite.py:polite",
        "rlhf-env check reward:length target=20",
        "rlhf-env check model:rlhf-env/chitchat",
    ),
)
def check_one(
    what: Annotated[
        str,
        typer.Argument(
            help="A TOML file (experiment, grid, pipeline); a plugin: reward:NAME, task:NAME, agent:NAME, or your own "
            "code: FILE.py:NAME, reward:FILE.py:NAME; a model: model:FOLDER, model:RUN, model:HUB/NAME; or families, "
            "those of the installed transformers."
        ),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help="The plugin's settings, as in target=20; of families, which ones.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of the task that a reward reads, as in answer=42 (a text) or level:=3 (a number, or other "
            "JSON): every prompt of the check has it. May be given several times."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="What was found as JSON, for programs.")] = False,
) -> None:
    """Check an experiment file, or test a plugin with generated episodes. It lists problems and changes nothing.

    model:FOLDER says how the model is computed and measures, in float32, float64 and bfloat16, how far what it states
    while writing and what learning recomputes are from its own plain forward pass; its gradients, adapters, end tokens
    and chat template. families does it with a tiny random model of each (minutes), and writes a page of Markdown.
    """
    from rlhf_env.declared import code_in, find
    from rlhf_env.plugins import host

    kind, _, name = what.partition(":")
    if what == "families":
        _check_families(settings or [], as_json)
        return
    if kind == "model":
        if settings:
            raise ConfigError(f"{' '.join(settings)}: a model has no settings here")
        _check_model(name, as_json)
        return
    plugin = bool((kind in _KINDS and name) or code_in(what) or what.endswith(".py"))
    if column and not plugin:
        raise ConfigError(f"--column {column[0]} is for a reward: a file has the columns of its task")
    if settings and not plugin:
        raise ConfigError(f"{' '.join(settings)}: settings are for reward:, task: and agent:NAME; a file has its own")

    def check(note: Callable[[str], object]) -> None:
        if kind in _KINDS and name:
            _check_plugin(kind, name, _settings(settings or []), _columns(column or []), note)
        elif plugin:
            _check_plugin(find(host(), what).kind, what, _settings(settings or []), _columns(column or []), note)
        else:
            _check_file(Path(what), note)

    if as_json:
        _say_as_json(what, check)
        return
    check(typer.echo)
    typer.echo("ok")


def _say_as_json(what: str, check: Callable[[Callable[[str], object]], None]) -> None:
    """One object on stdout, whatever is found and whatever a plugin prints; the status is that of the plain command."""
    notes: list[str] = []
    problems: list[str] = []
    status = 0
    with redirect_stdout(sys.stderr):
        try:
            check(notes.append)
        except RlhfEnvError as error:
            problems += error.problems if isinstance(error, ConfigError) else [str(error)]
            status = error.exit_code
    echo_json({"checked": what, "ok": not problems, "problems": problems, "notes": notes})
    if status:
        raise typer.Exit(status)


def _check_model(name: str, as_json: bool) -> None:
    from rlhf_env.shown_text import for_terminal
    from rlhf_env.testing.models import check_model

    if not name:
        raise ConfigError("model: names no model: a folder, a run or a hub name, as in model:runs/ppo")
    checked = check_model(name)
    if as_json:
        echo_json(checked.as_json())
    else:
        for line in checked.lines():
            text = line.lstrip()
            typer.echo(f"{' ' * (len(line) - len(text))}{for_terminal(text)}")
    if checked.problems:
        raise typer.Exit(1)


def _check_families(wanted: Sequence[str], as_json: bool) -> None:
    from rlhf_env.testing.families import check_families, families_page

    checks = []
    for checked in check_families(wanted):
        typer.echo(f"{checked.family}: {checked.verdict}", err=True)
        checks.append(checked)
    if as_json:
        echo_json([it.as_json() for it in checks])
    else:
        typer.echo(families_page(checks), nl=False)
    if any(it.verdict == "WRONG" for it in checks):
        raise typer.Exit(1)


def _settings(words: Sequence[str]) -> JsonObject:
    """`["target=20", "letter=a"]` as TOML reads them; what is not a TOML value is a string."""
    import tomllib

    settings: dict[str, object] = {}
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


def _columns(words: Sequence[str]) -> JsonObject:
    """`["answer=42", "level:=3"]` as a file would have them: a text, and what is JSON."""
    columns: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        name = key.removesuffix(":")
        if not name or not equals:
            raise ConfigError(f"--column {word!r} is not of the form NAME=TEXT or NAME:=JSON")
        if name in columns:
            raise ConfigError(f"--column {word!r}: {name!r} is set twice")
        try:
            columns[name] = value if name == key else json.loads(value)
        except ValueError as error:
            raise ConfigError(f"--column {word!r}: what follows := is JSON, and {value!r} is not ({error})") from error
    return columns


def _check_plugin(
    kind: str,
    name: str,
    settings: Mapping[str, object],
    columns: Mapping[str, object],
    note: Callable[[str], object],
) -> None:
    from rlhf_env.envs.tasks import load_task
    from rlhf_env.envs.tokenizers import ByteTokenizer
    from rlhf_env.own_code import KEY, OwnCode, names_code
    from rlhf_env.testing import check_agent, check_task
    from rlhf_env.testing.rewards import check_reward_table

    own = names_code(name)
    for key in ("plugin" if kind == "reward" else "name", KEY):
        if key in settings:
            raise ConfigError(f"{key}={settings[key]}: {kind}:{name} already names the {kind}")
    table = {KEY if own else "name": name, **settings}
    if columns and kind != "reward":
        raise ConfigError(f"--column {next(iter(columns))}: rewards read columns, and this is the {kind} {name}")
    if kind == "agent":
        for left_out in check_agent(table):
            note(f"not checked: {left_out}")
    elif kind == "task":
        check_task(load_task(table), ByteTokenizer())
    else:
        called, part = (OwnCode(name).label, table) if own else (name, settings)
        for remark in check_reward_table(called, part, columns):
            note(f"note: {remark}")


def _check_file(file: Path, note: Callable[[str], object]) -> None:
    from rlhf_env.lab.benchmark.grid import REWARD_MODEL, Grid
    from rlhf_env.lab.evaluation.preparing import prepare
    from rlhf_env.learning.experiment import EngineSettings, Experiment
    from rlhf_env.learning.experiment_checks import require_shardable
    from rlhf_env.learning.sharding import SHARD
    from rlhf_env.toml_files import file_kind, naming_lines, read_toml

    kind = file_kind(read_toml(file))
    if kind == "pipeline":
        from rlhf_env.pipeline.plan import read_plan

        with naming_lines(file):
            read_plan(file).check()
        return
    if kind != "grid":
        experiment = Experiment.load(file)
        with naming_lines(file):
            if experiment.engine.shard:
                with under(*SHARD):
                    require_shardable(experiment)
                experiment = replace(experiment, engine=EngineSettings())
                note("not checked: how several processes divide the model (shard = true), for this is one")
            workplace = prepare(experiment)
        for remark in workplace.notes:
            note(f"note: {remark}")
        return
    grid = Grid.load(file)
    with naming_lines(file):
        # Building one cell of each row finds problems of models, plugins and settings that reading does not find.
        cells = [cell for cell in grid.cells() if cell.seed == 0]
    maker_of_reward_model(grid, Path(), file, make_console())
    whole = [cell for cell in cells if REWARD_MODEL not in cell.experiment.to_toml()]
    if len(whole) < len(cells):
        note("not checked: cells with the reward model that `rlhf-env bench` makes first")
    problems: dict[str, None] = {}
    notes: dict[str, None] = {}
    for cell in whole:
        try:
            with naming_lines(file), grid.blamed(cell.task, cell.agent):
                notes |= dict.fromkeys(f"{cell.task}, {cell.agent}: {it}" for it in prepare(cell.experiment).notes)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(*problems)
    for remark in notes:
        note(f"note: {remark}")
    if few := grid.too_few_seeds:
        note(f"note: {few}")
