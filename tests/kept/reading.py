"""What kept files say, read as a user reads them: by the command line and through Gymnasium.

`make.py` records these facts beside the files when it makes them; `test_kept.py` asks for them again. Everything works
in the current folder, which is `files` or a copy of it: paths inside the files are relative to that.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import re
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

# All that is imported from inside the library: what turns a file of settings into what is in force.
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.workplace import build

FORMATS = {  # of `preferences export`: the file that each writes
    "jsonl": "all.jsonl",
    "csv": "all.csv",
    "trl": "trl.jsonl",
    "trl-conversational": "conversational.jsonl",
    "trl-unpaired": "unpaired.jsonl",
    "argilla": "argilla.json",
    "label-studio": "label_studio.json",
    "datasets": "datasets",
}
MODELS: dict[str, dict[str, Any]] = {  # rewards that read a kept reward model
    "one head": {"plugin": "bradley_terry", "model": "reward_model"},
    "reply head": {"plugin": "bradley_terry", "model": "reward_model_reply"},
    "mean of two models": {"plugin": "bradley_terry", "model": "reward_ensemble"},
    "worst of two models": {"plugin": "ensemble", "model": "reward_ensemble", "combination": "worst"},
    "two heads, unsure": {"plugin": "ensemble", "model": "reward_model_reply", "combination": "uncertainty"},
    "fair": {"plugin": "fairness", "model": "reward_model", "words": [["anna", "aisha"], ["he", "she"]]},
}
TEXTS = ("ab", "ba", "a", "", "abab", "he is", "anna or aisha", "no: on. is?")
_TIMES = re.compile(r"seconds|.*/seconds|time/.*")  # names of what a clock says
_NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def numbers(self) -> list[float]:
        return numbers(self.out)


def numbers(text: str) -> list[float]:
    """What is said in numbers, in order, whatever the words around them."""
    return [float(number.replace(",", "").replace("−", "-")) for number in _NUMBER.findall(text)]


def call(*words: str) -> Ran:
    """`call("report", "bench")`: the installed command `rlhf-env`, in this process."""
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="rlhf-env")
    before = sys.argv, sys.excepthook, {it: signal.getsignal(it) for it in (signal.SIGTERM, signal.SIGHUP)}
    said, complained = io.StringIO(), io.StringIO()
    status = 0
    sys.argv = ["rlhf-env", *words]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            script.load()()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        sys.argv, sys.excepthook, _ = before
        for number, handler in before[2].items():
            signal.signal(number, handler)
    return Ran(status, said.getvalue(), complained.getvalue())


def must(*words: str) -> Ran:
    """A call that has to succeed."""
    ran = call(*words)
    assert ran.status == 0, f"rlhf-env {' '.join(words)}: {ran.err}"
    return ran


def made_with() -> dict[str, str]:
    """What decides the last bits of a sum: the same numbers come out only where all of it is the same."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {**libraries, "instructions": torch.backends.cpu.get_cpu_capability(), "processor": "".join(names[:1])}


def without_times(value: Any) -> Any:
    """JSON without what a clock said."""
    if isinstance(value, Mapping):
        return {key: without_times(item) for key, item in value.items() if not _TIMES.fullmatch(key)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def read_json(file: str | Path) -> Any:
    return json.loads(Path(file).read_text(encoding="utf-8"))


def read_lines(file: str | Path) -> list[Any]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------- runs


def evaluated(run: str) -> dict[str, Any]:
    """What `rlhf-env evaluate` finds of a run beside its reference."""
    must("evaluate", run, "--out", "against_reference.json")
    found = read_json("against_reference.json")
    return {**found, "measures": {measure.pop("name"): measure for measure in found["measures"]}}


def train(run: str) -> Ran:
    """Go on with a run, by the file that it has itself."""
    return must("train", f"{run}/experiment.toml", "--resume", "--out", run)


# ---------------------------------------------------------------- reward models


def scores(reward: Mapping[str, Any]) -> list[float]:
    """What a reward gives each of TEXTS as an answer to "ab=", as the environment says it."""
    env = gym.make(
        "rlhf_env/Response-v0",
        task={"name": "prompts", "prompts": ["ab="]},
        tokenizer="writer",
        reward={"part": dict(reward)},
        max_new_tokens=16,
        max_prompt_tokens=4,
        disable_env_checker=True,
    )
    tokenizer = env.unwrapped.tokenizer  # type: ignore[attr-defined]
    found = []
    for text in TEXTS:
        env.reset(seed=0)
        ids = [*tokenizer.encode(text), tokenizer.end_id]
        info = env.step(ids + [tokenizer.vocab_size] * (16 - len(ids)))[4]
        found.append(float(info["reward_parts"]["part"]))
    env.close()
    return found


def scorecard(model: str) -> Any:
    must("scorecard", model, "preferences.sqlite", "--out", "card.json")
    return read_json("card.json")


# ---------------------------------------------------------------- preference stores


def store_facts(store: str) -> dict[str, list[float]]:
    """What the commands that read a store say, in numbers."""
    asked = {
        "show": ["show", store],
        "agreement": ["agreement", store],
        "tournament": ["tournament", store],
        "tournament by manners": ["tournament", store, "--criterion", "manners"],
        "verified": ["verified", store],
    }
    return {name: must("preferences", *words).numbers for name, words in asked.items()}


def simulated(store: str) -> list[float]:
    """Two simulated people judge what is still open; then what they did, and how far annotation has come."""
    did = must("preferences", "simulate", store, "../settings/annotator.toml", "--people", "2", "--seed", "5")
    return [*did.numbers, *must("preferences", "show", store).numbers]


def export(store: str, folder: str, formats: Iterable[str]) -> None:
    """What the store holds, e-mail addresses too, in these formats."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in formats:
        must("preferences", "export", store, f"{folder}/{FORMATS[name]}", "--format", name, "--emails")


def imported(name: str) -> list[float]:
    """A kept file of one format, taken into a new store: how many judgements came in, and what the store then holds."""
    came = must("preferences", "import", "new.sqlite", f"exports/preferences/{FORMATS[name]}")
    return [*came.numbers, *must("preferences", "show", "new.sqlite").numbers]


# ---------------------------------------------------------------- benchmarks


RENAMED = {"Tokens": "Train tokens"}  # headings as they were, and as they are


def tables(markdown: str) -> dict[str, list[dict[str, str]]]:
    """The tables of a report by what stands above them, a row as what its columns hold, without what a clock said."""
    found: dict[str, list[dict[str, str]]] = {}
    title, columns = "", []
    for line in markdown.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if line.startswith("**"):
            title, columns = line.strip("*"), []
        elif cells and not columns:
            columns = [RENAMED.get(cell, cell) for cell in cells]
        elif cells and not set(line) <= set("|-: "):
            row = dict(zip(columns, cells, strict=True))
            row.pop("Seconds", None)
            found.setdefault(title, []).append(row)
    return found


# ---------------------------------------------------------------- settings


def experiment_facts(file: str) -> dict[str, Any]:
    """The settings in force: the resolved file, its hash, and what the agent goes by."""
    experiment = Experiment.load(file)
    resolved = experiment.to_toml()
    agent: Any = build(experiment).agent
    settings = [asdict(agent.config)]
    while "agent" in vars(agent):  # it wraps another
        agent = agent.agent
        settings.append(asdict(agent.config))
    for table in settings:  # the pretraining mix was ppo's own, and is every agent's `optimization` now
        table |= {name: value for name, value in table.get("optimization", {}).items() if name.startswith("ptx_")}
    return {"hash": _hash(resolved), "agent": json.loads(json.dumps(settings)), "resolved": resolved}


def grid_facts(file: str) -> dict[str, Any]:
    """The resolved file, and the hash of the experiment of every cell and of every trial of settings."""
    grid = Grid.load(file)
    cells = grid.cells()
    hashes = {cell.key: _hash(cell.experiment.to_toml()) for cell in [*cells, *grid.trials(cells)]}
    return {"resolved": grid.to_toml(), "cells": hashes}


def _hash(resolved: str) -> str:
    """As record.json and a checkpoint's manifest have it."""
    return hashlib.sha256(resolved.encode()).hexdigest()[:16]
