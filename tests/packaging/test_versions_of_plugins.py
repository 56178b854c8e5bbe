"""A run notes which versions of other people's plugins it was made with."""

from __future__ import annotations

import json
import sys
from importlib.metadata import distributions, entry_points
from pathlib import Path

import pytest

import rlhf_env
from rlhf_env import plugins
from rlhf_env.plugins import GROUP, PluginHost

TOML = """
policy = {{ tokenizer = "alphabet:ab:" }}
environment = {{ num_envs = 4, max_new_tokens = 4, max_prompt_tokens = 4 }}
rewards = {{ theirs = 1.0 }}
agent = {{ name = "grpo", group_size = 2 }}
budget = {{ updates = {updates} }}
"""
SOURCE = """
from rlhf_env.plugins import hookimpl

@hookimpl
def register_rewards(register):
    register("{name}", "{module}:reward")

def reward(completions, **columns):
    return [1.0] * len(completions)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two distributions, of which the experiment names a plugin of one; where they are."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    for name, module in (("theirs", "their_mod"), ("unused", "unused_mod")):
        monkeypatch.delitem(sys.modules, module, raising=False)
        (site / f"{module}.py").write_text(SOURCE.format(name=name, module=module))
        information = site / f"{name}_dist.dist-info"
        information.mkdir()
        (information / "entry_points.txt").write_text(f"[{GROUP}]\nplugin = {module}\n")
    return site


def of_versions(site: Path, monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    for name, version in versions.items():
        metadata = f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: {version}\n"
        (site / f"{name}_dist.dist-info" / "METADATA").write_text(metadata)
    points = [point for dist in distributions(path=[str(site)]) for point in dist.entry_points]
    host = PluginHost([*entry_points(group=GROUP), *points])
    monkeypatch.setattr(plugins, "host", lambda: host)


def test_the_record_has_the_versions_of_those_that_are_used(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_versions(installed, monkeypatch, theirs="1.0", unused="1.0")
    (tmp_path / "toy.toml").write_text(TOML.format(updates=1))
    rlhf_env.run(tmp_path / "toy.toml", tmp_path / "run")
    versions = json.loads((tmp_path / "run" / "record.json").read_text())["versions"]
    assert versions["theirs-dist"] == "1.0" and "unused-dist" not in versions

    (tmp_path / "toy.toml").write_text(TOML.format(updates=2))
    of_versions(installed, monkeypatch, theirs="1.1", unused="1.1")
    resumed = rlhf_env.run(tmp_path / "toy.toml", tmp_path / "run", resume=True)
    assert "theirs-dist 1.0 -> 1.1" in resumed.not_exact
    assert not any("unused" in said for said in resumed.not_exact)
