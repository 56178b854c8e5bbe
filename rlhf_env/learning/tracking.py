"""A run's metrics on Weights & Biases as well: the one file that imports `wandb`.

`WANDB_MODE=offline` needs no network and no account: the run is kept in its folder until `wandb sync` sends it.
"""

from __future__ import annotations

import importlib
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_env.errors import ConfigError, MissingExtra
from rlhf_env.types import JsonView

ID_FILE = "wandb_id"


class WandbRun:
    """The run in `folder`, in a project there, with its resolved experiment; a resumed run goes on in the same place.

    Updates that are done again after a resume keep the numbers they had: their steps cannot be sent twice, and but for
    the clock they are the same. Raises MissingExtra without wandb, ConfigError where it cannot start (no account, say).
    """

    def __init__(self, project: str, folder: Path, experiment_toml: str) -> None:
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as missing:
            raise MissingExtra("wandb", "wandb") from missing
        known = folder / ID_FILE
        if not known.exists():
            known.write_text(uuid.uuid4().hex, encoding="ascii")
        try:
            self._run = self._wandb.init(
                project=project,
                id=known.read_text(encoding="ascii"),
                resume="allow",
                name=folder.name,
                dir=str(folder),
                config=tomllib.loads(experiment_toml),
                settings=self._wandb.Settings(console="off"),
            )
        except Exception as error:  # theirs have no common ancestor
            said = str(error).strip().splitlines()
            raise ConfigError(
                f"wandb cannot start: {said[0] if said else type(error).__name__} "
                "(WANDB_MODE=offline needs no account and no network)"
            ) from error

    def log(self, row: JsonView) -> None:
        """One row of metrics, with its histograms; what was not finite (null) is left out."""
        self._run.log(
            {
                key: self._histogram(value) if isinstance(value, Mapping) else value
                for key, value in row.items()
                if value is not None and key != "update"
            },
            step=int(row["update"]),
        )

    def close(self) -> None:
        self._run.finish()

    def _histogram(self, bins: JsonView) -> Any:
        counts = np.asarray(bins["counts"])
        edges = np.linspace(bins["low"], bins["high"], len(counts) + 1)
        return self._wandb.Histogram(np_histogram=(counts, edges))
