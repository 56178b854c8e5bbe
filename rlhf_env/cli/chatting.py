"""`rlhf-env chat`: a conversation in the terminal, or one question a line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_env.cli.shared import LEARNING, Device, TrustCode, WhichCheckpoint, app, examples
from rlhf_env.errors import ConfigError, RlhfEnvError

if TYPE_CHECKING:
    from rlhf_env.lab.chat import Chat, ChatAnswer

_WIDE = 100  # columns of a terminal in which two answers stand side by side


@app.command(
    "chat",
    rich_help_panel=LEARNING,
    epilog=examples("rlhf-env chat rlhf-env/chitchat", "rlhf-env chat runs/ppo --compare --rewards"),
)
def chat_with(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, a shipped model, a hub name.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Of a run: the answer of the model that it began with, beside each.")
    ] = False,
    rewards: Annotated[
        bool, typer.Option("--rewards", help="Of a run: what each part of its reward says of each answer.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Instead of the run's own (of a model: 1).", min=1e-6)
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="The likeliest token, always.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The longest answer, in tokens (default: as the run was trained).", min=1)
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help="A string that ends an answer; may be given several times (default: as the run was trained)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="What the answers are drawn from.", min=0)] = 0,
    system: Annotated[str, typer.Option(help="A system message to begin each conversation with.")] = "",
    checkpoint: WhichCheckpoint = "best",
    trust_code: TrustCode = False,
    device: Device = "auto",
) -> None:
    """Talk to a model. /reset begins a new conversation; /quit, or Ctrl-D, ends; Ctrl-C stops an answer.

    The model reads the conversation in its own chat template; the oldest turns are left out where its context is full.
    A model without a template answers each question by itself. From a pipe, each line is a question.
    """
    from rlhf_env.lab.chat import open_chat
    from rlhf_env.learning.devices import set_threads

    if greedy and temperature is not None:
        raise ConfigError("--greedy takes the likeliest token at any --temperature: give one of them")
    set_threads()
    chat = open_chat(
        model,
        checkpoint=checkpoint,
        rewards=rewards or compare,
        temperature=temperature,
        greedy=greedy,
        max_new_tokens=max_new_tokens,
        system=system,
        seed=seed,
        trust_code=trust_code,
        stop=stop or None,
        device=device,
    )
    if not chat.remembers:
        _note("the model has no chat template: each question is asked by itself, as it is")
    for question in _questions():
        if question == "/quit":
            break
        if question == "/reset":
            chat.forget()
            _note("a new conversation")
            continue
        try:
            _answer(chat, question, compare, rewards)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            _note("stopped; the question is not part of the conversation")
        except RlhfEnvError as error:
            if not sys.stdin.isatty() and not isinstance(error, ConfigError):
                raise
            _note(str(error))


def _questions() -> Iterator[str]:
    """Lines without blank ones, until the input ends."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - input() edits lines, and has a history
    while True:
        try:
            line = input("> ") if sys.stdin.isatty() else sys.stdin.readline()
        except EOFError:
            typer.echo("")
            return
        if not sys.stdin.isatty() and not line:
            return
        if question := line.strip():
            yield question


def _answer(chat: Chat, question: str, compare: bool, rewards: bool) -> None:
    import shutil

    wide = sys.stdout.isatty() and shutil.get_terminal_size().columns >= _WIDE
    if compare and wide:
        answer = chat.ask(question, _nothing)
        _side_by_side(answer, chat.beside(answer, _nothing))
    else:
        answer = chat.ask(question, _saying("trained: " if compare else ""))
        typer.echo("")
        if compare:
            chat.beside(answer, _saying("reference: "))
            typer.echo("")
    if answer.left_out:
        turns = "turn" if answer.left_out == 1 else f"{answer.left_out} turns"
        _note(f"the oldest {turns} did not fit the model's context any more, and were left out")
    if rewards:
        typer.echo(_rewards(chat, answer))


def _saying(label: str) -> Callable[[str], None]:
    """What shows the pieces of an answer, the label before the first of them."""
    from rlhf_env.shown_text import for_stream

    begun = False

    def say(piece: str) -> None:
        nonlocal begun
        sys.stdout.write(for_stream(piece) if begun else label + for_stream(piece))
        sys.stdout.flush()
        begun = True

    return say


def _nothing(_piece: str) -> None:
    """Both answers are shown when both are there."""


def _side_by_side(ours: ChatAnswer, theirs: ChatAnswer) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rlhf_env.shown_text import for_stream

    table = Table("trained", "reference", expand=True)
    table.add_row(*(escape(for_stream(answer.text)) for answer in (ours, theirs)))
    Console(emoji=False, highlight=False).print(table)


def _rewards(chat: Chat, answer: ChatAnswer) -> str:
    from rlhf_env.shown_text import for_terminal

    parts = chat.rewards_of(answer)
    known = [part for part in parts if part.value is not None]
    total = sum(part.weight * part.value for part in known if part.value is not None)
    words = ", ".join(f"{part.name} {part.value:.4g} (x {part.weight:g})" for part in known)
    silent = "; ".join(f"{part.name}: {part.why_not}" for part in parts if part.value is None)
    said = (
        f"reward {total:.4g} = {words}" if known else "no reward" if silent else "the run was trained without a reward"
    )
    return for_terminal(said + (f"; not available: {silent}" if silent else ""))


def _note(text: str) -> None:
    from rlhf_env.shown_text import for_terminal

    typer.echo(f"[{for_terminal(text)}]", err=True)
