"""`rlhf-env plugins` and `rlhf-env check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_env.cli.benchmarks import maker_of_reward_model
from rlhf_env.cli.shared import PLUGINS, app, make_console
from rlhf_env.cli.training import build_parts
from rlhf_env.errors import ConfigError


@app.command(rich_help_panel=PLUGINS)
def plugins() -> None:
    """List rewards, agents, tasks, annotators, trackers and stopping rules, who offers them, and what failed to load.

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


@app.command(rich_help_panel=PLUGINS)
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
    from rlhf_env.lab.benchmark.grid import REWARD_MODEL, Grid
    from rlhf_env.learning.experiment import Experiment
    from rlhf_env.toml_files import naming_lines, read_toml

    if "agents" not in read_toml(file):
        experiment = Experiment.load(file)
        with naming_lines(file):
            build_parts(experiment)
        return
    grid = Grid.load(file)
    with naming_lines(file):
        # Building one cell of each row finds what reading alone cannot: models, plugins, settings.
        cells = [cell for cell in grid.cells() if cell.seed == 0]
    maker_of_reward_model(grid, Path(), file, make_console())
    whole = [cell for cell in cells if REWARD_MODEL not in cell.experiment.to_toml()]
    if len(whole) < len(cells):
        typer.echo("not checked: cells with the reward model that `rlhf-env bench` makes first")
    problems: dict[str, None] = {}
    for cell in whole:
        try:
            with naming_lines(file), grid.blamed(cell.task, cell.agent):
                build_parts(cell.experiment)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(*problems)
