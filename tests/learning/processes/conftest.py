"""What the tests of commands in several processes share."""

from __future__ import annotations

from pathlib import Path

import pytest

from .pool import REWARDS, TOY


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(TOY + REWARDS, encoding="utf-8")
    return tmp_path
