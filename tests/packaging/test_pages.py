"""docs/reference/ is what the plugins and commands say of themselves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
LISTED = """
import json, runpy, sys
print(json.dumps(dict(runpy.run_path(sys.argv[1])["pages"]())))
"""


@pytest.mark.skipif(not DOCS.exists(), reason="docs/ is not here")
def test_the_reference_is_what_they_say() -> None:
    words = [
        sys.executable,
        "-c",
        LISTED,
        str(DOCS / "make_pages.py"),
    ]  # by itself: it leaves other people's plugins out
    made = json.loads(subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout)
    there = {
        str(file.relative_to(DOCS / "reference")): file.read_text("utf-8")
        for file in DOCS.rglob("reference/**/*")
        if file.is_file()
    }
    assert made.keys() == there.keys(), "python docs/make_pages.py"
    stale = [name for name in made if made[name] != there[name]]
    assert not stale, "python docs/make_pages.py"
    agents = [name for name in made if name.startswith("agents/") and name.endswith(".md") and "index" not in name]
    assert [name for name in agents if f"({Path(name).stem}.svg)" not in made[name]] == [], "an agent without a curve"
    assert sum(len(text) for name, text in made.items() if name.endswith(".svg")) < 300_000


@pytest.mark.skipif(not DOCS.exists(), reason="docs/ is not here")
@pytest.mark.parametrize("name", ["Token-v0", "Response-v0"])
def test_the_code_of_an_id_makes_its_environments(name: str) -> None:
    page = (DOCS / "reference/environments" / f"{name}.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    made: dict[str, Any] = {}
    exec(code, made)
    assert f"`action_space` | `{'Discrete' if name == 'Token-v0' else 'MultiDiscrete'}(" in page
    assert made["env"].spec.id == f"rlhf_env/{name}"
    assert made["envs"].reset(seed=0)[1]["prompt"].shape == (64,)
    made["env"].close()
    made["envs"].close()
