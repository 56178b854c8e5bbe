"""The tests' own world: one thread, the same hypothesis examples every time, nothing from the network."""

from __future__ import annotations

import functools
import os
from pathlib import Path

# Before anything imports torch: its thread pool on a small busy machine turns seconds into half a minute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["XDG_STATE_HOME"] = str(Path(__file__).parent.parent / "build" / "test-state")
os.environ["RLHF_ENV_CACHE"] = str(Path(__file__).parent.parent / "build" / "test-cache")

import typer.main
from hypothesis import HealthCheck, settings

settings.register_profile(
    "same-every-time",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same-every-time")

# Putting the commands together takes longer than most of them do: the tests of a process share them.
typer.main.get_command = functools.cache(typer.main.get_command)
