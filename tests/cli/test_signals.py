"""Ctrl-C and SIGTERM, sent for real to processes that run commands: what is done is kept, and they say how to go on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.processes import rlhf_env, started, warm_up

from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.lab.benchmark import run as benchmark
from rlhf_env.lab.studies import labels
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
GRID = """
name = "small"
seeds = 2
[experiment]
budget = { updates = 4 }
policy = { tokenizer = "alphabet:ab" }
environment = { num_envs = 4, max_new_tokens = 2, max_prompt_tokens = 4 }
evaluation = { prompts = 4 }
task = { name = "prompts", prompts = ["a", "b"] }
rewards = { length = { target = 1 }, kl = 0.1 }
[agents.reinforce]
"""


@pytest.fixture(scope="module", autouse=True)
def _imports_are_done() -> None:
    """The processes below are forked from this one."""
    for module in (
        "rlhf_env.pipeline.demo",
        "rlhf_env.lab.studies.overoptimization.findings",
        "rlhf_env.lab.studies.exact.agents",
    ):
        import_module(module)
    warm_up()


def stop(number: signal.Signals) -> None:
    """What a shell or a scheduler does, from inside; a process that goes on regardless is an error."""
    os.kill(os.getpid(), number)
    time.sleep(20)
    raise AssertionError("not reached")


@SIGNALS
@pytest.mark.parametrize(
    ("command", "work"),
    [
        ("demo --out the place", "rlhf_env.pipeline.demo.run_demo"),
        ("pipeline base-model --jobs 1", "rlhf_env.pipeline.running.run_pipeline"),
        ("lab labels --quick", "rlhf_env.lab.studies.labels.run_label_study"),
        ("lab overoptimization --quick", "rlhf_env.lab.studies.overoptimization.run.run_study"),
    ],
)
def test_a_command_whose_work_is_kept_says_how_it_goes_on(command: str, work: str, number: signal.Signals) -> None:
    words = [word.replace("_", " ") for word in command.replace("the place", "the_place").split()]
    module, _, name = work.rpartition(".")

    def before() -> None:
        setattr(import_module(module), name, lambda *_arguments, **_settings: stop(number))

    ended = rlhf_env(*words, before=before)
    assert ended.status == 128 + number, ended.stderr
    expected = f"rlhf-env: stopped, what is done is saved; resume with: {shlex.join(['rlhf-env', *words])}\n"
    assert ended.stderr == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_command_that_keeps_nothing_only_stops(number: signal.Signals) -> None:
    def before() -> None:
        import_module("rlhf_env.lab.studies.exact.agents").reach = lambda _seeds: stop(number)  # type: ignore[attr-defined]

    ended = rlhf_env("lab", "agents", before=before)
    assert (ended.status, ended.stderr) == (128 + number, "rlhf-env: stopped\n")


@SIGNALS
def test_a_signal_that_comes_while_python_cleans_up_is_heard_nevertheless(number: signal.Signals) -> None:
    """Exceptions in a `__del__` are thrown away: Ctrl-C and SIGTERM were, now and then, and the command went on."""

    class CleansUp:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(1)

    def work(_seeds: object) -> None:
        CleansUp()
        time.sleep(20)
        raise AssertionError("not reached")

    def before() -> None:
        import_module("rlhf_env.lab.studies.exact.agents").reach = work  # type: ignore[attr-defined]

    ended = rlhf_env("lab", "agents", before=before)
    assert (ended.status, ended.stderr) == (128 + number, "rlhf-env: stopped\n")


def after_calls(count: int, of: Callable[..., Any], number: signal.Signals) -> Callable[..., Any]:
    """`of`, until it has been called so often: then the signal."""
    calls = 0

    def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > count:
            stop(number)
        return of(*arguments, **settings)

    return counted


def test_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    words = ["lab", "labels", "--quick", "--seeds", "1", "--out", str(tmp_path / "study")]

    def before() -> None:
        labels.learning_curve = after_calls(2, labels.learning_curve, signal.SIGTERM)

    assert rlhf_env(*words, before=before).status == 128 + signal.SIGTERM
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "study" / "cells").iterdir()}
    assert len(done) == 2
    assert rlhf_env(*words).status == 0
    assert {file: file.stat().st_mtime_ns for file in done} == done, "what was done is not done again"
    assert (tmp_path / "study" / "labels.json").exists()


def test_a_benchmark_goes_on_inside_the_run_that_was_cut(tmp_path: Path) -> None:
    """In this process (jobs = 0): how it reaches the processes of a benchmark is tested in tests/lab."""
    (tmp_path / "grid.toml").write_text(GRID, encoding="utf-8")
    words = ["bench", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "out")]
    run_jobs, log = benchmark.run_jobs, RunFolder.log

    def here() -> None:
        benchmark.run_jobs = lambda *arguments, **settings: run_jobs(*arguments, **{**settings, "jobs": 0})
        import_module("rlhf_env.cli.benchmarks")._show_report = lambda *_: None  # type: ignore[attr-defined]

    def before() -> None:
        here()

        def log_and_stop(run: RunFolder, row: Any) -> None:
            log(run, row)
            if row["update"] == 2 and "seed-1" in str(run.path):
                os.kill(os.getpid(), signal.SIGINT)

        RunFolder.log = log_and_stop  # type: ignore[method-assign]

    ended = rlhf_env(*words, before=before)
    assert ended.status == 128 + signal.SIGINT, ended.stderr
    assert ended.stderr.endswith(f"resume with: {shlex.join(['rlhf-env', *words])}\n")
    assert "stopped after update 2" in ended.stderr
    (cut,) = (file.parent for file in (tmp_path / "out").rglob("metrics.jsonl") if "seed-1" in str(file))
    first = read_metrics(cut)
    assert [row["update"] for row in first] == [0, 1, 2]
    assert rlhf_env(*words, before=here).status == 0
    assert read_metrics(cut)[:3] == first, "the updates that were done are not done again"
    assert [row["update"] for row in read_metrics(cut)] == [0, 1, 2, 3, 4]
    assert len(list((tmp_path / "out" / "results").glob("*.json"))) == 2


@SIGNALS
def test_the_annotation_page_ends_and_can_be_served_again(number: signal.Signals, tmp_path: Path) -> None:
    pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
    pytest.importorskip("uvicorn", reason="the extra 'annotate' is not installed")
    PreferenceStore(tmp_path / "prefs.sqlite").close()
    words = ["annotate", "--store", str(tmp_path / "prefs.sqlite"), "--port", "0"]
    server = started(*words)
    deadline = time.monotonic() + 600
    while "Open http" not in server.said() and time.monotonic() < deadline:
        time.sleep(0.02)
    server.kill(number)
    ended = server.wait(600)
    assert ended.status == 128 + number, ended.stderr
    assert ended.stderr.endswith(f"resume with: {shlex.join(['rlhf-env', *words])}\n")


def test_what_the_long_run_would_say_of_leaks() -> None:
    """`make long-run` watches for these: each is planted, and found."""
    from dataclasses import asdict, replace

    from faults.long_run import Sample, findings

    flat = Sample(0.0, 0, 400_000_000, 6, 3, 0, 0, 2, 50_000)

    def run(**grown: Callable[[int], int]) -> list[str]:
        samples = []
        for second in range(200):
            update = 100 * second
            honest = replace(
                flat, seconds=float(second), updates=update, metrics=1500 * update, tensorboard=int(3e5 * second**0.3)
            )
            samples.append(replace(honest, **{name: value(second) for name, value in grown.items()}))
        assert json.loads(json.dumps(asdict(samples[0])))["threads"] == 3
        return findings(samples)

    assert run() == []
    assert "resident memory grew by" in run(resident=lambda second: 400_000_000 + 250_000 * second)[0]
    assert run(resident=lambda second: 400_000_000 + 50_000 * second) == [], "2.5 % in all"
    assert run(resident=lambda second: 400_000_000 + 10**8 * (second > 20)) == [], "warming up"
    assert "files grew from" in run(files=lambda second: 6 + second // 50)[0]
    assert "threads grew from" in run(threads=lambda second: 3 + second // 50)[0]
    assert "a line of metrics grew" in run(metrics=lambda second: 20 * second**2)[0]
    assert "TensorBoard's files grew" in run(tensorboard=lambda second: 10_000 * second)[0]
    assert "checkpoints" in run(checkpoint=lambda second: 50_000 + 100 * second)[0]
    assert "checkpoints" in run(checkpoints=lambda second: 2 + second // 40)[0]
