"""The README is run as it is read: its Python executed, its commands known, its links whole."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.processes import started, warm_up
from pages_followed import blocks, python

import rlhf_env
from rlhf_env import plugins
from rlhf_env.cli.main import app
from rlhf_env.lab.statistics import seeds_for_a_verdict

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
EXAMPLES = ROOT / "examples" / "README.md"
PAGES = [
    README,
    EXAMPLES,
    *(ROOT / "docs" / f"{name}.md" for name in ("experiments", "pipelines", "preferences", "scale")),
]
COUNTED = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@pytest.fixture(scope="module", autouse=True)
def _imports_are_done() -> None:
    """The processes below are forked from this one."""
    warm_up()


@pytest.mark.parametrize("number", range(sum(language == "python" for language, _ in blocks(README))))
def test_a_block_of_python_runs(number: int, tmp_path: Path) -> None:
    code = [text for language, text in blocks(README) if language == "python"][number]
    if code.startswith("# first.py"):  # the same of a thirtieth of the tokens; its worker processes import the file
        file = tmp_path / "first.py"
        file.write_text(code.replace("15_000", "500").replace("seeds=3", "seeds=1"), "utf-8")
        ran = subprocess.run([sys.executable, file.name], cwd=tmp_path, check=False, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr[-4000:]
        assert re.findall(r"^\| (\w+) \| – \|", ran.stdout, re.MULTILINE) == ["dpo", "grpo", "ppo", "reference"]
        return
    ended = python(code, tmp_path).wait(300)
    assert ended.status == 0, ended.stderr[-4000:]


def commands() -> list[tuple[str, str]]:
    lines = [
        (page.name, line.removeprefix("$ ").split("   # ")[0])
        for page in PAGES
        for language, text in blocks(page)
        if language in ("sh", "bash")
        for line in text.splitlines()
    ]
    in_tables = re.findall(r"^\|.* \| `(.*?)` \|", EXAMPLES.read_text(encoding="utf-8"), re.MULTILINE)
    lines += [(f"examples/{EXAMPLES.name}", line) for line in in_tables]
    return [(page, line) for page, line in lines if line.startswith("rlhf-env ")]


def test_the_table_of_what_there_is_is_whole() -> None:
    kinds = r"^\| (rewards|agents|annotators|tasks) \| (.*) \|$"
    rows = dict(re.findall(kinds, README.read_text("utf-8"), re.MULTILINE))
    for kind, row in rows.items():
        own = [it.name for it in plugins.host() if f"{it.kind}s" == kind and it.origin == plugins.OWN]
        assert own and [name for name in own if f"`{name}`" not in row] == [], kind
    assert len(rows) == 4


def test_there_are_commands() -> None:
    assert len(commands()) > 20


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda it: it[:60])
def test_a_command_that_is_shown_is_one(page: str, line: str) -> None:
    """Its words and its options exist; what it does is tested where it is made."""
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    while words and (inner := getattr(command, "commands", {}).get(words[0])) is not None:
        command, words = inner, words[1:]
    assert not hasattr(command, "commands"), f"{page}: {line}"
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert options <= {*known, "--help"}, f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    if not (ROOT / "rlhf_env").exists():  # the tests of the wheel have the sources elsewhere
        links = [link for link in links if "rlhf_env/" not in link]
    assert links and not [link for link in links if not (page.parent / link).exists()]


def test_every_example_has_one_row_with_the_command_that_runs_it() -> None:
    rows = re.findall(
        r"^\| \[`(.*?)/?`\]\((.*?)\) \| .+ \| `(.+?)` \| .+ \|$", EXAMPLES.read_text("utf-8"), re.MULTILINE
    )
    there = {path.name for path in EXAMPLES.parent.iterdir()} - {"README.md", "__pycache__"}
    assert sorted(name for name, _, _ in rows) == sorted(there)
    makes = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for name, link, command in rows:
        assert link.partition("/")[0] == name
        program, what, *_ = command.split()
        assert program in ("python", "rlhf-env", "make", "sh", "jupyter")
        assert program != "make" or what in makes, command
        for file in re.findall(r"examples/[\w./]+", command):
            assert (ROOT / file).exists(), command


def test_what_is_ruled_out_by_the_command_itself_is_refused() -> None:
    """The check above would see a command that is not one."""
    assert started("benhc", "FILE.toml").wait(60).status == 2


def test_what_is_counted_is_there() -> None:
    from bad_inputs import BAD
    from mutants import MUTANTS

    words = " ".join(README.read_text(encoding="utf-8").split())
    for count, said in (
        (len(MUTANTS), r"puts more than (\d+) bugs back"),
        (len(BAD), r"goes through more than (\d+) of"),
    ):
        (told,) = re.findall(said, words)
        assert int(told) < count
    weights = sum(file.stat().st_size for file in (Path(rlhf_env.__file__).parent / "assets").glob("*/*.safetensors"))
    assert f"(float16 safetensors, {weights / 1e6:.1f} MB together)" in words


def test_the_seeds_that_a_verdict_takes_are_those_of_the_comparison() -> None:
    words = " ".join(README.read_text(encoding="utf-8").split())
    assert f"for four agents a verdict takes {COUNTED[seeds_for_a_verdict(4 - 1)]}." in words
    assert f"fewer seeds than a verdict takes ({seeds_for_a_verdict(2 - 1)} for two agents" in words


def test_the_benchmark_is_the_one_that_is_described() -> None:
    """Two controls beside the agents, of so many tasks, seeds and settings."""
    file = ROOT / "examples/benchmark.toml"
    grid = tomllib.loads(file.read_text(encoding="utf-8"))
    agents = [name for name in grid["agents"] if name not in ("reference", "random")]
    words = " ".join(README.read_text(encoding="utf-8").split())
    tasks, seeds = COUNTED[len(grid["tasks"])], COUNTED[grid["seeds"]]
    assert f"tuned first, with {COUNTED[grid['tuning']['configurations']]} configurations per task" in words
    assert f"compares {COUNTED[len(agents)]} agents and two controls on {tasks} tasks over {seeds} seeds" in words
