"""Files that commands write, beside the checkpoints of a run: killed at every point of it, and no room for them."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path

from faults.catalogue import fault
from faults.processes import rlhf_env
from faults.resume_matrix import after, before
from faults.several_processes import GRID, in_one_process, results
from faults.training import limited
from faults.trial import Trial, named

from rlhf_env.cli import checking
from rlhf_env.learning.run_folder import RunFolder


def hidden(folder: Path) -> list[str]:
    """What is half written."""
    return [file.name for file in folder.rglob(".*")]


@fault(
    "F1", "kill -9 before and after each write, fsync and rename of an evaluation; the next one leaves no trace of it"
)
def killed_in_an_evaluation(folder: Path) -> str:
    trial = Trial(folder, "reinforce")
    assert trial.train().status == 0
    file = trial.run / "against_reference.json"

    def kill_at(point: int) -> Callable[[], None]:
        calls = count(1)

        def look(*_: object) -> None:
            if next(calls) == point:
                os.kill(os.getpid(), signal.SIGKILL)

        def prepare() -> None:
            for owner, name in ((Path, "replace"), (os, "fsync")):
                before(owner, name, look)
                after(owner, name, look)
            before(Path, "open", lambda _, mode="r", *__: "w" in mode and look())
            after(Path, "open", lambda _, __, mode="r", *___: "w" in mode and look())

        return prepare

    left = 0
    for point in count(1):
        ended = rlhf_env("evaluate", str(trial.run), before=kill_at(point))
        if ended.status == 0:
            break
        assert ended.status == -signal.SIGKILL, ended
        assert len(hidden(trial.run)) <= 1, "what was left before is still there"
        left += len(hidden(trial.run))
        if file.exists():
            json.loads(file.read_text(encoding="utf-8"))
    assert point == 7 and left, (point, left)
    assert not hidden(trial.run) and "6 replies" in json.loads(file.read_text(encoding="utf-8"))["asked"]
    return f"{point - 1} of {point - 1} points, {left} of them with something left behind"


def refused(folder: Path, size: int, what: str, *words: str) -> None:
    """`rlhf-env WORDS` where no file may grow beyond `size` bytes: exit 3, one line with the file's path and bytes."""
    ended = rlhf_env(*words, before=lambda: limited(size))
    named(ended, 3, what, "File too large", "make room")
    assert ended.stderr.count("\n") == 1 and re.search(r"[\d,]+ bytes\)", ended.stderr), ended.stderr
    assert not hidden(folder), hidden(folder)


@fault("F2", "no room for what a command writes: exit 3 with its path and bytes, what was there before is whole")
def no_room_for_a_file(folder: Path) -> None:
    trial = Trial(folder, "reinforce")
    assert trial.train().status == 0
    evaluation, store, exported = trial.run / "against_reference.json", folder / "prefs.sqlite", folder / "pairs.jsonl"
    refused(folder, 1000, f"{evaluation} (", "evaluate", str(trial.run))
    assert not evaluation.exists()
    assert rlhf_env("evaluate", str(trial.run)).status == 0
    whole = evaluation.read_bytes()
    refused(folder, 1000, f"{evaluation} (", "evaluate", str(trial.run), "--prompts", "5")
    assert evaluation.read_bytes() == whole
    pairs = ({"prompt": f"q{i}", "chosen": "a" * 99, "rejected": "b" * 99} for i in range(1000))
    (folder / "given.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    assert rlhf_env("preferences", "import", str(store), str(folder / "given.jsonl")).status == 0
    ended = rlhf_env("preferences", "export", str(store), str(exported), before=lambda: limited(100_000))
    named(ended, 3, f"{exported} cannot be written: File too large")
    assert not exported.exists() and not hidden(folder)


@fault("F2", "no room where nobody reckoned with it: exit 3, no traceback", quick=True)
def no_room_anywhere(folder: Path) -> None:
    def prepare() -> None:
        checking._check_file = lambda file, _note: file.write_text("x" * 4096) and None
        limited(1000)

    ended = rlhf_env("check", str(folder / "any.toml"), before=prepare)
    named(ended, 3, "cannot write", "File too large", "make room")


@fault(
    "F2", "no room in a benchmark: no cell is said to have failed, exit 3, and the next call ends as if there had been"
)
def no_room_in_a_benchmark(folder: Path) -> str:
    grid, out = folder / "grid.toml", folder / "out"
    grid.write_text(GRID, encoding="utf-8")
    words = ["bench", str(grid), "--out"]

    def prepare() -> None:
        in_one_process()
        log = RunFolder.log

        def limited_log(run: RunFolder, row: dict[str, int]) -> None:
            if row["update"] == 20:
                limited((run.path / "metrics.jsonl").stat().st_size + 10)
            log(run, row)

        RunFolder.log = limited_log  # type: ignore[method-assign,assignment]

    ended = rlhf_env(*words, str(out), before=prepare)
    named(ended, 3, "2 of 2 cells are not done", "the same command")
    assert "cannot write the metrics" in ended.stdout, ended.stdout
    assert results(out) == {}
    for place in (out, folder / "untouched"):
        again = rlhf_env(*words, str(place), before=in_one_process)
        assert again.status == 0, again
    assert results(out) == results(folder / "untouched")
    return "exact"
