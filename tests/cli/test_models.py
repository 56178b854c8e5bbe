"""What a trained model is used for, from the command line: export, chat, responses; in a pipe and in a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import rlhf_env
from rlhf_env.cli import main as cli
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.learning.experiment import Experiment

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = {
        "policy": {"tokenizer": "alphabet:ab:"},
        "task": {"name": "count", "target": 4},
        "environment": {"num_envs": 8, "max_new_tokens": 6},
        "rewards": {"task": 1.0, "kl": 0.5},
        "agent": {"name": "grpo", "lr": 0.05, "group_size": 4},
        "budget": {"updates": 3},
        "evaluation": {"prompts": 4},
    }
    folder = tmp_path_factory.mktemp("cli") / "runs" / "count"
    rlhf_env.run(Experiment.from_table(table), folder)
    return folder


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("chat", "RUN", said="a:")`: status, stdout, stderr; RUN is a run."""

    def call(*words: str, said: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlhf-env", *(str(trained) if word == "RUN" else word for word in words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


def test_export_says_what_it_wrote_and_refuses_what_it_cannot(run: Run, tmp_path: Path) -> None:
    status, out, err = run("export", "RUN", str(tmp_path / "out"), "--dtype", "bfloat16")
    assert status == 0 and "rlhf-env" not in err
    assert re.search(r"step-00000003, after 3 updates, is a model in .*out\n", out)
    assert str(AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype) == "torch.bfloat16"
    assert run("export", "RUN", str(tmp_path / "out"))[0] == 0  # an earlier export is replaced
    status, _, err = run("export", str(tmp_path / "out"), str(tmp_path / "more"))
    assert status == 2 and "is a model already, and no run: copy the folder" in err
    status, _, err = run("export", "RUN", str(tmp_path))
    assert status == 2 and "is there already, and no export of a run" in err


def test_from_a_pipe_each_line_is_a_question_and_each_answer_a_line(run: Run) -> None:
    status, out, err = run("chat", "RUN", "--seed", "3", said="a:\n\naa:\n/quit\nnever asked:\n")
    assert status == 0
    assert len(out.splitlines()) == 2 and set(out) <= set("ab:\n")
    assert err == "[the model has no chat template: each question is asked by itself, as it is]\n"
    assert run("chat", "RUN", "--seed", "3", said="a:\naa:")[1] == out  # also without a last line's end


def test_a_bad_question_costs_itself(run: Run) -> None:
    status, out, err = run("chat", "RUN", said="xyz\na:\n")
    assert status == 0 and len(out.splitlines()) == 1
    assert "[text 'xyz' has symbols outside the alphabet 'ab:': 'xyz']" in err


def test_the_reference_and_the_rewards_stand_beside_an_answer(run: Run) -> None:
    status, out, _ = run("chat", "RUN", "--compare", "--rewards", "--seed", "1", said="a:\n")
    assert status == 0
    trained, reference, rewards = out.splitlines()
    assert trained.startswith("trained: ") and reference.startswith("reference: ")
    found = re.fullmatch(r"reward (\S+) = task (\S+) \(x 1\), kl (\S+) \(x 0.5\)", rewards)
    assert found, rewards
    assert float(found[1]) == pytest.approx(float(found[2]) + 0.5 * float(found[3]), abs=1e-3)


def test_a_conversation_is_begun_anew(run: Run) -> None:
    said = "Hello there!\nHow are you?\n"
    status, out, err = run(
        "chat", "rlhf-env/chitchat", "--greedy", "--max-new-tokens", "12", said=said + "/reset\n" + said
    )
    assert (status, err) == (0, "[a new conversation]\n")
    lines = out.splitlines()
    assert len(lines) == 4 and lines[:2] == lines[2:]


def test_turns_that_no_longer_fit_are_left_out_and_that_is_said(run: Run) -> None:
    said = "What did you do on the weekend with all of your friends from school?\n" * 4
    status, out, err = run("chat", "rlhf-env/chitchat", "--max-new-tokens", "40", said=said)
    assert status == 0 and len(out.splitlines()) == 4
    assert re.search(r"\[the oldest (turn|\d turns) did not fit the model's context any more, and were left out\]", err)


def test_in_a_terminal_it_is_a_conversation(trained: Path) -> None:
    """With a terminal of its own: a prompt, an answer, Ctrl-D."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rlhf_env", "chat", str(trained), "--compare", "--greedy"]
    settings = {**os.environ, "COLUMNS": "120", "LINES": "40", "TERM": "dumb"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=settings, close_fds=True)
    os.close(theirs)
    shown = ""

    def until(wanted: str) -> None:
        nonlocal shown
        ends = time.monotonic() + 120
        while wanted not in shown and time.monotonic() < ends:
            try:
                shown += os.read(ours, 4096).decode(errors="replace")
            except OSError:  # the other side is closed
                break
        assert wanted in shown, shown

    try:
        until("> ")
        os.write(ours, b"a:\n")
        until("reference")
        shown = shown.split("reference")[-1]
        until("> ")
        os.write(ours, b"\x04")
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        os.close(ours)


def test_responses_of_a_model_are_written_once(run: Run, tmp_path: Path) -> None:
    prompts, store = tmp_path / "prompts.jsonl", tmp_path / "s.sqlite"
    prompts.write_text('{"prompt": "a:"}\n{"prompt": "aa:"}\n')
    command: Any = ["preferences", "responses", str(store), "--model", "RUN", "--prompts", str(prompts)]
    command += ["--samples", "2", "--temperatures", "0.5,1.5", "--max-new-tokens", "6", "--name", "me"]
    status, out, _ = run(*command)
    assert (status, out) == (0, f"8 answers of me were written into {store}\n")
    status, out, _ = run(*command)
    assert (status, out) == (0, f"0 answers of me were written into {store}\n")
    with PreferenceStore(store) as opened:
        authors = {response.author for _, response in opened.responses()}
    assert {(author.name, author.temperature) for author in authors} == {("me", 0.5), ("me", 1.5)}
