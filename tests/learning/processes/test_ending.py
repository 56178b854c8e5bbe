"""How several processes end: by a signal, killed, hanging, refused; and how a run goes on in another number of them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from faults.processes import started
from faults.resume_matrix import timeless

from rlhf_env.errors import ConfigError
from rlhf_env.learning import checkpoints, lifeline
from rlhf_env.learning.launched import Launched, launched
from rlhf_env.learning.loop import Row
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.signals import Interrupted

from .pool import TOY, Notes, assert_one_line, commands, noted, rank, said_to, several, tensors_of, trained
from .test_same_as_one import close

# ---------------------------------------------------------------- stopped, and gone on with in another number


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that nobody stops, and one of two processes whose second gets SIGTERM, gone on with in one, two, three."""
    place = tmp_path_factory.mktemp("resumed")
    case = "grpo, novelty"  # a reward with a memory, a penalty with a controller

    def work(folder: Path, resume: bool, stop: bool) -> None:
        torch.set_num_threads(1)

        def after_update(row: Row, _share: float) -> None:
            if stop and rank() == 1 and row["update"] == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            trained(case, folder, Notes(), resume=resume, on_update=after_update)
        except Interrupted as stopped:
            assert stop and stopped.exit_code == 143

    def run(folder: str, size: int, *, resume: bool = False, stop: bool = False) -> None:
        for ended in several(size, lambda: work(place / folder, resume, stop)):
            assert ended.status == 0, ended

    run("untouched", 1)
    run("stopped", 2, stop=True)
    for size in (1, 3):
        shutil.copytree(place / "stopped", place / str(size))
        run(str(size), size, resume=True)
    yield place
    shutil.rmtree(place, ignore_errors=True)


def test_a_signal_to_one_process_leaves_a_run_that_all_of_them_saved(resumed: Path) -> None:
    assert [row["update"] for row in read_metrics(resumed / "stopped" / "run")] == [0, 1, 2]
    newest = checkpoints.latest(resumed / "stopped" / "run" / "checkpoints")
    assert newest is not None and newest.name == "step-00000002"


@pytest.mark.parametrize("size", [1, 3])
def test_a_run_goes_on_in_another_number_of_processes_as_if_nothing_had_been(resumed: Path, size: int) -> None:
    alone, together = (
        [timeless(row) for row in read_metrics(resumed / name / "run")] for name in ("untouched", str(size))
    )
    assert close(alone, together)
    for name, tensor in tensors_of(resumed / "untouched").items():
        torch.testing.assert_close(tensors_of(resumed / str(size))[name], tensor, rtol=1e-10, atol=1e-10, msg=name)
    before = noted(resumed / "untouched")[0]["texts"][2:]
    for each in noted(resumed / str(size))[:size]:
        assert [texts["ids"] for texts in each["texts"]] == [texts["ids"] for texts in before]


# ---------------------------------------------------------------- commands, as a launcher starts them


def until(condition: Callable[[], object], patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


@pytest.mark.parametrize("killed", [0, 1])
def test_kill_9_of_any_process_ends_all_with_one_line(toy: Path, killed: int) -> None:
    running = commands(*["train toy.toml --out run"] * 2)
    rows = toy / "run" / "metrics.jsonl"
    until(lambda: rows.exists() and rows.read_text(encoding="utf-8").count("\n") > 3)
    running[killed].kill()
    since = time.monotonic()
    other = running[1 - killed].wait(30.0)
    assert running[killed].wait().status == -signal.SIGKILL
    assert time.monotonic() - since < 30.0
    assert_one_line(
        [other], 3, f"process {killed} (pid {running[killed].pid} on ", "is gone without a word", "--resume"
    )
    assert checkpoints.latest(toy / "run" / "checkpoints") is not None


def test_a_process_that_hangs_in_a_reward_is_named(toy: Path) -> None:
    (toy / "slow.py").write_text(
        "import pathlib, time\n"
        "def slow(completions, **columns):\n"
        "    while not pathlib.Path('go').exists():\n"
        "        time.sleep(0.01)\n"
        "    return [0.0 for _ in completions]\n",
        encoding="utf-8",
    )
    rewards = 'rewards = { mine = { function = "slow.py:slow" } }\n'
    (toy / "toy.toml").write_text(TOY.replace("100_000", "1") + rewards, encoding="utf-8")
    running = commands(*["train toy.toml --out run"] * 2, before=lambda: setattr(lifeline, "WAITED", 0.4))
    named = "the others wait for it: the reward 'part/mine'\n"  # on a busy machine others are, too, of that patience
    until(lambda: named in running[1].complained())
    (toy / "go").touch()
    first, second = (one.wait() for one in running)
    assert first.status == second.status == 0, (first, second)
    (said,) = [line for line in second.stderr.splitlines(keepends=True) if line.endswith(named)][:1]
    assert said.startswith(f"rlhf-env: warning: process 0 (pid {running[0].pid} on "), said


@pytest.mark.parametrize(
    ("of_ranks", "words"),
    [
        (("train no.toml",) * 2, ("cannot read no.toml",)),
        (
            ("train toy.toml --out run", "train toy.toml --out run --seed 1"),
            ("process 1 has another experiment",),
        ),
        (("train toy.toml --out run", "train toy.toml --out other"), ("process 1 has another --out than process 0",)),
        (("train toy.toml --out run", "train no.toml --out run"), ("process 1: cannot read no.toml",)),
        (("train toy.toml --out run --device cuda:0",) * 2, ("--device cuda:0",)),
        (("bench toy.toml --out run",) * 2, ("WORLD_SIZE is 2, and only `rlhf-env train` is one run in several",)),
    ],
    ids=["no such file", "another seed", "another folder", "no such file on one", "one GPU", "another command"],
)
def test_what_cannot_be_is_one_line_of_one_process(
    toy: Path, of_ranks: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_one_line([one.wait() for one in commands(*of_ranks)], 2, *words)
    assert sorted(file.name for file in toy.iterdir()) == ["toy.toml"]


def test_a_port_that_is_not_free_is_one_line(toy: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = started(
            "train", "toy.toml", before=lambda: os.environ.update(said_to(0, 2, taken.getsockname()[1]))
        ).wait()
    assert_one_line([first], 2, "process 0 of 2 does not meet the others at 127.0.0.1:", "is the port free")


# ---------------------------------------------------------------- what a launcher says


def test_no_launcher_is_one_process() -> None:
    assert launched({}) == launched({"WORLD_SIZE": "1"}) == Launched(0, 1, 0, 1)


def test_torchrun_and_mpi_say_who_is_who() -> None:
    place = {"MASTER_ADDR": "node", "MASTER_PORT": "29500"}
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **place}
    assert launched(torchrun) == Launched(3, 4, 1, 2)
    assert launched({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}).rank == 1


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number, got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number, got '0'"),
        ({"WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT not set"),
        ({**said_to(2, 2, 29500)}, "process 2 of 2, 2 of 2 on this machine"),
        # What `accelerate launch --cpu --num_processes 2` of accelerate 1.15 says to the one process that it starts.
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
            | {"ACCELERATE_MIXED_PRECISION": "no"},
            "accelerate was asked for several processes and has started one",
        ),
    ],
)
def test_what_no_launcher_says_is_refused(said: Mapping[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        launched(said)
    assert words in str(refused.value)


def test_one_process_that_accelerate_was_asked_for_is_one() -> None:
    assert launched({"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"}).size == 1
