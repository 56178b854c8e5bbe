"""Two devices that are none: a GPU with float64, and one without."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from .fake import FakeDevice

torch.set_num_threads(1)


@pytest.fixture(params=["cuda:0", "mps:0"])
def device(request: pytest.FixtureRequest) -> Iterator[FakeDevice]:
    with FakeDevice(request.param) as fake:
        yield fake


@pytest.fixture
def gpu() -> Iterator[FakeDevice]:
    with FakeDevice("cuda:0") as fake:
        yield fake
