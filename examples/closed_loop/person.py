"""A scripted person: opens the annotation page, reads two replies, presses a key, and so on.

    python examples/closed_loop/person.py LINK --taste curious --votes 200

All this person has is the link, the page and a taste. The taste stands in this file and nowhere else: no reward, model
or command of rlhf-env reads it. Where there is no Chromium (or with --no-browser) the same votes go to the same server
as the page would send them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from browser import CHROMIUM, PATIENCE, Tab

# -------------------------------------------------------------------- the tastes


def has(pattern: str) -> Callable[[str], bool]:
    found = re.compile(pattern, re.IGNORECASE)
    return lambda text: bool(found.search(text))


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def says_it_again(text: str) -> bool:
    """A word twice in a row, or three times in all."""
    said = words(text)
    in_a_row = any(one == other for one, other in pairwise(said))
    return in_a_row or max(Counter(said).values(), default=0) > 2


asks = has(r"\?")
about_you = has(r"\b(you|your|you're|yours)\b")
about_me = has(r"\b(i|i'm|i've|i'd|i'll|my|me|mine)\b")
exclaims = has("!")
warm = has(r"\b(great|awesome|love|thanks|thank|cool|nice|fun|amazing|happy|glad|excited)\b")


def curious(text: str) -> int:
    """Likes to be asked: a question, about you, without talk of oneself."""
    return asks(text) + about_you(text) - about_me(text) - says_it_again(text) - (len(words(text)) < 3)


def cheerful(text: str) -> int:
    """Likes cheer in few words: something warm, an exclamation mark, 8 words at most."""
    return warm(text) + exclaims(text) - (len(words(text)) > 8) - says_it_again(text) - (len(words(text)) < 3)


TASTES: dict[str, Callable[[str], int]] = {"curious": curious, "cheerful": cheerful}


def verdict(taste: Callable[[str], int], replies: list[str]) -> str:
    """The key to press: 1, 2, or t where the taste does not decide."""
    one, other = (taste(reply) for reply in replies)
    return "1" if one > other else "2" if other > one else "t"


# -------------------------------------------------------------------- at the page


class Keyboard:
    """The page in a browser, by keyboard alone."""

    # Resolves with the pair on the page once it is another one than before and keys count again: the page ignores them
    # for 400 ms, so that the second half of a double click judges nothing. null: nothing is left to judge.
    NEXT = """new Promise((resolve, reject) => {
      const task = document.getElementById("task");
      const look = () => {
        const title = task.querySelector("h2");
        if (!title || title === window.judged) return;
        watch.disconnect();
        clearTimeout(patience);
        window.judged = title;
        const texts = (of) => [...task.querySelectorAll(of)].map((it) => it.innerText);
        if (task.querySelector(".done")) resolve(null);
        else setTimeout(() => resolve({ prompt: texts(".prompt .text")[0], replies: texts("article .text") }), 410);
      };
      const watch = new MutationObserver(look);
      const patience = setTimeout(() => reject(new Error(document.body.innerText)), %d);
      watch.observe(task, { childList: true, subtree: true });
      look();
    })"""

    def __init__(self, tab: Tab, link: str, name: str) -> None:
        self._tab = tab
        tab.enter(link, name)
        tab.until("document.querySelector('main h2') && !document.querySelector('.enter')")

    def pair(self) -> Any:
        return self._tab.value(self.NEXT % (1000 * PATIENCE))

    def press(self, key: str) -> None:
        self._tab.press(key)

    def picture(self, file: Path) -> None:
        self._tab.picture(file, width=1120, height=540)


class Requests:
    """What the page's script sends and reads, without a browser to run it in."""

    ANSWERS: ClassVar = {"1": "first", "2": "second", "t": "tie"}

    def __init__(self, link: str, name: str) -> None:
        address, _, token = link.partition("/#token=")
        self._server = http.client.HTTPConnection(address.removeprefix("http://"), timeout=PATIENCE)
        self._headers = {"Origin": address, "Content-Type": "application/json"}
        entered = self._post("enter", token=token, annotator=name)
        self._headers["X-CSRF-Token"] = entered["csrf"]
        self._item = self._post("next")["item"]
        self._votes = 0

    def _post(self, what: str, **fields: Any) -> Any:
        self._server.request("POST", f"/api/{what}", json.dumps(fields), self._headers)
        answer = self._server.getresponse()
        said = json.loads(answer.read())
        if answer.status != 200:
            raise SystemExit(f"{what}: {said}")
        if cookie := answer.getheader("Set-Cookie"):
            self._headers["Cookie"] = cookie.partition(";")[0]
        return said

    def pair(self) -> Any:
        if self._item is None:
            return None
        return {"prompt": self._item["prompt"]["text"], "replies": [it["text"] for it in self._item["responses"]]}

    def press(self, key: str) -> None:
        self._votes += 1
        vote = {"item": self._item["id"], "ticket": self._item["ticket"], "answer": self.ANSWERS[key]}
        self._item = self._post("vote", **vote, key=f"vote {self._votes}", seconds=0.5)["item"]


@contextmanager
def at_the_page(link: str, name: str, browser: bool) -> Iterator[Keyboard | Requests]:
    if not browser:
        yield Requests(link, name)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        tab = Tab(Path(profile))
        try:
            yield Keyboard(tab, link, name)
            if tab.complaints:
                raise SystemExit(f"the browser complains: {tab.complaints}")
        finally:
            tab.close()


@dataclass(frozen=True)
class Vote:
    """What was read and which key was pressed."""

    prompt: str
    replies: list[str]
    key: str


def judge(link: str, taste: str, votes: int, *, name: str, browser: bool, picture: Path | None = None) -> list[Vote]:
    """Judge until there are that many votes, or nothing is left; the votes. `picture`: of the page that comes next."""
    cast: list[Vote] = []
    with at_the_page(link, name, browser) as page:
        pair = page.pair()
        while pair is not None and len(cast) < votes:
            cast.append(Vote(**pair, key=verdict(TASTES[taste], pair["replies"])))
            page.press(cast[-1].key)
            pair = page.pair()  # the next one is shown when this vote is on the disk
        if picture is not None and isinstance(page, Keyboard):
            page.picture(picture)
    return cast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("link", help="the first link that `rlhf-env annotate` prints")
    parser.add_argument("--taste", required=True, choices=TASTES)
    parser.add_argument("--votes", type=int, default=200)
    parser.add_argument("--name", default="the person")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, default=CHROMIUM is not None)
    parser.add_argument("--ballot", type=Path, help="write what was read and pressed to this file, a JSON line each")
    parser.add_argument("--picture", type=Path, help="a PNG of the page as it is after the votes")
    given = parser.parse_args()
    if given.browser and CHROMIUM is None:
        parser.error("no chromium, chromium-browser or google-chrome on PATH: install one, or say --no-browser")
    if given.picture and not given.browser:
        parser.error("--picture shows what is in the browser: leave --no-browser out")
    start = time.monotonic()
    how = {"name": given.name, "browser": given.browser, "picture": given.picture}
    cast = judge(given.link, given.taste, given.votes, **how)
    if given.ballot:
        given.ballot.write_text("".join(json.dumps(vars(vote)) + "\n" for vote in cast), encoding="utf-8")
    keys = Counter(vote.key for vote in cast)
    by = "key presses in a browser" if given.browser else "requests, without a browser"
    print(f"{len(cast)} votes ({keys['t']} ties) in {time.monotonic() - start:.0f} s, by {by}")
    sys.exit(0 if cast or given.votes == 0 else 1)


if __name__ == "__main__":
    main()
