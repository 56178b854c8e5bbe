"""`rlhf-env annotate`, what people are asked there, and what becomes of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf_env.cli.shared import (
    FEEDBACK,
    AsJson,
    StoreFile,
    app,
    echo_json,
    examples,
    interruptible,
    open_store,
    preferences_app,
    progress_line,
    say_next,
    to_be_judged,
)
from rlhf_env.errors import UnknownName

if TYPE_CHECKING:
    from rlhf_env.feedback.store.items import Origin


@app.command(
    rich_help_panel=FEEDBACK, epilog=examples("rlhf-env annotate --store prefs.sqlite --guidelines guidelines.md")
)
def annotate(
    store: Annotated[Path, typer.Option(help="The preference store, an SQLite file with items to judge.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes a free one.", min=0, max=65535)] = 8765,
    remote: Annotated[
        bool, typer.Option("--remote", help="Allow a HOST that other machines reach: unencrypted.")
    ] = False,
    name: Annotated[list[str] | None, typer.Option(help="A host name by which other machines reach the page.")] = None,
    lease: Annotated[float, typer.Option(help="Minutes for which an item is kept for whoever sees it.")] = 10.0,
    guidelines: Annotated[
        Path | None, typer.Option(help="A Markdown file that the page shows to whoever judges.", show_default=False)
    ] = None,
    strength: Annotated[
        bool, typer.Option("--strength", help="Ask how much better: slightly, better, much (a margin of 1, 2, 3).")
    ] = False,
) -> None:
    """Open a local web page on which people judge responses. Ctrl-C ends it; the same command resumes.

    Votes are saved in the store at once. What is to be judged comes from `preferences ask`, `evaluate`, `verify` or
    `controls`. The command prints two links: one for annotators, and one with results and agreement, which annotators
    should not open before everything is judged.
    """
    from rlhf_env.feedback.page.server import PageConfig, serve

    config = PageConfig(
        store=store,
        host=host,
        port=port,
        remote=remote,
        names=tuple(name or ()),
        lease=60 * lease,
        guidelines=guidelines,
        strength=strength,
    )
    with open_store(store) as opened:
        typer.echo(progress_line(opened.progress()))
    with interruptible():
        try:
            serve(config, _announce)
        except KeyboardInterrupt:
            _say_how_far(store)
            raise


def _say_how_far(store: Path) -> None:
    """When the page ends: whether anything is left to judge, and what the votes are good for."""
    with open_store(store) as opened:
        progress = opened.progress()
    typer.echo(progress_line(progress))
    if progress.votes:
        name = shlex.quote(str(store))
        say_next(f"reward-model {name} --base MODEL --out FOLDER", "learns from these votes; or, of models compared:")
        say_next(f"preferences tournament {name}", "who writes better")


def _announce(judge: str, results: str) -> None:
    typer.echo(f"Open {judge}\nThe link is the key: whoever has it may judge.")
    typer.echo(f"Results, for whoever does not judge: {results}")
    typer.echo("Ctrl-C ends the page; votes are saved as they are given.")


@preferences_app.command(
    "ask",
    epilog=examples(
        "rlhf-env preferences ask prefs.sqlite --overlap 2",
        "rlhf-env preferences ask prefs.sqlite --kind rating --to Ann",
    ),
)
def ask_for_judgements(
    store: StoreFile,
    kind: Annotated[
        str, typer.Option(help="comparison, rating, ranking, criteria, or a plugin's kind.")
    ] = "comparison",
    overlap: Annotated[int, typer.Option(help="How many people judge each.", min=1)] = 1,
    per_prompt: Annotated[int, typer.Option(help="Items of each prompt, 0 for all there are.", min=0)] = 1,
    size: Annotated[int, typer.Option(help="Responses in one ranking, or other item of any number.", min=2)] = 4,
    criterion: Annotated[str, typer.Option(help="What to judge by.")] = "overall",
    criteria: Annotated[str, typer.Option(help="Of the kind criteria: their names, with commas.")] = "",
    repeat: Annotated[int, typer.Option(help="1, 2, ... asks the same people again.", min=0)] = 0,
    to: Annotated[
        list[str] | None, typer.Option(help="A person whom alone they are put before; may be given several times.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the items and the order they are shown in.", min=0)] = 0,
) -> None:
    """Queue responses of a store for people to judge with `rlhf-env annotate`.

    Names are those that people enter on the page: a label, and no password. An item that is asked for again keeps its
    settings, and is for those named now, too.
    """
    import numpy as np

    from rlhf_env.feedback.asking.collecting import items_of
    from rlhf_env.feedback.kinds import asked_kind_names
    from rlhf_env.shown_text import for_terminal

    if kind not in asked_kind_names():
        raise UnknownName("kind of judgement", kind, asked_kind_names())
    names = tuple(name.strip() for name in criteria.split(",") if name.strip())
    with open_store(store) as opened:
        settings = {"overlap": overlap, "criterion": criterion, "criteria": names, "repeat": repeat, "seed": seed}
        rng = np.random.default_rng(seed)
        items = items_of(opened.responses(), kind, rng, per_prompt=per_prompt or None, size=size, **settings)
        people = tuple(person.strip() for person in to or ())  # as the page takes a name
        opened.add_items(items, to=people)
        whom = f", of {', '.join(map(for_terminal, people))} alone" if people else ""
        typer.echo(f"{len(items):,} items asked for{whom}; {progress_line(opened.progress())}")
    to_be_judged(store)


@preferences_app.command("controls", epilog=examples("rlhf-env preferences controls prefs.sqlite known.csv"))
def add_control_questions(
    store: StoreFile,
    file: Annotated[Path, typer.Argument(help="Judgements whose answers are known: any file that `import` reads.")],
) -> None:
    """Add control questions: items with known answers, which look like all others. One item in ten is one.

    Everybody is asked, in the order of FILE. `preferences agreement` says how often each person is right. The votes on
    them are counted nowhere else, and teach no reward model. FILE may have the columns prompt, chosen and rejected; a
    score counts as right within one step.
    """
    from rlhf_env.feedback.interchange import read_judgements

    known = read_judgements(file)
    with open_store(store) as opened:
        before = len(opened.controls())
        opened.add_controls(known)
        count = len(opened.controls())
        typer.echo(
            f"{count - before:,} control questions are new, {count:,} in all; {progress_line(opened.progress())}"
        )


@preferences_app.command("comments", epilog=examples("rlhf-env preferences comments prefs.sqlite --flagged"))
def show_comments(
    store: StoreFile,
    flagged: Annotated[bool, typer.Option("--flagged", help="Only what somebody flagged.")] = False,
) -> None:
    """Print the comments that annotators wrote with their judgements, and what they flagged."""
    from itertools import chain

    from rlhf_env.feedback.page.shown import verdict_in_words
    from rlhf_env.shown_text import for_terminal

    found = 0
    with open_store(store) as opened:
        for item, vote in chain(opened.votes(), opened.control_votes()):
            note, flag = getattr(vote, "note", ""), getattr(vote, "flag", False)
            if not flag and (flagged or not note):
                continue
            found += 1
            where = "from a file" if item is None else f"item {item}"
            said = f"{for_terminal(vote.annotator)}, {where}: {for_terminal(verdict_in_words(vote))}"
            typer.echo(said + (" [flagged]" if flag else ""))
            typer.echo(f"  prompt: {for_terminal(vote.prompt.text)[:100]}")
            if note:
                typer.echo(f"  {for_terminal(note)}")
    if not found:
        typer.echo("nothing is flagged" if flagged else "no comments, and nothing is flagged")


@preferences_app.command("agreement", epilog=examples("rlhf-env preferences agreement prefs.sqlite"))
def show_agreement(
    store: StoreFile,
    seed: Annotated[int, typer.Option(help="Seed of the intervals.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Print how far annotators agree with each other and with themselves, with 95 % bootstrap intervals.

    Then how often each of them gave the answer that is known (`preferences controls`), with Wilson's 95 % intervals.
    """
    import numpy as np

    from rlhf_env.feedback.asking.agreement import agreement_of
    from rlhf_env.feedback.asking.controls import control_scores
    from rlhf_env.shown_text import for_terminal

    with open_store(store) as opened:
        agreements = agreement_of(opened.judgements(), np.random.default_rng(seed))
        origins = opened.origins()
        scores = control_scores(opened)
    if as_json:
        echo_json({"agreements": agreements, "controls": scores})
        return
    for agreement in agreements:
        typer.echo(
            f"{agreement.kind} by {for_terminal(agreement.criterion)}: {agreement.judgements:,} judgements of "
            f"{_annotators(len(agreement.annotators))}, {agreement.units:,} judged by two or more"
            f"{_who(agreement.annotators, origins)}"
        )
        known = {
            name.replace("_", " "): str(getattr(agreement, name))
            for name in ("agreement", "alpha", "fleiss", "cohen", "self_consistency", "seconds")
        }
        if agreement.units == 0 and set(known.values()) == {"-"}:
            typer.echo("  agreement is measured where two annotators judge the same: --overlap 2 asks for it")
            continue
        for name, value in known.items():
            typer.echo(f"  {name:17} {value}")
    if scores:
        typer.echo("control questions, by annotator:")
    for score in scores:
        typer.echo(f"  {for_terminal(score.annotator)}: {score}")
    if not agreements and not scores:
        typer.echo("no judgements yet")


def _annotators(count: int) -> str:
    return "1 annotator" if count == 1 else f"{count:,} annotators"


def _who(annotators: Sequence[str], origins: Mapping[str, Origin]) -> str:
    """How many of them are known to be no people, or of whom only a file speaks."""
    words = {"simulated": "simulated", "file": "known from files alone"}
    counts = {word: sum(origins.get(name) == origin for name in annotators) for origin, word in words.items()}
    said = ", ".join(f"{count:,} {word}" for word, count in counts.items() if count)
    return f" ({said})" if said else ""
