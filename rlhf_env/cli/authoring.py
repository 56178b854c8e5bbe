"""`rlhf-env new`: the beginning of a plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from rlhf_env.cli.shared import PLUGINS, app, examples


@app.command("new", rich_help_panel=PLUGINS, epilog=examples("rlhf-env new reward polite"))
def new_plugin(
    kind: Annotated[
        Literal["reward", "task", "agent"],
        typer.Argument(
            help="reward: what a text is worth. task: what is asked, and what the environment replies. agent: how to "
            "learn from texts and rewards."
        ),
    ],
    name: Annotated[
        str,
        typer.Argument(
            help="What files of settings will call it, which is also its module: small letters, digits, underscores."
        ),
    ],
    where: Annotated[Path, typer.Option("--in", help="Where the new folder is put.", file_okay=False)] = Path(),
) -> None:
    """Write a plugin to start from: a complete installable package, in a new folder rlhf_KIND_NAME.

    In it: a small, real example of its kind whose comments say what may be changed and what must hold; tests, which
    pass; the entry point that makes it known by name wherever it is installed; an experiment that trains with it; and
    a README with the commands. It says at the end what to do next:

        rlhf-env new reward polite

        pip install -e "rlhf_reward_polite[test]"

        rlhf-env check reward:polite

    What one experiment alone needs takes no plugin: its file says function = "FILE.py:NAME".
    Whole examples: rlhf_reward_haiku, rlhf_task_countdown and rlhf_agent_single_stream, in examples/.
    """
    from rlhf_env.new_plugins import write_plugin
    from rlhf_env.shown_text import for_terminal

    made = write_plugin(kind, name, where)
    typer.echo(f"{for_terminal(str(made.folder))}: {'an' if kind == 'agent' else 'a'} {kind} to begin with. Its code:")
    typer.echo(f"    {for_terminal(str(made.code))}")
    typer.echo("Install it, and see that it works; then change the code, and see what check and its tests say:")
    for line in made.commands():
        typer.echo(f"    {line}")
