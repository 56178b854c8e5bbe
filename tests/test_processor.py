"""Whose processor this is."""

from __future__ import annotations

import pytest

from rlhf_env import processor


@pytest.mark.parametrize(
    ("vendor", "intel"),
    [
        ("GenuineIntel", True),
        ("AuthenticAMD", False),
        ("Intel64 Family 6 Model 167 Stepping 1, GenuineIntel", True),
        ("", False),
    ],
)
def test_whose_it_is(vendor: str, intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "processor_entries", lambda: {"vendor_id": vendor})
    assert processor.is_intel() is intel


def test_the_first_processor_is_told() -> None:
    assert "vendor_id" in processor.processor_entries() or "CPU implementer" in processor.processor_entries()
