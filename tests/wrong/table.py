"""What a row of the table is, and the ways to add one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlhf_env.envs.file_task import File
from rlhf_env.feedback.asking.collecting import read_responses
from rlhf_env.feedback.interchange import read_judgements
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build

Content = str | bytes | Callable[[Path], object]

TOY = """\
name = "toy"

[task]
name = "echo"
length = 2

[policy]
tokenizer = "alphabet:ab="

[environment]
num_envs = 8
max_new_tokens = 4
max_prompt_tokens = 4

[rewards]
length = { target = 2 }

[agent]
name = "ppo"
lr = 1e-2

[budget]
updates = 2

[evaluation]
prompts = 4
"""
TASK, TOKENIZER, AGENT = 'name = "echo"\nlength = 2', 'tokenizer = "alphabet:ab="', 'name = "ppo"\nlr = 1e-2'
REWARD, TEXTS, BUDGET = "length = { target = 2 }", "max_new_tokens = 4", "updates = 2"
GRID = "seeds = 1\n" + TOY.replace(f"[agent]\n{AGENT}\n\n", "").replace("\n[", "\n[experiment.").replace(
    'name = "toy"\n', ""
)
PROMPTS = (
    TOY.replace(TASK, 'name = "file"\npath = "PATH"')
    .replace("alphabet:ab=", "bytes")
    .replace("max_prompt_tokens = 4", "max_prompt_tokens = 16")
)


@dataclass(frozen=True)
class Bad:
    """`command` among `files` is refused with a line for each of `says`, in order, that has these words in it.

    `python` raises the same by the Python API. `lines`: of the file, one of which each must name.
    """

    what: str
    command: tuple[str, ...]
    says: tuple[str, ...]
    files: Mapping[str, Content | None] = field(default_factory=dict)
    python: Callable[[], object] | None = None
    lines: range | None = None

    def __str__(self) -> str:
        return self.what


BAD: list[Bad] = []


def experiment(
    what: str,
    old: str,
    new: str,
    *says: str,
    files: Mapping[str, Content | None] | None = None,
    lines: range | None = None,
) -> None:
    """The toy experiment with `new` in the place of `old`; what is said names a line of it, or its table's header.

    Where another table is to blame, one of `lines`.
    """
    assert old in TOY, old
    experiment_file(what, TOY.replace(old, new, 1), *says, files=files)
    start = TOY.index(old)
    first = TOY.count("\n", 0, max(TOY.rfind("\n[", 0, start) + 1, 0)) + 1
    BAD[-1] = replace(BAD[-1], lines=lines or range(first, TOY.count("\n", 0, start) + new.count("\n") + 2))


def experiment_file(
    what: str, content: Content | None, *says: str, files: Mapping[str, Content | None] | None = None
) -> None:
    all_files = {**(files or {}), "toy.toml": content}
    BAD.append(Bad(what, ("check", "toy.toml"), says, all_files, _from_toml))


def _from_toml() -> None:
    made = Experiment.load("toy.toml")
    workplace = build(made)
    workplace.check_prompts()
    _ = workplace.evaluation_rewards


def grid(what: str, table: str, *says: str, ahead: bool = False, word: str = "check") -> None:
    """A grid of the toy experiment and ppo, `table` at its end or its beginning; what is said names a line of it."""
    before, after = ("", f"\n{GRID}\n[agents.ppo]\n") if ahead else (f"{GRID}\n[agents.ppo]\n", "\n")
    first = before.count("\n") + 1
    lines = range(first, first + table.count("\n") + 1)
    BAD.append(Bad(f"grid: {what}", (word, "g.toml"), says, {"g.toml": before + table + after}, lines=lines))


def prompts(what: str, content: Content | None, *says: str, name: str = "a.jsonl") -> None:
    """A file of prompts, or what stands in its place."""
    files = {"toy.toml": PROMPTS.replace("PATH", name), name: content}
    BAD.append(Bad(f"prompts: {what}", ("check", "toy.toml"), says, files, lambda: File(name)))


def judgements(what: str, content: Content | None, *says: str, name: str = "a.jsonl") -> None:
    command = ("preferences", "import", "s.db", name)
    BAD.append(Bad(f"judgements: {what}", command, says, {name: content}, lambda: read_judgements(name)))


def responses(what: str, content: Content | None, *says: str, name: str = "a.jsonl") -> None:
    command = ("preferences", "responses", "s.db", name)
    BAD.append(Bad(f"responses: {what}", command, says, {name: content}, lambda: read_responses(Path(name), None)))


def store(what: str, content: Content | None, *says: str) -> None:
    def opened() -> None:
        with PreferenceStore("s.db"):
            pass

    BAD.append(Bad(f"store: {what}", ("preferences", "show", "s.db"), says, {"s.db": content}, opened))


def command(words: str, *says: str, **files: Content | None) -> None:
    """`rlhf-env WORDS` among the toy experiment, a folder, a text and a store without content."""
    there: dict[str, Content | None] = {"toy.toml": TOY, "folder/in it": "", "text": "x", "s.db": empty_store}
    named = {name.replace("_DOT_", ".").replace("_IN_", "/"): content for name, content in files.items()}
    BAD.append(Bad(f"rlhf-env {words}", tuple(words.split()), says, {**there, **named}))


def empty_store(path: Path) -> None:
    with PreferenceStore(path):
        pass


def database(sql: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as made:
            made.executescript(sql)

    return make


def link(to: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(to)
