"""What processes that are forked begin with: everything imported, once for all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from faults.processes import warm_up

from rlhf_env.lab.evaluation import evaluator


@pytest.fixture(scope="package", autouse=True)
def _quick() -> Iterator[None]:
    """Nothing here asks whether the disk has what was written, or what an evaluation shares with training."""
    warm_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        patch.setattr(evaluator, "_OF_AN_ENDLESS_TASK", 64)
        yield
