"""The quick part of `make faults` and of `make resume-matrix`, in every run of the suite."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from faults.catalogue import FAULTS, Fault, chosen, survive
from faults.resume_matrix import CASES, CUTS, cut_and_resume
from faults.run import load, prepare

from rlhf_env import plugins

load()
QUICK = chosen([], quick=True)


@pytest.fixture(scope="module", autouse=True)
def ready() -> None:
    torch.set_num_threads(1)
    prepare(QUICK)


@pytest.mark.parametrize("one", QUICK, ids=str)
def test_survived(one: Fault) -> None:
    outcome = survive(one, patience=120)
    if outcome.survived is None:
        pytest.skip(outcome.said)
    assert outcome.survived, outcome.said


@pytest.mark.parametrize(
    ("case", "cut"),
    [
        ("ppo", "in gradient accumulation"),
        ("grpo, novelty", "in a later rollout, mid-episode"),
        ("dpo, stored pairs", "between gradient steps"),
        ("sft+rm", "in a later rollout, its prompts drawn"),
    ],
)
def test_killed_and_gone_on_with_a_run_ends_in_the_same_bits(case: str, cut: str) -> None:
    cut_and_resume(case, CUTS[cut])


def test_the_matrix_has_every_agent_that_trains() -> None:
    known = plugins.host()
    agents = {name for name in known.names("agent") if getattr(known.load("agent", name), "trains", True)}
    assert agents == {name for changes in CASES.values() for name in names_of(changes["agent"])}


def test_the_readme_counts_faults_and_kinds_of_moment() -> None:
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())
    assert f"`make faults` injects {len(FAULTS)} real faults" in readme
    assert f"({len(FAULTS)} of {len(FAULTS)} survived)" in readme
    # Three cuts are within the writing of a rollout; and where groups without a difference are drawn again, two updates
    # have no gradient step, and one draws no prompts. `applicable` counts the same, by a run of each case.
    stored = [it for it in CASES.values() if {"answers", "preferences"} & {*it, *it["agent"]}]
    drawn_again = [it for it in CASES.values() if "dynamic_sampling" in names_of(it["agent"])]
    cells = len(CASES) * len(CUTS) - 3 * len(stored) - 3 * len(drawn_again)
    assert f"kills {len(CASES)} agents and settings at up to {len(CUTS)} kinds of moment, {cells} cells" in readme


def names_of(agent: Mapping[str, Any]) -> Iterator[str]:
    """The agent's own name, and those of the agents inside of it."""
    yield agent["name"]
    if "agent" in agent:
        yield from names_of(agent["agent"])


@pytest.mark.parametrize(
    ("harm", "survived", "said"),
    [
        (lambda _: None, True, ""),
        (lambda _: 1 / 0, False, "ZeroDivisionError"),
        (lambda _: os.kill(os.getpid(), 9), False, "status -9"),
        (lambda _: time.sleep(60), False, "still at it"),
    ],
    ids=["nothing", "raises", "dies", "hangs"],
)
def test_what_is_not_survived_is_told(harm: Any, survived: bool, said: str) -> None:
    outcome = survive(Fault("F0", "a trial", harm), patience=0.2 if said == "still at it" else 60)
    assert outcome.survived is survived
    assert said in outcome.said
