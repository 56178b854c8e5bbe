"""The annotation page in a real browser, by keyboard: Chromium, spoken to through its debugging pipe."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import Comparison, CriteriaRating, JudgementKind, Ranking, Rating
from rlhf_env.feedback.page.keys import Keys
from rlhf_env.feedback.store.items import Criterion, Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

sys.path.insert(0, str(Path(__file__).parents[3] / "examples/closed_loop"))
from browser import CHROMIUM, PATIENCE, Tab

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

PERSON = Author("human", "the author's name")
HOSTILE = '</div><img src=x onerror="window.broken=1"><script>window.broken=1</script>\u202eabc'


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    opened = Tab(tmp_path / "profile")
    yield opened
    opened.close()


@contextlib.contextmanager
def served(store: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-c", "from rlhf_env.cli.main import main; main()", "annotate", "--store", str(store)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process.stdout.readline().split()[1], process
        finally:
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def test_all_kinds_by_keyboard(tab: Tab, tmp_path: Path) -> None:
    """Enter a name, judge one item of each kind, undo one: no mouse. What others wrote stays text."""
    path = tmp_path / "prefs.sqlite"
    prompt = Prompt("p", HOSTILE)
    texts = [Response(text, PERSON) for text in (HOSTILE, "b", "c")]
    with PreferenceStore(path) as store:
        store.set_criterion(Criterion("kind", HOSTILE))
        store.add_items(
            [
                Item(kind="comparison", prompt=prompt, responses=tuple(texts[:2])),
                Item(kind="rating", prompt=prompt, responses=tuple(texts[:1]), criterion="kind"),
                Item(kind="ranking", prompt=prompt, responses=tuple(texts)),
                Item(kind="criteria", prompt=prompt, responses=tuple(texts[:1]), criteria=("kind", "__proto__")),
            ]
        )
    with served(path, "--port", "0") as (link, _):
        tab.enter(link, "Ann")
        tab.sees("Which response is better?")
        assert tab.value("location.href").endswith("/"), "the token is out of the address bar"
        assert "the author's name" not in tab.value("document.documentElement.outerHTML")
        assert tab.value("document.querySelector('.text').innerText") == HOSTILE.replace("\u202e", "⟨U+202E⟩")
        tab.value("void (performance.now = () => 0)")
        tab.press("1")  # too early: the second half of a double click, say
        tab.value("void delete performance.now")
        tab.settle()
        tab.press("2")
        tab.sees("How good is this response by “kind”?")
        tab.settle()
        tab.press("u")
        tab.sees("Taken back")
        tab.settle()
        tab.press("t")
        tab.sees("How good is this response by “kind”?")
        tab.settle()
        tab.press("4")
        tab.sees("Put the responses in order")
        tab.settle()
        tab.press("3", "1", "Backspace", "=", "2", "1", "Enter")
        tab.sees("by each of these")
        tab.settle()
        tab.press("5", "2", "Enter")  # the last score moves the focus to the button: Enter presses it
        tab.sees("Nothing left for you")
        tab.sees("4 of 4 votes · 4 yours · 0 open to you")
        assert tab.value("window.broken ?? null") is None
        assert tab.complaints == []
    with PreferenceStore(path) as store:
        comparison, rating, ranking, criteria = store.judgements()
    assert isinstance(comparison, Comparison) and comparison.verdict == "tie"
    assert isinstance(rating, Rating) and rating.score == 4
    assert isinstance(ranking, Ranking) and ranking.ranks == (2, 1, 1)
    assert isinstance(criteria, CriteriaRating) and criteria.scores == {"kind": 5, "__proto__": 2}
    assert {it.annotator for it in (comparison, rating, ranking, criteria)} == {"Ann"}
    assert comparison.seconds is not None and 0.4 < comparison.seconds < PATIENCE


def test_a_kind_of_a_plugin_by_keyboard(tab: Tab, tmp_path: Path, acceptance: JudgementKind, serving: Any) -> None:
    """A choice and words: the digits choose, the focus goes on to the words, and the button submits both."""
    path = tmp_path / "prefs.sqlite"
    texts = [Response(text, PERSON) for text in ("yes", "no")]
    with PreferenceStore(path) as store:
        store.add_items([Item(kind="acceptance", prompt=Prompt("p", "q"), responses=(text,)) for text in texts])
    with serving(path) as address:
        tab.enter(f"{address}/#token={Keys.of(path).token}", "Ann")
        tab.sees("Would you send this response?")
        tab.sees("Not like this")
        tab.settle()
        tab.press("Enter")  # a choice is missing: the focus goes to it
        assert tab.value("document.activeElement.type") == "radio"
        tab.press("2")
        tab.call("Input.insertText", text="1 reason, u see")  # no key judges while somebody writes
        tab.press("Tab", "Enter")
        tab.sees("1 of 2 votes")
        tab.settle()
        tab.press("1", "Tab", "Enter")
        tab.sees("Nothing left for you")
        assert tab.complaints == []
    with PreferenceStore(path) as store:
        answers = [acceptance.answer_of(it) for it in store.judgements()]
    assert answers == [{"accepted": False, "comment": "1 reason, u see"}, {"accepted": True, "comment": ""}]


def test_a_double_click_and_a_lost_lease(tab: Tab, tmp_path: Path) -> None:
    path = tmp_path / "prefs.sqlite"
    pairs = [
        Item(kind="comparison", prompt=Prompt(f"p{i}", f"question {i}"), responses=(Response("a", PERSON), texts))
        for i, texts in enumerate([Response("b", PERSON)] * 3)
    ]
    with PreferenceStore(path) as store:
        one, two, *_ = store.add_items(pairs)
    with served(path, "--port", "0", "--lease", "0.02") as (link, _):
        tab.enter(link, "Ann")
        tab.sees("question 0")
        tab.settle()
        place = tab.value(
            "(({x, y}) => ({x: x + 9, y: y + 9}))(document.querySelector('article button').getBoundingClientRect())"
        )
        for clicks in (1, 2):
            for kind in ("mousePressed", "mouseReleased"):
                tab.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=clicks, **place)
        tab.sees("1 of 3 votes")
        tab.sees("question 1")
        tab.sees("is now free for others")
        with PreferenceStore(path) as store:
            lent = store.next_item("Ben")
            assert lent is not None and lent.id == two
            assert store.submit(two, "Ben", "tie", key="Ben").new
        tab.press("1")
        tab.sees("Your vote was not counted")
        tab.sees("question 2")
    with PreferenceStore(path) as store:
        votes = [(it.prompt.id, it.annotator) for it in store.comparisons()]
    assert votes == [("p0", "Ann"), ("p1", "Ben")]
    assert one == 1


def test_a_stale_tab_judges_for_nobody_else(tab: Tab, tmp_path: Path) -> None:
    """Two tabs of one browser. Ann's shows an item while Ben enters in the other one; then she presses a key."""
    path = tmp_path / "prefs.sqlite"
    texts = (Response("good", PERSON), Response("bad", PERSON))
    with PreferenceStore(path) as store:
        store.add_items([Item(kind="comparison", prompt=Prompt("p", "question"), responses=texts, overlap=2)])
    with served(path, "--port", "0") as (link, _):
        tab.enter(link, "Ann")
        tab.sees("question")
        of_ann = tab._session
        tab.another()
        tab.call("Page.navigate", url=link)
        tab.sees("question")
        tab.value("document.getElementById('switch').click()")
        tab.sees("Who is judging?")
        tab.call("Input.insertText", text="Ben")
        tab.press("Enter")
        tab.sees("question")
        of_ben, tab._session = tab._session, of_ann
        tab.call("Page.bringToFront")
        tab.settle()
        tab.press("1")
        tab.sees("Ben is judging in this browser now. The last vote of Ann in this tab was not counted")
        with PreferenceStore(path) as store:
            assert list(store.judgements()) == []
        tab._session = of_ben
        tab.call("Page.bringToFront")
        tab.settle()
        tab.press(str(1 + tab.value(PLACE_OF_GOOD)))
        tab.sees("1 of 2 votes")
    with PreferenceStore(path) as store:
        (vote,) = store.comparisons()
    assert (vote.annotator, vote.preference and vote.preference.chosen.text) == ("Ben", "good")


PLACE_OF_GOOD = "[...document.querySelectorAll('article .text')].findIndex((it) => it.innerText === 'good')"


def test_two_annotators_at_once_through_a_crash_to_the_results(tab: Tab, tmp_path: Path) -> None:
    """Two browsers, 3 pairs of two authors, 2 votes each. The server is killed while both judge; nothing is lost."""
    path = tmp_path / "prefs.sqlite"
    ours, theirs = Author("policy", "<i>secret"), Author("policy", "theirs")
    pairs = [
        Item(
            kind="comparison",
            prompt=Prompt(f"p{i}", f"question {i}"),
            responses=(Response("good", ours), Response("bad", theirs)),
            purpose="evaluation",
            overlap=2,
        )
        for i in range(3)
    ]
    with PreferenceStore(path) as store:
        store.add_items(pairs)
    other = Tab(tmp_path / "another profile")
    port = str(free_port())

    def judge_both(votes: int) -> None:
        """Each prefers what is good, at the same time, and sees both votes counted."""
        tab.settle()
        for one in (tab, other):
            one.press(str(1 + one.value(PLACE_OF_GOOD)))
        for one in (tab, other):
            one.until(f"parseInt(document.getElementById('counts').innerText) >= {votes} - 1")

    with served(path, "--port", port) as (link, server):
        for one, name in ((tab, "Ann"), (other, "Ben")):
            one.enter(link, name)
            one.sees("who wrote which response is not shown")
            assert "secret" not in one.value("document.documentElement.outerHTML")
        judge_both(2)
        server.kill()
        server.wait()
        tab.settle()
        for one in (tab, other):
            one.press("t")
            one.sees("The server cannot be reached – trying again. What you judged is kept")
            one.sees("“rlhf-env annotate” has to be started again, on the same port")
    with PreferenceStore(path) as store:
        assert store.progress().votes == 2, "what was acknowledged is there"
    with served(path, "--port", port):
        for one in (tab, other):
            one.sees("question 2")
        judge_both(6)
        other.sees("Nothing left for you")
        other.value("document.querySelector('a[href=\"/results\"]').click()")
        other.sees("policy <i>secret")
        other.sees("6 of 6 votes · 3 of 3 items complete")
        other.sees("83 % (")  # 4 wins and 2 ties of 6
        assert not [it for it in other.complaints if '"source": "network"' not in it], other.complaints
    other.close()
    with PreferenceStore(path) as store:
        votes = [
            (it.prompt.id, it.annotator, it.preference and it.preference.chosen.text) for it in store.comparisons()
        ]
    expected = {(f"p{i}", who, None if i == 1 else "good") for i in range(3) for who in ("Ann", "Ben")}
    assert (set(votes), len(votes)) == (expected, 6)
