"""The pages about single plugins, ids and commands, out of what each says of itself:   python docs/make_pages.py

It writes docs/reference/; tests/packaging/test_pages.py says when that is out of date. The agents' curves are drawn of
docs/agent_curves.json, which `python docs/agent_curves.py` makes of a benchmark.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

os.environ["RLHF_ENV_PLUGINS"] = ""  # the built-ins alone

import typer

sys.path.insert(0, str(Path(__file__).parent))
import agent_curves
import environment_pages

from rlhf_env.cli.main import app
from rlhf_env.declared import declaration
from rlhf_env.errors import MissingExtra, PluginError
from rlhf_env.lab.evaluation.explained import said_of
from rlhf_env.learning.logged import LOGGED
from rlhf_env.plugins import Entry, host, plural
from rlhf_env.reference import in_markdown, plugin_page

FOLDER = Path(__file__).parent / "reference"
KINDS = ("agent", "reward", "task")
_WHERE = (
    "Its settings there are in [`examples/agent_curves.toml`](../../../examples/agent_curves.toml). Which agent is "
    "better is another question, with more seeds: [comparing agents](../../guides/comparing-agents.md)."
)
_COMMANDS = """\
# Commands

Every command of `rlhf-env`, as its `--help` describes it. `rlhf-env --help` lists them by what they are for.

## Exit codes

| code | meaning |
|---|---|
| 0 | Done. |
| 1 | `rlhf-env check` has found that a plugin or a model does not do what it must; it says the rule and the remedy. |
| 2 | Wrong input: an option, a file, a setting, a name, data. For each problem a line says what, where, what to do. |
| 3 | A run, or a part of its reward, failed, or the disk refused a file. The last checkpoint is untouched. |
| 4 | `rlhf-env pipeline` waits for people to judge; the same command continues when they have. |
| 130 | Stopped by Ctrl-C. What is done is saved, and the command that continues it is printed. |
| 129, 143 | The same by SIGHUP (a terminal that is closed), by SIGTERM. |

`rlhf-env check` ends with 2 for a file that is wrong (as does the command that would run it) and for a plugin that
cannot be loaded, and with 1 for a plugin that breaks its contract. `rlhf-env plugins` lists a plugin that cannot be
loaded with its error, and ends with 0; so does `rlhf-env watch`, which Ctrl-C ends. A code of 1 with a traceback is a
fault of this project's: please report it.

What a reward, a task, an agent or another plugin raises is one line, with the place in its file. With the environment
variable `RLHF_ENV_TRACEBACK=1` the whole traceback stands before it, of this and of every other error.

## Completion in the shell, and output for programs

`rlhf-env --install-completion` makes the shell (bash, zsh, fish, PowerShell) complete commands and options;
`--show-completion` prints what it would install. `rlhf-env --version` says which version it is.

Results go to stdout, progress and problems to stderr. These take `--json`: {with_json}. A run's numbers are JSON as
they are (`metrics.jsonl` and `evaluation.json` in its folder), and so are a grid's (`results/*.json`)."""


def pages() -> Iterator[tuple[str, str]]:
    """Where each page, and each figure on one, stands below docs/reference/, and its text."""
    curves = json.loads(agent_curves.FILE.read_text(encoding="utf-8"))
    for kind in KINDS:
        entries = sorted((entry for entry in host() if entry.kind == kind), key=lambda entry: entry.name)
        for entry in entries:
            if kind == "agent":
                yield from _agent(entry, curves)
            else:
                yield f"{plural(kind)}/{entry.name}.md", plugin_page(entry)
        names = "\n".join(f"- [{entry.name}]({entry.name}.md){_in_a_line(entry)}" for entry in entries)
        toc = "\n".join(f"{entry.name} <{entry.name}>" for entry in entries)  # "grpo: an agent" in a list of agents
        yield (
            f"{plural(kind)}/index.md",
            f"# {plural(kind).capitalize()}\n\n{names}\n\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n",
        )
    yield from environment_pages.pages()
    yield "commands.md", commands_page()


def _in_a_line(entry: Entry) -> str:
    """The first sentence that it says of itself, for the list of its kind; nothing where its libraries are missing.

    That of the file of an agent or a reward, which may name a paper; that of a task's class, as a file holds several.
    """
    try:
        told = declaration(entry)
    except (MissingExtra, PluginError):
        return ""
    said = " ".join((told.about if entry.kind == "task" else told.header or told.about).split())
    first = re.split(r"(?<! al)(?<! eq)\.(?: |$)", said)[0]  # "et al. 2024", "eq. 7"
    return f": {in_markdown(first)}"


def _agent(entry: Entry, curves: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The page of an agent, and its curve."""
    logged = [(number.key, said_of(number, whose=False)) for number in LOGGED if entry.name in number.of]
    shown = ["## Its curve"]
    if found := agent_curves.drawn(entry.name, curves):
        yield f"agents/{entry.name}.svg", found.svg
        shown += [f"![{found.words}]({entry.name}.svg)", found.caption, f"```sh\n{found.command}\n```", _WHERE]
    else:
        shown.append("None is shipped yet.")
    yield f"agents/{entry.name}.md", plugin_page(entry, logged, "\n\n".join(shown))


def commands_page() -> str:
    """Every command, as its own `--help` says it."""
    parts, with_json = [], []
    for words, command in _commands((), typer.main.get_command(app)):
        usage = [_usage(piece) for piece in command.collect_usage_pieces(typer.Context(command))]
        parts.append(f"## rlhf-env {' '.join(words)}\n\n{_plain(command.help)}")
        parts.append(f"```text\nrlhf-env {' '.join((*words, *usage))}\n```")
        shown, *examples = (line.strip() for line in (command.epilog or "").splitlines())
        parts += [shown, "```sh\n" + "\n".join(examples) + "\n```"]
        rows, hints = [], get_type_hints(command.callback)
        for parameter in command.params:
            option = parameter.param_type_name == "option"
            name = ", ".join((*parameter.opts, *parameter.secondary_opts)) if option else str(parameter.name).upper()
            if name == "--help":
                continue
            if name == "--json":
                with_json.append(f"`{' '.join(words)}`")
            default = parameter.default
            needed = " Required." if option and parameter.required else ""
            shown = "" if default in (None, False, "", [], ()) or callable(default) else f" Default: `{default}`."
            choices = get_args(hints.get(parameter.name)) if get_origin(hints.get(parameter.name)) is Literal else ()
            said = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
            meaning = _plain(getattr(parameter, "help", None)).replace("|", chr(92) + "|")
            rows.append(f"| `{name}` | {meaning}{said}{needed}{shown} |")
        if rows:
            parts.append("\n".join(["| | |", "|---|---|", *rows]))
    return "\n\n".join([_COMMANDS.format(with_json=", ".join(with_json)), *parts]) + "\n"


def _usage(piece: str) -> str:
    """`{file}` as FILE: Typer shows the names of arguments as they are in the source, and in braces."""
    bare = re.sub(r"[{}]", "", piece)
    return bare if bare == "[OPTIONS]" or bare != bare.lower() else bare.upper()


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
    for file in {*FOLDER.rglob("*.md"), *FOLDER.rglob("*.svg")} - written:
        file.unlink()
    sys.stdout.write(f"{len(written)} pages and figures in {FOLDER}\n")
