"""Whether somebody answers at the address of a cluster, found out within a bounded time and without noise."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_env.errors import ConfigError


def require_address(address: str) -> None:
    """Raise ConfigError at once for what is no address, or where nothing listens."""
    if address in ("auto", "local"):
        return
    if "://" in address:
        raise ConfigError(f"{address}: Ray's client cannot do this; call on a machine of the cluster: HOST:PORT, auto")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ConfigError(f"{address!r} is no address of a Ray cluster: HOST:PORT, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except (OSError, OverflowError) as error:
        start = "`ray start --head` starts one, and prints its address"
        raise ConfigError(f"no Ray cluster answers at {address!r}: {error}; {start}") from error


@contextmanager
def without_stderr() -> Iterator[None]:
    """Ray's own code warns once a second while it tries to connect; what it came to is raised as an exception."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
