"""Files that an earlier version left with its users are read, and come to what they came to then.

`files` were made by that version (README.md says by which), `facts.json` says what it found in them. Each test works in
a copy. Numbers of runs have to be the same within rounding, others to the last bit where the libraries and the
processor are those the files were made with.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

KEPT = Path(__file__).resolve().parent
sys.path.insert(0, str(KEPT.parent))

from kept import reading  # noqa: E402 - found through the line above

from rlhf_env.learning.experiment import Experiment  # noqa: E402

# Their paths were relative to the working directory, which is said, and still taken.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in the working directory")
torch.set_num_threads(1)

FACTS = reading.read_json(KEPT / "facts.json")
EXACT = FACTS["made_with"] == reading.made_with()
RUNS = sorted(FACTS["runs"])
STORES = sorted(FACTS["stores"])
# What was changed on purpose since then: scores are summed over blocks of the vocabulary, AdamW passes over the weights
# once, and kto adds up its rows in an order that does not depend on the layout of the batch, all of which rounds
# otherwise; sb3 no longer logs the loss of the last minibatch alone. Intervals count prompts and not draws, and those
# of a few seeds are wider; and an objective is called held out only where it is.
NO_LONGER_LOGGED = {"sb3": {"train/loss"}}
OTHER_INTERVALS = re.compile(r"low|high|prompts|(eval/)?kl_(low|high)")
ENDS = re.compile(r" \(\S+ to \S+\)")
ROUNDING = 1e-9  # of float64, once it has gone through a few updates
ROUNDING_OF_FLOAT32 = 1e-4  # the run ppo, and the scores of reward models


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all, to work in."""
    shutil.copytree(KEPT, tmp_path / "kept", ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    monkeypatch.chdir(tmp_path / "kept" / "files")
    return tmp_path / "kept" / "files"


def assert_same(expected: Any, found: Any, within: float = 0.0 if EXACT else ROUNDING, at: str = "") -> None:
    """What was recorded is there still, and the same but for intervals. What is new beside it is no concern."""
    if isinstance(expected, Mapping):
        assert isinstance(found, Mapping) and expected.keys() <= found.keys(), (at, expected, found)
        for name, value in expected.items():
            if not OTHER_INTERVALS.fullmatch(name):
                assert_same(value, found[name], within, f"{at}/{name}")
    elif isinstance(expected, str) and isinstance(found, str):
        assert ENDS.sub("", found) == ENDS.sub("", expected).replace("held-out objective", "objective"), at
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(expected) == len(found), (at, expected, found)
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            assert_same(one, other, within, f"{at}/{place}")
    elif at.startswith("/tournament") and isinstance(expected, (int, float)):  # its intervals are drawn otherwise now
        assert found == pytest.approx(expected, rel=0.1, abs=0.02), at
    elif isinstance(expected, float) and within > 0:
        assert found == pytest.approx(expected, rel=within, abs=within), at
    else:
        assert found == expected, at


def within(run: str) -> float:
    """How far numbers of a run may be from those that were kept: they are computed in another order."""
    return ROUNDING_OF_FLOAT32 if run == "ppo" else ROUNDING


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_is_read(name: str, files: Path) -> None:
    """By `train --resume`, which has nothing left to do but to evaluate, and by `evaluate`."""
    run = f"trained/{name}/finished"
    before = reading.read_json(f"{run}/evaluation.json")
    rows = reading.read_lines(f"{run}/metrics.jsonl")
    reading.train(run)
    assert_same(before, reading.read_json(f"{run}/evaluation.json"), within(name))
    assert reading.read_lines(f"{run}/metrics.jsonl") == rows
    assert_same(FACTS["runs"][name], reading.evaluated(run), within(name))


@pytest.mark.parametrize("name", [name for name in RUNS if (KEPT / "files" / "trained" / name / "half_done").exists()])
def test_a_run_that_was_killed_ends_as_one_that_was_not(name: str, files: Path) -> None:
    """Same parameters, optimizer, random streams, metrics and evaluation as the run that nothing stopped."""
    run, uncut = files / "trained" / name / "half_done", files / "trained" / name / "finished"
    reading.train(f"trained/{name}/half_done")
    (last,) = (folder.name for folder in uncut.glob("checkpoints/step-*"))
    assert max(folder.name for folder in run.glob("checkpoints/step-*")) == last
    expected, found = (load_file(it / "checkpoints" / last / "tensors.safetensors") for it in (uncut, run))
    assert expected.keys() == found.keys()
    for tensor, values in expected.items():
        np.testing.assert_allclose(found[tensor], values, rtol=0, atol=within(name), err_msg=tensor)
    states = [reading.read_json(it / "checkpoints" / last / "state.json") for it in (uncut, run)]
    for state in states:  # how stopping rules remember is theirs; that they did shows in when and why the run ended
        state.pop("stopping", None)
        state["agent"].pop("texts_read", None)  # of ppo's own mix; the optimizer keeps it now
    assert_same(*map(reading.without_times, states), within(name))
    rows = [reading.read_lines(it / "metrics.jsonl") for it in (uncut, run)]
    for row in rows[0]:
        for key in NO_LONGER_LOGGED.get(name, ()):
            row.pop(key, None)
    assert_same(*map(reading.without_times, rows), within(name))
    assert_same(*(reading.read_json(it / "evaluation.json") for it in (uncut, run)), within(name))


# ---------------------------------------------------------------- preference stores


@pytest.mark.parametrize("name", STORES)
def test_a_store_holds_what_it_held_and_takes_votes(name: str, files: Path) -> None:
    """Of the newest schema and of older ones: opening it brings it up to date, and it is read the same again."""
    expected = dict(FACTS["stores"][name])
    after_more_votes = expected.pop("simulate")
    judged = expected.pop("agreement")[:3]  # judgements, who made them, units; the rest is mostly intervals
    assert reading.store_facts(f"{name}.sqlite").pop("agreement")[:3] == judged
    assert_same(expected, reading.store_facts(f"{name}.sqlite"))
    assert_same(expected["show"], reading.must("preferences", "show", f"{name}.sqlite").numbers)
    assert reading.simulated(f"{name}.sqlite") == after_more_votes


@pytest.mark.parametrize("name", STORES)
def test_a_store_is_exported_to_the_same_files(name: str, files: Path) -> None:
    kept = files / "exports" / name
    formats = [it for it, file in reading.FORMATS.items() if (kept / file).is_file()]  # data sets are folders
    assert formats
    reading.export(f"{name}.sqlite", "anew", formats)
    for it in formats:
        assert (files / "anew" / reading.FORMATS[it]).read_bytes() == (kept / reading.FORMATS[it]).read_bytes(), it


@pytest.mark.parametrize("name", list(reading.FORMATS))
def test_an_exported_file_is_taken_in(name: str, files: Path) -> None:
    if name == "datasets":
        pytest.importorskip("datasets")
    assert reading.imported(name) == FACTS["imports"][name]


# ---------------------------------------------------------------- reward models


@pytest.mark.parametrize("name", list(reading.MODELS))
def test_a_reward_model_gives_the_same_scores(name: str, files: Path) -> None:
    found, expected = reading.scores(reading.MODELS[name]), FACTS["scores"][name]
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.0 if EXACT else ROUNDING_OF_FLOAT32)


@pytest.mark.parametrize("name", list(FACTS["scorecards"]))
def test_a_reward_model_has_the_same_scorecard(name: str, files: Path) -> None:
    assert_same(FACTS["scorecards"][name], reading.scorecard(name), 0.0 if EXACT else ROUNDING_OF_FLOAT32)


# ---------------------------------------------------------------- benchmarks and studies


def test_a_benchmark_that_was_stopped_is_completed(files: Path) -> None:
    """A cell goes on from its checkpoint, another is begun, with the settings that were chosen; the rest stays, and the
    report says what it said."""
    table = files / "bench" / "table.md"
    reported = reading.tables(table.read_text(encoding="utf-8"))
    table.unlink()
    results = sorted((files / "bench").glob("results/*.json")) + sorted((files / "bench").glob("tuning/*.json"))
    before = {file: (reading.read_json(file), file.stat().st_mtime_ns) for file in results}
    unfinished = [
        files / "bench" / "results" / f"{name}.json" for name in ("echo--ppo--seed-1", "optimum--quick--seed-1")
    ]
    for file in unfinished:
        file.unlink()
    described = (files / "bench" / "benchmark.toml").read_bytes()
    reading.must("bench", "../settings/grids/small.toml", "--out", "bench", "--jobs", "1")
    for file, (result, made) in before.items():
        assert_same(reading.without_times(result), reading.without_times(reading.read_json(file)), ROUNDING)
        assert file in unfinished or file.stat().st_mtime_ns == made, f"{file} was made anew"
    assert_same(reported, reading.tables(table.read_text(encoding="utf-8")), ROUNDING)
    rows = reading.read_lines("bench/cells/echo/ppo/seed-1/metrics.jsonl")
    assert [row["update"] for row in rows] == [0, 1, 2, 3, 4]
    resumed = reading.read_json("bench/cells/echo/ppo/seed-1/record.json")["resumed"]
    assert [again["update"] for again in resumed] == [2], "it went on from its checkpoint"
    assert (files / "bench" / "benchmark.toml").read_bytes() == described


def test_a_study_of_labels_is_completed(files: Path) -> None:
    """Of settings that are the same still, or it would be refused."""
    cell = files / "labels" / "cells" / "random--seed-1.json"
    found, curve = reading.read_json("labels/labels.json"), reading.read_json(cell)
    for file in (cell, files / "labels" / "labels.json"):
        file.unlink()
    reading.must("lab", "labels", "--quick", "--seeds", "2", "--out", "labels")
    assert_same(curve, reading.read_json(cell))
    assert_same(found, reading.read_json("labels/labels.json"))


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("name", list(FACTS["experiments"]))
def test_an_experiment_means_the_same(name: str, files: Path) -> None:
    file = f"../settings/experiments/{name}.toml"
    expected = FACTS["experiments"][name]
    if name == "learned_rewards":  # sft imitated its own texts then; without given answers it is refused now
        assert Experiment.load(file).to_toml() == expected["resolved"]
        assert "sft writes no texts" in reading.call("check", file).err
        return
    found = reading.experiment_facts(file)
    assert found["resolved"] == expected["resolved"]
    assert found["hash"] == expected["hash"]
    assert_same(expected["agent"], found["agent"])
    said = reading.call("check", file)
    assert (said.status, said.out) == (0, "ok\n")
    assert not said.err or (name == "dpo_stored" and "pairs by several criteria are learned from alike" in said.err)


@pytest.mark.parametrize("name", list(FACTS["grids"]))
def test_a_grid_means_the_same(name: str, files: Path) -> None:
    file = f"../settings/grids/{name}.toml"
    assert reading.grid_facts(file) == FACTS["grids"][name]
    assert reading.must("check", file).out.endswith("ok\n")


def test_nothing_that_is_kept_goes_untested() -> None:
    settings = {
        folder: {file.stem for file in (KEPT / "settings" / folder).glob("*.toml")}
        for folder in ("trained", "experiments", "grids")
    }
    assert settings == {"trained": set(RUNS), "experiments": set(FACTS["experiments"]), "grids": set(FACTS["grids"])}
    assert {file.stem for file in (KEPT / "files").glob("*.sqlite")} == set(STORES)
    assert {folder.name for folder in (KEPT / "files" / "trained").iterdir()} == set(RUNS)
