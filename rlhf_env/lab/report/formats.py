"""A sheet as Markdown, LaTeX, and in the terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from rich.table import Table
from rich.text import Text

from rlhf_env.lab.benchmark.comparison import Conclusions, conclude
from rlhf_env.lab.benchmark.results import REFERENCE, Results
from rlhf_env.lab.report.sheets import Sheet, Value, caption, columns, lines, sheets
from rlhf_env.shown_text import for_terminal


def markdown_table(results: Results) -> str:
    """The tables for a README or an issue, with their captions."""
    return markdown_tables(sheets(results, conclude(results)), len(results.tasks) > 1)


def markdown_tables(tables: Sequence[Sheet], tasks: bool) -> str:
    titles = [f"**{sheet.title}**\n\n" if len(tables) > 1 else "" for sheet in tables]
    return "\n".join(title + _markdown_sheet(sheet, tasks) for title, sheet in zip(titles, tables, strict=True))


def _markdown_sheet(sheet: Sheet, tasks: bool) -> str:
    table = _plain(sheet, tasks, _markdown, "{} ({})".format)
    names = len(table[0]) - len(sheet.headings)
    table.insert(1, ["---"] * names + ["---:"] * len(sheet.headings))
    rows = ["| " + " | ".join(cells) + " |" for cells in table]
    return "\n".join(rows) + "\n\n" + _markdown(" ".join(sheet.notes)) + "\n"


def latex_table(results: Results) -> str:
    """The tables for a paper: `tabular` environments with the rules of the booktabs package."""
    return latex_tables(sheets(results, conclude(results)), len(results.tasks) > 1)


def latex_tables(tables: Sequence[Sheet], tasks: bool) -> str:
    return "% \\usepackage{booktabs}\n" + "\n".join(_latex_sheet(sheet, tasks) for sheet in tables)


def _latex_sheet(sheet: Sheet, tasks: bool) -> str:
    table = _plain(sheet, tasks, _latex, r"{} {{\footnotesize ({})}}".format)
    names = len(table[0]) - len(sheet.headings)
    head, *body = (" & ".join(cells) + r" \\" for cells in table)
    return "\n".join(
        [
            f"% {sheet.title}",
            rf"\begin{{tabular}}{{{'l' * names}{'r' * len(sheet.headings)}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(f"% {_latex(note)}" for note in sheet.notes),
            "",
        ]
    )


def _plain(
    sheet: Sheet, tasks: bool, escape: Callable[[str], str], with_range: Callable[[str, str], str]
) -> list[list[str]]:
    """The headings and the rows of a sheet as escaped texts, the range beside its number."""
    by_task = (tasks or sheet.by_task) and any(line.task for line in sheet.lines)
    table = [(["Task"] if by_task else []) + ["Agent", *(escape(heading) for heading, _ in sheet.headings)]]
    for line in sheet.lines:
        agent = escape(line.agent) + (f" ({line.note})" if line.note else "")
        values = [with_range(escape(v.mean), escape(v.range)) if v.range else escape(v.mean) for v in line.values]
        table.append(([escape(line.task)] if by_task else []) + [agent, *values])
    return table


def rich_table(results: Results, width: int = 110) -> Table:
    """All measures for a terminal; the range stands below the mean, the verdict below the agent.

    Of `width` columns, that is: measures that would be cut at its edge are left out, and named below the table.
    """
    notes, verdicts = caption(results), _verdicts(conclude(results))
    if verdicts:
        rivals = sorted({rival for rival, _ in verdicts.values()})
        against = "the reference" if rivals == [REFERENCE] else " and ".join(rivals)
        notes.append(f"Better, worse, inconclusive: against {against}; report.html has p-values and intervals.")
    tasks = len(results.tasks) > 1
    named = (2 * (12 + 2)) if tasks else 16 + 2
    shown, left_out = _that_fit(results, width - named)
    if left_out:
        notes.append(f"Left out, this terminal has {width} columns: {', '.join(left_out)}. report.html has them.")
    table = Table(caption=" ".join(notes), caption_justify="left", pad_edge=False, box=None, padding=(0, 1))
    if tasks:
        table.add_column("Task", overflow="fold", max_width=12)
    table.add_column("Agent", overflow="fold", min_width=9, max_width=16 if not tasks else 12)
    for heading in shown.values():
        table.add_column(Text(heading.replace(" ", "\n")), justify="right", no_wrap=True)
    for line in lines(results):
        agent = Text(for_terminal(line.agent), style="dim" if line.control else "bold")
        if (line.task, line.agent) in verdicts:
            agent.append(f"\n{verdicts[line.task, line.agent][1]}", style="not bold dim")
        if line.note:
            agent.append(f"\n{line.note}", style="red")
        cells = [Text(v.mean).append(f"\n{_tight(v.range)}", style="dim") for v in map(line.values.__getitem__, shown)]
        table.add_row(*([Text(for_terminal(line.task))] if tasks else []), agent, *cells)
    return table


def _that_fit(results: Results, width: int) -> tuple[dict[int, str], list[str]]:
    """The measures that `width` columns have room for, place -> heading, and the headings of the others.

    What nobody measured goes first, then from the right.
    """
    rows = lines(results)
    headings = [for_terminal(metric.heading or metric.title) for metric in columns(results, "table")]
    measured = [any(line.values[place].mean != Value().mean for line in rows) for place in range(len(headings))]

    def taken(place: int) -> int:
        cells = [text for line in rows for text in (line.values[place].mean, _tight(line.values[place].range))]
        return 2 + max(map(len, [*headings[place].split(" "), *cells]))

    kept = list(range(len(headings)))
    for place in sorted(kept, key=lambda place: (measured[place], -place)):
        if sum(map(taken, kept)) <= width:
            break
        kept.remove(place)
    gone = [heading for place, heading in enumerate(headings) if place not in kept and measured[place]]
    return {place: headings[place] for place in kept}, gone


def _verdicts(conclusions: Conclusions) -> dict[tuple[str, str], tuple[str, str]]:
    """By task and agent, whom it was compared with - the reference, or without one the best - and the verdict."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for ranking in conclusions.rankings:
        compared = any(REFERENCE in standing.against for standing in ranking.standings)
        rival = REFERENCE if compared else ranking.rival or ""
        for standing in ranking.standings:
            if rival in standing.against:
                found[ranking.task, standing.agent] = rival, standing.against[rival].verdict
    return found


def _tight(range_: str) -> str:
    return range_.replace(" to ", "…")


def _markdown(text: str) -> str:
    """`text` in a Markdown cell, as text."""
    return re.sub(r"([\\`*\[\]|~#])", r"\\\1", for_terminal(text)).replace("&", "&amp;").replace("<", "&lt;")


def _latex(text: str) -> str:
    """`text` as text of LaTeX; signs that its classic engines do not know as the commands for them."""
    return "".join(_LATEX.get(character, character) for character in for_terminal(text))


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "≤": r"$\le$",
    "–": "--",
}
