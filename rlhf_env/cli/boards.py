"""`rlhf-env submit` and `rlhf-env board`."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from rlhf_env.cli.shared import LEARNING, Jobs, app, examples, interruptible, make_console
from rlhf_env.errors import ConfigError


@app.command(
    rich_help_panel=LEARNING, epilog=examples("rlhf-env submit runs/s0 runs/s1 runs/s2 --track TRACK --name my-agent")
)
def submit(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="The run folders: one for each seed of the track.")
    ],
    track: Annotated[str, typer.Option(help="The track: rlhf-env board --tracks lists them.")],
    name: Annotated[str, typer.Option(help="What the entry is called on the board.")],
    out: Annotated[Path | None, typer.Option(help="The file (default: NAME.entry.json).")] = None,
) -> None:
    """Pack runs of a board's track into one file that others can check, run again and rank.

    It holds the settings, your own code with the hashes that the runs recorded, the seeds, and every logged number: a
    JSON file to read. Nothing is sent anywhere. What a board would refuse is refused here.

    rlhf-env board --track NAME prints an experiment to begin with.
    """
    from rlhf_env.lab.board.entry import ENTRY_ENDING
    from rlhf_env.lab.board.packing import pack
    from rlhf_env.lab.board.tracks import load_track

    entry = pack(runs, load_track(track), name)
    file = out or Path(f"{name}{ENTRY_ENDING}")
    if not file.name.endswith(ENTRY_ENDING):
        raise ConfigError(f"--out {file}: a board reads files that are named *{ENTRY_ENDING}")
    entry.save(file)
    digest = sha256(file.read_bytes()).hexdigest()
    reached = sum(run.result.reached for run in entry.runs)
    files = f"{len(entry.sources)} file{'s'[: len(entry.sources) != 1]} of code"
    said = f"{len(entry.runs)} seeds, gold reached in {reached}; {files}; sha256 {digest[:8]}"
    make_console().print(f"Entry: {file} ({said})", highlight=False, soft_wrap=True, markup=False)


@app.command(
    rich_help_panel=LEARNING,
    epilog=examples("rlhf-env board --tracks", "rlhf-env board entries --trust --out runs/board"),
)
def board(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="A folder of entries (*.entry.json).")] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Run the entries again, and with them the code of whoever made them, with your rights: read it first "
            "(board.html shows it), or use a machine of its own.",
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only entries of this name, or NAME (HASH) where several share one. May be given several times."
        ),
    ] = None,
    jobs: Jobs = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="How long an entry may take, by the clock; then it is ended and refused.")
    ] = 30.0,
    out: Annotated[Path, typer.Option(help="Where the page goes, and what was run again.")] = Path("runs/board"),
    tracks: Annotated[bool, typer.Option("--tracks", help="List the tracks.")] = False,
    track: Annotated[str | None, typer.Option(help="Print an experiment of this track, to begin with.")] = None,
) -> None:
    """Check entries, run them again, and rank them by what they spent to reach a gold level; writes a page.

    Without --trust no code of an entry runs: hashes, settings and tables are checked, and nothing is ranked. With it,
    each entry is run again, seed by seed: on the same processor family and versions to the same bits, elsewhere to the
    same verdict. Ranks are made of what was measured here, and change outside of intervals only.

    An entry that does not hold is named with the reason, and the status is 2.
    """
    from rlhf_env.lab.board.tracks import load_track, track_names

    if sum([folder is not None, tracks, track is not None]) != 1:
        raise ConfigError("name a folder of entries, or say --tracks, or --track NAME")
    if tracks:
        for name in track_names():
            typer.echo(f"{name:16s} {load_track(name).title}")
        return
    if track is not None:
        typer.echo(load_track(track).to_begin_with(), nl=False)
        return
    assert folder is not None
    _board(folder, out, trust, only or [], 2 if jobs is None else jobs, minutes)


def _board(folder: Path, out: Path, trust: bool, only: list[str], jobs: int, minutes: float) -> None:
    from contextlib import ExitStack

    from rlhf_env.lab.board.board_page import board_tables
    from rlhf_env.lab.board.making import make_board
    from rlhf_env.lab.board.tracks import load_track
    from rlhf_env.lab.progress import job_progress

    console = make_console()
    with interruptible(), ExitStack() as stack:
        made = make_board(
            folder,
            out,
            trust=trust,
            only=only,
            jobs=jobs,
            minutes=minutes,
            on_jobs=lambda work: stack.enter_context(job_progress(console, work, "seeds")),
        )
    shown = {verdict.track: load_track(verdict.track) for verdict in made.verdicts if verdict.track}
    for table in board_tables(made.verdicts, shown):
        console.print(table)
    if not trust and any(verdict.standing == "not run again" for verdict in made.verdicts):
        console.print("Not run again, and so not ranked: read the code on the page, and say --trust.", soft_wrap=True)
    console.print(f"Page: {made.page}", highlight=False, soft_wrap=True, markup=False)
    if refused := made.refused:
        raise ConfigError(*(f"{it.file}: {fault}" for it in refused for fault in it.faults))
