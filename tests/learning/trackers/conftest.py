"""What the tests of trackers share."""

from __future__ import annotations

import socket
from typing import Any

import pytest


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Refuses to look up a host or to connect to one; what was tried, to be empty in the end."""
    tried: list[Any] = []
    connect = socket.socket.connect

    def refuse(host: Any, *_: Any, **__: Any) -> Any:
        tried.append(host)
        raise OSError(f"a test has no network: {host}")

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse(address)
        connect(self, address)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", connect_here)
    return tried
