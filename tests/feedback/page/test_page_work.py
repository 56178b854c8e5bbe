"""Work on the page in a real browser, at 420 pixels and by keyboard: comments, Back, votes changed, Markdown."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'annotate' is not installed")

from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.page.keys import Keys
from rlhf_env.feedback.store.items import Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

sys.path.insert(0, str(Path(__file__).parents[3] / "examples/closed_loop"))
from browser import CHROMIUM, Tab

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

PERSON = Author("human", "the author's name")
LONG = Response("word " * 2000, PERSON)
SHORT = Response("short", PERSON)


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    opened = Tab(tmp_path / "profile")
    opened.call("Emulation.setDeviceMetricsOverride", width=420, height=800, deviceScaleFactor=1, mobile=True)
    yield opened
    opened.close()


IN_VIEW = """[...document.querySelectorAll('.actions button')].filter((it) => it.checkVisibility()).every((it) => {
    const {top, bottom, left, right} = it.getBoundingClientRect();
    return top >= 0 && bottom <= innerHeight && left >= 0 && right <= innerWidth;
})"""
BAR = """[...document.querySelectorAll('.actions button')]
    .filter((it) => it.checkVisibility()).map((it) => it.innerText.replace(/\\s+/g, ' ').trim())"""
PRESSED = BAR.replace(".actions button", ".actions [aria-pressed=true]")
FOCUSED = "document.activeElement.innerText.replace(/\\s+/g, ' ').trim()"


def test_a_comment_a_reload_back_and_a_change_by_keyboard(tab: Tab, tmp_path: Path, serving: Any) -> None:
    path = tmp_path / "prefs.sqlite"
    items = [Item(kind="comparison", prompt=Prompt(f"p{i}", f"question {i}"), responses=(LONG, SHORT)) for i in (0, 1)]
    items.append(Item(kind="ranking", prompt=Prompt("p2", "question 2"), responses=(LONG, SHORT)))
    with PreferenceStore(path) as store:
        store.add_items(items)
    with serving(path) as address:
        tab.enter(f"{address}/#token={Keys.of(path).token}", "Ann")
        tab.sees("question 0")
        assert tab.value(IN_VIEW), "the verdicts stay in sight above a long text"
        assert tab.value(BAR)[:2] == ["Response 1 is better 1", "Response 2 is better 2"]
        tab.settle()
        tab.press("c")
        tab.call("Input.insertText", text="1 of these: b")  # no key judges while somebody writes
        tab.value("document.querySelector('h2').focus()")
        tab.press("f")
        tab.call("Page.reload")
        tab.sees("question 0")
        tab.until("document.getElementById('comment')?.value === '1 of these: b'")
        assert tab.value("document.getElementById('flag').checked"), "nothing that was filled in is lost"
        tab.settle()
        tab.press("1")
        tab.sees("question 1")
        assert tab.value("document.getElementById('comment').value") == ""
        tab.settle()
        tab.value("history.back()")
        tab.sees("You have judged this")
        tab.sees("question 0")
        assert tab.value(PRESSED) == ["Response 1 is better 1"]
        with PreferenceStore(path) as store:
            (vote,) = store.comparisons()
        assert (vote.verdict, vote.note, vote.flag) == ("first", "1 of these: b", True), "Back loses nothing"
        tab.settle()
        tab.press("t")
        tab.sees("Changed: this vote stands now.")
        tab.sees("question 1")
        tab.settle()
        tab.press("2")
        tab.sees("question 2")
        tab.settle()
        tab.press("2")  # half an order
        tab.press("v")
        tab.sees("A vote stands until you give another one.")
        tab.settle()
        tab.press("Tab")
        assert tab.value(FOCUSED) == "Look again"
        tab.press("Enter")
        tab.sees("You have judged this")
        tab.sees("question 1")
        tab.settle()
        tab.press("Escape")
        tab.sees("question 2")
        tab.until("[...document.querySelectorAll('.place')].some((it) => it.innerText === '1st')")
        tab.settle()
        tab.press("1", "Enter")
        tab.sees("Nothing left for you")
        assert tab.complaints == []
    with PreferenceStore(path) as store:
        votes = [(it.prompt.id, getattr(it, "verdict", None)) for it in store.judgements()]
    assert votes == [("p0", "tie"), ("p1", "second"), ("p2", None)]


IN_SIGHT = """(() => {
    const {top, bottom} = document.querySelector('#notice p').getBoundingClientRect();
    return top >= 0 && bottom <= innerHeight;
})()"""


def test_a_vote_that_waits_is_said_in_sight_and_back_leads_to_it(tab: Tab, tmp_path: Path, serving: Any) -> None:
    path, guidelines = tmp_path / "prefs.sqlite", tmp_path / "g.md"
    guidelines.write_text("Read *this*.", encoding="utf-8")
    items = [Item(kind="comparison", prompt=Prompt(f"p{i}", f"question {i}"), responses=(LONG, SHORT)) for i in (0, 1)]
    with PreferenceStore(path) as store:
        store.add_items(items)
    with serving(path, guidelines=guidelines, strength=True) as address:
        tab.enter(f"{address}/#token={Keys.of(path).token}", "Ann")
        tab.sees("question 0")
        tab.settle()
        tab.press("g")  # open at first sight
        tab.value("scrollTo(0, 1500)")
        tab.press("g")
        assert tab.value("scrollY < 500 && document.activeElement.innerText === 'Guidelines'"), "gone to"
        tab.press("g")
        assert tab.value("scrollY") == 1500, "and back to where one read"
        tab.call("Network.enable")
        tab.call("Network.setBlockedURLs", urls=["*/api/vote"])
        tab.press("s")
        tab.sees("trying again")
        assert tab.value(IN_SIGHT), "said where one looks, far down in a long text"
        tab.call("Page.reload")
        tab.sees("trying again")
        tab.call("Network.setBlockedURLs", urls=[])
        tab.sees("question 1")
        tab.settle()
        tab.value("document.getElementById('switch').click()")
        tab.sees("Who is judging?")
        tab.value("[...document.querySelectorAll('.enter button')].at(-1).click()")  # cancelled
        tab.sees("question 1")
        tab.settle()
        tab.value("history.back()")
        tab.sees("You have judged this")
        tab.sees("question 0")
        assert tab.value(PRESSED) == ["Better s"]
        mark = "[...document.querySelectorAll('.actions .main')].map((it) => getComputedStyle(it, '::before').content)"
        assert [it != "none" for it in tab.value(mark)] == [False, True, False, False, False, False], "and seen"
    with serving(path) as address:  # nobody asks how much better any more
        tab.call("Page.navigate", url=address)
        tab.sees("question 1")
        tab.settle()
        tab.press("v")
        tab.sees("A vote stands until")
        tab.value("document.querySelector('.own button').click()")
        tab.sees("You have judged this")
        assert tab.value(PRESSED) in (["Response 1 is better 1"], ["Response 2 is better 2"])


MARKDOWN: list[tuple[str, str]] = [
    ("a *b* **c** `d*e*` ~~f~~", "<p>a <em>b</em> <strong>c</strong> <code>d*e*</code> <del>f</del></p>"),
    ("2 * 3 * 4, snake_case_name, **", "<p>2 * 3 * 4, snake_case_name, **</p>"),
    ("# One\ntwo\nthree", '<p class="heading level1">One</p><p>two\nthree</p>'),
    ("- a\n- b\n  - c\n\n1. d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol><li>d</li></ol>"),
    ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    ("> a\n> b", "<blockquote><p>a\nb</p></blockquote>"),
    ("---", "<hr>"),
    ("a \\*b\\*", "<p>a *b*</p>"),
    (
        "[x](javascript:alert(1)) [y](https://e.org/?a=1)",
        '<p>[x](javascript:alert(1)) <span class="link">y<span class="address"> (https://e.org/?a=1)</span></span></p>',
    ),
    (
        "![p](http://e.org/a.png)",
        '<p><span class="link">p<span class="address"> (picture: http://e.org/a.png)</span></span></p>',
    ),
    ("<b onclick=x>**a**</b>", "<p>&lt;b onclick=x&gt;<strong>a</strong>&lt;/b&gt;</p>"),
    (
        "```html\n<script>1</script>\n",
        '<pre tabindex="0" aria-label="Code, html" role="group"><code>&lt;script&gt;1&lt;/script&gt;\n</code></pre>',
    ),
]


def test_markdown_is_shown_and_nothing_in_it_runs(tab: Tab, tmp_path: Path, serving: Any) -> None:
    path = tmp_path / "prefs.sqlite"
    hostile = (
        "# T\n\n![](http://127.0.0.1:9/x.png)<img src=x onerror='window.broken=1'>[a](javascript:window.broken=1)\n"
    )
    with PreferenceStore(path) as store:
        store.add_items(
            [Item(kind="comparison", prompt=Prompt("p", hostile), responses=(Response("*a*", PERSON), SHORT))]
        )
    with serving(path) as address:
        tab.enter(f"{address}/#token={Keys.of(path).token}", "Ann")
        tab.sees("Which response is better?")
        for text, html in MARKDOWN:
            made = tab.value(
                "import('/markdown.js').then(({markdown}) => "
                f"markdown({json.dumps(text)}).map((it) => it.outerHTML).join(''))"
            )
            assert made == html, text
        many = ["**a ", "*a", "`", "[a](", "> ", "  - a\n", "|-|-|\n", "_", "![", "\\", "~~ ~~a", "```\n", "1. a\n\n"]
        for piece in many:  # as long as texts are shown
            script = f"const text = {json.dumps(piece)}.repeat(50000).slice(0, 50000)"
            took = tab.value(
                f"import('/markdown.js').then(({{markdown}}) => {{ {script}; const start = performance.now(); "
                "markdown(text); return performance.now() - start; })"
            )
            assert took < 10_000, piece
        assert tab.value("document.querySelectorAll('#task img, #task a, #task script').length") == 0
        assert tab.value("window.broken ?? null") is None
        tab.value("[...document.querySelectorAll('.link')].find((it) => it.innerText === 'Show plain text').click()")
        assert tab.value("document.querySelector('.text').innerText") == hostile
        assert tab.complaints == []
