"""Metrics on MLflow: the one file that imports `mlflow`.

The runs go to `uri`, or where `MLFLOW_TRACKING_URI` says, or to MLflow's own default: `mlflow.db` and `mlruns/` in the
working directory, which need no network and no account. `mlflow ui` (of the whole package `mlflow`) shows them.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Before the import, which would begin to report its use.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient, get_tracking_uri
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from rlhf_env.errors import ConfigError
from rlhf_env.learning.tracking import LoggedRow, drawn, histograms, numbers, update_of
from rlhf_env.plain_data import flat
from rlhf_env.settings import Name

MLFLOW_ID_FILE = "mlflow_run"
_SQLITE = "sqlite:///"
_PARAMS_AT_ONCE = 100  # that MLflow takes
_LONGEST_KEY = 250


class MLflow:
    """The run, in an experiment of MLflow named `project`, with its settings as parameters.

    Histograms, of which MLflow has no kind, are artifacts: one JSON file for each update that is drawn (see `drawn`). A
    resumed run continues the same run, and updates that are done again keep the numbers that they had.

    Args:
        project: the name of MLflow's experiment.
        uri: of the server, or of the file of its database (default: `MLFLOW_TRACKING_URI`, else `mlflow.db` here).
    """

    def __init__(
        self, *, project: Name, uri: Name | None = None, folder: Path, run_name: str, experiment: Mapping[str, object]
    ) -> None:
        known = folder / MLFLOW_ID_FILE
        try:
            with _one_at_a_time(uri or get_tracking_uri()):
                self._client = MlflowClient(tracking_uri=uri)
            if known.exists():
                self._run_id = known.read_text(encoding="ascii")
                self._next = int(self._client.get_run(self._run_id).data.metrics.get("update", -1)) + 1
                self._client.update_run(self._run_id, status="RUNNING")
            else:
                created = self._client.create_run(self._experiment_named(project), run_name=run_name)
                self._run_id, self._next = str(created.info.run_id), 0
                self._describe(experiment)
                known.write_text(self._run_id, encoding="ascii")
        except Exception as error:  # of MLflow, of its database, of its connection
            why = str(error).strip().splitlines()
            again = f"; {known} names the run to continue: delete it to begin another" if known.exists() else ""
            raise ConfigError(
                f"mlflow cannot start at {uri or get_tracking_uri()}: {why[0] if why else type(error).__name__}{again}"
            ) from error

    def _experiment_named(self, project: str) -> str:
        found = self._client.get_experiment_by_name(project)
        if found is None:
            try:
                return str(self._client.create_experiment(project))
            except MlflowException:  # another run of ours may have made it meanwhile
                found = self._client.get_experiment_by_name(project)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _describe(self, experiment: Mapping[str, object]) -> None:
        params = [Param(_key(name), str(value)) for name, value in flat(experiment).items()]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._run_id, params=params[start : start + _PARAMS_AT_ONCE])

    def log(self, row: LoggedRow, /) -> None:
        update = update_of(row)
        if update < self._next:
            return
        now = time.time_ns() // 1_000_000
        # The number of the update is a metric, too: it arrives with the others or not at all, so it says what is there.
        values = {"update": update, **{_key(name): value for name, value in numbers(row).items()}}
        metrics = [Metric(key, value, now, update) for key, value in values.items()]
        if drawn(update) and (drawings := histograms(row)):
            self._client.log_dict(self._run_id, drawings, f"histograms/{update:09d}.json")
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Wait for other runs of ours that open a SQLite file: two that make its tables at once would leave it broken."""
    if not uri.startswith(_SQLITE):
        yield
        return
    folder = os.open(Path(uri.removeprefix(_SQLITE)).absolute().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # the lock goes when the folder is closed
        yield
    finally:
        os.close(folder)


def _key(name: str) -> str:
    """A name as MLflow takes it: what it refuses becomes the number of the character between underscores."""
    parts = []
    for part in name.split("/"):
        allowed = re.sub(r"[^\w.\- :]", lambda match: f"_{ord(match[0]):x}_", part)
        parts.append(allowed if allowed.strip(".") else f"_{allowed}")  # "", "." and ".." are no names of files
    return "/".join(parts)[:_LONGEST_KEY]
