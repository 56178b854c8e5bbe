"""The report says what the results say, shows untrusted text as text, and comes out the same every time."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_env.errors import MissingExtra
from rlhf_env.lab import drawing
from rlhf_env.lab.benchmark.reading import read_results
from rlhf_env.lab.benchmark.summary import summary_rows
from rlhf_env.lab.drawing import Picture
from rlhf_env.lab.report import figures, series
from rlhf_env.lab.report.formats import markdown_table
from rlhf_env.lab.report.report import write_report
from rlhf_env.lab.report.samples import before_and_after, rich_samples, samples_side_by_side
from rlhf_env.shown_text import for_page, for_terminal

from .made_up import (
    ABOUT,
    GOLD,
    PROMPTS,
    REWARD_MODEL,
    cell,
    contents,
    grid,
    parse,
    printed,
    texts_of,
    write,
)


def test_seeds_of_unequal_length_are_averaged_where_they_were(tmp_path: Path) -> None:
    long = [{"update": 0, "generated_tokens": 0, "gold": 0.0}, {"update": 2, "generated_tokens": 200, "gold": 2.0}]
    short = [{"update": 0, "generated_tokens": 0, "gold": 0.0}, {"update": 1, "generated_tokens": 100, "gold": 3.0}]
    cells = [cell("ppo", i, curve=curve, spending={}) for i, curve in enumerate((long, short))]
    (line,) = series.evaluation_curves(read_results(write(tmp_path / "demo", cells)), "chitchat", "gold")
    np.testing.assert_allclose(line.x, [0, 100, 200])
    np.testing.assert_allclose(line.mean, [0.0, (1 + 3) / 2, (2 + 3) / 2])  # the short one keeps its 3
    np.testing.assert_allclose(line.low, [0.0, 1.0, 2.0])
    np.testing.assert_allclose(line.high, [0.0, 3.0, 3.0])


def test_a_curve_ends_where_the_table_does(tmp_path: Path) -> None:
    start = {"update": 0, "generated_tokens": 0, "gold": 0.5}
    end = {"spending": {"updates": 7, "generated_tokens": 900}, "evaluation": {"gold": 0.8}}
    results = read_results(write(tmp_path / "demo", [cell("ppo", curve=[start], **end)]))
    (line,) = series.evaluation_curves(results, "chitchat", "gold")
    assert (line.level, list(line.x), list(line.mean)) == (False, [0.0, 900.0], [0.5, 0.8])


def test_a_far_off_control_does_not_flatten_the_others() -> None:
    assert figures.focus({"ppo": [1.0, 2.0], "random": [-50.0]}) == pytest.approx((0.94, 2.06))
    assert figures.focus({"ppo": [1.0, 2.0], "random": [0.5]}) == pytest.approx((0.41, 2.09))
    assert figures.focus({"ppo": [1.0, 2.0], "dpo": [-50.0]}) == pytest.approx((-53.12, 5.12))
    assert figures.focus({"random": [3.0]}) == (2.5, 3.5)


def test_names_at_line_ends_keep_their_distance_and_stay_inside() -> None:
    assert drawing.spaced([10.0, 50.0], gap=14, top=100) == [10.0, 50.0]
    assert drawing.spaced([10.0, 12.0, 13.0], gap=14, top=100) == [10.0, 24.0, 38.0]
    assert drawing.spaced([90.0, 95.0, 99.0], gap=14, top=100) == [72.0, 86.0, 100.0]


@pytest.mark.usefixtures("undrawn")
def test_before_and_after_are_the_replies_worth_showing(tmp_path: Path) -> None:
    """Five prompts: the best, the middle, the worst; one gold moved most on, one said otherwise in every word."""

    def samples(*said: tuple[str, float]) -> list[dict[str, Any]]:
        return [{"prompt": f"prompt {i}", "response": text, "gold": gold} for i, (text, gold) in enumerate(said)]

    before = samples(("a b", 0.8), ("a b", 0.4), ("a b", 0.5), ("a b", 0.1), ("a b", 0.3))
    after = samples(("a b", 0.9), ("a c", 0.5), ("a b", -0.1), ("a b", 0.6), ("c d e", 0.4))
    cells = [
        cell("reference", 0, samples=samples(("x", 0.0))),
        cell("reference", 1, samples=before),
        cell("ppo", 0, samples=[]),
        cell("ppo", 1, samples=after),
        cell("dpo", 2, samples=after),
    ]
    folder = write(tmp_path / "demo", cells)
    found = before_and_after(read_results(folder), "chitchat")
    assert list(found) == ["dpo", "ppo"], "whoever trains, not the controls"
    shown = [(it.why, it.prompt, it.before.sample.response, it.after.sample.gold) for it in found["ppo"]]
    assert shown == [
        ("best", "prompt 0", "a b", 0.9),
        ("median", "prompt 1", "a b", 0.5),
        ("worst, most changed in gold", "prompt 2", "a b", -0.1),
        ("most changed in words", "prompt 4", "a b", 0.4),
    ]
    assert all(it.before.seed == it.after.seed == 1 for it in found["ppo"]), "both of one seed"
    alone = [(it.why, it.before.sample) for it in found["dpo"]]  # the reference has no seed 2
    assert alone == [("best", None), ("median", None), ("worst", None)]
    page = texts_of(write_report(folder).read_text(encoding="utf-8"))
    assert "Before and after" in page
    assert "worst, most changed in gold" in page


def test_figures_show_what_reward_costs_and_how_replies_drift(tmp_path: Path) -> None:
    cells = grid(["dpo", "ppo", "best_of_n", "reference"], 2)
    for result in cells:
        for point in result["curve"]:
            point["distinct_2"] = 0.8 - 0.1 * point["kl"]
    results = read_results(write(tmp_path / "demo", cells))
    drawn = {picture.name: picture.section for picture in figures.pictures(results)}
    assert {name for name, section in drawn.items() if section == "drift"} == {
        "chitchat--length-curve",
        "chitchat--distinct_2-curve",
    }
    assert {name for name, section in drawn.items() if section == "frontier"} == {
        "chitchat--gold-against-kl",
        "chitchat--proxy-against-kl",
    }
    paths = series.trade_offs(results, "chitchat", "kl", "gold")
    first, last = paths["ppo"][1][0], paths["ppo"][1][-1]
    assert first == pytest.approx([0.0, GOLD["reference"]])
    assert last == pytest.approx([3.0 * (1 - math.exp(-3.5)), GOLD["ppo"]])
    (drift,) = [it for it in series.evaluation_curves(results, "chitchat", "distinct_2") if it.agent == "ppo"]
    assert drift.mean[0] == pytest.approx(0.8)
    assert drift.mean[-1] < 0.6


def test_a_chart_is_one_entry_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With that alone it has a section, a place in the list of sections, and files."""

    def draw(subject: figures.Subject) -> Iterator[Picture]:
        if subject.task == "chitchat":
            yield subject.picture("ends", "How many <ended>.", lambda figure: figure.text(0, 0, "hello"), height=90)

    chart = figures.Chart(name="ends", title="How replies end", caption="Of all & each.", draw=draw)
    monkeypatch.setattr(figures, "CHARTS", (*figures.CHARTS, chart))
    folder = write(tmp_path / "demo", [cell(task="chitchat"), cell(task="sums")])
    page = write_report(folder).read_text(encoding="utf-8")
    assert '<a href="#ends">How replies end</a>' in page
    section = page.partition('<section id="ends">')[2].partition("</section>")[0]
    assert "<h2>How replies end</h2>" in section and "Of all &amp; each." in section
    assert section.count("<svg") == 1 and ">hello</text>" in section and "How many &lt;ended>." in section
    assert {file.name for file in (folder / "figures").glob("*ends*")} == {"chitchat--ends.svg", "chitchat--ends.png"}


def test_replies_stand_side_by_side_only_for_the_same_prompt(tmp_path: Path) -> None:
    other = cell("ppo")
    other["samples"][1]["prompt"] = "Something else?"
    results = read_results(write(tmp_path / "demo", [cell("reference"), other]))
    prompts = samples_side_by_side(results, "chitchat")
    assert [prompt for prompt, _ in prompts] == list(PROMPTS)
    assert [reply.agent for reply in prompts[0][1]] == ["reference", "ppo"]
    assert [replies[1].sample is not None for _, replies in prompts] == [True, False, True, True]


# --- The page -------------------------------------------------------------------------------------------------------


def test_the_report_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, grid(), about=ABOUT, reward_model=REWARD_MODEL) for name in ("a", "b"))
    write_report(first)
    kept = contents(first)
    write_report(first)
    write_report(second)
    assert contents(first) == kept == contents(second)
    assert {"report.html", "table.md", "figures/chitchat--gold-curve.png", "figures/chitchat--kl.svg"} <= kept.keys()


def test_the_page_needs_nothing_from_anywhere(tmp_path: Path) -> None:
    page = write_report(write(tmp_path / "demo", grid(), about=ABOUT, reward_model=REWARD_MODEL)).read_text("utf-8")
    parsed = parse(page)
    assert not parsed.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    for name, value in parsed.attributes:
        assert not (name in ("href", "src", "xlink:href") and not value.startswith("#")), (name, value)
    assert "url(http" not in page
    assert str(tmp_path) not in page
    assert len(parsed.ids) == len(set(parsed.ids))
    shown = " ".join(parsed.texts)
    for expected in (ABOUT["title"], ABOUT["what_gold_is"], "71.3 %", "86.0 %", "3 seeds: numbers, no claim"):
        assert expected in shown
    assert "rlhf-env train cells/chitchat/ppo/seed-0/experiment.toml" in shown


def test_without_gold_the_rest_is_there(tmp_path: Path) -> None:
    cells = grid(["ppo", "reference"])
    for result in cells:
        del result["evaluation"]["gold"]
        for point in (*result["curve"], *result["samples"]):
            del point["gold"]
    folder = write(tmp_path / "demo", cells)
    results = read_results(folder)
    assert "gold" not in summary_rows(results)[0].spreads
    assert "Not measured in this benchmark." in texts_of(write_report(folder).read_text(encoding="utf-8"))
    drawn = {picture.name for picture in figures.pictures(results)}
    assert "chitchat--proxy-curve" in drawn
    assert not {name for name in drawn if "gold" in name}
    assert figures.demo_picture(results, tmp_path / "demo.png").stat().st_size > 1000


def test_reward_parts_come_from_the_metrics_of_the_runs(tmp_path: Path) -> None:
    results = read_results(write(tmp_path / "demo", grid(["ppo", "reference"])))
    assert series.reward_parts(results, "chitchat") == ["bradley_terry", "diversity", "kl"]
    (line,) = series.part_curves(results, "chitchat", "bradley_terry")
    assert (line.agent, line.level) == ("ppo", False)
    assert line.mean[-1] > line.mean[0] + 1


def test_the_picture_for_a_readme_is_wide_and_small(tmp_path: Path) -> None:
    results = read_results(write(tmp_path / "demo", grid()))
    image = figures.demo_picture(results, tmp_path / "demo.png").read_bytes()
    assert int.from_bytes(image[16:20], "big") == 1600
    assert len(image) <= 150_000


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "demo", grid(["ppo"], 1))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=re.escape("rlhf-env[demo]")):
        write_report(folder)
    assert "ppo" in markdown_table(read_results(folder))  # tables need none


# --- Text that others wrote -----------------------------------------------------------------------------------------

PAYLOADS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><iframe src=javascript:alert(1)></iframe>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "<a href='javascript:alert(1)'>go</a>",
    "<!--><script>alert(1)</script>",
    "<![CDATA[><script>alert(1)</script>]]>",
    "{{ 7 * 7 }}{% for x in y %}",
    "&lt;b&gt; &amp;",
    "$\\frac{1}$",
    "red; } body { display: none",
    "javascript:alert(1)",
    "<math><mtext></form><form><style><img src=x onerror=alert(1)>",
)


def test_payloads_show_as_text(tmp_path: Path) -> None:
    words = [f"words {i}" for i in range(len(PAYLOADS))]
    harmless = parse(write_report(hostile(tmp_path / "harmless", words)).read_text(encoding="utf-8"))
    folder = hostile(tmp_path / "hostile", PAYLOADS)
    parsed = parse(write_report(folder).read_text(encoding="utf-8"))
    assert parsed.tags == harmless.tags
    assert {name for name, _ in parsed.attributes} == {name for name, _ in harmless.attributes}
    shown = "\n".join(parsed.texts)
    for payload in PAYLOADS:
        # As an agent in the table and among the runs, as prompt and reply, as an error and in the settings.
        assert shown.count(payload) >= 6, payload
    assert shown.count(PAYLOADS[0]) >= 12  # and as task, benchmark, title, gold, command, version, annotator
    for svg in sorted((folder / "figures").glob("*.svg")):
        assert "<script" not in svg.read_text(encoding="utf-8")
    assert "<" not in markdown_table(read_results(folder))


@pytest.mark.usefixtures("undrawn")
def test_unseen_characters_are_shown_on_the_page_and_gone_in_the_terminal(tmp_path: Path) -> None:
    nasty = "a\x1b[2J\x1b]0;owned\x07b\u202ec\u200bd\ud800e\x9b31mf\x00g\r\nh"
    cells = [cell("ppo"), cell("reference")]
    for result in cells:
        result["samples"][0].update(prompt=nasty, response=nasty)
    folder = write(tmp_path / "demo", cells)
    page = texts_of(write_report(folder).read_text(encoding="utf-8"))
    for mark in ("⟨U+001B⟩", "⟨U+202E⟩", "⟨U+200B⟩", "⟨U+D800⟩", "⟨U+0000⟩"):
        assert mark in page
    shown = printed(rich_samples(read_results(folder), count=1))
    assert "abcdefg h" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e]", shown)


def test_ordinary_text_in_any_script_is_left_alone() -> None:
    for text in ("", "naïve café", "שלום", "日本語", "🙂👍🏽", "1 < 2 & 3"):
        assert for_page(text) == for_terminal(text) == text
    assert for_page("two\nlines\tand a tab") == "two\nlines\tand a tab"
    assert for_terminal("two\nlines\tand a tab") == "two lines and a tab"


def hostile(folder: Path, payloads: Sequence[str]) -> Path:
    """Payloads wherever somebody else's text can stand: each as an agent and what it says, the first around them."""
    first = payloads[0]
    around = {"task": first, "benchmark": first, "run": ""}
    samples = [{"prompt": text, "response": text, "finish_reason": text} for text in payloads]
    cells = []
    for text in payloads:
        said = {"agent": text, "agent_settings": {text: "x"}, "config_hash": text, "reason": text}
        cells.append(cell("ppo", 0, samples=samples) | said | around)
        cells.append(cell("ppo", 1, status="failed", error=text) | said | around)
    about = {"title": first, "what_gold_is": first, "command": first, "versions": {first: first}}
    return write(folder, cells, about=about, reward_model=REWARD_MODEL | {"annotator": first})
