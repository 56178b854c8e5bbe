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

HEADINGS = ("Rank", "Entry", "Spent", "95 % interval", "Reached", "Run again", "Agent")
_NUMBERS = ("Spent", "95 % interval", "Reached")
_NOTE = (
    "Spent: geometric mean over seeds until gold is at the level; a seed that does not reach it counts with twice the "
    "limit. An entry has rank 1 + the number of those that are cheaper outside of the interval of the ratio of costs, "
    "seed by seed, at 95 % for all pairs of the track together: of entries that share a rank, none is shown to be "
    "cheaper. Entries of one name carry the beginning of the sha256 of their file, which rlhf-env submit prints."
)


def write_board(verdicts: Sequence[EntryVerdict], tracks: Mapping[str, Track], out: Path) -> Path:
    """Write board.html, one page without script, which loads nothing; its path."""
    page = html.environment("rlhf_env.lab.board").get_template("board.html.jinja")
    file = out / "board.html"
    sections = [
        (track, [(it, list(zip(HEADINGS, line(it, track), strict=True))) for it in verdicts if it.track == name])
        for name, track in sorted(tracks.items())
    ]
    made = here()
    rendered = page.render(
        style=Markup(html.style()),
        lede=in_short(verdicts),
        headings=HEADINGS,
        numbers=_NUMBERS,
        sections=sections,
        unread=[it for it in verdicts if not it.track],
        note=_NOTE,
        processor=made["processor"],
        versions=", ".join(f"{name} {version}" for name, version in made["versions"].items()),
    )
    write_whole(file, rendered)
    return file


def in_short(verdicts: Sequence[EntryVerdict]) -> str:
    """How many entries there are, and how they stand."""
    counts = {
        "run again and ranked": sum(it.is_ranked for it in verdicts),
        "not run again (no rank)": sum(it.standing == "not run again" for it in verdicts),
        "refused": sum(it.standing == "refused" for it in verdicts),
    }
    said = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
    return f"{len(verdicts)} {'entry' if len(verdicts) == 1 else 'entries'}: {said}."


def board_tables(verdicts: Sequence[EntryVerdict], tracks: Mapping[str, Track]) -> list[Table]:
    """A table for each track; the last says how to read them."""
    from rich.markup import escape
    from rich.table import Table

    found = []
    for name, track in sorted(tracks.items()):
        table = Table(title=track.title, title_justify="left", caption_justify="left")
        for heading in HEADINGS:
            table.add_column(heading, overflow="fold", justify="right" if heading in _NUMBERS else "left")
        for verdict in verdicts:
            if verdict.track == name:
                table.add_row(*(escape(for_terminal(cell)) for cell in line(verdict, track)))
        found.append(table)
    if found:
        found[-1].caption = _NOTE
    return found


def line(verdict: EntryVerdict, track: Track) -> tuple[str, ...]:
    """The cells of a row, as `HEADINGS` has them."""
    rank = "–" if verdict.rank is None else str(verdict.rank)
    spent = interval = reached = "–"
    if verdict.costs is not None:
        cost = typical(verdict.costs)
        spent = f"{_number(cost.value)} {track.unit}" + (" claimed" if verdict.standing == "not run again" else "")
        if cost.low is not None and cost.high is not None:
            interval = f"{_number(cost.low)} to {_number(cost.high)}"
        reached = f"{verdict.reached} of {len(verdict.costs)}"
    return rank, verdict.name, spent, interval, reached, verdict.standing, _agent(verdict)


def _agent(verdict: EntryVerdict) -> str:
    if verdict.entry is None:
        return "–"
    try:
        label = verdict.entry.loaded().agent_label
    except RlhfEnvError:
        return "–"
    return f"{label}, own code" if verdict.entry.sources else label


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
