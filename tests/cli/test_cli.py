"""The command line: every command says what it does, does it, and says in one line what is wrong."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.panel import Panel
from typer.main import get_command

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.processes import FORKING

import rlhf_env
from rlhf_env import plugins
from rlhf_env.cli import main as cli
from rlhf_env.cli.shared import make_console
from rlhf_env.errors import ConfigError
from rlhf_env.learning.experiment import Experiment

EXPERIMENT = """\
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


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("train", "toy.toml")` in an empty folder and in this process: status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["rlhf-env", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Ran(int(ended.value.code or 0), said.out, said.err)

    return call


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    file = tmp_path / "toy.toml"
    file.write_text(EXPERIMENT)
    return file


def refused(ran: Ran, *said: str, status: int = 2) -> None:
    """Exit status, and one line per problem on stderr, in the order given."""
    lines = ran.err.splitlines()
    assert ran.status == status, ran
    assert len(lines) == len(said), ran.err
    for line, words in zip(lines, said, strict=True):
        assert line.startswith("rlhf-env: ")
        assert words in line
    assert "Traceback" not in ran.err


# ---------------------------------------------------------------- what there is


def test_without_a_command_the_commands_are_listed(run: Run) -> None:
    ran = run()
    assert (ran.status, ran.err) == (0, "")
    listed = re.findall(r"^│ ([a-z][a-z-]*) ", ran.out, re.MULTILINE)
    assert sorted(listed) == sorted(get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert {"demo", "train", "evaluate", "bench", "report", "annotate", "plugins", "lab"} <= set(listed)


def test_it_says_its_version(run: Run) -> None:
    assert run("--version") == Ran(0, f"rlhf-env {rlhf_env.__version__}\n", "")


def _all_commands() -> Iterator[tuple[str, Any]]:
    """Every command and group, by the words it is called with, as it is before the help is made of it."""
    groups: list[tuple[str, Any]] = [("", get_command(cli.app))]
    while groups:
        words, group = groups.pop()
        yield words, group
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                groups.append((f"{words} {name}", command))
            else:
                yield f"{words} {name}", command


def test_every_command_ends_its_help_with_examples_that_are_understood() -> None:
    """Each is one line of a terminal of 80 columns, is the command's own, and its words are taken as they are."""
    for words, command in _all_commands():
        if hasattr(command, "commands"):
            continue
        title, *lines = (command.epilog or "").splitlines()
        assert lines and title == ("Example:" if len(lines) == 1 else "Examples:"), words
        for line in lines:
            assert len(line) <= 80 and line.strip().startswith(f"rlhf-env{words}"), (words, line)
            typed = shlex.split(line.partition(" > ")[0])[len(["rlhf-env", *words.split()]) :]
            command.make_context(words, typed)


def test_every_command_explains_itself(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what stands in square brackets: to rich, [rewards] is markup, and would be gone."""
    monkeypatch.setenv("COLUMNS", "300")
    bracketed = 0
    for words, command in _all_commands():
        ran = run(*words.split(), "--help")
        assert (ran.status, ran.err) == (0, "") and "Usage" in ran.out, words
        out = " ".join(ran.out.split())
        written = [command.callback.__doc__ or "", *(getattr(it, "help", "") or "" for it in command.params)]
        wanted = {name for text in written for name in re.findall(r"\[[a-z#/@][^][]*\]", text)}
        assert all(name in out for name in wanted), (words, wanted)
        assert "\\[" not in out, words
        bracketed += len(wanted)
    assert bracketed > 3


def test_plugins_lists_what_is_there(run: Run) -> None:
    ran = run("plugins")
    assert (ran.status, ran.err) == (0, "")
    for kind, names in {
        "agents": ["ppo", "grpo", "dpo", "sft", "best_of_n", "reference", "random"],
        "rewards": ["bradley_terry", "kl", "diversity", "length", "repetition", "sentiment"],
        "tasks": ["prompts", "echo", "count", "chitchat"],
    }.items():
        section = ran.out.split(f"{kind}\n")[1]
        for name in names:
            assert re.search(rf"^  {name} +rlhf-env  rlhf_", section, re.MULTILINE), name
    assert "failed" not in ran.out
    assert "failed" not in ran.out


# ---------------------------------------------------------------- train


def test_train_leaves_a_run_and_says_what_it_came_to(run: Run, toy: Path) -> None:
    ran = run("train", "toy.toml")
    assert (ran.status, ran.err) == (0, "")
    assert "Ended: budget. On 1 held-out prompt, 4 replies:" in ran.out
    assert re.search(r"^  objective +-?\d\.\d{4}  the whole reward that training maximises", ran.out, re.MULTILINE)
    folder = toy.parent / "runs" / "toy-ppo-seed0"
    assert "Run folder: runs/toy-ppo-seed0" in ran.out
    names = {path.name for path in folder.iterdir()}
    assert {"experiment.toml", "record.json", "metrics.jsonl", "evaluation.json", "checkpoints"} <= names
    refused(run("train", "toy.toml"), "already holds a run: choose another folder, or resume it with --resume")
    again = run("train", "toy.toml", "--resume")
    assert (again.status, again.out.split("Ended")[1]) == (0, ran.out.split("Ended")[1])


def test_train_with_another_agent_seed_and_folder(run: Run, toy: Path) -> None:
    ran = run("train", "toy.toml", "--agent", "grpo", "--seed", "3")
    assert ran.status == 0
    resolved = (toy.parent / "runs" / "toy-grpo-seed3" / "experiment.toml").read_text()
    assert 'name = "grpo"' in resolved
    assert "seed = 3" in resolved
    assert "lr" not in resolved, "another agent has its own default settings"
    new = run("train", "toy.toml", "--agent", "ppo", "--out", "here", "--resume")
    assert (new.status, new.out.splitlines()[0]) == (0, "No checkpoint in here: from the start")
    assert "lr = 0.01" in (toy.parent / "here" / "experiment.toml").read_text()
    refused(
        run("train", "toy.toml", "--out", "here", "--resume", "--seed", "4"),
        "here: cannot resume with another seed: was 0, now 4",
    )


def test_another_algorithm_is_one_word_in_python_in_a_file_and_on_the_command_line(run: Run, toy: Path) -> None:
    in_python = Experiment.load(toy).with_agent("rloo")
    assert run("train", "toy.toml", "--agent", "rloo", "--out", "by option").status == 0
    toy.write_text(EXPERIMENT.replace('name = "ppo"\nlr = 1e-2', 'name = "rloo"'))
    assert run("train", "toy.toml", "--out", "by file").status == 0
    assert in_python == Experiment.load(toy)
    for name in ("experiment.toml", "evaluation.json"):
        by_option, by_file = ((toy.parent / how / name).read_text() for how in ("by option", "by file"))
        assert by_option == by_file, name
    assert Experiment.load(toy.parent / "by file" / "experiment.toml") == in_python
    assert '"reason": "budget"' in by_file


def test_a_reward_that_breaks_is_status_3_and_one_line(run: Run, toy: Path) -> None:
    plugins.register_reward("nan", lambda completions: [float("nan")] * len(completions))
    toy.write_text(EXPERIMENT.replace("length = { target = 2 }", "nan = 1.0"))
    ran = run("train", "toy.toml")
    plugins.host()._entries.pop(("reward", "nan"))
    refused(ran, "reward 'part/nan' returned nan for episode 0 of 0..3 (prompt 'echo/bb')", status=3)


# ---------------------------------------------------------------- bench and report

GRID = """\
name = "grid"
seeds = 1

[agents.reference]
[agents.random]

"""


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch) -> None:
    """That workers begin as processes of their own is tested in tests/lab/benchmark."""
    monkeypatch.setattr("rlhf_env.lab.processes.multiprocessing", FORKING)


@pytest.mark.usefixtures("forking")
def test_bench_makes_a_report_and_report_makes_it_again(run: Run, toy: Path) -> None:
    pytest.importorskip("matplotlib")
    experiment = re.sub(r"^\[(?!experiment)(.*)\]", r"[experiment.\1]", EXPERIMENT, flags=re.MULTILINE)
    experiment = experiment.replace('name = "toy"\n', "").replace('[experiment.agent]\nname = "ppo"\nlr = 1e-2\n', "")
    toy.write_text(GRID + experiment)
    ran = run("bench", "toy.toml", "--jobs", "1")
    assert (ran.status, ran.err) == (0, "")
    folder = toy.parent / "runs" / "grid"
    page = (folder / "report.html").read_bytes()
    assert "numbers, no claim" in " ".join(ran.out.split())
    assert "Report: runs/grid/report.html" in ran.out
    (folder / "report.html").unlink()
    again = run("report", "runs/grid")
    assert (again.status, again.err) == (0, "")
    assert (folder / "report.html").read_bytes() == page
    assert ran.out.endswith(again.out), "the same table, under a progress bar"


@pytest.mark.usefixtures("forking")
def test_a_benchmark_of_failures_does_not_end_as_if_it_had_passed(run: Run, toy: Path) -> None:
    pytest.importorskip("matplotlib")
    experiment = re.sub(r"^\[(?!experiment)(.*)\]", r"[experiment.\1]", EXPERIMENT, flags=re.MULTILINE)
    experiment = experiment.replace('name = "toy"\n', "").replace('[experiment.agent]\nname = "ppo"\nlr = 1e-2\n', "")
    alone = GRID.replace("[agents.reference]\n[agents.random]\n", "[agents.grpo]\ngroup_size = 7\n")
    toy.write_text(alone + experiment)
    ran = run("bench", "toy.toml", "--jobs", "1")
    assert ran.status == 3
    assert "all 1 runs failed; the first one: [agent] grpo: group_size 7 does not divide" in ran.err
    toy.write_text(GRID + "[agents.grpo]\ngroup_size = 7\n\n" + experiment)
    assert run("bench", "toy.toml", "--jobs", "1", "--out", "some").status == 0, "one of several is a result"


def test_a_report_of_nothing_is_refused(run: Run) -> None:
    refused(run("report", "nowhere"), "nowhere: no results/*.json in it")


# ---------------------------------------------------------------- check


def test_check_a_good_file_and_good_plugins(run: Run, toy: Path) -> None:
    for arguments in (["toy.toml"], ["task:count"], ["reward:repetition"], ["reward:length", "target=20"]):
        assert run("check", *arguments) == Ran(0, "ok\n", "")
    assert not (toy.parent / "runs").exists()


def test_check_as_json(run: Run, toy: Path) -> None:
    """One object for programs, with the status of the plain command; nothing on stderr."""
    good = {"checked": "reward:length", "ok": True, "problems": [], "notes": []}
    ran = run("check", "reward:length", "target=20", "--json")
    assert (ran.status, json.loads(ran.out), ran.err) == (0, good, "")
    ran = run("check", "agent:grpo", "lr=1e-9", "--json")
    assert (ran.status, json.loads(ran.out)["ok"], ran.err) == (1, False, "")
    toy.write_text(EXPERIMENT.replace("num_envs", "num_env").replace("updates = 2", "updates = 0"))
    ran = run("check", "toy.toml", "--json")
    told = json.loads(ran.out)
    assert (ran.status, told["ok"], ran.err) == (2, False, "")
    assert [problem.split(":")[0] for problem in told["problems"]] == [
        "toy.toml, line 11, environment",
        "toy.toml, line 23, budget",
    ]


def test_check_a_model(run: Run) -> None:
    ran = run("check", "model:rlhf-env/chitchat", "--json")
    assert (ran.status, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert (told["family"], told["verdict"], told["problems"], told["template"]) == ("llama", "exact", [], "equal")
    assert told["numbers"]["float64"]["write"] < 1e-10


def test_check_families(run: Run) -> None:
    ran = run("check", "families", "gpt2", "bert")
    assert (ran.status, ran.err) == (0, "gpt2: exact\nbert: refused\n")
    assert "all 2 families" in ran.out and "| `gpt2` | fused | " in ran.out
    listed = json.loads(run("check", "families", "gpt2", "--json").out)
    assert [(it["family"], it["verdict"]) for it in listed] == [("gpt2", "exact")]


def test_check_says_everything_that_is_wrong_at_once(run: Run, toy: Path) -> None:
    toy.write_text(EXPERIMENT.replace("num_envs", "num_env").replace("updates = 2", "updates = 0"))
    refused(
        run("check", "toy.toml"),
        "toy.toml, line 11, environment: no setting 'num_env': did you mean 'num_envs'?",
        "toy.toml, line 23, budget: updates must be at least 1, got 0",
    )
    toy.write_text(EXPERIMENT.replace("ppo", "pppo").replace('"echo"', '"eco"').replace("length = {", "lenght = {"))
    refused(
        run("check", "toy.toml"),
        "unknown task 'eco': did you mean 'echo'?",
        "unknown reward 'lenght': did you mean 'length'?",
        "unknown agent 'pppo': did you mean 'ppo'?",
    )


def test_check_a_grid_builds_a_cell_of_every_row(run: Run, toy: Path) -> None:
    toy.write_text('[agents.ppo]\nlr = -1.0\n[agents.grpo]\ngroup_size = 1\n[experiment.policy]\ntokenizer = "bytes"\n')
    refused(run("check", "toy.toml"), "lr must be above 0, got -1", "group_size must be at least 2, got 1")


def test_check_an_agent_says_what_it_did_not_check(run: Run) -> None:
    assert run("check", "agent:grpo", "group_size=8") == Ran(0, "ok\n", "")
    ran = run("check", "agent:best_of_n")
    assert (ran.status, ran.err) == (0, "")
    *left_out, last = ran.out.splitlines()
    assert last == "ok"
    assert [line.split(":")[1].split(" (")[0] for line in left_out] == [" segments", " tokens", " learns"]
    said = "[learns] expected the mean task reward to be at least 0.5 above"
    refused(run("check", "agent:grpo", "lr=1e-9"), said, status=1)
    refused(run("check", "agent:grop"), "unknown agent 'grop': did you mean 'grpo'?")
    refused(run("check", "agent:grpo", "group_size=1"), "group_size must be at least 2, got 1")


def test_check_says_what_a_plugin_does_wrong(run: Run) -> None:
    plugins.register_reward("late", lambda completions: [0.0] * (len(completions) - 1))
    ran = run("check", "reward:late")
    plugins.host()._entries.pop(("reward", "late"))
    refused(ran, "[count] expected one float per episode", status=1)
    refused(run("check", "reward:length"), "reward 'length': the setting 'target' is required")
    refused(run("check", "reward:length", "taget=20"), "no setting 'taget': did you mean 'target'?")
    refused(run("check", "reward:length", "target"), "'target' is not of the form KEY=VALUE")
    refused(run("check", "reward:lenght"), "unknown reward 'lenght': did you mean 'length'?")
    refused(run("check", "task:cuont"), "unknown task 'cuont': did you mean 'count'?")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('name = "ppo"', 'name = "poo"'), "unknown agent 'poo': did you mean 'ppo'?"),
        (("[budget]", "[budget"), "toy.toml, line 22: "),
        (("lr = 1e-2", 'lr = "abc"'), "[agent] ppo optimization: lr must be a finite number, got 'abc'"),
        (("[policy]", '[policy]\nmodel = "/no/such/folder"'), "model '/no/such/folder': there is no such folder"),
        (("[policy]", '[policy]\nmodel = "."'), "model '.': not a model folder, config.json is missing"),
        (("length = 2\n\n", 'length = 9\nalphabet = "a"\n\n'), "has 10 tokens, the environment takes 4"),
        (("[policy]", "[policy.sampling]\ntemperature = 0\n[policy]"), "temperature must be above 0, got 0"),
    ],
)
def test_a_bad_file_is_one_line_and_status_2(change: tuple[str, str], said: str, run: Run, toy: Path) -> None:
    toy.write_text(EXPERIMENT.replace(*change))
    refused(run("train", "toy.toml"), said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "no.toml"], "cannot read no.toml: No such file or directory"),
        (["bench", "no.toml"], "cannot read no.toml: No such file or directory"),
        (["check", "no.toml"], "cannot read no.toml: No such file or directory"),
        (["train"], "Missing argument"),
        (["train", "toy.toml", "--sed", "1"], "--sed"),
        (["train", "toy.toml", "--seed", "one"], "--seed"),
        (["train", "toy.toml", "--seed", "-1"], "seed must be from 0 to 1,099,511,627,775, got -1"),
        (["train", "toy.toml", "--threads", "0"], "--threads"),
        (["train", "toy.toml", "--agent", "poo"], "unknown agent 'poo': did you mean 'ppo'?"),
        (["trian", "toy.toml"], "trian"),
        (["check", "toy.toml", "target=3"], "a file has its own"),
    ],
    ids=" ".join,
)
def test_a_bad_command_is_one_line_and_status_2(arguments: list[str], said: str, run: Run, toy: Path) -> None:
    refused(run(*arguments), said)


@pytest.mark.parametrize("words", ["", "train", "annotate", "new", "preferences verify", "lab overoptimization"])
def test_help_fits_80_columns(words: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut, a flag shows no value to be given, and paragraphs fill the lines whatever the source's width."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(*words.split(), "--help").out
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "…" not in shown
    assert "<bool>" not in shown
    assert " range" not in shown and "<int" not in shown, "a type takes few columns: N>=1, 1..1024"
    prose = [line for line in lines if line[:1] in ("", " ")]
    prose = list(itertools.takewhile(lambda line: not line.startswith(" Example"), prose))
    # A line that is followed by another one of its paragraph has no room for the next word.
    for line, following in itertools.pairwise(prose):
        if line.strip() and following[1:2].strip() and not following.lstrip().startswith("- "):
            assert len(line) + 1 + len(following.split()[0]) > 79, line


def test_the_first_commands_of_somebody_new_stand_first(run: Run) -> None:
    shown = run("--help").out
    places = [shown.index(f"│ {name} ") for name in ("demo", "train", "bench", "annotate", "submit", "plugins")]
    assert places[:3] == sorted(places[:3]) and places[2] < places[4] < places[3] < places[5]
    assert "Start with: rlhf-env demo" in shown


def test_of_very_many_problems_twenty_are_said(run: Run, monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    def complain(_file: Any) -> Any:
        raise ConfigError(*(f"problem {n}" for n in range(25)))

    monkeypatch.setattr("rlhf_env.learning.experiment.Experiment.load", complain)
    ran = run("train", "toy.toml")
    assert ran.err.splitlines() == [*(f"rlhf-env: problem {n}" for n in range(20)), "rlhf-env: and 5 more"]


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    def fault(_file: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("rlhf_env.learning.experiment.Experiment.load", fault)
    monkeypatch.setattr(sys, "argv", ["rlhf-env", "train", str(toy)])
    with pytest.raises(ZeroDivisionError):
        cli.main()


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """The console script beside the interpreter that runs the tests."""
    script = Path(sys.executable).with_name("rlhf-env")
    if not script.exists():
        pytest.skip("the console script is not installed")
    yield script


def test_the_installed_command(installed: Path, tmp_path: Path) -> None:
    """Once for real: the entry point, the exit status, the streams."""
    (tmp_path / "toy.toml").write_text(EXPERIMENT.replace("ppo", "poo"))
    ran = subprocess.run(
        [installed, "train", "toy.toml"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    refused(Ran(ran.returncode, ran.stdout, ran.stderr), "unknown agent 'poo': did you mean 'ppo'?")


def test_a_thread_of_a_library_that_cannot_write_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def refused_write() -> None:
        raise OSError(28, "No space left on device", "events.out")

    before = threading.excepthook
    threading.excepthook = cli._of_a_thread
    try:
        thread = threading.Thread(target=refused_write)
        thread.start()
        thread.join()
    finally:
        threading.excepthook = before
    told = "rlhf-env: warning: in the background: [Errno 28] No space left on device: 'events.out'\n"
    assert capsys.readouterr().err == told


def test_what_people_write_between_colons_is_no_picture(capsys: pytest.CaptureFixture[str]) -> None:
    make_console().print("[b]a[/b] :b: :smile:", Panel("x :b:"))
    assert "a :b: :smile:" in (told := capsys.readouterr().out)
    assert "x :b:" in told


def test_code_of_somebody_else_that_would_end_the_program_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ends(**_: Any) -> None:
        exec(compile("raise SystemExit(0)", "/somewhere/agent.py", "exec"))  # stands for an agent's file

    monkeypatch.setattr(cli, "app", ends)
    monkeypatch.setattr(sys, "argv", ["rlhf-env", "plugins"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        "rlhf-env: /somewhere/agent.py, line 1 would end the program (SystemExit: 0): nothing after it was done\n"
    )


@pytest.mark.parametrize(
    "command", [["evaluate"], ["watch"], ["preferences", "ask"], ["pipeline"], ["annotate", "--store"]]
)
def test_a_name_that_no_file_can_have_is_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["rlhf-env", *command, "x" * 300])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("rlhf-env: cannot work in xxx")
    assert said.endswith(": File name too long: name another place\n")


@pytest.mark.parametrize("closed", ["1>&-", "0<&- 1>&- 2>&-"])
def test_a_command_without_streams_does_its_work(closed: str, tmp_path: Path) -> None:
    """What a file opened later would get as number 1 is not written into by whoever prints."""
    (tmp_path / "toy.toml").write_text(EXPERIMENT, encoding="utf-8")
    words = f"{sys.executable} -m rlhf_env lab laws --list {closed}"
    assert subprocess.run(["sh", "-c", words], cwd=tmp_path, timeout=300, check=False).returncode == 0


def test_who_reads_the_output_may_leave(tmp_path: Path) -> None:
    """`rlhf-env train FILE | head -1` trained to the end of the first line, and no checkpoint was there."""
    (tmp_path / "toy.toml").write_text(EXPERIMENT, encoding="utf-8")
    command = [sys.executable, "-m", "rlhf_env", "train", "toy.toml", "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, b"")
    assert (tmp_path / "run" / "report.html").is_file()


def test_what_is_printed_for_programs_is_strict_json() -> None:
    """`echo_json` writes null for NaN; `json.dumps` writes NaN, which is no JSON."""
    sources = {file.name: file.read_text() for file in Path(cli.__file__).parent.glob("*.py")}
    assert [name for name, source in sources.items() if "echo(json.dumps" in source] == []


def test_what_a_terminal_cannot_say_is_escaped() -> None:
    """A table with a dash in it ended in a traceback under LANG=C or PYTHONIOENCODING=ascii."""
    words = "from rlhf_env.cli import main; main._have_streams(); print('0.1\\u20130.2')"
    told = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run([sys.executable, "-c", words], env=told, capture_output=True, timeout=300, check=True)
    assert ended.stdout == b"0.1\\u20130.2\n"
