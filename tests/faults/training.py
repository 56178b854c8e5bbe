"""Faults of a training run: killed, interrupted, out of disk.

Each starts from a run of `resume_matrix`, of which a copy that nobody touched says what must come out in the end.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from faults.catalogue import NotHere, fault
from faults.processes import started
from faults.resume_matrix import ANYTHING, CUTS, POINT, UPDATES, Cut, Watch, applicable, cut_and_resume
from faults.trial import SAVE_EVERY, TENSORS, Trial, moments, named
from faults.trial import prepare as prepare  # `run` calls it before the faults of this module

from rlhf_env.learning import checkpoints
from rlhf_env.learning.run_record import read_metrics

# ---------------------------------------------------------------- killed


def _killed_in_the_save(after: int) -> Callable[[Path], object]:
    def inject(folder: Path) -> str:
        trial = Trial(folder, "reinforce")
        for point in count(1):
            trial.again()
            ended = trial.train(cuts=[Cut(POINT, after, point)])
            if ended.status == 0:  # there is no such point any more
                break
            assert ended.status == -signal.SIGKILL, ended
            assert checkpoints.latest(trial.run / "checkpoints") is not None, f"point {point}"
            trial.resume()
        assert point > 20, f"a save has 10 calls that change the disk, and {point - 1} points were seen"
        return f"{point - 1} of {point - 1} points"

    return inject


fault("F1", "kill -9 before and after every write, fsync and rename of a save")(_killed_in_the_save(4))
fault("F1", "the same in the save that removes an older one, piece by piece")(_killed_in_the_save(UPDATES))


@fault("F12", "kill -9 at a random instant, 20 times")
def killed_at_random(folder: Path) -> str:
    trial = Trial(folder)
    began = time.monotonic()
    assert trial.train().status == 0
    took = time.monotonic() - began
    times = 0
    for moment in moments(12, 0.05 * took, 0.8 * took, 60):
        trial.again()
        process = started(*trial.command, before=Watch(trial.seen))
        time.sleep(moment)
        process.kill()
        if process.wait().status == 0:  # a busy machine became quiet: it was over before
            continue
        trial.resume()
        lines = trial.seen.read_text().splitlines() if trial.seen.exists() else []
        assert len(lines) - len(trial.untouched.left.seen) <= SAVE_EVERY, lines
        times += 1
        if times == 20:
            return "20 of 20 exact, at most 2 updates done again"
    raise AssertionError(f"only {times} were killed in time")


@fault("F9", "SIGTERM at 20 places")
def terminated(folder: Path) -> str:
    trial = Trial(folder)
    events = trial.untouched.counts[ANYTHING, 0]
    for place in moments(9, 0.1 * events, 0.95 * events):
        trial.again()
        ended = trial.train(cuts=[Cut(ANYTHING, 0, int(place))], number=signal.SIGTERM)
        assert ended.status == 143, ended
        assert ended.stderr.count("\n") == 1, ended.stderr
        assert "--resume" in ended.stderr, ended.stderr
        rows = [row["update"] for row in read_metrics(trial.run)]
        lines = trial.seen.read_text().splitlines() if trial.seen.exists() else []
        newest = checkpoints.latest(trial.run / "checkpoints")
        # What was learned from is in the checkpoint: nothing is done again.
        assert len(lines) == (rows[-1] if rows else 0), (lines, rows)
        saved = 0 if newest is None else checkpoints.manifest_of(newest)["step"]
        assert saved == (rows[-1] if rows else 0), (place, saved, rows, ended)
        trial.resume()
    return "20 of 20: exit 143, the update finished and saved, exact"


@fault("F10", "SIGINT once", quick=True)
def interrupted(folder: Path) -> None:
    trial = Trial(folder, "reinforce")
    ended = trial.train(cuts=[CUTS["in a later rollout, mid-episode"]], number=signal.SIGINT)
    named(ended, 130, "--resume", "after update 4")
    trial.resume()


@fault("F10", "SIGINT twice: it stops at once")
def interrupted_twice(folder: Path) -> None:
    trial = Trial(folder)

    at = [CUTS["in a later rollout, mid-episode"], CUTS["in gradient accumulation"]]
    ended = trial.train(cuts=at, number=signal.SIGINT)
    named(ended, 130)
    assert [row["update"] for row in read_metrics(trial.run)][-1] == 3, "the update under way was cut short"
    trial.resume()


@fault("F11", "SIGTERM in the middle of a save", quick=True)
def terminated_in_a_save(folder: Path) -> None:
    trial = Trial(folder, "reinforce")
    ended = trial.train(cuts=[CUTS["in a save, before its rename"]], number=signal.SIGTERM)
    named(ended, 143, "--resume")
    trial.no_stray_files()
    assert not checkpoints.problems(trial.checkpoint(2))
    trial.resume()


def _cut(cut: str) -> Callable[[Path], object]:
    def inject(_folder: Path) -> str:
        done = 0
        for case in ("ppo", "grpo, novelty", "dpo, stored pairs", "curriculum around ppo"):
            for where in applicable(case, cut).values():
                cut_and_resume(case, where)
                done += 1
        assert done
        return f"{done} of {done} exact"

    return inject


fault("F13", "cut inside a rollout: four agents")(_cut("rollout"))
fault("F13", "cut between gradient steps: four agents")(_cut("between gradient steps"))
fault("F13", "cut in gradient accumulation: four agents")(_cut("accumulation"))
fault("F13", "cut in evaluations: four agents")(_cut("evaluation"))

# ---------------------------------------------------------------- no room


def limited(size: int) -> None:
    """No file of this process may grow beyond `size` bytes (EFBIG, as on a full disk)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@fault("F2", "no room in a save: a limit on the size of files", quick=True)
def no_room_for_a_checkpoint(folder: Path) -> None:
    trial = Trial(folder, "reinforce")
    size = (trial.untouched.run / "checkpoints" / "step-00000005" / TENSORS).stat().st_size

    def limit_at_the_second() -> None:
        save = checkpoints.save

        def limited_save(parent: Path, step: int, *rest: Any, **more: Any) -> Path:
            if step == 4:
                limited(size // 2)
            return save(parent, step, *rest, **more)

        checkpoints.save = limited_save

    ended = trial.train(before=limit_at_the_second)
    named(ended, 3, str(trial.checkpoint(4)), "bytes)", "--resume")
    needed = int(re.findall(r"about ([\d,]+) bytes", ended.stderr)[0].replace(",", ""))
    assert 0.9 * size < needed < 1.1 * size, (needed, size)
    assert not checkpoints.problems(trial.checkpoint(2))
    trial.no_stray_files()
    trial.resume()


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own of `size`. NotHere where none may be mounted."""
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, f"size={size}".encode()) != 0:
        raise NotHere(f"a tmpfs cannot be mounted: {os.strerror(ctypes.get_errno())}")
    try:
        yield place
    finally:
        libc.umount2(str(place).encode(), 2)  # MNT_DETACH


@fault("F2", "no room in a save: a full file system")
def full_disk(folder: Path) -> str:
    trial = Trial(folder)
    needed = sum(file.stat().st_size for file in (trial.untouched.run / "checkpoints").glob("step-00000005/*"))
    with small_disk(folder / "disk", f"{(5 * needed // 2) >> 10}k") as disk:  # two checkpoints, and half a third
        trial.run = disk / "run"
        ended = trial.train()
        named(ended, 3, "No space left", "bytes)")
        newest = checkpoints.latest(trial.run / "checkpoints")
        assert newest is not None
        trial.no_stray_files()
        roomy = folder / "run"
        shutil.copytree(trial.run, roomy)
        trial.run = roomy
        trial.resume()
    return f"stopped after {newest.name}, exact on a larger disk"


@fault("F3", "no room for a row of metrics: a limit on the size of files", quick=True)
def no_room_for_a_row(folder: Path) -> None:
    trial = Trial(folder, "reinforce")
    size = (trial.untouched.run / "metrics.jsonl").stat().st_size
    rows = len(read_metrics(trial.untouched.run))

    def limit_in_a_row() -> None:
        from rlhf_env.learning.run_folder import RunFolder

        log = RunFolder.log

        def limited_log(run: RunFolder, row: Any) -> None:
            if row["update"] == 4:
                limited((run.path / "metrics.jsonl").stat().st_size + size // rows // 2)
            log(run, row)

        RunFolder.log = limited_log  # type: ignore[method-assign]

    ended = trial.train(before=limit_in_a_row)
    named(ended, 3, "metrics.jsonl cannot be written", str(trial.run), "--resume")
    assert not (trial.run / "metrics.jsonl").read_bytes().endswith(b"\n"), "the row was to be cut in half"
    assert [row["update"] for row in read_metrics(trial.run)] == [0, 1, 2, 3]
    trial.resume()


@fault("F3", "no room for the logs: a full file system")
def full_disk_for_logs(folder: Path) -> str:
    trial = Trial(folder)
    with small_disk(folder / "disk", "24k") as disk:
        trial.run = disk / "run"
        ended = trial.train(before=lambda: setattr(checkpoints, "save", lambda *_, **__: Path()))
        named(ended, 3, "No space left", str(disk))
        rows = [row["update"] for row in read_metrics(trial.run)]
        assert rows == list(range(len(rows)))
    return f"stopped with {len(rows)} whole rows"
