"""Which backend does the jobs, by what options say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from rlhf_env.errors import ConfigError
from rlhf_env.lab.jobs import Backend
from rlhf_env.lab.ray_cluster import connected


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """What was asked for; None: nothing was said."""

    backend: Literal["local", "ray"] = "local"
    jobs: int | None = None
    threads: int | None = None
    address: str | None = None
    cpus_per_run: float | None = None
    gpus_per_run: float | None = None
    memory_per_run: float | None = None

    def check(self) -> None:
        """Raises ConfigError for options that do not go together."""
        if self.backend == "ray":
            if self.jobs is not None:
                raise ConfigError(
                    "--jobs is for processes of this machine: with --backend ray, --cpus-per-run says how many runs a "
                    "machine has room for"
                )
            return
        of_ray = ("address", "cpus_per_run", "gpus_per_run", "memory_per_run")
        if given := [f"--{name.replace('_', '-')}" for name in of_ray if getattr(self, name) is not None]:
            raise ConfigError(f"{', '.join(given)}: for --backend ray alone")

    @contextmanager
    def opened(self) -> Iterator[int | Backend]:
        """The backend, as `run_jobs` takes it, for as long as the context lasts. Raises ConfigError."""
        self.check()
        if self.backend == "local":
            yield 2 if self.jobs is None else self.jobs
            return
        with connected(
            self.address or "auto",
            cpus=(self.threads or 1) if self.cpus_per_run is None else self.cpus_per_run,
            gpus=self.gpus_per_run or 0.0,
            memory=self.memory_per_run or 0.0,
        ) as cluster:
            yield cluster
