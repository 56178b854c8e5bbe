"""Which backend does the jobs, by what options say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from rlhf_env.errors import ConfigError
from rlhf_env.lab.jobs import Backend
from rlhf_env.lab.ray_cluster import connected, room_of_a_run


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
        """Raises ConfigError for options that do not go together, or ask for what no machine can have."""
        if self.backend == "ray":
            if self.jobs is not None:
                raise ConfigError(
                    "--jobs is for processes of this machine: with --backend ray, --cpus-per-run says how many runs a "
                    "machine has room for"
                )
            room_of_a_run(*self._room)
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
        cpus, gpus, memory = self._room
        with connected(self.address or "auto", cpus=cpus, gpus=gpus, memory=memory) as cluster:
            yield cluster

    @property
    def _room(self) -> tuple[float, float, float]:
        cpus = (self.threads or 1) if self.cpus_per_run is None else self.cpus_per_run
        return cpus, self.gpus_per_run or 0.0, self.memory_per_run or 0.0
