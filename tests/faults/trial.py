"""A short run to do harm to, beside a copy that nobody touched: what the faults of training share."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faults.processes import Ended, rlhf_env
from faults.resume_matrix import (
    CUTS,
    POINT,
    Cut,
    Left,
    Watch,
    after,
    assert_same,
    before,
    untouched,
)

SAVE_EVERY = 2  # updates, in the experiments of the matrix
TENSORS, STATE, MANIFEST = CHECKPOINT = ("tensors.safetensors", "state.json", "manifest.json")


class Trial:
    """A short run in `folder`: what it leaves if nobody touches it, and the same command to do harm to."""

    def __init__(self, folder: Path, case: str = "ppo") -> None:
        self.folder = folder
        self.untouched = untouched(case)
        self.file = folder / "experiment.toml"
        shutil.copy(self.untouched.file, self.file)
        self.again()

    def again(self) -> None:
        """A place for another run."""
        self.run, self.seen = self.folder / "run", self.folder / "seen-here"
        shutil.rmtree(self.run, ignore_errors=True)
        self.seen.unlink(missing_ok=True)

    @property
    def command(self) -> list[str]:
        return ["train", str(self.file), "--out", str(self.run)]

    def train(self, *more: str, cuts: Sequence[Cut] = (), number: int = signal.SIGKILL, before: Any = None) -> Ended:
        """The command, to its end; `cuts`: where it gets the signal, `before`: called first in its process."""

        def look() -> None:
            watch = Watch(self.seen, *cuts, number=number)
            watch()
            _and_each_piece_of_a_removal(watch)
            if before is not None:
                before()

        return rlhf_env(*self.command, *more, before=look)

    def killed(self, cut: str = "in the last update") -> None:
        ended = self.train(cuts=[CUTS[cut]])
        assert ended.status == -signal.SIGKILL, ended

    def resume(self, *more: str) -> Ended:
        """Gone on with, it must end as the one that nobody touched."""
        ended = self.train("--resume", *more)
        assert (ended.status, ended.stderr) == (0, ""), ended
        assert_same(Left.of(self.run, self.seen), self.untouched.left)
        self.no_stray_files()
        return ended

    def no_stray_files(self) -> None:
        stray = [file.name for file in (self.run / "checkpoints").iterdir() if file.name.startswith(".tmp")]
        assert not stray, stray

    def checkpoint(self, step: int) -> Path:
        return self.run / "checkpoints" / f"step-{step:08d}"


def _and_each_piece_of_a_removal(watch: Watch) -> None:
    for name in ("unlink", "rmdir"):
        for seam in (before, after):
            seam(os, name, lambda *_: watch.saving and watch.happened(POINT))


def prepare() -> None:
    """Before any is injected: what they share."""
    for case in ("ppo", "reinforce"):
        untouched(case)


def named(ended: Ended, status: int, *words: str) -> None:
    """A named exit: the status, lines on stderr that have all of these words between them, no traceback."""
    assert ended.status == status, ended
    lines = ended.stderr.splitlines()
    assert lines, ended
    assert all(line.startswith("rlhf-env: ") for line in lines), ended.stderr
    missing = [word for word in words if word not in ended.stderr]
    assert not missing, f"{missing} not in {ended.stderr}"


def moments(seed: int, low: float, high: float, count: int = 20) -> list[float]:
    stream = random.Random(seed)
    return [stream.uniform(low, high) for _ in range(count)]
