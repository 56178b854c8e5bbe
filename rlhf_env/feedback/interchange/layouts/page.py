"""The page docs/preference-layouts.md, made of what the layouts declare."""

from __future__ import annotations

from rlhf_env.feedback.interchange.layouts.layout import NOT_READ, Layout
from rlhf_env.feedback.interchange.layouts.registry import LAYOUTS

_HEAD = """\
# Layouts of published preference sets

`rlhf-env preferences import STORE FILE` reads these as they are published: JSON lines, JSON, CSV or Parquet, `.gz`
too, or a folder of the `datasets` library. A file's layout is known by the columns of its first row, in any order;
`--layout NAME` names it where they fit several, or where they should be held to one. One file holds one layout: a row
of another one is refused by its line. The same files can be named in an experiment (`preferences = "hh.jsonl"`).

- **Strength** is a judgement's margin: "slightly better" is 1, "better" 2, "much better" 3 where a set has these
  words; where it has numbers, the table says which. A tie and "both bad" are judgements of their own, and no pair is
  made of them.
- **Scores** beyond the scale of 1 to 5 become a comparison of every two responses that one person scored, all of one
  group, which together weigh as much as one comparison.
- **Prompts** of chats are conversations, of one turn or several: a model with a chat template reads them in it. Where a
  set has an instruction, a question or a post and no turns, the prompt is that text.
- **Criteria** are kept by name. `--criterion NAME` takes the judgements by one of them: a reward model of a set with
  two criteria is usually fitted to one at a time.
- **Annotators** are those whom the set names. Where it says of several people no more than that they are several,
  each has a name that is good for one row. Where it says nothing, the file is the annotator, or `--annotator NAME`.
- **Empty** responses are responses. Two equal ones of which one won are refused, as nobody can learn from them.
- **Passed over**, named and counted: what has no place in a judgement. Lines that are wrong are refused, all at once,
  or left out and counted by reason with `--skip`.

This page is made by `rlhf-env preferences layouts --markdown` of what the readers declare. The texts of no set are
part of this project, and no licence is implied: each set has its own. Where a source is "from memory, not checked",
nobody has held that line against the set or its card; corrections are welcome.
"""


def layouts_page() -> str:
    """The whole page, as Markdown."""
    contents = "\n".join(f"| [`{one.name}`](#{one.name}) | {one.sets} |" for one in LAYOUTS)
    table = f"| layout | of |\n| --- | --- |\n{contents}\n"
    return "\n".join([_HEAD, table, *map(_section, LAYOUTS)])


def _section(layout: Layout) -> str:
    known = ", ".join(f"`{name}`" for name in layout.known_by)
    sources = "\n".join(f"- {name}: {where}" for name, where in layout.sources.items())
    rows = [f"| `{one.name}` | {one.becomes or 'nothing'} | {one.source} |" for one in layout.columns]
    read = [row for row, one in zip(rows, layout.columns, strict=True) if one.becomes != NOT_READ]
    rest = ", ".join(f"`{one.name}`" for one in layout.columns if one.becomes == NOT_READ)
    unread = f"\nKnown, and not read: {rest}.\n" if rest else ""
    table = "\n".join(["| column | becomes | source |", "| --- | --- | --- |", *read])
    return f"## {layout.name}\n\n{layout.sets}. Known by {known}.\n\n{table}\n{unread}\n{sources}\n"
