"""Faults of a run that is to be resumed: damaged, mismatched, held by two; and of one with nothing to learn from.

Each starts from a run of `resume_matrix`, of which a copy that nobody touched says what must come out in the end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults.catalogue import fault
from faults.processes import rlhf_env, started
from faults.resume_matrix import CUTS
from faults.trial import CHECKPOINT, MANIFEST, TENSORS, Trial, named
from faults.trial import prepare as prepare  # `run` calls it before the faults of this module

from rlhf_env import plugins
from rlhf_env.envs.transformers_tokenizer import quiet_transformers
from rlhf_env.learning import checkpoints
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.spending import Budget

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
