"""Metrics on trackio, a dashboard on the user's own machine: the one file that imports `trackio`.

`trackio show --project PROJECT` opens it. The runs are in `~/.cache/huggingface/trackio`, or where `TRACKIO_DIR` says;
with `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` they go to a Space or a server.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
import trackio

from rlhf_env.errors import ConfigError
from rlhf_env.learning.tracking import LoggedRow, bin_edges, histograms, numbers, update_of
from rlhf_env.settings import Name

NAME_FILE = "trackio_name"


class Trackio:
    """The run, in a project there, with its resolved experiment. A resumed run continues the same run.

    trackio knows a run by its name alone, so the name that it gets ends in six letters that no other run has.

    Args:
        project: whose runs are shown side by side.
    """

    def __init__(self, *, project: Name, folder: Path, run_name: str, experiment: Mapping[str, object]) -> None:
        known = folder / NAME_FILE
        if not known.exists():
            known.write_text(f"{run_name}-{uuid.uuid4().hex[:6]}", encoding="utf-8")
        try:
            with _asking_nobody():
                self._run = trackio.init(
                    project=project,
                    name=known.read_text(encoding="utf-8"),
                    resume="allow",
                    config=dict(experiment),
                    embed=False,
                    auto_log_gpu=False,
                    auto_log_cpu=False,
                )
            self._next: int = self._run._next_step  # it has the steps before: it would show one that comes again twice
        except Exception as error:  # theirs have no common ancestor
            why = str(error).strip().splitlines()
            raise ConfigError(f"trackio cannot start: {why[0] if why else type(error).__name__}") from error

    def log(self, row: LoggedRow, /) -> None:
        update = update_of(row)
        if update < self._next:
            return
        drawings = {
            key: trackio.Histogram(np_histogram=(histogram["counts"], bin_edges(histogram)))
            for key, histogram in histograms(row).items()
        }
        self._run.log({**numbers(row), **drawings}, step=update)

    def close(self) -> None:
        trackio.finish()


@contextmanager
def _asking_nobody() -> Iterator[None]:
    """Keep trackio, where it stays on this machine, from asking huggingface.co for the name of the token's owner."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    if not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")):
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
