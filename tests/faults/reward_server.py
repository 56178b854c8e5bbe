"""A server on loopback for the reward `http`. It answers as it is told: well, late, slowly, wrongly, or not at all."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = b'{"scores": [0.5, -2]}'

Answer = Callable[["Asked"], None]


class Asked(BaseHTTPRequestHandler):
    """One request; `body` is what it asks."""

    body: bytes

    def do_POST(self) -> None:
        server: Any = self.server
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        server.seen.append((self.path, dict(self.headers), self.body))
        server.answers[min(len(server.seen), len(server.answers)) - 1](self)

    def log_message(self, *_: Any) -> None: ...


class Server(ThreadingHTTPServer):
    """Gives the answers it was given, in order, and the last again. `seen`: what it was asked."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.answers: Sequence[Answer] = [say(200)]
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", port), Asked)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/score"

    def handle_error(self, *_: Any) -> None:
        """Of clients that have gone."""


@contextmanager
def serving(port: int = 0) -> Iterator[Server]:
    """One, in a thread; `port` 0 is any that is free."""
    with Server(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# ---------------------------------------------------------------- its answers


def say(status: int, body: bytes = GOOD, **headers: str) -> Answer:
    def answer(asked: Asked) -> None:
        asked.send_response(status)
        asked.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            asked.send_header(name, value)
        asked.end_headers()
        asked.wfile.write(body)

    return answer


def scores(asked: Asked) -> None:
    """As many as there are responses: how often each says "a"."""
    said = json.loads(asked.body)["responses"]
    say(200, json.dumps({"scores": [response.count("a") for response in said]}).encode())(asked)


def not_a_number(asked: Asked) -> None:
    """NaN for the last response: no JSON, though many programs write it."""
    said = json.loads(asked.body)["responses"]
    say(200, json.dumps({"scores": [0.5] * (len(said) - 1) + [float("nan")]}).encode())(asked)


def hang_up(asked: Asked) -> None:
    asked.connection.shutdown(socket.SHUT_RDWR)


def stop_in_the_middle(asked: Asked) -> None:
    asked.send_response(200)
    asked.send_header("Content-Length", str(len(GOOD)))
    asked.end_headers()
    asked.wfile.write(GOOD[:5])


def drip(asked: Asked) -> None:
    """Each byte comes soon enough; all of them never."""
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 1000:
        asked.wfile.write(bytes([byte]))
        time.sleep(0.2)


def endless(asked: Asked) -> None:
    """A hundred megabytes that nobody announced."""
    asked.send_response(200)
    asked.end_headers()
    for _ in range(100 << 4):
        asked.wfile.write(b" " * (1 << 16))


def announce(asked: Asked) -> None:
    """A hundred megabytes, announced."""
    asked.send_response(200)
    asked.send_header("Content-Length", str(100 << 20))
    asked.end_headers()
