"""An agent of somebody else that raises: one line says which method it was and where in its author's file."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import pytest

from rlhf_env.cli import main as cli
from rlhf_env.errors import DataError, PluginError, RunFailed
from rlhf_env.lab.evaluation.runs import load_run, run
from rlhf_env.learning.agent import asking
from rlhf_env.learning.experiment import Experiment
from rlhf_env.plugins import host

CODE = """\
import os
from dataclasses import dataclass

import torch

from rlhf_env import Decision


class Fails:
    off_policy = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        where: str = ""

    def __init__(self, setup, config):
        self.setup, self.where = setup, config.where
        self.reach("init")

    def reach(self, place):
        if place in (self.where, os.environ.get("FAILS_AT")):
            {"there": 1}["not there"]

    def begin(self):
        self.reach("begin")
        return {}

    def act(self, observation):
        if self.where == "act":
            torch.ones(2, 3) @ torch.ones(2, 3)
        return Decision.of(self.setup.policy.write(observation, self.setup.action_length))

    def update(self, rollout):
        if self.where == "update":
            raise SystemExit(0)
        return {}

    def state_dict(self):
        self.reach("state")
        return {}

    def load_state_dict(self, state):
        self.reach("load")
"""


EXPERIMENT = """
[policy]
model = "tiny"
tokenizer = "alphabet:ab="
[task]
name = "echo"
[environment]
num_envs = 4
max_new_tokens = 3
[rewards]
task = 1.0
[budget]
updates = 1
[evaluation]
prompts = 2
[agent]
"""
OWN = 'function = "fails.py:Fails"\n'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fails.py").write_text(CODE)


def line_of(words: str) -> int:
    return next(number for number, line in enumerate(CODE.splitlines(), start=1) if words in line)


def experiment(agent: str) -> Experiment:
    Path("e.toml").write_text(EXPERIMENT + agent)
    return Experiment.load("e.toml")


@pytest.mark.parametrize(
    ("where", "said", "line"),
    [
        ("begin", "begin() raised KeyError: 'not there'", line_of('["not there"]')),
        ("act", "act() raised RuntimeError: mat1 and mat2", line_of("torch.ones(2, 3) @")),
        ("update", "update() raised SystemExit: 0", line_of("raise SystemExit")),
        ("state", "state_dict() raised KeyError: 'not there'", line_of('["not there"]')),
    ],
)
@pytest.mark.parametrize("around", ["", "curriculum", "replay"])
def test_a_run_says_in_a_line_which_method_and_where(where: str, said: str, line: int, around: str) -> None:
    agent = f'{OWN}where = "{where}"\n'
    if around:
        levels = "levels = [1, 2]\n" if around == "curriculum" else ""
        agent = f'name = "{around}"\n{levels}[agent.agent]\n{agent}'
    with pytest.raises(RunFailed) as raised:
        run(experiment(agent), "out")
    message = str(raised.value)
    assert message.startswith(f"the agent Fails: {said}")
    assert message.endswith(f"(fails.py, line {line}): RLHF_ENV_TRACEBACK=1 shows the whole traceback")
    assert "\n" not in message


def test_so_does_one_that_raises_while_it_is_made() -> None:
    with pytest.raises(PluginError, match=r"Fails raised KeyError: 'not there' \(fails.py, line \d+\) while it was"):
        run(experiment(f'{OWN}where = "init"\n'), "out")


def test_a_state_that_it_does_not_take_back_names_the_line_too() -> None:
    run(experiment(OWN), "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAILS_AT", "load")
        with pytest.raises(DataError, match=r"does not fit .*\(KeyError: 'not there'; fails.py, line \d+\)"):
            load_run("out")


def test_a_plugin_by_name_is_known_by_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path("rlhf_agent_that_fails")
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inside.py").write_text(CODE)
    monkeypatch.syspath_prepend(".")
    monkeypatch.setattr(host(), "_entries", dict(host()._entries))
    host().add("agent", "that-fails", "rlhf_agent_that_fails.inside:Fails")
    with pytest.raises(RunFailed, match=r"begin\(\) raised KeyError: 'not there' \(.*inside.py, line \d+\)"):
        run(experiment('name = "that-fails"\nwhere = "begin"\n'), "out")


def test_what_our_own_agents_raise_keeps_its_traceback() -> None:
    class Ours:
        pass

    with pytest.raises(KeyError), asking(Ours(), "update"):  # type: ignore[arg-type]
        raise KeyError("a fault of this project's")


def test_the_command_shows_the_traceback_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment(f'{OWN}where = "begin"\n')
    assert len(said_by("train", "e.toml", "--out", "a").splitlines()) == 1
    monkeypatch.setenv("RLHF_ENV_TRACEBACK", "1")
    said = said_by("train", "e.toml", "--out", "b")
    assert "in reach" in said
    assert said.splitlines()[-1].startswith("rlhf-env: the agent Fails: begin() raised KeyError")


def said_by(*words: str) -> str:
    """What a command says on stderr, which fails as a run does."""
    errors = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stderr(errors),
        contextlib.redirect_stdout(io.StringIO()),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", ["rlhf-env", *words])
        cli.main()
    assert ended.value.code == 3
    return errors.getvalue()
