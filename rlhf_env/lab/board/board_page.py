"""The page of a board, and its table on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from rlhf_env.errors import RlhfEnvError
from rlhf_env.lab.board.costs import typical
from rlhf_env.lab.board.tracks import Track
from rlhf_env.lab.board.verdicts import EntryVerdict, here
from rlhf_env.lab.report import html
from rlhf_env.shown_text import for_terminal
from rlhf_env.whole_files import write_whole

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = ("Rank", "Entry", "Agent", "Spent", "Reached", "Run again")
_NOTE = (
    "Spent: geometric mean over seeds until gold is at the level, with its 95 % interval; a seed that does not reach "
    "it counts with twice the limit. An entry has rank 1 + the number of those that are cheaper outside of the "
    "interval of the ratio, seed by seed, at 95 % for all pairs of the track together: entries of one rank "
    "cannot be told apart."
)


def write_board(verdicts: Sequence[EntryVerdict], tracks: Mapping[str, Track], out: Path) -> Path:
    """Write board.html, one page without script, which loads nothing; its path."""
    page = html.environment("rlhf_env.lab.board").get_template("board.html.jinja")
    file = out / "board.html"
    sections = [
        (track, [(it, line(it, track)) for it in verdicts if it.track == name])
        for name, track in sorted(tracks.items())
    ]
    made = here()
    rendered = page.render(
        style=Markup(html.style()),
        headings=HEADINGS,
        sections=sections,
        unread=[it for it in verdicts if not it.track],
        note=_NOTE,
        processor=made["processor"],
        versions=", ".join(f"{name} {version}" for name, version in made["versions"].items()),
    )
    write_whole(file, rendered)
    return file


def board_tables(verdicts: Sequence[EntryVerdict], tracks: Mapping[str, Track]) -> list[Table]:
    """A table for each track."""
    from rich.markup import escape
    from rich.table import Table

    found = []
    for name, track in sorted(tracks.items()):
        table = Table(title=track.title, caption=_NOTE, title_justify="left", caption_justify="left")
        for heading in HEADINGS:
            table.add_column(heading, overflow="fold")
        for verdict in verdicts:
            if verdict.track == name:
                table.add_row(*(escape(for_terminal(cell)) for cell in line(verdict, track)))
        found.append(table)
    return found


def line(verdict: EntryVerdict, track: Track) -> tuple[str, ...]:
    """The cells of a row, as `HEADINGS` has them."""
    rank = "–" if verdict.rank is None else str(verdict.rank)
    spent = reached = "–"
    if verdict.costs is not None:
        cost = typical(verdict.costs)
        spent = _number(cost.value) if cost.low is None else f"{_number(cost.value)} ({_range(cost.low, cost.high)})"
        spent += f" {track.unit}" + (" (as claimed)" if verdict.standing == "not run again" else "")
        reached = f"{verdict.reached} of {len(verdict.costs)}"
    return rank, verdict.name, _agent(verdict), spent, reached, verdict.standing


def _agent(verdict: EntryVerdict) -> str:
    if verdict.entry is None:
        return "–"
    try:
        label = verdict.entry.loaded().agent_label
    except RlhfEnvError:
        return "–"
    count = len(verdict.entry.sources)
    return f"{label}, own code" if count else label


def _range(low: float, high: float | None) -> str:
    return f"{_number(low)} to {_number(low if high is None else high)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
