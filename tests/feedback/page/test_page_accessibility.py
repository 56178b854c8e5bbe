"""axe, the accessibility checker, finds nothing on the annotation page: each view, on a desk and at 420 pixels.

`make axe` fetches axe-core and calls this: see tests/axe_core.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'annotate' is not installed")

from rlhf_env.feedback.judgements import Author, Response
from rlhf_env.feedback.kinds import Comparison
from rlhf_env.feedback.page.keys import Keys
from rlhf_env.feedback.store.items import Criterion, Item
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

sys.path.insert(0, str(Path(__file__).parents[2]))
from axe_core import NEEDED, Tab, complaints, opened

pytestmark = NEEDED

PERSON = Author("human", "the author's name")
MARKDOWN = """# Title

Some `code`, **strong**, [words](https://example.org).

```python
print(1)
```

- a
- b

> said

|a|b|
|-|-|
|1|2|
"""
KEYS = {  # by how a question begins
    "Which response": ("s",),
    "How good is this response by “kind”": ("n",),
    "Put the responses": ("1", "2", "3", "Enter"),
    "How good is this response by each": ("5", "6", "Enter"),
}
tab = pytest.fixture(params=["light", "dark"])(opened)


def test_axe_finds_nothing_wrong(tab: Tab, tmp_path: Path, serving: Any) -> None:
    path = tmp_path / "prefs.sqlite"
    guidelines = tmp_path / "guidelines.md"
    guidelines.write_text(MARKDOWN, encoding="utf-8")
    texts = [Response(text, PERSON) for text in (MARKDOWN, "b " * 200, "c")]
    prompt = Prompt("p", "User: hello\nAssistant:", {"messages": [{"role": "user", "content": "hello"}]})
    with PreferenceStore(path) as store:
        store.set_criterion(Criterion("kind", "Would you say this to a friend?"))
        store.add_items(
            [
                Item(kind="comparison", prompt=prompt, responses=tuple(texts[:2]), purpose="evaluation"),
                Item(kind="rating", prompt=prompt, responses=tuple(texts[:1]), criterion="kind"),
                Item(kind="ranking", prompt=prompt, responses=tuple(texts)),
                Item(kind="criteria", prompt=prompt, responses=tuple(texts[:1]), criteria=("kind", "true")),
            ]
        )
        store.add_controls([Comparison(Prompt("c", "1 + 1?"), texts[0], texts[2], "second", "known")])
    keys = Keys.of(path)
    found = []
    with serving(path, guidelines=guidelines, strength=True) as address:
        tab.call("Page.navigate", url=f"{address}/#token={keys.token}")
        tab.sees("Who is judging?")
        found += complaints(tab, "name")
        tab.value("document.getElementById('annotator').focus()")
        tab.call("Input.insertText", text="Ann")
        tab.press("Enter")
        tab.sees("Slightly better")
        for judged in range(5):  # one of them the control question, wherever it comes
            tab.settle()
            question = tab.value("document.querySelector('h2').innerText")
            tab.value("document.querySelectorAll('details').forEach((it) => (it.open = true))")
            found += complaints(tab, question)
            tab.value("document.querySelector('h2').focus()")
            tab.press(*next(keys for begins, keys in KEYS.items() if question.startswith(begins)))
            tab.sees(f"{judged + 1} yours")
        tab.sees("Nothing left for you")
        tab.settle()
        found += complaints(tab, "nothing left")
        tab.press("v")
        tab.sees("A vote stands until")
        found += complaints(tab, "own judgements")
        tab.value("document.querySelector('.own li:last-child button').click()")
        tab.sees("You have judged this")
        found += complaints(tab, "judged before")
        tab.call("Page.navigate", url=f"{address}/results#token={keys.owner}")
        tab.sees("Control questions")
        found += complaints(tab, "results")
    assert not found, "\n".join(found)
