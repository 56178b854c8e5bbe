"""Two and three processes train what one trains: the same texts, rewards, budgets, numbers and parameters."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from faults.resume_matrix import CASES, timeless

from rlhf_env.learning.run_record import read_metrics

from .pool import BESIDE, UPDATES, Notes, noted, several, tensors_of, trained

# Eight rows, groups of four, and pairs of two, are not divided by three.
BY_THREE = ("ppo", "grpo", "dpo", "kto, stored pairs", "sft", "options")


def cases_of(size: int) -> tuple[str, ...]:
    return BY_THREE if size == 3 else (*CASES, *BESIDE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Every case, in one, two and three processes: those of a number are forked once, and do one case after another."""
    place = tmp_path_factory.mktemp("processes")

    def work(size: int) -> None:
        torch.set_num_threads(1)
        notes = Notes()
        for case in cases_of(size):
            trained(case, place / str(size) / case, notes)

    for size in (1, 2, 3):
        for ended in several(size, lambda size=size: work(size)):  # type: ignore[misc]
            assert ended.status == 0, ended
    yield place
    shutil.rmtree(place, ignore_errors=True)


BOTH = [(case, size) for size in (2, 3) for case in cases_of(size)]


def close(one: Any, other: Any) -> bool:
    """Whether two logged values agree, numbers to 1e-10 of their size or of 1."""
    if isinstance(one, Mapping):
        if "counts" in one and one["high"] - one["low"] < 1e-9:  # a histogram of rounding
            return close(
                [one["low"], one["high"], sum(one["counts"])], [other["low"], other["high"], sum(other["counts"])]
            )
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return abs(one - other) <= 1e-10 * max(1.0, abs(one))
    return bool(one == other)


@pytest.mark.parametrize(("case", "size"), BOTH)
def test_every_process_learns_from_the_texts_of_one(folder: Path, case: str, size: int) -> None:
    (alone,) = noted(folder / "1" / case)
    together = noted(folder / str(size) / case)
    assert len(together) == size
    for each in together:
        for name in ("prompts", "ids", "group"):
            assert [texts[name] for texts in each["texts"]] == [texts[name] for texts in alone["texts"]], name
        assert close([it["returns"] for it in each["texts"]], [it["returns"] for it in alone["texts"]])


@pytest.mark.parametrize(("case", "size"), BOTH)
def test_a_reward_is_asked_once_for_all_processes(folder: Path, case: str, size: int) -> None:
    """The penalty is asked about texts with their log-probabilities, whose last digits differ: it may be asked more."""
    (alone,) = noted(folder / "1" / case)
    first, *others = noted(folder / str(size) / case)
    assert {name: count for name, count in first["asked"].items() if "kl" not in name} == {
        name: count for name, count in alone["asked"].items() if "kl" not in name
    }
    assert [each["asked"] for each in others] == [{}] * (size - 1)


@pytest.mark.parametrize(("case", "size"), BOTH)
def test_every_logged_number_agrees(folder: Path, case: str, size: int) -> None:
    alone, together = (
        [timeless(row) for row in read_metrics(folder / str(number) / case / "run")] for number in (1, size)
    )
    assert len(alone) == len(together) == UPDATES + 1
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        names = one.keys() - {"replay/bytes"}  # of numbers that are written down: their last digits count
        if one["update"] == 1:  # policy and reference are one: how often log(p/p_ref) is above 0 is rounding's
            names -= {"train/right_side", "rewards/accuracies"}
        differ = [f"{name}: {one[name]} {other[name]}" for name in names if not close(one[name], other[name])]
        assert not differ


@pytest.mark.parametrize(("case", "size"), BOTH)
def test_parameters_agree_afterwards(folder: Path, case: str, size: int) -> None:
    alone, together = (tensors_of(folder / str(number) / case) for number in (1, size))
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-10, atol=1e-10, msg=name)
