"""`rlhf-env watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlhf_env.cli.shared import LEARNING, Terminated, app, examples


@app.command(rich_help_panel=LEARNING, epilog=examples("rlhf-env watch runs/grpo"))
def watch(
    folder: Annotated[Path, typer.Argument(help="A run folder of rlhf-env train, or a benchmark folder.")],
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8766,
) -> None:
    """Watch a run or a grid in the browser, while it trains and afterwards: a local page. Ctrl-C ends it.

    Of a run: curves of reward, parts, KL and everything else that is logged, warnings, and the texts that it kept - to
    be sorted and searched, the same prompt over time, each token coloured by its reward, its log-ratio to the reference
    or its advantage. Of a grid: its cells, each with the way to its run. The page reads and never writes; the run goes
    on whether it is open or not. Only this machine reaches it: from another one, ssh -L 8766:127.0.0.1:8766.

    The table [texts] of an experiment says which texts a run keeps.
    """
    from rlhf_env.lab.watching.page import serve_watch

    try:
        serve_watch(folder, port=port, announce=_announce)
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):
            raise
        typer.echo("\nThe page is closed; what it showed is untouched.")


def _announce(link: str) -> None:
    typer.echo(f"Open {link}\nThe link is the key. Ctrl-C ends the page, not the run.")
