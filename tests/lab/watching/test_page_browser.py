"""The page of `rlhf-env watch` in a real browser: by keyboard, at the width of a phone, and with hostile texts."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra 'annotate' is not installed")

sys.path.insert(0, str(Path(__file__).parents[3] / "examples/closed_loop"))
from browser import CHROMIUM, Tab

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")

HOSTILE = '</div><img src=x onerror="window.broken=1"><script>window.broken=1</script>\u202eabc'
SHOWN = HOSTILE.replace("\u202e", "⟨U+202E⟩")
FIRST_TEXT = "document.querySelector('.texts article .text').innerText"
# Elements that a person can reach, and whose names nobody would be told.
NAMELESS = """
[...document.querySelectorAll('a, button, select, input, summary, [tabindex="0"]')]
  .filter((it) => it.checkVisibility())
  .filter((it) => !(it.innerText?.trim() || it.getAttribute('aria-label') || it.labels?.length))
  .map((it) => it.outerHTML)
"""
# The lowest contrast of a text to what it stands on, by WCAG 2: backgrounds are laid over each other.
CONTRAST = """
(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const it of colours) {
      canvas.fillStyle = it;
      canvas.fillRect(0, 0, 1, 1);
    }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((it) => it / 255);
  };
  const linear = (it) => (it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => rgb.map(linear).reduce((sum, it, i) => sum + it * [0.2126, 0.7152, 0.0722][i], 0);
  let worst = [99, ''];
  const texts = 'p, b, dt, dd, span, h1, h2, h3, label, a, button, th, caption, .tick';
  for (const node of document.querySelectorAll(texts)) {
    if (!node.checkVisibility() || !node.textContent.trim() || node.closest('[aria-hidden]')) continue;
    const backs = [];
    for (let at = node; at; at = at.parentElement) backs.unshift(getComputedStyle(at).backgroundColor);
    const style = getComputedStyle(node);
    const ink = light(over([...backs, node.matches('.tick') ? style.fill : style.color]));
    const ground = light(over(backs));
    const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
    if (ratio < worst[0]) worst = [ratio, node.outerHTML.slice(0, 200)];
  }
  return worst;
})()
"""


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    opened = Tab(tmp_path / "profile")
    yield opened
    opened.close()


def choose(tab: Tab, label: str, value: str) -> None:
    tab.value(
        f"""(() => {{
          const labels = [...document.querySelectorAll('label')];
          const found = labels.find((it) => it.innerText.trim() === {json.dumps(label)}).control;
          found.value = {json.dumps(value)};
          found.dispatchEvent(new Event('change', {{ bubbles: true }}));
        }})()"""
    )


def hostile(folder: Path) -> None:
    """What models, tasks and users wrote: texts, names of parts and of the run, warnings."""
    file = folder / "texts.jsonl"
    head, *lines = file.read_text().splitlines()
    row = json.loads(lines[-1]) | {
        "prompt": HOSTILE,
        "response": HOSTILE,
        "tokens": [HOSTILE, "<b>x</b>"],
        "update": 99,
    }
    row |= {"parts": {HOSTILE: 1.5}, "numbers": {"log_ratio": [2.0, -1.0], "part/<i>": [1.0, 0.0]}}
    file.write_text("\n".join([head, *lines, json.dumps(row)]) + "\n")
    with (folder / "metrics.jsonl").open("a") as stream:
        row = {f"rollout/part/{HOSTILE}": 1.0, "rollout/kl": None, "rollout/length": None}
        stream.write(json.dumps({"update": 13, **row}) + "\n")
        stream.write(json.dumps({"update": 14, "rollout/length": 3.0}) + "\n")
    alert = {"name": HOSTILE, "update": 3, "message": HOSTILE, "remedy": HOSTILE}
    (folder / "warnings.json").write_text(json.dumps([alert]))
    toml = folder / "experiment.toml"
    toml.write_text(toml.read_text().replace('name = "seen"', f"name = {json.dumps(HOSTILE)}"))


def test_a_run_by_keyboard_with_hostile_texts(tab: Tab, seen: Path, watching: Callable[[Path], str]) -> None:
    hostile(seen)
    tab.call("Page.navigate", url=watching(seen))
    tab.sees("KL to the reference")
    tab.until("document.querySelectorAll('.texts article').length === 12")
    assert tab.value("location.href").endswith("/"), "the token is out of the address bar"
    assert tab.value("document.title") == SHOWN
    tab.until(f"{FIRST_TEXT} === {json.dumps(SHOWN + '<b>x</b>')}")
    assert tab.value("document.querySelectorAll('.warning p')[0].innerText") == SHOWN
    tab.sees("training no number since update 13")
    kinds = "[...plot.querySelectorAll('.of-training')].map((it) => it.tagName).join(' ')"
    length = "[...document.querySelectorAll('.plot')].find((it) => it.innerText.startsWith('Length'))"
    drawn = f"(() => {{ const plot = {length}; return {kinds}; }})()"
    assert tab.value(drawn) == "SPAN path path circle", "the line breaks at update 13, and 14 is a dot"
    tab.value("document.querySelector('.texts .tokens').focus()")
    tab.call("Input.dispatchKeyEvent", type="rawKeyDown", key="ArrowRight", windowsVirtualKeyCode=39)
    tab.sees("log-ratio to the reference 2, part <i> 1")
    tab.call("Input.dispatchKeyEvent", type="rawKeyDown", key="ArrowRight", windowsVirtualKeyCode=39)
    tab.sees("log-ratio to the reference −1, part <i> 0")
    tokens = "[...document.querySelectorAll('.texts article:first-child .token')]"
    colours = tab.value(
        f"{tokens}.map((it) => [it.style.backgroundColor.includes('plus'), it.classList.contains('minus')])"
    )
    assert colours == [[True, False], [False, True]]
    tab.value("document.querySelector('.chart').focus()")
    tab.call("Input.dispatchKeyEvent", type="rawKeyDown", key="End", windowsVirtualKeyCode=35)
    tab.until("/^update 1[23]: training/.test(document.querySelector('.readout').innerText)")
    choose(tab, "Colour tokens by", "advantage")
    tab.until("document.querySelector('.scale').innerText.startsWith('advantage:')")
    choose(tab, "Written for", "rollout")
    tab.sees("1 to 12 of 16 texts.")
    choose(tab, "Written for", "evaluation")
    tab.sees("1 to 12 of 25 texts.")
    tab.value("[...document.querySelectorAll('.texts article:first-child button')].at(-1).click()")
    tab.sees("One prompt over time, the earliest first.")
    updates = tab.value(
        "[...document.querySelectorAll('.texts dl')].map((it) => Number(it.innerText.match(/update\\s*(\\d+)/)[1]))"
    )
    assert updates == sorted(updates) and updates[0] == 0 and updates[-1] == 99
    assert tab.value(NAMELESS) == []
    assert tab.value("window.broken ?? null") is None and tab.complaints == []


def test_it_follows_a_run_while_it_is_written(tab: Tab, seen: Path, watching: Callable[[Path], str]) -> None:
    rows = (seen / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (seen / "metrics.jsonl").write_bytes(b"".join(rows[:4]) + rows[4][:30])
    (seen / "texts.jsonl").unlink()
    (seen / "evaluation.json").unlink()
    tab.call("Page.navigate", url=watching(seen))
    tab.sees("Update 3")
    tab.sees("This run has kept no texts yet.")
    tab.sees("Stopped before its end")
    with (seen / "metrics.jsonl").open("ab") as stream:
        stream.write(rows[4][30:] + b"".join(rows[5:]))
    tab.sees("Update 12")
    assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_width_of_a_phone(tab: Tab, trained: Path, watching: Callable[[Path], str], scheme: str) -> None:
    tab.call("Emulation.setDeviceMetricsOverride", width=420, height=900, deviceScaleFactor=1, mobile=True)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.call("Page.navigate", url=watching(trained))
    tab.until("document.querySelectorAll('.texts article').length === 12")
    assert tab.value("document.documentElement.scrollWidth") == 420, "nothing has to be pushed aside"
    ratio, where = tab.value(CONTRAST)
    assert ratio >= 4.5, where


def test_a_grid_and_the_way_to_a_run_and_back(
    tab: Tab, trained: Path, tmp_path: Path, watching: Callable[[Path], str]
) -> None:
    agents = "[agents.ppo]\n[agents.reference]\n[experiment]\ntask = { name = 'echo' }\n"
    (tmp_path / "benchmark.toml").write_text(f"seeds = 2\n{agents}")
    (tmp_path / "results").mkdir()
    shutil.copytree(trained, tmp_path / "cells/echo/ppo/seed-0")
    tab.call("Page.navigate", url=watching(tmp_path))
    tab.sees("0 of 4 runs done")
    tab.sees("stopped 100 %")
    (tmp_path / "results/echo--ppo--seed-0.json").write_text('{"status": "finished", "evaluation": {"gold": 0.125}}')
    tab.sees("1 of 4 runs done")
    assert tab.value("document.querySelectorAll('.seeds a').length") == 1, "what has not begun leads nowhere"
    tab.value("document.querySelector('.seeds a').focus()")
    tab.press("Enter")
    tab.sees("KL to the reference")
    tab.value("window.before = true; location.reload()")
    tab.until("window.before === undefined && document.querySelector('.back a') !== null")
    tab.sees("KL to the reference")
    tab.value("document.querySelector('.back a').click()")
    tab.sees("1 of 4 runs done")
    assert tab.value(NAMELESS) == [] and tab.complaints == []


def test_a_link_of_another_server_is_said(tab: Tab, trained: Path, watching: Callable[[Path], str]) -> None:
    tab.call("Page.navigate", url=watching(trained).partition("#")[0] + "#token=another")
    tab.sees("take the one that rlhf-env watch shows")
