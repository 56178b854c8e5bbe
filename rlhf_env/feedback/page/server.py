"""The annotation page's web server: static files, and a small JSON interface in front of a preference store.

Whoever has the link may judge: it carries a random token, which the page gives in exchange for a session and forgets.
The token stands behind the "#" of the link, the part that a browser never sends: no log holds it. A name is a label
there, not an account; people who share the link trust each other.

What other web pages in the same browser could try is refused before anything is read: a foreign Host (DNS rebinding), a
POST from a foreign Origin or without the session's CSRF token, content in a frame. The page itself may load nothing but
its own script and style. Sessions are signed, not stored: they outlive the server, so that the page resumes
after a crash.

    GET  /api/session    who is judging, with the session's CSRF token; null before `enter`
    POST /api/enter      {token, annotator}: begin a session, or change the name of one
    POST /api/next       {}: the item that the annotator holds, or one lent to them now
    POST /api/vote       {item, ticket, answer, key, seconds, abstain, margin, note, flag, instead}:
                         `PreferenceStore.submit`, then as `next`
    POST /api/undo       {item}: `PreferenceStore.undo`, then as `next`; null for the latest vote
    POST /api/own        {before}: the annotator's own judgements, the latest first, 50 at a time
    POST /api/open       {item}: one of them again, the vote with it; it stands until another takes its place
    GET  /api/agreement  how far annotators agree, once every item has its votes
    POST /api/results    {token}: who writes the better responses, and how often people share a reward model's opinions

Judging is blind. Results could tell who wrote what, and agreement what others say: whoever still has something to judge
must not see them. They are for the owner, who has a link of his own with another token, and for annotators once every
item has its votes. How often each annotator knows the answer to control questions is for the owner alone. Who opens the
owner's link should not be judging.

A vote carries the ticket of the item that was answered. The cookie is the browser's, and another tab may have changed
who is judging in it: what was put before one person is never taken as the vote of another.

An error is {"problems": [...]}: 409 where the item went to others meanwhile or was put before somebody else, 422 for
what cannot be accepted, 503 where the store could not be written (the same request may be sent again).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Le

from rlhf_env.errors import ConfigError, LeaseExpired, NotAsked, Problem, RlhfEnvError
from rlhf_env.feedback import findings
from rlhf_env.feedback.kinds.abstention import ABSTENTION_REASONS
from rlhf_env.feedback.page.counting import Recount
from rlhf_env.feedback.page.keys import Keys, is_same
from rlhf_env.feedback.page.shown import earlier_answer, shown_agreement, shown_item, shown_own, shown_results
from rlhf_env.feedback.store.items import Assignment
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.local_page.server import (
    LOOPBACK_NAMES,
    Json,
    Refused,
    body_of,
    guarded,
    on_disconnect,
    on_error,
    on_refused,
    problem_response,
    serve_page,
    shared_files,
    static,
)
from rlhf_env.settings import Positive, fault, settings
from rlhf_env.shown_text import for_page, for_terminal
from rlhf_env.types import JsonObject

# After the shared server, which says what to install where these are missing.
from starlette.applications import Starlette  # isort: skip
from starlette.requests import ClientDisconnect, Request  # isort: skip
from starlette.responses import Response  # isort: skip
from starlette.routing import Route  # isort: skip
from starlette.types import ASGIApp  # isort: skip

__all__ = ["PageConfig", "page", "serve"]

_T = TypeVar("_T")

_FOLDER = Path(__file__).parent / "static"
# The only files there are: no request's path ever becomes a file's.
_STATIC = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/forms.js": ("forms.js", "text/javascript"),
    "/markdown.js": ("markdown.js", "text/javascript"),
    "/own.js": ("own.js", "text/javascript"),
    "/server.js": ("server.js", "text/javascript"),
    "/results": ("results.html", "text/html"),
    "/results.js": ("results.js", "text/javascript"),
}
_HOST_NAME = re.compile(r"[\w.-]+|\[[0-9a-f:]+\]", re.ASCII | re.IGNORECASE)

_VOTE_FIELDS = ("abstain", "margin", "note", "flag", "instead")

NAME_CHARACTERS = 100
KEY_CHARACTERS = 200
NOTE_CHARACTERS = 10_000
GUIDELINES_BYTES = 200_000
OWN_AT_A_TIME = 50


@settings
class PageConfig:
    """Where the page is served."""

    store: Path
    """The preference store, an SQLite file. Its neighbour `<store>.key` keeps the key that signs sessions."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, Ge(0), Le(65535)] = 0
    """The port to listen on; 0 takes a free one."""
    remote: bool = False
    """Allow an address that other machines reach. What they send is not encrypted."""
    names: tuple[str, ...] = ()
    """Host names by which other machines reach the page; requests under any other name are refused."""
    lease: Positive = 600.0
    """Seconds for which an item is kept for whoever sees it."""
    guidelines: Path | None = None
    """A Markdown file that the page shows to whoever judges."""
    strength: bool = False
    """Ask how much better the preferred response is: the margin of a comparison."""

    def problems(self) -> Iterator[Problem]:
        for name in self.names:
            if not _HOST_NAME.fullmatch(name):
                yield fault("names", f"must be names of hosts, got {name!r}")
        if not self.is_local and not self.remote:
            yield fault(
                "host",
                f"{self.host} is reached by other machines: say --remote if they may, or go through an SSH tunnel",
            )
        if self._listens_everywhere and not self.names:
            yield fault(
                "names",
                f"must say how the page is reached, {self.host} is no name: give one (--name), as annotators type it",
            )

    @property
    def is_local(self) -> bool:
        if self.host == "localhost":
            return True
        address = _address(self.host)
        return address is not None and address.is_loopback

    @property
    def _listens_everywhere(self) -> bool:
        address = _address(self.host)
        return not self.host or (address is not None and address.is_unspecified)

    @property
    def known_as(self) -> tuple[str, ...]:
        """The names under which the page may be asked for, the first one for the link."""
        own = "" if self._listens_everywhere else f"[{self.host}]" if ":" in self.host else self.host
        names = (own, *self.names, *(LOOPBACK_NAMES if self.is_local else ()))
        return tuple(dict.fromkeys(name.lower() for name in names if name))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def serve(
    config: PageConfig,
    announce: Callable[[str, str], None] = print,
    *,
    until: Callable[[], bool] | None = None,
) -> None:
    """Serve the page until Ctrl-C. `announce` gets two links, tokens and all, once: to judge, and to the results.

    `until` is asked every second, in a thread of its own: the page ends when it says so.

    Raises ConfigError where the address cannot be listened on, and what opening the store raises.
    """
    if config.guidelines is not None:
        read_guidelines(config.guidelines)  # a wrong file is said before a port is listened on
    keys = Keys.of(config.store)

    def links(port: int) -> None:
        address = f"http://{config.known_as[0]}:{port}"
        announce(f"{address}/#token={keys.token}", f"{address}/results#token={keys.owner}")

    serve_page(config.host, config.port, lambda port: page(config, keys, port=port), links, until=until)


def page(config: PageConfig, keys: Keys, *, port: int, clock: Callable[[], float] = time.time) -> ASGIApp:
    """The page as an ASGI application, for a server that listens on `port`. `clock` is the store's."""
    desk = _Desk(config, keys, clock)
    application = Starlette(
        routes=[
            *(Route(path, static(_FOLDER / name, kind)) for path, (name, kind) in _STATIC.items()),
            *shared_files(),
            Route("/api/session", desk.session),
            Route("/api/enter", desk.enter, methods=["POST"]),
            Route("/api/next", desk.next, methods=["POST"]),
            Route("/api/vote", desk.vote, methods=["POST"]),
            Route("/api/undo", desk.undo, methods=["POST"]),
            Route("/api/own", desk.own, methods=["POST"]),
            Route("/api/open", desk.reopen, methods=["POST"]),
            Route("/api/agreement", desk.agreement),
            Route("/api/results", desk.results, methods=["POST"]),
        ],
        exception_handlers={Refused: on_refused, RlhfEnvError: _on_error, ClientDisconnect: on_disconnect},
        lifespan=desk.open,
    )
    return guarded(application, config.known_as, port)


async def _on_error(request: Request, error: Exception) -> Response:
    return (
        problem_response(409, str(error))
        if isinstance(error, (LeaseExpired, NotAsked))
        else await on_error(request, error)
    )


def read_guidelines(file: Path) -> str:
    """What a Markdown file tells annotators, fit to be shown. Raises ConfigError where it cannot be read."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"guidelines {file}: {error.strerror}") from error
    if len(content) > GUIDELINES_BYTES:
        raise ConfigError(
            f"guidelines {file}: longer than {GUIDELINES_BYTES:,} bytes, which nobody reads while judging"
        )
    try:
        return for_page(content.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"guidelines {file}: no UTF-8 text: save it as UTF-8") from error


class _Desk:
    """The handlers, in front of one store that one thread works with: a vote waits for the disk, the loop does not."""

    def __init__(self, config: PageConfig, keys: Keys, clock: Callable[[], float]) -> None:
        self._config = config
        self._guidelines = None if config.guidelines is None else read_guidelines(config.guidelines)
        self._keys = keys
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._store: PreferenceStore
        self._agreement = Recount(config.store, shown_agreement)
        self._results = Recount(config.store, shown_results)

    @contextlib.asynccontextmanager
    async def open(self, _: Starlette) -> AsyncIterator[None]:
        def open_store() -> None:
            self._store = PreferenceStore(self._config.store, clock=self._clock)

        await self._in_thread(open_store)
        try:
            yield
        finally:
            await self._in_thread(lambda: self._store.close())
            self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # ---------------------------------------------------------------- handlers

    async def session(self, request: Request) -> Response:
        try:
            return self._introduction(*self._session(request))
        except Refused:
            return Json({"annotator": None, "csrf": None})

    async def enter(self, request: Request) -> Response:
        given = await body_of(request, "token", "annotator")
        if not (isinstance(given["token"], str) and is_same(given["token"], self._keys.token)):
            self._with_csrf(request)  # already in: another name
        name = given["annotator"].strip() if isinstance(given["annotator"], str) else given["annotator"]
        findings.refuse(
            findings.text("name", name)
            or (len(name) > NAME_CHARACTERS and f"name: longer than {NAME_CHARACTERS} characters")
            or (for_terminal(name) != name and "name: it has characters that nobody can see")
        )
        session = self._keys.session(name)
        response = self._introduction(session, name)
        response.set_cookie(self._keys.cookie, session, httponly=True, samesite="strict", path="/")
        return response

    async def next(self, request: Request) -> Response:
        annotator = self._with_csrf(request)
        await body_of(request)
        return await self._in_thread(lambda: self._what_next(annotator))

    async def vote(self, request: Request) -> Response:
        annotator = self._with_csrf(request)
        given = await body_of(request, "item", "ticket", "answer", "key", "seconds", *_VOTE_FIELDS)
        note = "" if given["note"] is None else given["note"]
        findings.refuse(
            findings.text("note", note, empty_is_fine=True)
            or (len(note) > NOTE_CHARACTERS and f"note: longer than {NOTE_CHARACTERS:,} characters"),
            given["abstain"] is not None and findings.one_of("abstain", given["abstain"], ABSTENTION_REASONS),
            given["margin"] is not None and findings.number("margin", given["margin"], zero_is_fine=True),
            *(findings.one_of(name, given[name], (True, False, None)) for name in ("flag", "instead")),
            findings.whole_number("item", given["item"], 1, 2**63 - 1),
            findings.text("ticket", given["ticket"]),
            findings.text("key", given["key"])
            or (len(given["key"]) > KEY_CHARACTERS and f"key: longer than {KEY_CHARACTERS} characters"),
        )

        def submit() -> Response:
            receipt = self._store.submit(
                given["item"],
                annotator,
                given["answer"],
                key=given["key"],
                seconds=given["seconds"],
                ticket=given["ticket"],
                origin="page",
                abstain=given["abstain"],
                margin=given["margin"],
                note=note.strip(),
                flag=bool(given["flag"]),
                instead=bool(given["instead"]),
            )
            return self._what_next(annotator, voted=receipt.item, new=receipt.new)

        return await self._in_thread(submit)

    async def undo(self, request: Request) -> Response:
        annotator = self._with_csrf(request)
        given = await body_of(request, "item")
        findings.refuse(given["item"] is not None and findings.whole_number("item", given["item"], 1, 2**63 - 1))

        def undo() -> Response:
            back = self._store.undo(annotator, given["item"], lease=self._config.lease)
            return self._what_next(annotator, back, undone=None if back is None else back.id)

        return await self._in_thread(undo)

    async def own(self, request: Request) -> Response:
        annotator = self._with_csrf(request)
        before = (await body_of(request, "before"))["before"]
        findings.refuse(before is not None and findings.whole_number("before", before, 1, 2**63 - 1))

        def read() -> Response:
            votes = self._store.own_votes(annotator, before=before, limit=OWN_AT_A_TIME + 1)
            shown = [shown_own(vote) for vote in votes[:OWN_AT_A_TIME]]
            return Json({"votes": shown, "more": len(votes) > OWN_AT_A_TIME})

        return await self._in_thread(read)

    async def reopen(self, request: Request) -> Response:
        annotator = self._with_csrf(request)
        item = (await body_of(request, "item"))["item"]
        findings.refuse(findings.whole_number("item", item, 1, 2**63 - 1))

        def read() -> Response:
            vote = self._store.own_vote(annotator, item)
            if vote is None:
                raise NotAsked(f"no vote of {annotator} on item {item} stands")
            progress = vars(self._store.progress(annotator))
            return Json({"item": self._shown(vote.assignment, 0.0), "vote": earlier_answer(vote), "progress": progress})

        return await self._in_thread(read)

    async def agreement(self, request: Request) -> Response:
        self._session(request)
        await self._only_when_complete("how far people agree")
        return Json(await self._agreement())

    async def results(self, request: Request) -> Response:
        token = (await body_of(request, "token"))["token"]
        if token is not None:
            if not (isinstance(token, str) and is_same(token, self._keys.owner)):
                raise Refused(401, "this link does not open the results: take the one that rlhf-env annotate shows")
        else:
            self._with_csrf(request)
            await self._only_when_complete("results")
        found = await self._results()
        # How each of them does on questions whose answer is known is for whoever asked.
        return Json(found if token is not None else {**found, "controls": []})

    # ---------------------------------------------------------------- inside

    async def _only_when_complete(self, what: str) -> None:
        progress = await self._in_thread(self._store.progress)
        if progress.complete < progress.items:
            raise Refused(
                403, f"Judging is blind: {what} come when every item has its votes; {progress.left:,} are missing."
            )

    def _session(self, request: Request) -> tuple[str, str]:
        """The session and who is judging in it."""
        session = request.cookies.get(self._keys.cookie, "")
        annotator = self._keys.annotator(session)
        if annotator is None:
            raise Refused(401, "no session: open the link that rlhf-env annotate shows")
        return session, annotator

    def _with_csrf(self, request: Request) -> str:
        session, annotator = self._session(request)
        if not is_same(request.headers.get("x-csrf-token", ""), self._keys.csrf(session)):
            raise Refused(403, "the request does not come from this page: load it again")
        return annotator

    def _introduction(self, session: str, annotator: str) -> Response:
        shown = {"annotator": for_page(annotator), "csrf": self._keys.csrf(session)}
        return Json({**shown, "guidelines": self._guidelines})

    def _what_next(self, annotator: str, back: Assignment | None = None, **more: Any) -> Response:
        """In the store's thread. `back` is the item that an undo returned: the store may hold another one first."""
        lent = back or self._store.next_item(annotator, lease=self._config.lease, origin="page")
        item = None if lent is None else self._shown(lent, max(0.0, lent.expires - self._clock()))
        return Json({**more, "item": item, "progress": vars(self._store.progress(annotator))})

    def _shown(self, assignment: Assignment, remaining: float) -> JsonObject:
        guidelines = {criterion.name: criterion.guidelines for criterion in self._store.criteria()}
        return shown_item(assignment, guidelines, remaining, strength=self._config.strength)
