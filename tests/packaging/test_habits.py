"""The files around the code that people and their tools read: citation, hooks, the forge's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import rlhf_env

HOUSE = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not (HOUSE / ".github").exists(), reason="the source distribution leaves them out")


def read(name: str) -> dict[object, object]:
    return dict(yaml.safe_load((HOUSE / name).read_text(encoding="utf-8")))


def test_the_citation_is_of_this_version() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == rlhf_env.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()


def test_a_fork_can_run_what_must_pass() -> None:
    workflow = (HOUSE / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert ".ci/run" in workflow and "make docs" in workflow
    assert "secrets." not in workflow, "a fork has none"
    assert "self-hosted" not in workflow


def test_the_hooks_are_the_commands_of_make_lint() -> None:
    makefile = (HOUSE / "Makefile").read_text(encoding="utf-8")
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]  # type: ignore[attr-defined]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy", "imports"]
    for hook in hooks:
        words = hook["entry"].removeprefix(".venv/bin/").replace(" --force-exclude", "")
        assert f"$(BIN)/{words}" in makefile, hook["entry"]


@pytest.mark.parametrize("name", ["bug.yml", "proposal.yml"])
def test_a_template_asks_for_what_is_needed(name: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{name}")
    assert form["name"] and form["description"] and form["body"]
