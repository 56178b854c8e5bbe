"""The command line. Every command imports what it needs when it runs, so that `--help` and `plugins` are quick."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, NoReturn, TextIO

import typer

from rlhf_env import __version__
from rlhf_env.cli import (
    annotating,
    authoring,
    benchmarks,
    boards,
    chatting,
    checking,
    collecting,
    exporting,
    importing,
    pipelines,
    preferences,
    reward_models,
    studies,
    training,
    watching,
)
from rlhf_env.cli.shared import (
    FEEDBACK,
    LEARNING,
    Terminated,
    app,
    lab_app,
    preferences_app,
    several_processes,
    signal_of,
)
from rlhf_env.errors import TRACEBACK, ConfigError, RlhfEnvError
from rlhf_env.learning.signals import hangups

GROUPS = (
    annotating,
    authoring,
    benchmarks,
    boards,
    chatting,
    checking,
    collecting,
    importing,
    exporting,
    pipelines,
    preferences,
    reward_models,
    studies,
    training,
    watching,
)  # importing them registers their commands

app.add_typer(preferences_app, name="preferences", rich_help_panel=FEEDBACK)
app.add_typer(lab_app, name="lab", rich_help_panel=LEARNING)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlhf-env {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    no_plugins: Annotated[
        bool,
        typer.Option("--no-plugins", help="Leave other distributions' plugins alone, as with RLHF_ENV_PLUGINS=''."),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    _require_one_process_but_for(context, "train")
    if no_plugins:
        os.environ["RLHF_ENV_PLUGINS"] = ""  # for the processes that a command starts, too


def _require_one_process_but_for(context: typer.Context, command: str) -> None:
    """Raise ConfigError where a launcher has started several processes of another command, in the first of them."""
    from rlhf_env.learning.launched import launched

    rank = os.environ.get("RANK", "0")
    try:
        ranks = launched().size
        if ranks > 1 and context.invoked_subcommand != command:
            raise ConfigError(
                f"WORLD_SIZE is {ranks}, and only `rlhf-env {command}` is one run in several processes; a launcher "
                f"would start {ranks} that do the same work: start rlhf-env alone (--jobs spreads a benchmark's cells)"
            )
    except ConfigError:
        if rank == "0":
            raise
        time.sleep(2.0)  # a launcher ends all when one has ended: the first is to have said why
        raise typer.Exit(2) from None


_THE_DISK_REFUSES = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EIO)
_NO_SUCH_PLACE = (  # what --out may name
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)


def main() -> None:
    """Run a command. Errors become one line per problem on stderr and an exit status."""
    _have_streams()
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    ended_by = int(signal.SIGINT)

    def terminate(number: int, _frame: FrameType | None) -> None:
        nonlocal ended_by
        ended_by = number
        raise Terminated(number)

    for number in (signal.SIGTERM, *hangups()):
        signal.signal(number, terminate)
    sys.excepthook = _traceback
    warnings.showwarning = _warn
    threading.excepthook = _of_a_thread
    sys.unraisablehook = _unraisable
    try:
        status = app(standalone_mode=False)
    except RlhfEnvError as error:
        problems = error.problems if isinstance(error, ConfigError) else (str(error),)
        if os.environ.get(TRACEBACK):
            _write_trace(error)
        _complain(problems, error.exit_code)
    except (KeyboardInterrupt, EOFError, typer.Abort):
        status = 130
    except SystemExit as error:
        if (where := _outside(error)) is None:
            raise
        _complain([f"{where} would end the program (SystemExit: {error}): nothing after it was done"], 1)
    except OSError as error:
        if error.errno in _NO_SUCH_PLACE and error.filename:
            _complain([f"cannot work in {error.filename}: {error.strerror}: name another place"], 2)
        if error.errno not in _THE_DISK_REFUSES:
            raise
        where = f"cannot write {error.filename}" if error.filename else "cannot write"
        from rlhf_env.whole_files import remedy_of

        _complain([f"{where}: {error.strerror}: {remedy_of(error)} (what was whole before still is)"], 3)
    except Exception as error:
        # Typer may bring its own copy of click, so its errors are recognised by their method.
        say: Callable[[], str] | None = getattr(error, "format_message", None)
        if say is None:
            raise
        words = say()  # empty if a group was called without a command: its help was shown
        _complain([_with_the_way_on(words, error)] if words else [], getattr(error, "exit_code", 2))
    if status == 130:  # no run was training, which would have saved itself
        _complain(["stopped"], 128 + ended_by)
    sys.exit(status if isinstance(status, int) else 0)


class _Lasting(io.FileIO):
    """A stream to write into for as long as anybody reads it: what is said of the work ends there, and not the work."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # who read it is gone, or the terminal is
                raise
            with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor of it is all that is needed
                os.dup2(nowhere.fileno(), self.fileno())
            return memoryview(content).nbytes


def _have_streams() -> None:
    """Open those that whoever started this process closed, and let those that are there outlast who reads them.

    A descriptor that is closed would be that of the next file that is opened, and other processes write into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115 - as long as the process
            try:
                os.fstat(number)  # somebody has a file there by now
            except OSError:
                os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)
    for number, name in (1, "stdout"), (2, "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__") and type(stream) is io.TextIOWrapper and stream.fileno() == number:
            stream.flush()
            lasting = io.BufferedWriter(_Lasting(number, "wb", closefd=False))
            # What the encoding of a terminal cannot say, as in LANG=C, is escaped: it is no reason to end.
            made = io.TextIOWrapper(lasting, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)
            made.reconfigure(write_through=stream.write_through)
            setattr(sys, name, made)


def _outside(error: SystemExit) -> str | None:
    """The place in somebody else's code, an agent's, say, that would end the program; None where it is no other's."""
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = (Path(__file__).parents[1], Path(typer.__file__).parent)
    return (
        None if any(Path(last.filename).is_relative_to(it) for it in ours) else f"{last.filename}, line {last.lineno}"
    )


def _with_the_way_on(words: str, error: Exception) -> str:
    """What a command was called wrongly with, then what the missing thing is, and which command explains the rest."""
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    if words.startswith("Missing") and (meaning := getattr(parameter, "help", None)):
        words = f"{words} {meaning.replace(chr(92) + '[', '[')}"
    if context is None:
        return words
    command = context.command_path.removeprefix(context.find_root().command_path)  # however we were started
    return f"{words} (rlhf-env{command} --help says more)"


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings are one line, as errors are; other people's as Python shows them."""
    from rlhf_env.shown_text import for_terminal

    if (several := several_processes()) is not None and not several.is_first:
        return  # the first says it
    stream = file or sys.stderr
    if Path(filename).is_relative_to(Path(__file__).parents[1]):
        print(f"rlhf-env: warning: {for_terminal(str(message))}", file=stream)
    else:
        stream.write(warnings.formatwarning(message, category, filename, lineno, line))


def _of_a_thread(ended: threading.ExceptHookArgs) -> None:
    """What a library's own thread ended with: a disk that refuses is one line here too.

    TensorBoard writes in a thread, and its next row raises the same error where it is told in full.
    """
    from rlhf_env.shown_text import for_terminal

    if isinstance(ended.exc_value, OSError):
        print(f"rlhf-env: warning: in the background: {for_terminal(str(ended.exc_value))}", file=sys.stderr)
    elif ended.exc_value is not None:
        _traceback(ended.exc_type, ended.exc_value, ended.exc_traceback)


def _unraisable(lost: sys.UnraisableHookArgs) -> None:
    """A stop that came while Python cleaned up (in a `__del__`, say), where exceptions are thrown away, comes again."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        again = threading.Timer(0.1, os.kill, [os.getpid(), signal_of(lost.exc_value)])
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(lost)


def _traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Our own bugs keep their traceback, without credentials, because people send it to somebody."""
    from rlhf_env.shown_text import without_secrets

    _write_trace(error.with_traceback(trace))
    if (several := several_processes()) is not None:
        several.speaks([without_secrets(f"{kind.__name__}: {error}")], 1)


def _write_trace(error: BaseException) -> None:
    import traceback

    from rlhf_env.shown_text import without_secrets

    sys.stderr.write(without_secrets("".join(traceback.format_exception(error))))


_LONGEST_LINE = 2_000  # characters of a problem


def _complain(problems: Sequence[str], status: int) -> NoReturn:
    """One line on stderr for each of the first 20 problems, none of them longer than a page."""
    from rlhf_env.shown_text import for_terminal, without_secrets

    lines = [for_terminal(without_secrets(problem)) for problem in problems[:20]]
    lines = [line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + " ..." for line in lines]
    if len(problems) > 20:
        lines.append(f"and {len(problems) - 20} more")
    if (several := several_processes()) is not None:
        for number in (signal.SIGINT, signal.SIGTERM, *hangups()):  # a launcher ends all when one has ended
            signal.signal(number, signal.SIG_IGN)
        if not several.speaks(lines, status):
            sys.exit(status)
    for line in lines:
        print(f"rlhf-env: {line}", file=sys.stderr)
    sys.exit(status)
