"""A grid seen while it runs: what each cell has come to, and the way to its run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import ConfigError
from rlhf_env.lab.benchmark.grid import Grid
from rlhf_env.lab.report.figures import agent_styles
from rlhf_env.lab.watching.grid_view import GridView
from rlhf_env.learning.folder_lock import hold


@pytest.fixture
def grid(toy: dict[str, Any], trained: Path, tmp_path: Path) -> Path:
    """Two tasks, two agents, two seeds; one on one task only. One cell is done, one failed, one at work, one killed."""
    folder = tmp_path / "grid"
    wanted = Grid(
        name="g",
        agents={"ppo": {}, "reference": {}},
        experiment=toy,
        tasks={"echo": {}, "other": {"rows": ["ppo"]}},
        seeds=2,
    )
    folder.mkdir()
    (folder / "benchmark.toml").write_text(wanted.to_toml())
    (folder / "about.json").write_text(json.dumps({"title": "<b>two</b>"}))
    for place in ("echo/ppo/seed-0", "echo/ppo/seed-1", "other/ppo/seed-0"):
        shutil.copytree(trained, folder / "cells" / place)
    (folder / "results").mkdir()
    for name, result in {
        "echo--ppo--seed-0": {"status": "finished", "evaluation": {"proxy": 0.5, "gold": 0.25}},
        "echo--reference--seed-0": {"status": "failed", "evaluation": {}, "error": "it <i>diverged</i>"},
    }.items():
        (folder / "results" / f"{name}.json").write_text(json.dumps(result))
    rows = (folder / "cells/echo/ppo/seed-1/metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "cells/echo/ppo/seed-1/metrics.jsonl").write_bytes(b"".join(rows[:7]) + b'{"update": 9')
    (folder / "cells/echo/ppo/seed-1/warnings.json").write_text('[{"name": "x"}]')
    return folder


def cells(view: GridView) -> dict[str, Any]:
    return {f"{it['task']}/{it['agent']}/{it['seed']}": it for it in view.about()["cells"]}


def test_each_cell_with_what_it_has_come_to(grid: Path) -> None:
    view = GridView(grid)
    with hold(grid / "cells/echo/ppo/seed-1"):
        found = cells(view)
    assert list(found) == [
        *("echo/ppo/0", "echo/reference/0", "other/ppo/0"),
        *("echo/ppo/1", "echo/reference/1", "other/ppo/1"),
    ]
    assert {name: it["status"] for name, it in found.items()} == {
        "echo/ppo/0": "finished",
        "echo/reference/0": "failed",
        "other/ppo/0": "stopped",
        "echo/ppo/1": "running",
        "echo/reference/1": "waiting",
        "other/ppo/1": "waiting",
    }
    assert (found["echo/ppo/0"]["score"], found["echo/ppo/0"]["measure"]) == (0.25, "gold")
    assert found["echo/reference/0"]["why"] == "it <i>diverged</i>" and not found["echo/reference/0"]["begun"]
    running = found["echo/ppo/1"]
    assert (running["update"], running["fraction"], running["warnings"]) == (6, 0.5, 1)
    about = view.about()
    assert (about["name"], about["tasks"], about["agents"]) == ("<b>two</b>", ["echo", "other"], ["ppo", "reference"])
    styles = agent_styles(["ppo", "reference"])
    assert about["colours"] == {agent: style.colour for agent, style in styles.items()}, "those of the report"
    assert (about["done"], about["at_work"], about["report"]) == (2, False, None)


def test_a_result_that_comes_is_seen(grid: Path) -> None:
    view = GridView(grid)
    assert cells(view)["other/ppo/1"]["status"] == "waiting"
    for content, status in (("{", "waiting"), ('{"status": "finished", "evaluation": {"proxy": 1}}', "finished")):
        (grid / "results" / "other--ppo--seed-1.json").write_text(content)
        assert cells(view)["other/ppo/1"]["status"] == status


def test_a_cell_leads_to_its_run_and_to_nothing_else(grid: Path) -> None:
    view = GridView(grid)
    assert view.run("echo/ppo/1").folder == grid / "cells/echo/ppo/seed-1"
    assert view.run("echo/ppo/1") is view.run("echo/ppo/1"), "what was read is not read again"
    for wrong in ("echo/ppo/2", "../../x/0", "echo/ppo", "", "echo/ppo/../../other/ppo/seed-0"):
        with pytest.raises(ConfigError, match="no cell"):
            view.run(wrong)
    with pytest.raises(ConfigError, match="has not begun"):
        view.run("echo/reference/1")


def test_a_grid_whose_file_is_damaged_shows_what_is_there(grid: Path) -> None:
    (grid / "benchmark.toml").write_text("[x")
    assert set(cells(GridView(grid))) == {"echo/ppo/0", "echo/ppo/1", "other/ppo/0"}
