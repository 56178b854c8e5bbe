"""Faults of a training run: killed, interrupted, out of disk, damaged, mismatched, held by two.

Each starts from a run of `resume_matrix`, of which a copy that nobody touched says what must come out in the end.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults.catalogue import NotHere, fault
from faults.processes import Ended, rlhf_env, started
from faults.resume_matrix import (
    ANYTHING,
    CUTS,
    POINT,
    UPDATES,
    Cut,
    Left,
    Watch,
    after,
    applicable,
    assert_same,
    before,
    cut_and_resume,
    untouched,
)

from rlhf_env import plugins
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.learning import checkpoints
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.run_folder import read_metrics
from rlhf_env.learning.spending import Budget

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
    named(ended, 3, "cannot write the metrics", str(trial.run), "--resume")
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


# ---------------------------------------------------------------- damage


@fault("F4", "one bit flipped in each file of a checkpoint, at 50 random places")
def flipped_bits(folder: Path) -> str:
    trial = Trial(folder)
    trial.killed()
    stream = np.random.default_rng(4)
    refused = 0
    for name in CHECKPOINT:
        file = trial.checkpoint(4) / name
        whole = file.read_bytes()
        for place in stream.integers(8 * len(whole), size=50):
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << (place % 8)
            file.write_bytes(bytes(damaged))
            found = checkpoints.problems(trial.checkpoint(4))
            assert (found and name in found[0]) or "format" in found[0], (name, place, found)
            assert checkpoints.latest(trial.run / "checkpoints") == trial.checkpoint(2)
            refused += 1
        named(trial.train("--resume"), 2, name, "step-00000002 is whole", "--allow-partial")
        file.write_bytes(whole)
    trial.resume()
    return f"{refused} of {refused} refused"


def _in_the_run(trial: Trial) -> list[Path]:
    """Every file that a resumed run depends on."""
    return [
        *(trial.checkpoint(4) / name for name in CHECKPOINT),
        *(trial.run / name for name in ("experiment.toml", "record.json", "metrics.jsonl")),
    ]


@fault("F5", "each file of a run truncated at 0, 1, 50 and 99 %")
def truncated(folder: Path) -> str:
    trial = Trial(folder)
    trial.killed()
    refused = 0
    for file in _in_the_run(trial):
        whole = file.read_bytes()
        for share in (0.0, 0.01, 0.5, 0.99):
            file.write_bytes(whole[: int(share * len(whole))])
            offered = ("step-00000002 is whole",) if file.name in CHECKPOINT else ()
            named(trial.train("--resume"), 2, file.name, "--allow-partial", *offered)
            refused += 1
        file.write_bytes(whole)
    trial.resume()
    return f"{refused} of {refused} refused by name"


@fault("F6", "each file of a run removed; --allow-partial says what is lost")
def removed(folder: Path) -> str:
    trial = Trial(folder)
    trial.killed()
    kept = folder / "kept"
    shutil.copytree(trial.run, kept)
    for file in _in_the_run(trial):
        file.unlink()
        named(trial.train("--resume"), 2, file.name, "--allow-partial")
        ended = trial.train("--resume", "--allow-partial")
        assert (ended.status, ended.stderr) == (0, ""), ended
        lost = [line for line in ended.stdout.splitlines() if line.startswith("Lost: ")]
        what = "step-00000004" if file.name in CHECKPOINT else file.name
        assert len(lost) == 1, ended.stdout
        assert what in lost[0], lost
        assert json.loads((trial.run / "record.json").read_text())["resumed"][-1]["lost"] == [lost[0][6:]]
        newest, untouched_newest = (
            checkpoints.manifest_of(run / "checkpoints" / "step-00000005")["files"][TENSORS]
            for run in (trial.run, trial.untouched.run)
        )
        assert newest == untouched_newest, f"without {file.name}, other weights"
        shutil.rmtree(trial.run)
        shutil.copytree(kept, trial.run)
    return f"{len(_in_the_run(trial))} files"


# ---------------------------------------------------------------- a run that does not fit


def _changed(**changes: Any) -> Callable[[Experiment], Experiment]:
    return lambda experiment: replace(experiment, **changes)


def _refused_with(folder: Path, change: Callable[[Experiment], Experiment], *words: str) -> None:
    trial = Trial(folder, "reinforce")
    trial.killed()
    original = trial.file.read_text()
    trial.file.write_text(change(Experiment.load(trial.file)).to_toml())
    before = {file: file.read_bytes() for file in trial.run.rglob("*") if file.is_file() and file.name != "lock"}
    named(trial.train("--resume"), 2, *words)
    assert all(file.read_bytes() == content for file, content in before.items()), (
        "it was refused, and changed something"
    )
    trial.file.write_text(original)
    trial.resume()


@fault("F8", "another configuration at a resume: the fields that differ")
def other_configuration(folder: Path) -> None:
    def change(experiment: Experiment) -> Experiment:
        return replace(experiment, seed=7, agent={**experiment.agent, "lr": 0.5})

    _refused_with(folder, change, "agent.lr: was 0.01, now 0.5", "seed: was 0, now 7")


@fault("F8", "another algorithm at a resume", quick=True)
def other_algorithm(folder: Path) -> None:
    _refused_with(folder, _changed(agent={"name": "grpo"}), "agent.name: was 'reinforce', now 'grpo'")


@fault("F8", "another vocabulary at a resume")
def other_vocabulary(folder: Path) -> None:
    def change(experiment: Experiment) -> Experiment:
        return replace(experiment, policy=replace(experiment.policy, tokenizer="alphabet:abc="))

    _refused_with(folder, change, "policy.tokenizer: was 'alphabet:ab=', now 'alphabet:abc='")


def _with_another_model(folder: Path, hidden_size: int, *words: str) -> None:
    """The experiment file is the same; the folder that it names holds another model."""
    from rlhf_env.policies import tiny_language_model

    trial = Trial(folder, "reinforce")
    experiment = Experiment.load(trial.file)
    model = folder / "model"

    def write(size: int, seed: int) -> None:
        shutil.rmtree(model, ignore_errors=True)
        made = tiny_language_model(vocab_size=5, end_id=3, pad_id=4, hidden_size=size, seed=seed, dtype=torch.float32)
        with quiet_transformers():
            made.model.save_pretrained(model)

    write(16, 0)
    trial.file.write_text(replace(experiment, policy=replace(experiment.policy, model=str(model))).to_toml())
    trial.killed()
    write(hidden_size, 1)
    named(trial.train("--resume"), 2, *words)


@fault("F8", "another model of the same shape at a resume")
def other_weights(folder: Path) -> None:
    _with_another_model(folder, 16, "initial weights", "cannot resume")


@fault("F8", "another model of another size at a resume")
def other_size(folder: Path) -> None:
    _with_another_model(folder, 32, "initial weights", "cannot resume")


def _of_format(trial: Trial, version: int) -> None:
    file = trial.checkpoint(4) / MANIFEST
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "format_version": version}))


@fault("F8", "a checkpoint of a newer format, and of an older one", quick=True)
def other_format(folder: Path) -> None:
    trial = Trial(folder, "reinforce")
    trial.killed()
    made_by = json.loads((trial.checkpoint(4) / MANIFEST).read_text())["versions"]["rlhf-env"]
    newer, older = checkpoints.FORMAT_VERSION + 1, checkpoints.FORMAT_VERSION - 1
    for version, remedy in ((newer, "use that version or a later one"), (older, "finish the run with that version")):
        _of_format(trial, version)
        named(trial.train("--resume"), 2, f"checkpoint format {version}", f"made by rlhf-env {made_by}; {remedy}")


# ---------------------------------------------------------------- who else is there


@fault("F15", "two processes in one run folder; the lock goes with its holder")
def two_processes(folder: Path) -> None:
    trial = Trial(folder)
    trial.killed()

    def wait_for_ever() -> None:
        from rlhf_env.envs.text_vector_env import TextVectorEnv

        TextVectorEnv.step = lambda *_: time.sleep(300)  # type: ignore[assignment,method-assign,return-value]

    holder = started(*trial.command, "--resume", before=wait_for_ever)
    try:
        deadline = time.monotonic() + 60
        while f"pid {holder.pid}" not in (trial.run / "lock").read_text():
            assert time.monotonic() < deadline, "it never took the folder"
            time.sleep(0.01)
        named(trial.train("--resume"), 2, f"in use (pid {holder.pid})", str(trial.run))
    finally:
        holder.kill()
        holder.wait()
    trial.resume()


@fault("F15", "a run folder that may only be read", quick=True)
def read_only(folder: Path) -> None:
    trial = Trial(folder, "reinforce")
    trial.killed()
    for place in (folder, folder.parent):
        place.chmod(0o755)
    for place in (trial.run, *trial.run.rglob("*")):
        place.chmod(0o555 if place.is_dir() else 0o444)
    nobody = 65534

    def as_nobody() -> None:
        if os.geteuid() == 0:  # whom no mode keeps out
            os.setgroups([])
            os.setgid(nobody)
            os.setuid(nobody)

    ended = rlhf_env(*trial.command, "--resume", before=as_nobody)
    named(ended, 2, "cannot write in the folder", str(trial.run))
    for place in (trial.run, *trial.run.rglob("*")):
        place.chmod(0o755 if place.is_dir() else 0o644)
    trial.resume()


@fault("F16", "another number of threads at a resume: allowed, and said")
def other_threads(folder: Path) -> str:
    trial = Trial(folder, "reinforce")
    assert trial.train("--threads", "2", cuts=[CUTS["in the last update"]]).status == -signal.SIGKILL
    ended = trial.train("--resume", "--threads", "1")
    assert (ended.status, ended.stderr) == (0, ""), ended
    assert "Not exact: threads 2 -> 1\n" in ended.stdout, ended.stdout
    resumed = json.loads((trial.run / "record.json").read_text())["resumed"]
    assert resumed == [{"update": 4, "not_exact": ["threads 2 -> 1"], "lost": []}], resumed
    return str(resumed)


# ---------------------------------------------------------------- nothing to learn from


def _all_equal(agent: dict[str, Any]) -> Callable[[Path], object]:
    def inject(folder: Path) -> str:
        trial = Trial(folder, "reinforce")
        experiment = Experiment.load(trial.file)
        plain = replace(
            experiment,
            agent={**agent, "lr": 0.01},
            rewards={"same": 1.0},
            budget=Budget(updates=100),
            evaluation=replace(experiment.evaluation, every=0),
            checkpoint_every=99,
        )
        trial.file.write_text(plain.to_toml())
        ended = trial.train(
            before=lambda: plugins.register_reward("same", lambda completions: [0.35] * len(completions))
        )
        assert (ended.status, ended.stderr) == (0, ""), ended
        rows = read_metrics(trial.run)[1:]
        assert len(rows) == 100
        assert not [key for row in rows for key, value in row.items() if value is None], "a number was not finite"
        assert {row["train/grad_norm"] for row in rows} == {0.0}, "there was nothing to learn, and it was learned"
        assert {row["rollout/groups_without_spread"] for row in rows} == {1.0}
        told = json.loads((trial.run / "warnings.json").read_text())
        about = [alert for alert in told if "100" in alert["message"]]
        assert len(about) == 1, told
        assert "Warning" in ended.stdout
        return about[0]["message"]

    return inject


fault("F26", "all rewards equal for 100 updates: grpo")(_all_equal({"name": "grpo", "group_size": 4}))
fault("F26", "all rewards equal for 100 updates: rloo")(_all_equal({"name": "rloo", "group_size": 4}))
