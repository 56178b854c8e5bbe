"""Where the metrics of a run go: trackers, which are plugins.

A run always writes metrics.jsonl, which is also what resuming and reports read, and TensorBoard's files where
TensorBoard is installed. More trackers are asked for by name, on the command line (`--track mlflow=PROJECT`) or by a
table of an experiment, `[trackers.mlflow]`. To add one, write one class and register it by name with
`register_trackers(register)`: here a file of `trackers/` for each library, and a line in `learning/__init__.py`; or a
package of your own.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

import numpy as np

from rlhf_env import plugins
from rlhf_env.errors import ConfigError, under
from rlhf_env.types import Float, JsonView


class Histogram(TypedDict):
    """Values counted in bins of equal width between `low` and `high`."""

    low: float
    high: float
    counts: list[int]


# One row of metrics: numbers by name, of which `update` says which row it is; None for what was not finite; histograms.
LoggedRow = Mapping[str, "float | Histogram | None"]


@runtime_checkable
class Tracker(Protocol):
    """Shows the metrics of one run to its user.

    A plugin is built with the settings of its table, and with what it has a parameter for of: `folder` (Path: the
    run's, where it may keep what it must find again when the run is resumed), `run_name` (a string, for people),
    `experiment` (a table: the resolved experiment). It raises ConfigError where it cannot start; nothing of the run has
    been written yet.

    A tracker that fails later gets no more rows, and the run goes on without it; but an error of this project
    (`RlhfEnvError`), DiskRefused for example, ends the run.
    """

    def log(self, row: LoggedRow, /) -> None:
        """Take one row. Rows come in order, but those after the last checkpoint come again when a run is resumed."""

    def close(self) -> None:
        """Send what is still under way; no row comes after this."""


@runtime_checkable
class Rewinds(Tracker, Protocol):
    """A tracker that can take rows back, so that a resumed run shows each update once."""

    def rewind(self, update: int, /) -> None:
        """Forget the rows after `update`: they are done again."""


def load_tracker(name: str, settings: object, *, folder: Path, run_name: str, experiment_toml: str) -> Tracker:
    """Start a tracker by name. Raises ConfigError that names it."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"[trackers] {name}: a table of settings is needed, got {settings!r}")
    own = dict(settings)
    plugin = plugins.name_in(own, "tracker", name, key=None)
    lent = {"folder": folder, "run_name": run_name, "experiment": tomllib.loads(experiment_toml)}
    tracker = plugins.build_plugin("tracker", plugin or name, own, lent, where=f"tracker {name!r}")
    if not isinstance(tracker, Tracker):
        raise ConfigError(f"tracker {name!r}: {tracker!r} is no tracker: it must have log(row) and close()")
    return tracker


def check_trackers(tables: JsonView) -> None:
    """See that the tables name known trackers, without importing them. Raises ConfigError with all problems."""
    problems: list[str] = []
    for name, settings in tables.items():
        try:
            with under(name):
                own = dict(settings) if isinstance(settings, Mapping) else {}
                plugins.host().entry("tracker", plugins.name_in(own, "tracker", name, key=None) or name)
                if not isinstance(settings, Mapping):
                    raise ConfigError(f"[trackers] {name}: a table of settings is needed, got {settings!r}")
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)


def numbers(row: LoggedRow) -> dict[str, float]:
    """The numbers of a row, without that of the update."""
    return {key: value for key, value in row.items() if isinstance(value, (int, float)) and key != "update"}


def histograms(row: LoggedRow) -> dict[str, Histogram]:
    return {key: value for key, value in row.items() if not isinstance(value, (int, float)) and value is not None}


def bin_edges(histogram: Histogram) -> Float:
    """The edges of the bins, one more than there are bins."""
    return np.linspace(histogram["low"], histogram["high"], len(histogram["counts"]) + 1)


def update_of(row: LoggedRow) -> int:
    """Which update a row is of."""
    update = row["update"]
    assert isinstance(update, (int, float))
    return int(update)


def drawn(update: int) -> bool:
    """Whether a curve needs this update: all of the first 1,000, then half of the next 1,000, a quarter of the next
    2,000, and so on: 500 more with every doubling, so that what a run of a million updates draws stays small.
    """
    return update % (1 << (update // 1000).bit_length()) == 0
