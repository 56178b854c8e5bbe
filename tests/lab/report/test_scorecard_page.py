"""The scorecard to look at: every number is there, text is text, nothing is loaded."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from rlhf_env.errors import DataError, RunFailed
from rlhf_env.feedback.reward_models.calibration import Accuracy, Bin
from rlhf_env.feedback.reward_models.card import (
    BestOfFour,
    Correlation,
    Flip,
    Point,
    Scorecard,
    Slice,
    VoteAgreement,
    measures,
)
from rlhf_env.lab.report.scorecard_page import scorecard_pictures, section_of, write_page

HOSTILE = '</section><img src=x onerror="alert(1)"><script>alert(1)</script>{{ 7 * 7 }}\u202eabc'

CARD = Scorecard(
    pairs=1234,
    prompts=345,
    accuracy=Accuracy(0.731, 0.702, 0.759, 1234),
    margin=0.812,
    calibration_error=0.043,
    calibration_error_by_chance=0.021,
    brier=0.187,
    reliability=tuple(Bin(123, 0.52 + 0.05 * i, 0.51 + 0.05 * i, 0.45 + 0.05 * i, 0.58 + 0.04 * i) for i in range(9)),
    gold=Correlation(0.642, 0.461, 777),
    gold_is="a very good reward",
    length_correlation=0.183,
    repetition_correlation=None,
    longer_preferred=(0.556, 0.567),
    agreement=VoteAgreement(0.812, 0.743, 55, 166),
    best_of_four=BestOfFour(0.478, 0.401, 0.556, 99),
    slices=(Slice("topic: dogs", Accuracy(0.9, 0.8, 0.95, 40)), Slice(HOSTILE, Accuracy(0.4, 0.2, 0.6, 21))),
    flips={"whitespace": 0.171, "any of them": 0.171},
    flip_examples=(Flip("whitespace", HOSTILE, HOSTILE, "", 1.251, -0.337),),
    points=tuple(Point(0.1 * i, i, 0.0) for i in range(30)),
    intervals={
        "margin": (0.701, 0.921),
        "spread": (0.883, 0.985),
        "brier": (0.171, 0.203),
        "calibration_error": (0.031, 0.062),
        "spearman": (0.602, 0.678),
        "kendall": (0.432, 0.489),
        "length_correlation": (0.119, 0.246),
        "longer_preferred": (0.522, 0.591),
        "people": (0.744, 0.867),
        "model": (0.668, 0.808),
        "flips: whitespace": (0.151, 0.193),
        "flips: any of them": (0.151, 0.193),
    },
    notes=("something: it is not known",),
    spread=0.934,
    spread_of_all=1.377,
)


class Seen(HTMLParser):
    """What a browser would see: tags with their attributes, and the text outside of the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data if self.tags and self.tags[-1][0] != "style" else ""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "new" / "card.html"
    write_page(CARD, file, name="runs/<b>model</b>")
    return file.read_text(encoding="utf-8")


def test_every_number_is_on_the_page_with_its_interval_and_meaning(html: str) -> None:
    seen = Seen(html).text
    for it in measures(CARD):
        for words in (it.name, it.value, it.interval, it.meaning):
            assert words.partition("</section>")[0] in seen, words
    for it in CARD.reliability:
        assert f"{it.low:.3f} to {it.high:.3f}" in seen
    for words in ("1,234 judgements of 345 prompts", "81.2 %", "74.3 %", "+1.25 before, -0.34 after", "(empty reply)"):
        assert words in seen
    assert seen.index("worst slice", seen.index("Where it is weakest")) < seen.index("topic: dogs")
    assert html.count("<svg") == 3


def test_text_is_text_and_nothing_is_loaded(html: str) -> None:
    seen = Seen(html)
    assert not {tag for tag, _ in seen.tags} & {"script", "img", "b", "link", "iframe", "object", "image"}
    assert seen.text.count('<img src=x onerror="alert(1)">') == 4  # two texts, the slice, and the worst one again
    assert "{{ 7 * 7 }}⟨U+202E⟩abc" in seen.text
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY}) in seen.tags
    for tag, attributes in seen.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith("#"), (tag, value)
    assert not re.search(r"url\((?!#)|@import", html)
    assert len(set(re.findall(r' id="([^"]+)"', html))) == len(re.findall(r' id="([^"]+)"', html))


POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_pictures_say_what_they_show() -> None:
    told = {it.name: it.description for it in scorecard_pictures(CARD)}
    assert "Spearman 0.18 [0.12, 0.25]" in told["scorecard-length"]
    assert "does not vary" in told["scorecard-repetition"]


def test_little_data_still_makes_a_page(tmp_path: Path) -> None:
    """One pair, nothing optional."""
    bare = replace(
        CARD,
        reliability=(Bin(1, 0.7, 1.0, 0.2, 1.0),),
        gold=None,
        length_correlation=None,
        longer_preferred=None,
        agreement=None,
        best_of_four=None,
        slices=(),
        flips=None,
        flip_examples=(),
        points=(Point(0.0, 1, 0.0), Point(0.0, 1, 0.0)),
        intervals={},
    )
    write_page(bare, tmp_path / "bare.html", name="m")
    seen = Seen((tmp_path / "bare.html").read_text()).text
    assert "something" in seen
    assert "Where it is weakest" not in seen
    write_page(replace(CARD, flip_examples=()), tmp_path / "bare.html", name="m")
    assert "None: no edit" in (tmp_path / "bare.html").read_text()
    with pytest.raises(RunFailed, match="cannot be written"):
        write_page(bare, tmp_path / "bare.html" / "below", name="m")


def test_the_section_of_a_folder(tmp_path: Path) -> None:
    assert section_of(tmp_path) == ""
    CARD.save(tmp_path / "reward_model.scorecard.json")
    section = section_of(tmp_path)
    assert section.startswith('<section id="scorecard">')
    assert section.rstrip().endswith("</section>")
    assert "<html" not in section
    assert "Scorecard of the reward model" in section
    replace(CARD, pairs=999).save(tmp_path / "scorecard.json")
    assert "999 judgements" in section_of(tmp_path)
    (tmp_path / "scorecard.json").write_text("{}")
    with pytest.raises(DataError, match="make it again"):
        section_of(tmp_path)
