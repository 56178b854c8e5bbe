"""Keys and values stay what they were while their memory grows, and memory is taken when it is written."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_env.policies import arena
from rlhf_env.policies.arena import Arena


def filled(
    places: int, slots: int, expected: tuple[int, int], dtype: torch.dtype = torch.float32
) -> tuple[Arena, Tensor]:
    """An arena with 3 heads of 5 numbers, and what stands in it."""
    made = Arena(3, 5, torch.empty(0, dtype=dtype))
    made.resize(places, slots, expected=expected)
    assert made.memory.shape == (places, 3, slots, 5) and not made.memory.any()
    made.memory.copy_(torch.randn(made.memory.shape))
    return made, made.memory.clone()


@pytest.mark.parametrize("expected", [(7, 20), (4, 6), (0, 0)], ids=["in place", "larger", "always larger"])
@pytest.mark.parametrize("at_once", [1, 100, 2**20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_stands_there_stays(
    dtype: torch.dtype, at_once: int, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena, "_BYTES_AT_ONCE", at_once)
    made, before = filled(4, 3, expected, dtype)
    for places, slots in ((4, 4), (6, 4), (6, 13), (7, 14)):
        made.resize(places, slots)
        assert made.memory.shape == (places, 3, slots, 5) and made.memory.is_contiguous()
        assert made.memory.dtype == dtype and made.memory.data_ptr() % 64 == 0
        np.testing.assert_array_equal(made.memory[:4, :, :3].double(), before.double())
        assert made.memory.isfinite().all()


def test_what_was_expected_needs_no_other_memory() -> None:
    made, _ = filled(4, 3, (7, 20))
    where = made.memory.data_ptr()
    made.resize(7, 20)
    assert made.memory.data_ptr() == where
    made.resize(8, 21)
    assert made.memory.data_ptr() != where


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_address_space_is_not_memory() -> None:
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    before = resident()
    made = Arena(4, 64, torch.empty(0))
    made.resize(8, 32, expected=(8, 2**17))  # 1 GiB
    made.memory.fill_(1.0)
    assert resident() - before < 100
    made.resize(8, 48)
    assert resident() - before < 100


def test_where_address_space_is_memory_it_takes_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = np.zeros

    def sparing(size: int, *args: object) -> object:
        if size > 5000:
            raise MemoryError
        return zeros(size, *args)

    monkeypatch.setattr(arena.np, "zeros", sparing)
    made, before = filled(4, 3, (2**30, 2**30))
    made.resize(4, 9)
    assert torch.equal(made.memory[:, :, :3], before)
