"""The report of a run: one page that needs nothing else, also of a run that has not ended, or has hostile texts."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlhf_env.cli import main as cli
from rlhf_env.errors import ConfigError
from rlhf_env.lab.watching.curves import Curves
from rlhf_env.lab.watching.run_report import panel_as_svg, three_digits, write_run_report


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        if tag not in ("meta", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "path"):
            assert self.open.pop() == tag


def test_one_page_that_needs_nothing_else(seen: Path) -> None:
    page = write_run_report(seen).read_text(encoding="utf-8")
    tags = Tags(page)
    assert tags.open == [] and "script" not in tags.names and "link" not in tags.names
    for words in ("rloo on echo", "KL to the reference", "Reward, all parts", "ended: budget", "Highest reward"):
        assert words in page
    assert tags.names.count("svg") >= 6
    assert write_run_report(seen).read_text(encoding="utf-8") == page, "the same run gives the same bytes"
    assert not [path for path in re.findall(r'd="([^"]*)"', page) if "nan" in path]


def test_of_a_run_that_was_killed_early(seen: Path) -> None:
    (seen / "evaluation.json").unlink()
    for rows in (0, 1, 2):
        lines = (seen / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        (seen / "metrics.jsonl").write_bytes(b"".join(lines[:2]) if rows == 2 else b"".join(lines[:rows]))
        page = write_run_report(seen).read_text(encoding="utf-8")
        assert "The last evaluation" not in page and Tags(page).open == []
        (seen / "metrics.jsonl").write_bytes(b"".join(lines))
    (seen / "texts.jsonl").unlink()
    assert "Texts of the last evaluation" not in write_run_report(seen).read_text(encoding="utf-8")


def test_what_others_wrote_stays_text(seen: Path) -> None:
    hostile = '</div><script>alert(1)</script>"\u202e'
    file = seen / "texts.jsonl"
    head, *lines = file.read_text().splitlines()
    rows = [json.loads(line) | {"prompt": hostile, "response": hostile} for line in lines]
    file.write_text("\n".join([head, *map(json.dumps, rows)]) + "\n")
    with (seen / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"update": 13, "rollout/part/<i>x": 1.0, "train/<script>": 2.0}) + "\n")
    (seen / "warnings.json").write_text(json.dumps([{"name": hostile, "update": 3, "message": hostile, "remedy": ""}]))
    page = write_run_report(seen).read_text(encoding="utf-8")
    assert "script" not in Tags(page).names and "i" not in Tags(page).names
    assert "\u202e" not in page and "⟨U+202E⟩" in page
    assert ", update 3</strong>" in page, "and what a warning says of when"


def test_a_loss_that_is_no_number_any_more_is_said(seen: Path) -> None:
    (seen / "evaluation.json").write_text('{"update": 12, "reason": "x", "metrics": {"kl": NaN, "reward": 1}}')
    with (seen / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"update": 13, "rollout/reward": None}) + "\n")
    page = write_run_report(seen).read_text(encoding="utf-8")
    assert "training <strong>no number since update 13</strong>" in page
    assert 'aria-label="Reward, all parts: training no number since update 13, evaluation' in page


def test_no_run_no_report(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        write_run_report(tmp_path)


def test_the_command_makes_it_again(
    seen: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["rlhf-env", "report", str(seen)])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert capsys.readouterr().out == f"Report: {seen / 'report.html'}\n"


def test_numbers_on_axes() -> None:
    shown = [three_digits(value) for value in (0.0, 1.0, -0.1234, 1234.5, 2e-4, -3.14159e8)]
    assert shown == ["0", "1", "−0.123", "1,234", "2e−4", "−3.1e8"]


def test_a_line_breaks_where_there_is_no_number() -> None:
    curves = Curves()
    for update, value in enumerate([1.0, 2.0, None, 3.0, 4.0, None, 5.0]):
        curves.add({"update": update, "train/loss": value})
    (panel,) = curves.panels(("agent",))
    drawing = panel_as_svg(panel)
    assert drawing.count('stroke-width="1.8"') == 2, "two pieces of two numbers each"
    assert drawing.count('stroke-linecap="round"') == 1, "and one number alone, a dot"
    assert "nan" not in drawing and ">update</text>" in drawing
