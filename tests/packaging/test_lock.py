"""constraints.txt pins every package that the tests run with, within the ranges that pyproject.toml states."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import lock

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.packaging


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_every_requirement_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    pinned = pins()
    for requirement in map(Requirement, wanted):
        name = lock.canonical(requirement.name)
        if name != project["name"]:  # an extra made of other extras
            assert name in pinned, f"{name}: run `make lock`"
            assert pinned[name] in requirement.specifier, requirement
    assert all(re.fullmatch(r"[a-z0-9-]+", name) and re.fullmatch(r"[a-z0-9.]+", at) for name, at in pinned.items())


def test_what_is_held_by_hand_is_kept_and_pinned_once() -> None:
    by_hand = lock.held((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    text = lock.written(by_hand, {"torch": "9.9", "b-c": "2", "a": "1"})
    assert text.startswith(by_hand)
    assert "torch==2.13.0" in by_hand
    assert text.splitlines()[-2:] == ["a==1", "b-c==2"]
    assert lock.held(text) == by_hand


def test_versions_come_out_of_pips_report() -> None:
    picked = [("Some_Name", "1.2+cpu"), ("rlhf-env", "0.1.0"), ("a.b", "2")]
    report = {"install": [{"metadata": {"name": name, "version": version}} for name, version in picked]}
    assert lock.resolved(report, "rlhf-env") == {"some-name": "1.2", "a-b": "2"}
