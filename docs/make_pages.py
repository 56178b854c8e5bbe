"""The pages about single plugins and commands, out of what each says of itself:   python docs/make_pages.py

It writes docs/reference/; tests/packaging/test_pages.py says when that is out of date.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["RLHF_ENV_PLUGINS"] = ""  # the built-ins alone

import typer

from rlhf_env.cli.main import app
from rlhf_env.declared import declaration
from rlhf_env.errors import MissingExtra, PluginError
from rlhf_env.lab.evaluation.explained import said_of
from rlhf_env.learning.logged import LOGGED
from rlhf_env.plugins import Entry, host, plural
from rlhf_env.reference import in_markdown, plugin_page

FOLDER = Path(__file__).parent / "reference"
KINDS = ("agent", "reward", "task")


def pages() -> Iterator[tuple[str, str]]:
    """Where each page stands below docs/reference/, and its text."""
    for kind in KINDS:
        entries = sorted((entry for entry in host() if entry.kind == kind), key=lambda entry: entry.name)
        for entry in entries:
            logged = [(number.key, said_of(number, whose=False)) for number in LOGGED if entry.name in number.of]
            yield f"{plural(kind)}/{entry.name}.md", plugin_page(entry, logged if kind == "agent" else ())
        names = "\n".join(f"- [{entry.name}]({entry.name}.md): {_in_a_line(entry)}" for entry in entries)
        toc = "\n".join(entry.name for entry in entries)
        yield (
            f"{plural(kind)}/index.md",
            f"# {plural(kind).capitalize()}\n\n{names}\n\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n",
        )
    yield "commands.md", commands_page()


def _in_a_line(entry: Entry) -> str:
    """The first sentence that a plugin says of itself."""
    try:
        told = declaration(entry)
    except (MissingExtra, PluginError):
        return f"needs the extra `{entry.needs}`"
    # A module has several tasks; of a reward or an agent it says what a stranger has to know before the formula.
    paragraph = " ".join(
        (told.about if entry.kind == "task" else told.header or told.about).partition("\n\n")[0].split()
    )
    return in_markdown(re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0])


def commands_page() -> str:
    """Every command, as its own `--help` says it."""
    parts = [
        "# Commands\n\nExit codes: 0 done; 1 `check` found something; 2 wrong input, one line says what and where; 3 a "
        "run that failed, its last checkpoint untouched; 4 a pipeline that waits for people; 130 and 143 stopped by "
        "Ctrl-C and SIGTERM, with what is done saved.\n\n"
        "`rlhf-env --install-completion` makes the shell complete commands."
    ]
    for words, command in _commands((), typer.main.get_command(app)):
        usage = command.collect_usage_pieces(typer.Context(command))
        parts.append(f"## rlhf-env {' '.join(words)}\n\n{_plain(command.help)}")
        parts.append(f"```text\nrlhf-env {' '.join((*words, *usage))}\n```")
        rows = []
        for parameter in command.params:
            option = parameter.param_type_name == "option"
            name = ", ".join((*parameter.opts, *parameter.secondary_opts)) if option else str(parameter.name).upper()
            if name == "--help":
                continue
            default = parameter.default
            shown = "" if default in (None, False, [], ()) or callable(default) else f" Default: `{default}`."
            rows.append(f"| `{name}` | {_plain(getattr(parameter, 'help', None)).replace('|', chr(92) + '|')}{shown} |")
        if rows:
            parts.append("\n".join(["| | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _plain(text: str | None) -> str:
    """What a terminal shows of a help text: brackets are escaped there, too."""
    return in_markdown((text or "").replace(chr(92) + "[", "["))


def _commands(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Commands with their words, groups entered; groups themselves say nothing that their commands do not."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            if not inner.hidden:
                yield from _commands((*words, name), inner)
    else:
        yield words, command


if __name__ == "__main__":
    written = set()
    for name, text in pages():
        file = FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        written.add(file)
    for file in {*FOLDER.rglob("*.md")} - written:
        file.unlink()
    sys.stdout.write(f"{len(written)} pages in {FOLDER}\n")
