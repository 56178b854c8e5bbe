"""The page of `rlhf-env watch`: live curves, warnings and texts of a run, or the cells of a grid, each a run.

It listens on this machine alone, and only whoever has the link may look: the link's token, which stands behind the "#"
and is sent in no address, is given in exchange for a cookie. What other web pages could try is refused as the
annotation page refuses it (`local_page.server`). It reads, and never writes.

    POST /api/enter   {token}: a cookie
    POST /api/grid    {}: the cells of a grid
    POST /api/run     {cell, have, sections, by}: a run's state and curves; {"same": true} where `have` is its version
    POST /api/texts   {cell, ...}: texts, see `texts.Query`

`cell` is "task/agent/seed" in a grid, and null where the page is of one run. A long log is read piece by piece: `left`
is the share that is still to come.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from rlhf_env.errors import ConfigError, DataError, RlhfEnvError
from rlhf_env.feedback.page.keys import is_same
from rlhf_env.lab.watching.curves import sections_named
from rlhf_env.lab.watching.grid_view import DESCRIBED_GRID, GridView
from rlhf_env.lab.watching.run_view import RunView
from rlhf_env.lab.watching.texts import Query
from rlhf_env.local_page.server import (
    LOOPBACK_NAMES,
    Json,
    Refused,
    body_of,
    guarded,
    on_disconnect,
    on_error,
    on_refused,
    serve_page,
    shared_files,
    static,
)
from rlhf_env.runs_on_disk import DESCRIBED, run_in

# After the shared server, which says what to install where these are missing.
from starlette.applications import Starlette  # isort: skip
from starlette.requests import ClientDisconnect, Request  # isort: skip
from starlette.responses import Response  # isort: skip
from starlette.routing import Route  # isort: skip
from starlette.types import ASGIApp  # isort: skip

_T = TypeVar("_T")

_FOLDER = Path(__file__).parent / "static"
_STATIC = {
    "/": ("watch.html", "text/html"),
    "/watch.css": ("watch.css", "text/css"),
    "/watch.js": ("watch.js", "text/javascript"),
    "/run.js": ("run.js", "text/javascript"),
    "/grid.js": ("grid.js", "text/javascript"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/texts.js": ("texts.js", "text/javascript"),
}
_HOST = "127.0.0.1"


def view_of(path: Path) -> RunView | GridView:
    """What lies in a folder. Raises ConfigError where that is neither a run nor a grid."""
    if not path.exists():
        raise ConfigError(f"{path}: there is no such folder (rlhf-env train makes runs/NAME)")
    if not path.is_dir():
        raise ConfigError(f"{path} is a file: name the folder of a run or of a benchmark")
    try:
        if (path / DESCRIBED_GRID).is_file():
            return GridView(path)
        run = run_in(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    if run is None:
        raise ConfigError(
            f"{path} is neither a run nor a grid: it has no {DESCRIBED} (rlhf-env train) and no {DESCRIBED_GRID} "
            "(rlhf-env bench)"
        )
    return RunView(run)


def serve_watch(path: Path, *, port: int = 0, announce: Callable[[str], None] = print) -> None:
    """Serve the page about the run or the grid in `path` until Ctrl-C; `announce` gets its link.

    Raises ConfigError for a folder that holds neither, and where the port cannot be listened on.
    """
    view = view_of(path)
    token = secrets.token_urlsafe(24)

    def announced(port: int) -> None:
        announce(f"http://{_HOST}:{port}/#token={token}")

    serve_page(_HOST, port, lambda port: watch_page(view, token, port=port), announced)


def watch_page(view: RunView | GridView, token: str, *, port: int) -> ASGIApp:
    """The page as an ASGI application, for a server that listens on `port`."""
    desk = _Desk(view, token)
    application = Starlette(
        routes=[
            *(Route(path, static(_FOLDER / name, kind)) for path, (name, kind) in _STATIC.items()),
            *shared_files(),
            Route("/api/enter", desk.enter, methods=["POST"]),
            Route("/api/grid", desk.grid, methods=["POST"]),
            Route("/api/run", desk.run, methods=["POST"]),
            Route("/api/texts", desk.texts, methods=["POST"]),
        ],
        exception_handlers={Refused: on_refused, RlhfEnvError: on_error, ClientDisconnect: on_disconnect},
    )
    return guarded(application, LOOPBACK_NAMES, port)


class _Desk:
    """The handlers, in front of files that one thread reads."""

    def __init__(self, view: RunView | GridView, token: str) -> None:
        self._view = view
        self._token = token
        self._session = secrets.token_urlsafe(24)
        self._cookie = f"watch_{secrets.token_hex(6)}"  # cookies know no ports, and several pages may be open
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="watch")

    async def enter(self, request: Request) -> Response:
        token = (await body_of(request, "token"))["token"]
        if not (isinstance(token, str) and is_same(token, self._token)):
            raise Refused(401, "this link opens nothing any more: take the one that rlhf-env watch shows")
        response = Json({"kind": "grid" if isinstance(self._view, GridView) else "run"})
        response.set_cookie(self._cookie, self._session, httponly=True, samesite="strict", path="/")
        return response

    async def grid(self, request: Request) -> Response:
        await self._asked(request)
        view = self._view
        if not isinstance(view, GridView):
            return Json({"kind": "run"})
        return Json({"kind": "grid", **await self._in_thread(view.about)})

    async def run(self, request: Request) -> Response:
        given = await self._asked(request, "cell", "have", "sections", "by")

        def look() -> dict[str, Any]:
            view = self._run(given["cell"])
            view.refresh()
            state = {"version": view.version, "left": view.left, "silent": view.about()["silent"]}
            if given["have"] == view.version:
                return {"same": True, **state}
            panels = view.panels(
                tuple(sections_named(given["sections"])), "tokens" if given["by"] == "tokens" else "update"
            )
            return {
                **state,
                "about": view.about(),
                "panels": [panel.as_json() for panel in panels],
                "texts": view.texts.about(),
            }

        return Json(await self._in_thread(look))

    async def texts(self, request: Request) -> Response:
        fields = ("sort", "descending", "search", "source", "update", "prompt", "begin")
        given = await self._asked(request, "cell", *fields)
        query = Query.of({name: given[name] for name in fields})
        return Json(await self._in_thread(lambda: self._run(given["cell"]).texts.find(query)))

    def _run(self, cell: object) -> RunView:
        if isinstance(self._view, RunView):
            return self._view
        if not isinstance(cell, str):
            raise DataError("cell: which one of the grid? As task/agent/seed")
        return self._view.run(cell)

    async def _asked(self, request: Request, *fields: str) -> dict[str, Any]:
        if not is_same(request.cookies.get(self._cookie, ""), self._session):
            raise Refused(
                401, "open the link that rlhf-env watch shows: it has changed if the command was started anew"
            )
        return dict(await body_of(request, *fields))

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
