"""Shared by all groups of commands: the applications, options, signals, progress."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf_env.feedback.store.items import VoteProgress
    from rlhf_env.feedback.store.store import PreferenceStore
    from rlhf_env.learning.processes import Processes


class Verbatim(TyperGroup):
    """Commands whose help shows square brackets: [rewards] is a TOML table, not markup of rich.

    Paragraphs fill the terminal's width whatever the source's is, and an option that takes no value shows none.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.help = _verbatim(self.help)
        for command in self.commands.values():
            if isinstance(command, TyperCommand):  # a group has done this for its own commands
                command.help = _flowing(_verbatim(command.help))
                for parameter in command.params:
                    if isinstance(parameter, (TyperArgument, TyperOption)):
                        parameter.help = _verbatim(parameter.help)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _say_types_in_short(command.get_params(ctx), ctx)
        return command

    def get_params(self, ctx: Any) -> list[Any]:
        parameters = super().get_params(ctx)
        _say_types_in_short(parameters, ctx)
        return parameters


_SHORT_TYPES = {"int": "N", "float": "X", "str": "TEXT", "path": "PATH", "dir": "DIR", "file": "FILE"}
_LONGEST_CHOICES = 16  # characters on one line


def _say_types_in_short(parameters: Iterable[object], ctx: Any) -> None:
    """`N>=1` for Typer's `<int range> [x>=1]`, which takes a third of a line of 80 columns; nothing beside a flag."""
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.metavar is None:
            parameter.metavar = "" if parameter.is_flag else _short_type(parameter, ctx)
            parameter.min = parameter.max = None  # of the help alone, which would say them again
        elif isinstance(parameter, TyperArgument) and parameter.metavar is None:  # which would change its name
            vars(parameter)["display_type_rich"] = partial(_short_type, parameter)


def _short_type(parameter: TyperArgument | TyperOption, ctx: Any) -> str:
    said = parameter.display_type(ctx).strip("<>")
    many = "..." if said.startswith("list[") else ""
    said = said.removeprefix("list[").removesuffix("]").removesuffix(" range")
    if "|" in said:
        return (said if len(said) <= _LONGEST_CHOICES else said.replace("|", "|\n")) + many
    kind = _SHORT_TYPES.get(said.lower(), said.upper())
    low, high = parameter.min, parameter.max
    if low is not None and high is not None:
        return f"{low}..{high}{many}"
    return f"{kind}{'' if low is None else f'>={low}'}{'' if high is None else f'<={high}'}{many}"


class InOrderOfUse(Verbatim):
    """The first commands that somebody needs stand first, and not those whose module comes first by name."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))


_FIRST = (
    *("demo", "train", "evaluate", "watch", "bench", "report", "pipeline", "chat", "export"),
    *("annotate", "preferences"),
)


def _verbatim(text: str | None) -> str | None:
    """The same as `rich.markup.escape`, without loading rich for commands that print no help."""
    return None if text is None else re.sub(r"\[(?=[a-z#/@])", r"\\[", text)


def _flowing(text: str | None) -> str | None:
    """Each paragraph as one line; a line of a list or of a command, which begins with "- " or a space, stays one."""
    return None if text is None else re.sub(r"(?<!\n)\n(?![-\s])", " ", inspect.cleandoc(text))


def examples(*lines: str) -> str:
    """The end of a command's help: commands that can be typed as they are, one to a line."""
    return "\n  ".join(("Example:" if len(lines) == 1 else "Examples:", *lines))


app = typer.Typer(
    name="rlhf-env",
    cls=InOrderOfUse,
    help="Text generation as a Gymnasium environment, rewards and RLHF agents as plugins, and a laboratory.",
    epilog="Start with: rlhf-env demo (minutes, offline). Help and examples of a command: rlhf-env COMMAND --help.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

lab_app = typer.Typer(
    cls=Verbatim,
    no_args_is_help=True,
    help="Studies of RLHF: exact gradients, over-optimisation, claims of papers, other libraries' losses.",
)
preferences_app = typer.Typer(
    cls=Verbatim,
    no_args_is_help=True,
    help="Preference stores: import, collect, inspect and export judgements.",
)
# Panels of `rlhf-env --help`.
LEARNING, FEEDBACK, PLUGINS = "Train and compare", "Preferences and reward models", "Plugins"
AsJson = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
StoreFile = Annotated[Path, typer.Argument(help="The preference store, an SQLite file.")]
Jobs = Annotated[int | None, typer.Option(help="How many runs to train at a time (default 2).", min=1)]
_RAY = "Ray"  # the panel of the options for a cluster
WhichBackend = Annotated[
    Literal["local", "ray"],
    typer.Option(
        "--backend", rich_help_panel=_RAY, help="Where runs are trained: on this machine, or on a Ray cluster."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        rich_help_panel=_RAY,
        help="The head of the cluster that `ray start --head` started; auto (the default): the one that this machine "
        "belongs to, or RAY_ADDRESS; local: one of this machine alone.",
    ),
]
CpusPerRun = Annotated[
    float | None, typer.Option(rich_help_panel=_RAY, help="Cores that a run takes (default: its --threads, or 1).")
]
GpusPerRun = Annotated[
    float | None, typer.Option(rich_help_panel=_RAY, help="GPUs that a run takes (default 0); 0.5: two runs share one.")
]
MemoryPerRun = Annotated[
    float | None, typer.Option(rich_help_panel=_RAY, help="GiB of memory that a run takes (default: not counted).")
]

WhatOfOverLong = Annotated[
    Literal["refuse", "leave out", "cut left", "cut right", "cut middle"],
    typer.Option(
        help="Texts that the model cannot read whole: refused by file and line, left out, or cut - prompts at their "
        "beginning (left), end or middle, answers only where that is not enough, at their end. They are counted."
    ),
]
WhichCheckpoint = Annotated[
    Literal["best", "last"],
    typer.Option(
        "--checkpoint",
        help="The agent at its best evaluation during training (with [evaluation] every; by [evaluation] best), "
        "or at the end.",
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run the code that the run's experiment names (function = ...), though nothing shows that you made the "
        "run on this machine, or though the code changed since.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Where models compute: cpu, cuda, cuda:N, mps; auto: a CUDA GPU if there is one, else cpu.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="Threads for tensor work in each process (default 1).", min=1, max=1024)
]


def echo_json(value: object) -> None:
    """Print it for programs: dataclasses as tables of their fields, and null for what is not known (NaN)."""
    from rlhf_env.plain_data import strict_json

    typer.echo(strict_json(value))


def threads_everywhere(threads: int | None) -> None:
    """Set the default of `set_threads`, in this process and in those it starts."""
    if threads is not None:
        os.environ["RLHF_ENV_THREADS"] = str(threads)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which stop work in the same way as Ctrl-C; `exit_code` as shells expect it."""

    def __init__(self, number: int) -> None:
        self.exit_code = 128 + number
        super().__init__()


@contextmanager
def interruptible(run: Path | None = None) -> Iterator[None]:
    """On Ctrl-C, SIGTERM or SIGHUP, print the command that resumes the work.

    It is the command that ran, with --resume if it trains in the folder `run`. If that folder has nothing to resume
    yet, no command is printed.
    """
    from rlhf_env.learning.signals import Interrupted

    try:
        yield
    except (KeyboardInterrupt, Interrupted) as stop:
        if run is not None and not (run / "experiment.toml").exists():
            raise
        reason = f"{stop}" if isinstance(stop, Interrupted) else "stopped, what is done is saved"
        if several_processes():
            raise Interrupted(
                signal_of(stop), f"{reason}; resume with the same command and --resume, in any number of processes"
            ) from stop
        words = ["rlhf-env", *sys.argv[1:]]
        if run is not None and "--resume" not in words:
            words.append("--resume")
        raise Interrupted(signal_of(stop), f"{reason}; resume with: {shlex.join(words)}") from stop


def several_processes() -> Processes | None:
    """Those that a launcher started, once this one has joined them (the command `train` does); None for one alone."""
    loaded = sys.modules.get("rlhf_env.learning.processes")  # without torch, nobody has joined anybody
    joined: Processes | None = None if loaded is None else loaded.current()
    return None if joined is None or joined.size == 1 else joined


def signal_of(stop: BaseException) -> int:
    code: int | None = getattr(stop, "exit_code", None)
    if code is not None:
        return code - 128
    return signal.SIGINT


@contextmanager
def stage_on_stderr(title: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, so that stdout has the command's results only."""
    from rich.console import Console

    from rlhf_env.lab.progress import stage

    with stage(Console(stderr=True, emoji=False), title) as tell:
        yield tell


def make_console() -> Console:
    from rich.console import Console

    # A pipe has no width of its own, and 80 columns would cut the table short.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 110
    return Console(width=width, emoji=False)  # what people write between colons is theirs


@contextmanager
def open_store(file: Path) -> Iterator[PreferenceStore]:
    """A store that is there: reading must not make one."""
    from rlhf_env.errors import ConfigError
    from rlhf_env.feedback.store.store import PreferenceStore

    if not file.is_file():
        raise ConfigError(f"preference store {file}: there is no such file (import or responses make one)")
    with PreferenceStore(file) as store:
        yield store


def say_next(command: str, what_for: str) -> None:
    """The step that usually follows, on a line that scripts which read the first one do not see."""
    typer.echo(f"Next: rlhf-env {command}    # {what_for}", err=True)


def to_be_judged(store: Path) -> None:
    """Where people judge what was just asked for."""
    say_next(f"annotate --store {shlex.quote(str(store))}", "people judge, on a local page; Ctrl-C ends it")


def progress_line(progress: VoteProgress) -> str:
    return (
        f"{progress.votes:,} of {progress.wanted:,} votes on {progress.items:,} items, {progress.complete:,} complete"
    )
