"""What the referee found, as a table of the terminal and as the page docs/referee.md."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf_env.lab.studies.referee.ours import OURS
from rlhf_env.lab.studies.referee.rows import Refereed, RefereeRow

_TOKENS = ("bias", "cos", "noise", "older", "bias", "cos", "noise", "gained", "2nd derivation")
_CAPTION = (
    "85 texts, groups of 2, then 7 texts, groups of 3. bias: |expected - exact| / |exact| gradient; cos: of their "
    "angle; noise: one batch's standard deviation / |exact|; older: cos on texts that the reference wrote; gained: of "
    "what the optimum has over the reference, where the expected gradient leads. 2nd derivation: = agrees with ours to "
    "1e-10; else by how much it differs, and the line below."
)


def referee_tables(found: Refereed) -> RenderableType:
    parts: list[RenderableType] = []
    for kind, title in (("tokens", "Objectives of answers"), ("pairs", "Objectives of pairs")):
        rows = [row for row in found.rows if row.kind == kind]
        if not rows:
            continue
        table = Table(title=title, caption=_CAPTION, title_justify="left", caption_justify="left")
        for heading in ("Objective", "Like our", "KL"):
            table.add_column(heading, overflow="fold")
        for heading in _headings(kind):
            table.add_column(heading, justify="right", no_wrap=True)
        for library in dict.fromkeys(row.maker for row in rows):
            table.add_section()
            for row in (row for row in rows if row.maker == library):
                table.add_row(f"{library}: {row.name}", row.ours, _of_penalty(row), *_cells(row))
        parts += [table, ""]
    flagged = found.flagged
    if flagged:
        parts.append(Text("What makes the difference"))
        for row in flagged:
            parts.append(Text(f"  {row.maker}: {row.name}: {_said(row)}"))
        parts.append("")
    for release in found.releases:
        parts.append(Text(f"{release.name} {release.version}  sha256 {release.sha256}"))
    libraries = len({row.maker for row in found.rows} - {OURS})
    parts.append(
        Text(
            f"{found.theirs} objectives of {libraries} libraries in {found.seconds:.0f} s of processor time; "
            f"{found.theirs - len(flagged)} agree with a second derivation to 1e-10, {len(flagged)} differ"
        )
    )
    return Group(*parts)


def _headings(kind: str) -> list[str]:
    return [heading for heading in _TOKENS if kind == "tokens" or heading != "older"]


def _of_penalty(row: RefereeRow) -> str:
    return {"in reward": "reward", "in loss": "loss", "none": "-"}[row.penalty]


def _cells(row: RefereeRow) -> list[str]:
    large, small = row.large, row.small
    older = [] if large.older is None else [f"{large.older:.2f}"]
    gained = "-" if row.gained is None else f"{100 * row.gained:.1f} %"
    one = [_small(large.bias), f"{large.cosine:.3f}", f"{large.noise:.1f}", *older]
    return [*one, _small(small.bias), f"{small.cosine:.3f}", f"{small.noise:.1f}", gained, _agreement(row)]


def _small(number: float) -> str:
    return "0" if number < 1e-6 else f"{number:.2f}"


def _agreement(row: RefereeRow) -> str:
    if row.apart is None:
        return ""
    return "=" if row.agrees else f"{row.apart:.0e}"


def _said(row: RefereeRow) -> str:
    with_it = "" if row.explained is None else f" With that line in ours: {row.explained:.0e}."
    return f"{row.line}, `{row.source}`: {row.why}.{with_it}"


# ---------------------------------------------------------------- docs/referee.md


def referee_page(found: Refereed) -> str:
    """The page, from the prose beside this file and the rows."""
    prose = files("rlhf_env.lab.studies.referee").joinpath("page.md").read_text(encoding="utf-8")
    made = {
        "RELEASES": "\n".join(f"| {each.name} | {each.version} | `{each.sha256}` |" for each in found.releases),
        "SUMMARY": by_library(found),
        "TOKENS": "\n".join(_markdown(found.rows, "tokens")),
        "PAIRS": "\n".join(_markdown(found.rows, "pairs")),
        "LINES": "\n".join(_lines(found.flagged)),
        "COUNT": str(found.theirs),
        "LIBRARIES": str(len({row.maker for row in found.rows} - {OURS})),
        "AGREE": str(found.theirs - len(found.flagged)),
        "DIFFER": str(len(found.flagged)),
    }
    for name, text in made.items():
        prose = prose.replace(f"<!-- {name} -->", text)
    return prose


def by_library(found: Refereed) -> str:
    """A row for each library, ours last: how many objectives, how many as we derive them, and where they lead."""
    headings = ("Library", "Objectives", "Match our derivation", "Gained, KL in the reward", "Gained, KL in the loss")
    lines = [f"| {' | '.join(headings)} |", "| --- | ---: | ---: | ---: | ---: |"]
    for library in dict.fromkeys(row.maker for row in found.rows):
        rows = [row for row in found.rows if row.maker == library]
        release = next((f" {each.version}" for each in found.releases if each.name == library), "")
        derived = [row for row in rows if row.apart is not None]
        agree = f"{sum(row.agrees for row in derived)} of {len(derived)}" if derived else "-"
        led = [_gained(row for row in rows if row.penalty == penalty) for penalty in ("in reward", "in loss")]
        lines.append(f"| {library}{release} | {len(rows)} | {agree} | {' | '.join(led)} |")
    return "\n".join(lines)


def _gained(rows: Iterable[RefereeRow]) -> str:
    """Of objectives of answers: the median, and the lowest and the highest."""
    shares = [100 * row.gained for row in rows if row.kind == "tokens" and row.gained is not None]
    if not shares:
        return "-"
    return f"{statistics.median(shares):.0f} % ({min(shares):.0f} to {max(shares):.0f})"


def _markdown(rows: Sequence[RefereeRow], kind: str) -> Iterator[str]:
    headings = ["Objective", "Like our", "KL", *_headings(kind)]
    yield f"| {' | '.join(headings)} |"
    yield f"| {' | '.join(['---'] * len(headings))} |"
    for row in rows:
        if row.kind == kind:
            yield f"| {row.maker}: {row.name} | {row.ours} | {_of_penalty(row)} | {' | '.join(_cells(row))} |"


def _lines(rows: Sequence[RefereeRow]) -> Iterator[str]:
    """Objectives with the same line together."""
    told: dict[tuple[str, str, str], list[RefereeRow]] = {}
    for row in rows:
        told.setdefault((row.line, row.source, row.why), []).append(row)
    for (line, source, why), same in told.items():
        names = ", ".join(f"{row.maker}: {row.name}" for row in same)
        explained = [row.explained for row in same if row.explained is not None]
        with_it = f" With that in ours, they agree to {max(explained):.0e}." if explained else ""
        yield f"- {line}, `{source}`: {why}. {with_it.strip()} ({names})"
