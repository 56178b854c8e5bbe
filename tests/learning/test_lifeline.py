"""Who is let into the connections of a run's processes: those that were told the token."""

from __future__ import annotations

import json
import queue
import socket
import threading

import pytest

from rlhf_env.learning.lifeline import Lifeline

STRANGERS = {
    "no token": b'{"rank": 1}\n',
    "a wrong token": b'{"rank": 1, "pid": 1, "host": "x", "token": "0123"}\n',
    "not an object": b"[]\n",
    "not JSON": b"GET / HTTP/1.1\r\n",
    "not UTF-8": b"\xff\xfe\n",
    "brackets without end": b"[" * 4095 + b"\n",
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_stranger_is_not_let_in_and_keeps_nobody_out(said: bytes) -> None:
    told: queue.Queue[str] = queue.Queue()
    first, second = Lifeline(0, 2, 60.0), Lifeline(1, 2, 60.0)
    failed: list[BaseException] = []

    def tell(address: str) -> str:
        told.put(address)
        return address

    def listen() -> None:
        try:
            first.start("127.0.0.1", tell, loopback=True)
        except BaseException as error:
            failed.append(error)

    listening = threading.Thread(target=listen, daemon=True)
    listening.start()
    address = told.get(timeout=60)
    host, port, _ = json.loads(address)
    with socket.create_connection((host, port), timeout=60) as stranger:
        stranger.sendall(said)
        assert stranger.recv(1) == b""  # hung up on
    second.start("", lambda _: address, loopback=True)
    listening.join(60)
    assert not failed and not listening.is_alive()
    parting = threading.Thread(target=first.leave, daemon=True)  # each waits for the other's word
    parting.start()
    second.leave()
    parting.join(60)
    assert not parting.is_alive()
