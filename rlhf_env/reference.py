"""The reference page: every setting of every file and of every plugin, as each declares it, in Markdown.

rlhf-env plugins --markdown > docs/settings.md
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from rlhf_env.declared import Setting, declaration, nested, plain, settings_of
from rlhf_env.errors import MissingExtra, PluginError
from rlhf_env.plugins import Entry, plural
from rlhf_env.schema import of_every_reward
from rlhf_env.settings import Target, limits, settings_class_of, spoken

_A: Mapping[str, str] = {
    "agent": "an agent",
    "reward": "a reward",
    "task": "a task",
    "annotator": "an annotator",
    "tracker": "a tracker",
    "metric": "a metric",
    "stopping rule": "a stopping rule",
    "token loss": "a token loss",
    "pair loss": "a loss of pairs",
    "judgement": "a kind of judgement",
}
_HEAD = """\
# Settings

Every setting of every file, and of every plugin that comes with the library. `rlhf-env plugins --markdown` writes this
page from the same declarations that check a file, so that what is said here is what is checked; with plugins of your
own installed, it has theirs too. `rlhf-env plugins NAME` says the same of one, and `rlhf-env schema` makes the JSON
schema with which editors complete files. A relative path in a file is relative to that file.
"""


def settings_page(files: Mapping[str, type], entries: Iterable[Entry]) -> str:
    """The page. `files`: titles, and what is made of a file of that kind; `entries`: the plugins, sorted by kind."""
    parts = [_HEAD]
    for title, cls in files.items():
        parts.append("\n".join([f"## {title}", "", _one_paragraph(cls.__doc__ or ""), "", *_of_file(cls)]))
    for kind, group in itertools.groupby(entries, key=lambda entry: entry.kind):
        parts.append(f"## {plural(kind).capitalize()}")
        if kind == "reward":
            parts.append("\n".join(["Of every reward's table:", "", *_table(list(nested(of_every_reward())))]))
        parts += [section(entry) for entry in group]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def plugin_page(entry: Entry, logged: Sequence[tuple[str, str]] = (), shown: str = "") -> str:
    """A page about one plugin: what its module and its class say, an example, its settings, and what it logs.

    `logged`: keys and meanings of the numbers that are its own. `shown`: a section in Markdown, such as its curve, for
    the place before the example.
    """
    title = f"# {entry.name}: {_A[entry.kind]}"
    try:
        told = declaration(entry)
    except (MissingExtra, PluginError):
        return f"{title}\n\nNeeds the extra `{entry.needs}`: `pip install 'rlhf-env[{entry.needs}]'`.\n"
    lines = [title, "", _linked(in_markdown(told.header or told.about))]
    if told.header and told.about and told.about not in told.header:
        lines += ["", "## What it gives", "", _linked(in_markdown(told.about))]
    if shown:
        lines += ["", shown]
    lines += ["", "## In a file", "", "```toml", told.example.strip(), "```"]
    if told.settings:
        lines += ["", "## Settings", "", *_table(told.settings)]
        if entry.kind == "reward":
            lines += [
                "",
                "Every reward's table has `weight`, `timeout`, `on_error` and [others](../../settings.md#rewards) too.",
            ]
    if logged:
        lines += ["", "## What it logs", "", "| key | meaning |", "|---|---|"]
        lines += [f"| `{key}` | {meaning.replace('|', chr(92) + '|')} |" for key, meaning in logged]
    if told.papers:
        lines += ["", "## Papers", "", *(f"- {paper}" for paper in told.papers)]
    return "\n".join(lines).rstrip() + "\n"


def _linked(text: str) -> str:
    """Markdown of a page two folders below docs/, in which pages that are named are links."""

    def link(found: re.Match[str]) -> str:
        return f"[{found[0]}](../../{found[1].replace(chr(92), '')})"  # an escaped `_` is one in the address

    return re.sub(r"(?<![\w/])docs/([\w/\\-]+\.md)", link, text)


def in_markdown(text: str) -> str:
    """A docstring as Markdown: what is indented in it is code, its "Args:" a list, and nothing else is markup."""
    blocks = []
    for block in text.split("\n\n"):
        if all(line.startswith("    ") for line in block.splitlines() if line) and block.strip():
            blocks.append(f"```text\n{textwrap.dedent(block).rstrip()}\n```")
        elif block.startswith("Args:\n"):
            arguments = re.sub(r"\n {5,}", " ", block).splitlines()[1:]
            blocks.append("\n".join(re.sub(r"^ *([\w, ]+): ", r"- `\1`: ", line) for line in arguments))
        else:
            blocks.append(_shielded(block))
    return "\n\n".join(blocks)


def _shielded(block: str) -> str:
    """Prose in which no `*`, `_`, `<` or `~` is markup, but for what stands between backticks."""
    pieces = block.split("`")
    return "`".join(
        piece if at % 2 else re.sub(r"([*<~\[\]])|(?<=\w)_(?=\w)|(?<!\w)_", lambda found: "\\" + found[0], piece)
        for at, piece in enumerate(pieces)
    )


def section(entry: Entry) -> str:
    """What one plugin says of itself; where its libraries are not installed, what it needs."""
    title = f"### {entry.name}"
    try:
        told = declaration(entry)
    except (MissingExtra, PluginError):
        needs = f"Needs the extra `{entry.needs}`: `rlhf-env plugins {entry.name}` then says its settings."
        return f"{title}\n\n{needs}"
    lines = [title, "", _one_paragraph(told.about)]
    if told.papers:
        lines += ["", f"Papers: {'; '.join(told.papers)}."]
    if told.settings:
        lines += ["", *_table(told.settings)]
    return "\n".join(lines)


def _of_file(cls: type) -> Iterator[str]:
    """Tables of settings: those that stand at the top of a file, and one for each table in it."""
    settings = settings_of(cls)
    tables = [setting for setting in settings if settings_class_of(setting.hint) is not None]
    yield from _table([setting for setting in settings if setting not in tables])
    for setting in tables:
        cls = cast(type, settings_class_of(setting.hint))
        about = (cls.__doc__ or "").partition("\n\n")[0]
        yield from ("", f"`[{setting.name}]`: {_one_paragraph(setting.meaning or about)}", "")
        inner = nested(settings_of(cast(Target, cls)))
        default = setting.default
        yield from _table([_with_default(each, default) for each in inner])


def _with_default(setting: Setting, outer: object) -> Setting:
    """As the place has it where it stands, which may be other than the class's own."""
    value: object = outer
    for key in setting.name.split("."):
        if not hasattr(value, key):
            return setting
        value = getattr(value, key)
    return dataclasses.replace(setting, default=value)


def _table(settings: Sequence[Setting]) -> Iterator[str]:
    yield "| setting | type | default | meaning |"
    yield "|---|---|---|---|"
    for setting in settings:
        what = ", ".join(word for word in (spoken(setting.hint), limits(setting.hint)) if word)
        value = plain(setting.default)
        default = "required" if setting.required else "" if value is None else f"`{json.dumps(value)}`"
        cells = (f"`{setting.name}`", what, default, setting.meaning)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _one_paragraph(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())
