"""axe finds nothing wrong with the page of `rlhf-env watch`, of a run and of a grid, and with the reports of both.

`make axe` fetches axe-core and calls this: see tests/axe_core.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
pytest.importorskip("jinja2", reason="the extra 'report' is not installed")

import rlhf_env
from rlhf_env.lab.watching.run_report import write_run_report

sys.path.insert(0, str(Path(__file__).parents[2]))
from axe_core import NEEDED, Tab, complaints, opened

pytestmark = NEEDED

tab = pytest.fixture(params=["light", "dark"])(opened)
ALERT = {"name": "kl_below_zero", "update": 3, "message": "KL is below 0.", "remedy": "Sample more."}


@pytest.fixture(scope="module")
def grid(toy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a grid of four cells, with its report."""
    folder = tmp_path_factory.mktemp("grids") / "grid"
    shared = {**toy, "budget": {"updates": 2}, "evaluation": {"prompts": 4}}
    agents: dict[str, dict[str, object]] = {"rloo": {"group_size": 4}, "reference": {}}
    seen = rlhf_env.Grid(name="seen", seeds=2, agents=agents, experiment=shared)
    rlhf_env.run_benchmark(seen, folder, jobs=1, on_warning=lambda _: None)  # too few seeds for a verdict
    rlhf_env.write_report(folder)
    return folder


def test_of_a_run(tab: Tab, seen: Path, watching: Any) -> None:
    (seen / "warnings.json").write_text(json.dumps([ALERT]))
    tab.call("Page.navigate", url=watching(seen))
    tab.until("document.querySelectorAll('.texts article').length === 12")
    tab.value("document.querySelectorAll('details').forEach((it) => (it.open = true))")
    tab.sees("grad_norm")
    found = complaints(tab, "run")
    tab.value("[...document.querySelectorAll('.texts article:first-child button')].at(-1).click()")
    tab.sees("One prompt over time")
    found += complaints(tab, "one prompt over time")
    tab.call("Page.navigate", url=write_run_report(seen).as_uri())
    tab.sees("Highest reward")
    found += complaints(tab, "report")
    assert not found, "\n".join(found)
    assert tab.complaints == []


def test_of_a_grid(tab: Tab, grid: Path, tmp_path: Path, watching: Any) -> None:
    begun = Path(shutil.copytree(grid, tmp_path / "begun"))
    next((begun / "results").glob("*rloo*1.json")).unlink()
    tab.call("Page.navigate", url=watching(begun))
    tab.sees("3 of 4 runs done")
    found = complaints(tab, "grid")
    tab.call("Page.navigate", url=(grid / "report.html").as_uri())
    tab.sees("rloo")
    tab.value("document.querySelectorAll('details').forEach((it) => (it.open = true))")
    found += complaints(tab, "report of the grid")
    assert not found, "\n".join(found)
    assert tab.complaints == []
