"""What our local pages share: the server, who may ask it, and what every response says.

The annotation page and the page of `rlhf-env watch` are Starlette applications behind a `Guard`. What other web pages
in the same browser could try is refused before anything is read: a foreign Host (DNS rebinding), a POST from a foreign
Origin, content in a frame. A page may load nothing but its own script and style.

An error is {"problems": [...]}: 422 for what cannot be accepted, 503 where something could not be read or written (the
same request may be sent again).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_env.errors import ConfigError, DataError, MissingExtra, RlhfEnvError
from rlhf_env.shown_text import for_page
from rlhf_env.types import JsonView

try:
    import h11
    import uvicorn
    from starlette.datastructures import MutableHeaders
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ModuleNotFoundError as missing:
    raise MissingExtra("a local page's web server (starlette, uvicorn)", "annotate") from missing

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

BODY_BYTES = 64 * 1024
BODY_SECONDS = 10.0
REQUEST_SECONDS = 15.0
REQUESTS_PER_WINDOW = 600
WINDOW_SECONDS = 10.0
CONNECTIONS = 200


def serve_page(
    host: str,
    port: int,
    application: Callable[[int], ASGIApp],
    announce: Callable[[int], None],
    *,
    until: Callable[[], bool] | None = None,
) -> None:
    """Serve `application(port)` until Ctrl-C; `announce(port)` is called once, when the port is known.

    `until` is asked every second, in a thread of its own: the page ends when it says so.

    Raises ConfigError where the address cannot be listened on, and what the application raises when it starts.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except socket.gaierror as error:
        raise ConfigError(f"host {host}: this machine knows no such address ({error.strerror})") from error
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ConfigError(f"{host} port {port}: {why}; choose another, or 0 for a free one") from error
    with listening:
        port = listening.getsockname()[1]
        settings = uvicorn.Config(
            application(port),
            http=Patient,
            log_level="error",
            ws="none",
            access_log=False,
            proxy_headers=False,  # who is asking is who is connected: no header decides it
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(settings)
        serving = server.serve(sockets=[listening])
        try:
            with asyncio.Runner() as runner:
                runner.get_loop()  # whoever stops it as soon as it is announced would stop it half made
                announce(port)
                if until is not None:
                    threading.Thread(target=_end_when, args=(server, until), daemon=True).start()
                runner.run(serving)
        finally:
            serving.close()  # stopped before it began, it would be complained about as never awaited


def _end_when(server: uvicorn.Server, until: Callable[[], bool]) -> None:
    while not server.should_exit:
        time.sleep(1.0)
        with contextlib.suppress(RlhfEnvError):  # a store that is being written to is asked again
            server.should_exit = server.should_exit or until()


def guarded(application: ASGIApp, names: tuple[str, ...], port: int) -> Guard:
    """The application, asked for under these names of the host only."""
    ports = ("", f":{port}") if port == 80 else (f":{port}",)
    return Guard(application, frozenset(name + end for name in names for end in ports))


def static(file: Path, kind: str) -> Callable[[Request], Response]:
    """A handler that gives the file as it is now: no request's path ever becomes a file's."""
    content = file.read_bytes()
    return lambda request: Response(content, media_type=kind)


def shared_files() -> list[Route]:
    """What every page loads: its look, and how elements are made."""
    folder = Path(__file__).parent / "static"
    files = {"base.css": "text/css", "elements.js": "text/javascript"}
    return [Route(f"/{name}", static(folder / name, kind)) for name, kind in files.items()]


class Patient(H11Protocol):
    """uvicorn's own protocol, but not for ever: a request is here, head and body, within `REQUEST_SECONDS`.

    uvicorn waits for the next request of a connection, never for the rest of one: somebody who sends a byte now and
    then would hold it until no connection is left.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._deadline is None:  # what came in the meantime buys no time
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Json(JSONResponse):
    """In ASCII: what people and models write may hold half a surrogate pair, which UTF-8 cannot.

    A number that is not finite is null: Python would write NaN, and no browser reads it.
    """

    def render(self, content: Any) -> bytes:
        try:
            said = json.dumps(content, separators=(",", ":"), allow_nan=False)
        except ValueError:
            said = json.dumps(_finite(content), separators=(",", ":"), allow_nan=False)
        return said.encode("ascii")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


class Refused(Exception):
    """A request that is turned down with an HTTP status."""

    def __init__(self, status: int, problem: str) -> None:
        self.status, self.problem = status, problem
        super().__init__(problem)


async def on_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return problem_response(error.status, error.problem)


async def on_error(_: Request, error: Exception) -> Response:
    return (
        problem_response(422, *error.problems) if isinstance(error, ConfigError) else problem_response(503, str(error))
    )


async def on_disconnect(_: Request, error: Exception) -> Response:
    return problem_response(400, str(error))  # nobody is there to read it


def problem_response(status: int, *found: str) -> Response:
    return Json({"problems": [for_page(problem) for problem in found]}, status)


class Guard:
    """Every request passes here first: known Host, own Origin, not too many; every response gets the headers."""

    def __init__(self, application: ASGIApp, hosts: frozenset[str]) -> None:
        self._application = application
        self._hosts = hosts
        self._window = 0
        self._requests: dict[str, int] = {}  # by address, of this window

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the server starts or ends
            await self._application(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            self._check(Request(scope))
        except Refused as refused:
            await problem_response(refused.status, refused.problem)(scope, receive, send_with_headers)
        else:
            await self._application(scope, receive, send_with_headers)

    def _check(self, request: Request) -> None:
        given = request.headers.getlist("host")
        host = given[0].lower() if len(given) == 1 else ""
        if host not in self._hosts:
            raise Refused(421, "this page is not served under that name")
        if request.method not in ("GET", "HEAD", "POST"):
            raise Refused(405, f"{request.method}: GET and POST only")
        if request.method == "POST" and request.headers.getlist("origin") != [f"http://{host}"]:
            raise Refused(403, "the request does not come from this page")
        window = int(time.monotonic() / WINDOW_SECONDS)
        if window != self._window:
            self._window, self._requests = window, {}
        address = request.client.host if request.client else ""
        self._requests[address] = self._requests.get(address, 0) + 1
        if self._requests[address] > REQUESTS_PER_WINDOW:
            raise Refused(429, "too many requests: wait some seconds")


async def body_of(request: Request, *fields: str) -> JsonView:
    """The JSON object that a request carries; a field it leaves out is None. Refused where it is too long or slow."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "expected application/json")
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > BODY_BYTES:
                    raise Refused(413, f"longer than {BODY_BYTES} bytes")
    except TimeoutError as error:
        raise Refused(408, "the request came too slowly") from error
    try:
        given = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError("the request is not JSON") from error
    if not isinstance(given, dict):
        raise DataError(f"the request: expected an object, got {type(given).__name__}")
    if unknown := [f"{name[:40]}: no such field" for name in given if name not in fields]:
        raise DataError(*unknown)
    return {name: given.get(name) for name in fields}
