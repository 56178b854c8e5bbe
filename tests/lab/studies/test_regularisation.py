"""Restraint narrows the gap between training and held-out loss; the comparison says so in pairs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from rlhf_env.lab.studies import regularisation
from rlhf_env.lab.studies.regularisation import RESTRAINTS, Losses, compare_restraints, losses, restraint_table


@pytest.fixture(scope="module")
def unrestrained() -> Losses:
    return losses("none", 0)


@pytest.mark.parametrize("name", [name for name in RESTRAINTS if name != "none"])
def test_each_narrows_the_gap(name: str, unrestrained: Losses) -> None:
    found = losses(name, 0)

    assert unrestrained.gap > 0.4
    assert found.gap < 0.8 * unrestrained.gap
    assert found.held_out < unrestrained.held_out - 0.05


def test_a_third_of_the_labels_is_wrong() -> None:
    pairs = regularisation._pairs(2000, np.random.default_rng(0))
    first = [[side.text.count("a") for side in (it.chosen, it.rejected)] for it in pairs]
    right = np.mean([(a > b) + 0.5 * (a == b) for a, b in first])
    clean = np.mean([(max(pair) > min(pair)) or 0.5 for pair in first])
    assert abs(right - (1 - 0.33)) < 0.07  # the better response has more of the letter in nine cases of ten
    assert clean > 0.9


def test_they_are_compared_seed_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds differ by 1, restraints by 0.1: only pairs show it."""
    told = []
    monkeypatch.setattr(
        regularisation,
        "losses",
        lambda name, seed: Losses(0.1, 1.0 + seed + (0.1 if name == "none" else 0.0) + 0.2 * (name == "dropout")),
    )
    found = compare_restraints(8, lambda done, note: told.append(done))
    assert found.gap["weight decay"].verdict == found.held_out["weight decay"].verdict == "better"
    assert found.gap["weight decay"].difference.value == pytest.approx(0.1)
    assert found.gap["dropout"].verdict == "worse"
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] < 1
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(restraint_table(found))
    said = console.export_text()
    for words in (*RESTRAINTS, "0.10", "better", "worse"):
        assert words in said
