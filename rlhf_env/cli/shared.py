"""What the groups of commands share: the applications, options, signals, progress."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

if TYPE_CHECKING:
    from rich.console import Console


class Verbatim(TyperGroup):
    """Commands whose help shows square brackets as they are written: [rewards] is a table, and no markup for rich."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.help = _verbatim(self.help)
        for command in self.commands.values():
            if isinstance(command, TyperCommand):  # a group has seen to itself
                command.help = _verbatim(command.help)
                for parameter in command.params:
                    if isinstance(parameter, (TyperArgument, TyperOption)):
                        parameter.help = _verbatim(parameter.help)


def _verbatim(text: str | None) -> str | None:
    """As `rich.markup.escape` has it, without loading rich for commands that print no help."""
    return None if text is None else re.sub(r"\[(?=[a-z#/@])", r"\\[", text)


app = typer.Typer(
    name="rlhf-env",
    cls=Verbatim,
    help="Text generation as a Gymnasium environment, rewards and RLHF agents as plugins, and a laboratory.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

pipeline_app = typer.Typer(cls=Verbatim, no_args_is_help=True, help="Single stages of the RLHF pipeline.")
lab_app = typer.Typer(
    cls=Verbatim, no_args_is_help=True, help="Studies: sums over everything, labels, over-optimisation."
)
preferences_app = typer.Typer(
    cls=Verbatim, no_args_is_help=True, help="Preference stores: what people and annotators say."
)
# Panels of `rlhf-env --help`.
LEARNING, FEEDBACK, PLUGINS = "Train and compare", "Preferences and reward models", "Plugins"
Jobs = Annotated[int, typer.Option(help="Processes to run cells in.", min=1)]

Threads = Annotated[
    int | None, typer.Option(help="Threads for tensor work in each process (default 1).", min=1, max=1024)
]


def threads_everywhere(threads: int | None) -> None:
    """What `set_threads` goes by, in this process and in those it starts."""
    if threads is not None:
        os.environ["RLHF_ENV_THREADS"] = str(threads)


class Terminated(KeyboardInterrupt):
    """SIGTERM: it stops what Ctrl-C stops, at the same places."""


@contextmanager
def interruptible(run: Path | None = None) -> Iterator[None]:
    """Ctrl-C or SIGTERM in work that is kept piece by piece: say with which command it goes on.

    The same one; with --resume where it trains in the folder `run`. Before there is anything in it, nothing is said.
    """
    from rlhf_env.learning.signals import Interrupted

    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        if run is not None and not (run / "experiment.toml").exists():
            raise
        said = f"{stop}" if isinstance(stop, Interrupted) else "stopped, what is done is saved"
        words = ["rlhf-env", *sys.argv[1:]]
        if run is not None and "--resume" not in words:
            words.append("--resume")
        raise Interrupted(signal_of(stop), f"{said}; go on with: {shlex.join(words)}") from stop


def signal_of(stop: BaseException) -> int:
    code: int | None = getattr(stop, "exit_code", None)
    if code is not None:
        return code - 128
    return signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT


@contextmanager
def stage_on_stderr(title: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr: what a command says stays clean on stdout."""
    from rich.console import Console

    from rlhf_env.lab.progress import stage

    with stage(Console(stderr=True), title) as tell:
        yield tell


def make_console() -> Console:
    from rich.console import Console

    # A pipe has no width of its own, and 80 columns would cut the table short.
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 110)
