"""Two devices that are none, a GPU with float64 and one without; and the machine's own GPU, where there is one.

`pytest -m gpu` runs on the GPU alone. RLHF_ENV_GPU=cpu puts the processor in its place: to see that those tests run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from .fake import FakeDevice
from .real import RealDevice

torch.set_num_threads(1)

_GPU = os.environ.get("RLHF_ENV_GPU") or ("cuda" if torch.cuda.is_available() else "")
_REAL = [pytest.param("", id="real", marks=pytest.mark.gpu)] if _GPU else []


def _device(name: str) -> Any:
    return FakeDevice(name) if name else RealDevice(_GPU)


@pytest.fixture(params=["cuda:0", "mps:0", *_REAL])
def device(request: pytest.FixtureRequest) -> Iterator[FakeDevice | RealDevice]:
    with _device(request.param) as made:
        yield made


@pytest.fixture(params=["cuda:0", *_REAL])
def gpu(request: pytest.FixtureRequest) -> Iterator[FakeDevice | RealDevice]:
    with _device(request.param) as made:
        yield made


@pytest.fixture(params=["cuda:0", "mps:0"])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeDevice]:
    with FakeDevice(request.param) as made:
        yield made
