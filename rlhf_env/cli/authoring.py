"""`rlhf-env new`: the beginning of an experiment or of a plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rlhf_env.cli.shared import PLUGINS, app, examples
from rlhf_env.errors import ConfigError

_EXPERIMENT = "For an experiment"  # the panel of its options


@app.command(
    "new",
    rich_help_panel=PLUGINS,
    epilog=examples(
        "rlhf-env new experiment mine",
        "rlhf-env new experiment mine --model smollm2 --prompts questions.csv",
        "rlhf-env new reward polite",
    ),
)
def new(
    kind: Annotated[
        Literal["experiment", "reward", "task", "agent"],
        typer.Argument(
            help="experiment: a model, prompts and a reward, to train. A plugin: reward, what a text is worth; task, "
            "what is asked, and what the environment replies; agent, how to learn from texts and rewards."
        ),
    ],
    name: Annotated[
        str,
        typer.Argument(
            help="Of an experiment: its folder's name. Of a plugin: what files of settings will call it, which is also "
            "its module: small letters, digits, underscores."
        ),
    ],
    where: Annotated[Path, typer.Option("--in", help="Where the new folder is put.", file_okay=False)] = Path(),
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=_EXPERIMENT,
            help="A model folder, a run, a hub name (default: rlhf-env/chitchat, a small model that comes along).",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_EXPERIMENT,
            help="Your prompts: JSON Lines, CSV or TSV with a column prompt or messages, or a data set (default: a few "
            "are written).",
        ),
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_EXPERIMENT,
            help="An agent that learns from rewards of its own texts (default: grpo).",
        ),
    ] = None,
) -> None:
    """Write an experiment or a plugin to start from, in a new folder. It says at the end what to do next.

    An experiment's folder NAME holds experiment.toml, whose comments say what else may stand there; rewards.py, a
    reward function; prompts, if you name none; grid.toml, which compares agents; and a README with the commands. It
    trains as it is, in less than a minute of processor time:

        rlhf-env new experiment mine

        rlhf-env train mine/experiment.toml

    A plugin's folder rlhf_KIND_NAME holds a complete installable package: a small, real example of its kind whose
    comments say what may be changed and what must hold; tests, which pass; the entry point that makes it known by name
    wherever it is installed; an experiment that trains with it; and a README with the commands:

        rlhf-env new reward polite

        pip install -e "rlhf_reward_polite[test]"

        rlhf-env check reward:polite

    What one experiment alone needs takes no plugin: its file says function = "FILE.py:NAME".
    Whole examples: rlhf_reward_haiku, rlhf_task_countdown and rlhf_agent_single_stream, in examples/.
    """
    if kind == "experiment":
        _new_experiment(name, where, model, prompts, agent)
        return
    given = {"--model": model, "--prompts": prompts, "--agent": agent}
    for option in (option for option, value in given.items() if value is not None):
        raise ConfigError(f"{option} is for an experiment, and this is {_a(kind)}: leave it out")
    from rlhf_env.new_plugins import write_plugin
    from rlhf_env.shown_text import for_terminal

    made = write_plugin(kind, name, where)
    typer.echo(f"{for_terminal(str(made.folder))}: {_a(kind)} to begin with. Its code:")
    typer.echo(f"    {for_terminal(str(made.code))}")
    typer.echo("Install it, and see that it works; then change the code, and see what check and its tests say:")
    for line in made.commands():
        typer.echo(f"    {line}")


def _new_experiment(name: str, where: Path, model: str | None, prompts: str | None, agent: str | None) -> None:
    from rlhf_env.new_experiment import write_experiment
    from rlhf_env.shown_text import for_terminal

    made = write_experiment(name, where, model=model, prompts=prompts, agent=agent or "grpo")
    typer.echo(f"{for_terminal(str(made.folder))}: an experiment to begin with. What it pays for:")
    typer.echo(f"    {for_terminal(str(made.rewards))}")
    for note in made.notes:
        typer.echo(f"Note: {for_terminal(note)}.")
    typer.echo("See that it trains; then change the reward, the prompts, experiment.toml, and see what check says:")
    for line in made.commands():
        typer.echo(f"    {line}")


def _a(kind: str) -> str:
    return f"{'an' if kind == 'agent' else 'a'} {kind}"
