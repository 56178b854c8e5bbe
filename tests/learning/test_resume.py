"""Exact resume: cut anywhere and gone on with, a run ends in the same bits as one that was left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_env import plugins
from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError, DataError
from rlhf_env.learning import checkpoints
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import Row
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.workplace import Workplace

from .resuming import (
    UPDATES,
    MakeSource,
    _timeless,
    assert_same_bits,
    from_demonstrations,
    from_pairs,
    in_the_environment,
    run_once,
)

# ---------------------------------------------------------------- cut after every update

CASES: dict[str, tuple[str, str, MakeSource, dict[str, Any]]] = {
    "ppo": ("ppo", "response", in_the_environment, {}),
    "ppo, token by token": ("ppo", "token", in_the_environment, {}),
    "ppo, separate value model": ("ppo", "response", in_the_environment, {"value_model": "separate"}),
    "reinforce": ("reinforce", "response", in_the_environment, {}),
    "rloo, token by token": ("rloo", "token", in_the_environment, {}),
    "grpo": ("grpo", "response", in_the_environment, {}),
    "rejection": ("rejection", "response", in_the_environment, {}),
    "grpo, token by token": ("grpo", "token", in_the_environment, {}),
    "options": ("options", "response", in_the_environment, {}),
    "curriculum around ppo": ("curriculum", "response", in_the_environment, {}),
    "replay around rloo": ("replay", "response", in_the_environment, {}),
    "prompt_sampling around ppo": ("prompt_sampling", "response", in_the_environment, {}),
    "dynamic_sampling around grpo": ("dynamic_sampling", "response", in_the_environment, {}),
    "backward_curriculum around temperature around rloo": ("backward_curriculum", "response", in_the_environment, {}),
    "dpo, online": ("dpo", "response", in_the_environment, {}),
    "dpo, stored pairs": ("dpo", "response", from_pairs, {}),
    "sft, demonstrations": ("sft", "response", from_demonstrations, {}),
    "sft, its own texts": ("sft", "response", in_the_environment, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_cut_after_every_update_a_run_ends_in_the_same_bits(case: str, toy: Any, tmp_path: Path) -> None:
    """F13, N40. The KL part moves its coefficient, evaluations come between updates, sft has dropout."""
    agent, view, source, settings = CASES[case]
    experiment = toy(agent, updates=UPDATES, view=view)
    experiment = replace(experiment, agent={**experiment.agent, **settings})
    how: dict[str, Any] = {"dropout": 0.1 if agent == "sft" else 0.0}
    uncut = run_once(experiment, tmp_path / "uncut", source, **how)
    assert [row["update"] for row in uncut.rows] == [1, 2, 3, 4]
    assert len(uncut.seen) == UPDATES
    for cut in range(1, UPDATES + 1):
        folder = tmp_path / f"cut-{cut}"
        # The row of the update is logged, its checkpoint is not written: the update is done again.
        first = run_once(experiment, folder, source, kill_after=cut, **how)
        assert first.seen == uncut.seen[:cut]
        resumed = run_once(experiment, folder, source, **how)
        assert resumed.seen == uncut.seen[cut - 1 :], f"cut after update {cut}"
        assert_same_bits(resumed.state, uncut.state, f"cut after update {cut}")
        assert resumed.rows == uncut.rows, f"cut after update {cut}"


def test_what_the_test_above_compares_is_alive(toy: Any, tmp_path: Path) -> None:
    """Parameters, moments, streams and the reward's memory all change from update to update."""
    one, two = (run_once(toy("ppo", updates=n), tmp_path / str(n)).state for n in (1, 2))
    assert one["source"]["rewards"]["kl"]["coefficient"] != two["source"]["rewards"]["kl"]["coefficient"] != 1.0
    assert one["source"]["place"] < two["source"]["place"]
    assert one["agent"]["order"] != two["agent"]["order"]
    assert one["agent"]["sampling"] != two["agent"]["sampling"]
    weight = next(iter(one["agent"]["policy"]))
    assert not torch.equal(one["agent"]["policy"][weight], two["agent"]["policy"][weight])
    assert not torch.equal(one["agent"]["optimizer"]["0"]["exp_avg"], two["agent"]["optimizer"]["0"]["exp_avg"])


def test_checkpoints_far_apart_are_as_exact(toy: Any, tmp_path: Path) -> None:
    experiment = toy("ppo", updates=5)
    uncut = run_once(experiment, tmp_path / "uncut", checkpoint_every=2)
    run_once(experiment, tmp_path / "cut", kill_after=3, checkpoint_every=2)
    resumed = run_once(experiment, tmp_path / "cut", checkpoint_every=2)
    assert len(resumed.seen) == 3
    assert_same_bits(resumed.state, uncut.state)
    assert resumed.rows == uncut.rows


def test_evaluating_changes_nothing(toy: Any, tmp_path: Path) -> None:
    with_it = run_once(toy("ppo"), tmp_path / "with")
    without = run_once(toy("ppo"), tmp_path / "without", evaluated=False)
    assert_same_bits(with_it.state, without.state)
    assert with_it.seen == without.seen


def test_a_finished_run_is_left_as_it_is(toy: Any, tmp_path: Path) -> None:
    first = run_once(toy("ppo"), tmp_path)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").rglob("*")}
    second = run_once(toy("ppo"), tmp_path)
    assert second.seen == []
    assert second.rows == first.rows
    assert_same_bits(second.state, first.state)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").rglob("*")} == before


def test_a_run_that_stopped_for_a_reason_has_stopped(toy: Any, tmp_path: Path) -> None:
    """Killed between the last checkpoint and the result's file, a run must not train one more update."""

    def enough(row: Row) -> str | None:
        return "enough" if row["update"] == 2 else None

    first = run_once(toy("ppo"), tmp_path, stop_when=enough)
    again = run_once(toy("ppo"), tmp_path, stop_when=enough)
    assert len(first.seen) == 2
    assert again.seen == []
    assert_same_bits(again.state, first.state)


def test_the_newest_checkpoint_damaged_the_one_before_is_offered(toy: Any, tmp_path: Path) -> None:
    """Refused by name; taken where that is allowed, and what was damaged is kept beside."""
    experiment = toy("ppo")
    uncut = run_once(experiment, tmp_path)
    tensors = tmp_path / "checkpoints" / "step-00000003" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"step-00000003/tensors\.safetensors is damaged") as refused:
        run_once(experiment, tmp_path)
    assert refused.value.problems[-1].startswith("step-00000002 is whole: --allow-partial resumes from there")
    resumed = run_once(experiment, tmp_path, allow_partial=True)
    assert len(resumed.seen) == 1
    assert_same_bits(resumed.state, uncut.state)
    assert not checkpoints.problems(tensors.parent)
    aside = [path.name for path in (tmp_path / "checkpoints").iterdir() if "set-aside" in path.name]
    assert [name.partition("-set")[0].partition(".set")[0] for name in aside] == ["step-00000003"]


# ---------------------------------------------------------------- the command, killed for real


@pytest.fixture
def slow() -> Iterator[None]:
    """A reward that takes its time, so that a signal finds a run under way."""

    def slow(completions: list[str]) -> list[float]:
        time.sleep(0.03)
        return [float(len(text)) for text in completions]

    plugins.register_reward("slow", slow)
    yield
    plugins.host()._entries.pop(("reward", "slow"))


def _child(arguments: Sequence[str], errors: Path) -> None:
    with errors.open("w") as sys.stderr, Path(os.devnull).open("w") as sys.stdout:
        sys.argv = ["rlhf-env", *arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()


def command(*arguments: str, errors: Path) -> Any:
    """`rlhf-env ...` in a process of its own, made by forking: the imports are done."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(arguments, errors))
    process.start()
    return process


def wait_for_rows(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if len(read_metrics(folder)) >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"{folder} never got {count} rows")


def weights(folder: Path) -> tuple[str, str]:
    """Name and digest of the newest checkpoint's tensors: parameters and moments."""
    newest = checkpoints.latest(folder / "checkpoints")
    assert newest is not None
    _, manifest = checkpoints.load(newest)
    return newest.name, manifest["files"]["tensors.safetensors"]["sha256"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_killed_command_is_gone_on_with_exactly(number: signal.Signals, toy: Any, slow: None, tmp_path: Path) -> None:
    """F9, F10, F12."""
    file, folder, errors = tmp_path / "toy.toml", tmp_path / "run", tmp_path / "errors"
    experiment = replace(toy("grpo", updates=14, rewards={"slow": 1.0}), checkpoint_every=3)
    file.write_text(experiment.to_toml())
    whole = command("train", str(file), "--out", str(tmp_path / "whole"), errors=errors)
    whole.join()
    assert (whole.exitcode, errors.read_text()) == (0, "")

    process = command("train", str(file), "--out", str(folder), errors=errors)
    wait_for_rows(folder, 6)  # the evaluation at update 0, and five updates
    os.kill(process.pid, number)
    process.join(600)
    said = errors.read_text()
    updates = len(read_metrics(folder)) - 1
    assert updates < 14
    if number == signal.SIGKILL:
        assert process.exitcode == -number
    else:
        assert process.exitcode == 128 + number
        again = f"rlhf-env train {file} --out {folder} --resume"
        assert said == f"rlhf-env: stopped after update {updates}, saved in {folder}; resume with: {again}\n"
        assert weights(folder)[0] == f"step-{updates:08d}"

    refused = command("train", str(file), "--out", str(folder), errors=errors)
    refused.join()
    assert refused.exitcode == 2
    assert errors.read_text().count("\n") == 1
    assert "--resume" in errors.read_text()

    resumed = command("train", str(file), "--out", str(folder), "--resume", errors=errors)
    resumed.join()
    assert (resumed.exitcode, errors.read_text()) == (0, "")
    assert weights(folder) == weights(tmp_path / "whole")
    assert [_timeless(row) for row in read_metrics(folder)] == [
        _timeless(row) for row in read_metrics(tmp_path / "whole")
    ]
    assert (folder / "evaluation.json").read_text() == (tmp_path / "whole" / "evaluation.json").read_text()


def test_ctrl_c_before_a_run_is_under_way_is_status_130(toy: Any, slow: None, tmp_path: Path, monkeypatch: Any) -> None:
    """While models load there is nothing to save: one line, no traceback."""
    file, errors = tmp_path / "toy.toml", tmp_path / "errors"
    file.write_text(toy("grpo").to_toml())

    def interrupted(_experiment: Experiment) -> Workplace:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600)
        raise AssertionError("not reached")

    monkeypatch.setattr("rlhf_env.lab.evaluation.preparing.build", interrupted)
    process = command("train", str(file), "--out", str(tmp_path / "run"), errors=errors)
    process.join(600)
    assert (process.exitcode, errors.read_text()) == (130, "rlhf-env: stopped\n")


def test_another_experiment_is_not_resumed(toy: Any, tmp_path: Path) -> None:
    """F8: the fields that differ are named."""
    run_once(toy("ppo"), tmp_path)
    with pytest.raises(ConfigError, match=r"another agent\.lr: was 0\.01, now 0\.02") as refused:
        run_once(replace(toy("ppo"), agent={**toy("ppo").agent, "lr": 0.02}), tmp_path)
    assert len(refused.value.problems) == 1
