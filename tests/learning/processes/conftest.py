"""What the tests of several processes share: forked ones begin with everything imported, once for all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from faults.processes import warm_up

from rlhf_env.lab.evaluation import evaluator

from .pool import REWARDS, TOY


@pytest.fixture(scope="package", autouse=True)
def _quick() -> Iterator[None]:
    """Nothing here asks whether the disk has what was written, or what an evaluation shares with training."""
    warm_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _descriptor: None)
        patch.setattr(evaluator, "_OF_AN_ENDLESS_TASK", 64)
        yield


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(TOY + REWARDS, encoding="utf-8")
    return tmp_path
