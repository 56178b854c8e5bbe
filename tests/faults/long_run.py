"""A training run for an hour, watched from outside: does anything grow that should not?

    make long-run                                        # 60 minutes; MINUTES=5 for less
    python tests/faults/long_run.py --minutes 5 --agent grpo

`rlhf-env train` in a process of its own, at toy size, where an hour is tens of thousands of updates, with evaluations
and checkpoints on the way. After a fifth of the time, the warm-up, these are compared between the first quarter of the
rest and its last:

- resident memory: within 5 %
- open files, threads: none more
- metrics.jsonl: a line an update, no longer than before, and below 4 KB
- TensorBoard's files: growing more and more slowly
- checkpoints: as many and as large as before; nothing temporary beside them, nor in the folder for temporary files
- what it says where nobody can see a bar: few lines, none wider than a terminal

Then it gets SIGTERM, and has to save, say how to go on and exit with 143. Needs Linux's /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

EXPERIMENT = """
name = "long"
checkpoint_every = 20
budget = {{ updates = 1_000_000_000 }}
agent = {{ name = "{agent}" }}
policy = {{ model = "tiny", tokenizer = "alphabet:abcd:" }}
environment = {{ num_envs = 8, max_new_tokens = 8, max_prompt_tokens = 4 }}
task = {{ name = "count", letter = "a", target = 6 }}
rewards = {{ task = 1.0, kl = 0.05, length = {{ weight = 0.2, target = 6, tolerance = 1 }} }}
evaluation = {{ prompts = 16, every = 100 }}
"""
WARM_UP, SAMPLES = 0.2, 240
RESIDENT, LINE_BYTES, LINES, COLUMNS = 0.05, 4096, 40, 110
UPDATES_TO_TELL = 4000  # below, TensorBoard's files are still at the steep part of their curve


@dataclass(frozen=True)
class Sample:
    """What the run holds at one time: memory and files in bytes."""

    seconds: float
    updates: int
    resident: int
    files: int
    threads: int
    metrics: int
    tensorboard: int
    checkpoints: int
    checkpoint: int  # the largest


def size_of(folder: Path) -> int:
    """Bytes of all files below; what vanishes meanwhile counts nothing."""
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def look(pid: int, run: Path, since: float) -> Sample:
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    metrics = (run / "metrics.jsonl").stat().st_size
    saved = [size_of(folder) for folder in (run / "checkpoints").glob("step-*")]
    return Sample(
        seconds=time.monotonic() - since,
        updates=last_update(run / "metrics.jsonl", metrics),
        resident=1024 * int(status["VmRSS"].split()[0]),
        files=len(list((process / "fd").iterdir())),
        threads=int(status["Threads"]),
        metrics=metrics,
        tensorboard=size_of(run / "tensorboard"),
        checkpoints=len(saved),
        checkpoint=max(saved, default=0),
    )


def last_update(file: Path, size: int) -> int:
    with file.open("rb") as stream:
        stream.seek(max(0, size - 4 * LINE_BYTES))
        lines = stream.read().split(b"\n")
    return int(json.loads(lines[-2])["update"])


def watch(process: subprocess.Popen[bytes], run: Path, seconds: float) -> list[Sample]:
    """Samples until the time is up or the process ends. The clock starts with the first checkpoint."""
    while process.poll() is None and not list((run / "checkpoints").glob("step-*")):
        time.sleep(0.2)
    since, samples = time.monotonic(), []
    while process.poll() is None and (passed := time.monotonic() - since) < seconds:
        samples.append(look(process.pid, run, since))
        if len(samples) % (SAMPLES // 10) == 1:
            it = samples[-1]
            print(
                f"{passed / 60:5.1f} min {it.updates:8,} updates  resident {it.resident / 2**20:7.1f} MiB  "
                f"{it.files} open files  {it.threads} threads  metrics {it.metrics / 2**20:.1f} MiB  "
                f"TensorBoard {it.tensorboard / 2**20:.2f} MiB",
                flush=True,
            )
        time.sleep(seconds / SAMPLES)
    return samples


def findings(samples: Sequence[Sample]) -> list[str]:
    """What has grown, in words."""
    settled = [it for it in samples if it.seconds >= WARM_UP * samples[-1].seconds]
    quarter = len(settled) // 4
    if quarter < 2:
        return [f"only {len(samples)} samples: too few to tell"]
    first, middle, last = settled[:quarter], settled[len(settled) // 2], settled[-quarter:]
    begin, end = settled[0], settled[-1]
    found = []
    before, after = (statistics.median(it.resident for it in part) for part in (first, last))
    if after > (1 + RESIDENT) * before:
        found.append(f"resident memory grew by {after / before - 1:.1%}, from {before:,.0f} to {after:,.0f} bytes")
    for name in ("files", "threads"):  # the least: some are open for a moment
        was, now = (min(getattr(it, name) for it in part) for part in (first, last))
        if now > was:
            found.append(f"{name} grew from {was} to {now}")
    lines = [(b.metrics - a.metrics) / max(1, b.updates - a.updates) for a, b in ((begin, middle), (middle, end))]
    if lines[1] > 1.1 * lines[0] or lines[1] > LINE_BYTES:
        found.append(f"a line of metrics grew from {lines[0]:.0f} to {lines[1]:.0f} bytes")
    spans = ((samples[0], middle), (middle, end))
    shown = [(b.tensorboard - a.tensorboard) / max(1, b.updates - a.updates) for a, b in spans]
    if end.updates > UPDATES_TO_TELL and shown[1] > 0.75 * shown[0]:
        found.append(f"TensorBoard's files grew by {shown[0]:.0f} bytes an update, and then by {shown[1]:.0f}")
    if max(it.checkpoints for it in settled) > 3 or end.checkpoint > 1.05 * begin.checkpoint:
        found.append(f"checkpoints: {end.checkpoints}, {end.checkpoint:,} bytes; they were {begin.checkpoint:,}")
    return found


def leftovers(run: Path, temporary: Path) -> list[str]:
    left = [file for file in run.rglob("*") if ".tmp" in file.name or file.name.endswith(".replaced")]
    left += [file for file in temporary.iterdir() if not file.name.startswith("torchinductor")]  # torch's own cache
    return [f"left behind: {file}" for file in left]


def ending(process: subprocess.Popen[bytes], said: Path) -> list[str]:
    """What is wrong with how it ends at SIGTERM, and with what it said until then."""
    process.send_signal(signal.SIGTERM)
    status = process.wait(60)
    lines = said.read_text(encoding="utf-8").splitlines()
    found = [] if status == 143 else [f"SIGTERM ended it with {status} instead of 143"]
    if not lines or "resume with: rlhf-env train" not in lines[-1]:
        found.append(f"it did not say how to go on: {lines[-1:]}")
    if len(lines) > LINES or any(len(line) > COLUMNS for line in lines[:-1]):
        found.append(f"it said {len(lines)} lines, the widest of {max(map(len, lines[:-1]))} characters")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="for how long (default: %(default)g)")
    parser.add_argument("--agent", default="ppo", help="by name (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="keep the run and samples.json here (default: nothing is kept)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="long-run-") as place:
        folder = given.out or Path(place)
        run, said, temporary = folder / "run", folder / "said.txt", Path(place) / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        file = folder / "long.toml"
        file.write_text(EXPERIMENT.format(agent=given.agent), encoding="utf-8")
        with said.open("wb") as out:
            process = subprocess.Popen(
                [Path(sys.executable).parent / "rlhf-env", "train", file, "--out", run, "--threads", "1"],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"TMPDIR": str(temporary)},
            )
            try:
                samples = watch(process, run, 60 * given.minutes)
                if process.poll() is not None:
                    sys.exit(f"it ended by itself, with {process.returncode}: {said.read_text()[-2000:]}")
                wrong = findings(samples) + ending(process, said)
            finally:
                process.kill()
                process.wait()
        wrong += leftovers(run, temporary)
        if given.out is not None:
            (folder / "samples.json").write_text(json.dumps([asdict(it) for it in samples]), encoding="utf-8")
    settled = [it for it in samples if it.seconds >= WARM_UP * samples[-1].seconds]
    first, last = settled[0], settled[-1]
    print(
        f"{given.minutes:g} minutes, {last.updates:,} updates of {given.agent}: resident memory "
        f"{last.resident / first.resident - 1:+.1%} ({last.resident / 2**20:.0f} MiB), {last.files} open files, "
        f"{last.threads} threads, {last.metrics / last.updates:,.0f} bytes of metrics an update, "
        f"{last.tensorboard / 2**20:.1f} MiB of TensorBoard, {last.checkpoints} checkpoints: "
        f"{'; '.join(wrong) or 'nothing grows'}"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
