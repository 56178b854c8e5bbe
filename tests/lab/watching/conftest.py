"""A run and a grid that were really trained, and a browser's side of the page."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rlhf_env

sys.path.insert(0, str(Path(__file__).parents[2]))
from faults.processes import Running, started


@pytest.fixture(scope="session")
def trained(toy: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 12 updates, evaluated at 0, 4, 8 and 12. To be read only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    wanted = {
        **toy,
        "name": "seen",
        "agent": {"name": "rloo", "lr": 1e-2, "group_size": 4},
        "rewards": {"task": 1.0, "kl": 0.05},
        "budget": {"updates": 12},
        "evaluation": {"prompts": 6, "every": 4},
        "texts": {"of_evaluation": 6, "of_rollout": 8, "rollouts_every": 6},
    }
    rlhf_env.run(wanted, folder)
    return folder


@pytest.fixture
def seen(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be written into."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def text_rows() -> Callable[[Path], list[dict[str, Any]]]:
    """`text_rows(folder)`: what texts.jsonl says, without its first line."""
    return lambda folder: [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()[1:]]


@pytest.fixture
def watching() -> Iterator[Callable[[Path], str]]:
    """`watching(folder)`: what `rlhf-env watch` serves; the link."""
    running: list[Running] = []

    def watch(folder: Path) -> str:
        running.append(started("watch", str(folder), "--port", "0"))
        while "Open http" not in running[-1].said():
            time.sleep(0.01)
        return running[-1].said().split()[1]

    yield watch
    for one in running:
        one.kill()
        one.wait()
