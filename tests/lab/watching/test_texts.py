"""Texts sorted, searched and followed over time; and what the page gets to see of hostile ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import DataError
from rlhf_env.lab.watching.texts import AT_ONCE, Query, TextIndex

Rows = Callable[[Path], list[dict[str, Any]]]


def index(folder: Path) -> TextIndex:
    made = TextIndex(folder)
    while made.read():
        pass
    return made


def find(folder: Path, **query: Any) -> list[dict[str, Any]]:
    made, found = index(folder), []
    while True:
        page = made.find(Query.of({**query, "begin": len(found)}))
        found += page["texts"]
        if len(found) >= page["total"]:
            return found


def test_what_there_is_to_choose_from(trained: Path) -> None:
    about = index(trained).about()
    assert about["updates"] == [0, 4, 6, 8, 12] and about["sources"] == ["evaluation", "rollout"]
    assert about["count"] == 4 * 6 + 2 * 8
    assert about["sorts"] == ["update", "reward", "length", "kl", "change", "rewritten", "part/task", "part/kl"]
    assert about["numbers"] == ["reward", "log_ratio", "advantage"]


@pytest.mark.parametrize("sort", ["update", "reward", "length", "kl", "part/task"])
def test_sorted_both_ways(trained: Path, text_rows: Rows, sort: str) -> None:
    def value(row: dict[str, Any]) -> float:
        return float(row["parts"][sort[5:]] if sort.startswith("part/") else row[sort])

    expected = sorted(value(row) for row in text_rows(trained))
    assert [value(row) for row in find(trained, sort=sort, descending=False)] == expected
    assert [value(row) for row in find(trained, sort=sort, descending=True)] == expected[::-1]


def test_the_change_is_that_since_the_first_evaluation(trained: Path, text_rows: Rows) -> None:
    rows = [row for row in text_rows(trained) if row["source"] == "evaluation"]
    before = {row["index"]: row for row in rows if row["update"] == 0}
    expected = sorted(row["reward"] - before[row["index"]]["reward"] for row in rows if row["update"] > 0)
    found = find(trained, sort="change", descending=False, source="evaluation")
    assert [row["change"] for row in found if "change" in row] == pytest.approx(expected)
    assert all("change" not in row for row in found[len(expected) :]), "those without one stand last, either way"
    assert "change" not in find(trained, sort="change", descending=True)[-1]
    for row in found[: len(expected)]:
        same = any(b["response"] == row["response"] for b in before.values() if b["prompt_id"] == row["prompt_id"])
        assert (row["rewritten"] == 0) <= same


def test_searched_and_chosen(trained: Path, text_rows: Rows) -> None:
    rows = text_rows(trained)
    wanted = rows[0]["response"][:2].upper()
    found = find(trained, search=wanted)
    assert len(found) == sum(wanted.lower() in f"{row['prompt']}\n{row['response']}".lower() for row in rows) > 0
    assert {row["update"] for row in find(trained, update=4)} == {4}
    assert len(find(trained, source="rollout")) == 16
    one = rows[0]["prompt_id"]
    over_time = find(trained, prompt=one, source="evaluation", sort="update", descending=False)
    assert {row["prompt_id"] for row in over_time} == {one}
    assert [row["update"] for row in over_time] == sorted(row["update"] for row in over_time)
    assert find(trained, search="never written") == []
    assert index(trained).find(Query(begin=10**9))["texts"] == []
    assert len(index(trained).find(Query())["texts"]) == AT_ONCE


@pytest.mark.parametrize("wrong", [{"sort": 1}, {"begin": "x"}, {"begin": True}, {"update": "4"}, {"search": []}])
def test_a_query_that_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=next(iter(wrong))):
        Query.of(wrong)


def test_texts_come_while_the_run_is_watched(seen: Path) -> None:
    lines = (seen / "texts.jsonl").read_bytes().splitlines(keepends=True)
    (seen / "texts.jsonl").write_bytes(b"".join(lines[:7]) + lines[7][:30])
    made = index(seen)
    assert made.about()["count"] == 6
    with (seen / "texts.jsonl").open("ab") as stream:
        stream.write(lines[7][30:] + b"damaged\n" + lines[8])
    assert made.read() and made.about()["count"] == 8
    (seen / "other").write_bytes(b"".join(lines[:3]))
    (seen / "other").replace(seen / "texts.jsonl")
    assert all(row["update"] == 0 for row in made.find(Query())["texts"]), "what is gone is not shown as another"
    made.read()
    assert made.about()["count"] == 2


def test_a_run_without_texts_shows_the_samples_of_its_evaluation(seen: Path) -> None:
    (seen / "texts.jsonl").unlink()
    samples = json.loads((seen / "evaluation.json").read_text())["samples"]
    about = index(seen).about()
    assert (about["count"], about["numbers"], about["sorts"]) == (6, [], ["proxy", "kl"])
    found = find(seen, sort="kl", descending=True)
    assert [row["kl"] for row in found] == sorted((row["kl"] for row in samples), reverse=True)
    assert all(row["tokens"] == [] and row["prompt_id"] is None for row in found)
    (seen / "evaluation.json").unlink()
    assert index(seen).about()["count"] == 0 and find(seen) == []


def test_hostile_texts_are_written_out(seen: Path) -> None:
    """What cannot be seen, also in names of parts and in tokens. HTML is left to the page, which makes text nodes."""
    lines = (seen / "texts.jsonl").read_text().splitlines()
    row = json.loads(lines[1])
    hostile = "<script>\u202e\x1b[2J\ud800"
    row |= {
        "prompt": hostile,
        "response": hostile,
        "tokens": [hostile],
        "finish_reason": hostile,
        "parts": {hostile: 1},
    }
    row["numbers"] = {hostile: [1.0]}
    (seen / "texts.jsonl").write_text(lines[0] + "\n" + json.dumps(row) + "\n")
    (text,) = find(seen)
    shown = "<script>⟨U+202E⟩⟨U+001B⟩[2J⟨U+D800⟩"
    assert text["prompt"] == text["response"] == text["finish_reason"] == shown
    assert text["tokens"] == list(text["parts"]) == list(text["numbers"]) == [shown]
