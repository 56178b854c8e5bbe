"""A run of each format of checkpoints, kept as it was written: later versions still read it, or say what to do.

`checkpoint_version_N` is the folder of a run that was stopped after its second update (a table of logits, float64) and,
in `next_update.json`, what its third came to in the run that was not stopped. The folders are never made anew: a change
that needs that is a new format, with a number, a folder here, and a way from the old one or a word on what to do.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env.learning import checkpoints
from rlhf_env.learning.experiment import Experiment
from rlhf_env.learning.loop import train
from rlhf_env.learning.run_folder import RunFolder
from rlhf_env.learning.run_record import read_metrics
from rlhf_env.learning.workplace import build

KEPT = sorted(Path(__file__).parent.glob("checkpoint_version_*"), key=lambda folder: int(folder.name.split("_")[-1]))


def test_every_format_that_is_read_has_a_run_kept() -> None:
    assert KEPT[-1].name == f"checkpoint_version_{checkpoints.FORMAT_VERSION}"


@pytest.mark.parametrize("kept", KEPT, ids=lambda folder: folder.name)
def test_a_kept_run_goes_on_to_the_update_it_would_have_come_to(kept: Path, tmp_path: Path) -> None:
    """Within 1e-10, for other builds of the libraries may add in another order. (Counts are exact.)"""
    folder = tmp_path / "run"
    shutil.copytree(kept, folder)
    expected = json.loads((kept / "next_update.json").read_text(encoding="utf-8"))
    described = folder / "experiment.toml"
    experiment = Experiment.load(described)
    workplace = build(experiment)
    with RunFolder(folder, described.read_text(encoding="utf-8"), resume=True, tensorboard=False) as run:
        train(
            workplace.agent,
            workplace.source,
            experiment.budget,
            spending=workplace.setup.spending,
            engine=workplace.setup.engine,
            run=run,
            resume=True,
        )
    rows = read_metrics(folder)
    assert [row["update"] for row in rows] == [0, 1, 2, 3]
    assert_near(expected["row"], rows[-1])
    policy = {name: tensor.tolist() for name, tensor in workplace.agent.state_dict()["policy"].items()}
    assert_near(expected["policy"], policy)


def assert_near(expected: Any, found: Any) -> None:
    """What was recorded is still there; numbers within 1e-10. What is new beside it is no concern."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            assert name in found
            assert_near(value, found[name])
    else:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
