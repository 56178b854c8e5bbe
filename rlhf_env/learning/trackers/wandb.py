"""Metrics on Weights & Biases: the one file that imports `wandb`.

`WANDB_MODE=offline` needs no network and no account: the run is kept in its folder until `wandb sync` sends it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

import wandb

from rlhf_env.errors import ConfigError
from rlhf_env.learning.tracking import LoggedRow, bin_edges, histograms, numbers, update_of
from rlhf_env.settings import Name

WANDB_ID_FILE = "wandb_id"


class WeightsAndBiases:
    """The run, in a project there, with its resolved experiment. A resumed run continues the same run.

    Updates that are done again after a resume keep the numbers that they had: Weights & Biases takes no step twice,
    and but for the clock the numbers are the same. Raises ConfigError where it cannot start (no account, say).

    Args:
        project: whose runs are shown side by side.
    """

    def __init__(self, *, project: Name, folder: Path, run_name: str, experiment: Mapping[str, object]) -> None:
        known = folder / WANDB_ID_FILE
        if not known.exists():
            known.write_text(uuid.uuid4().hex, encoding="ascii")
        try:
            self._run = wandb.init(
                project=project,
                id=known.read_text(encoding="ascii"),
                resume="allow",
                name=run_name,
                dir=str(folder),
                config=dict(experiment),
                settings=wandb.Settings(console="off"),
            )
        except Exception as error:  # theirs have no common ancestor
            why = str(error).strip().splitlines()
            raise ConfigError(
                f"wandb cannot start: {why[0] if why else type(error).__name__} "
                "(WANDB_MODE=offline needs no account and no network)"
            ) from error

    def log(self, row: LoggedRow, /) -> None:
        drawings = {
            key: wandb.Histogram(np_histogram=(histogram["counts"], bin_edges(histogram)))
            for key, histogram in histograms(row).items()
        }
        self._run.log({**numbers(row), **drawings}, step=update_of(row))

    def close(self) -> None:
        self._run.finish()
