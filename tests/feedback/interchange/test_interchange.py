"""Files other programs read and write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_env.errors import DataError
from rlhf_env.feedback.interchange import read_jsonl, write_jsonl
from rlhf_env.feedback.judgements import Author, Preference, Response
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

SFT = Author("policy", "sft", 0.7)
GIVEN = [
    Preference(
        Prompt(f"p{i}", text, {"level": i, "tags": ["a", None]}),
        Response(text + "yes", SFT, ids=(7, i), prompt_ids=(1,), finish_reason="length"),
        Response("no", Author("human", "Zoë")),
        annotator="ann",
        criterion="kind",
        weight=1 / 3,
        created="2024-05-01T10:00:00.123456+00:00",
        chosen_was_first=i % 2 == 0,
    )
    for i, text in enumerate(["", "🙂", "nul \0", "lone \ud800", "line\u2028separator\r\n", '"quoted"'])
]


def test_the_round_trip_is_exact(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert write_jsonl(one, GIVEN) == len(GIVEN)
    assert read_jsonl(one) == GIVEN
    with PreferenceStore(tmp_path / "store.sqlite") as store:
        store.add(read_jsonl(one))
        assert store.add(read_jsonl(one)) == 0
        write_jsonl(two, store.preferences())
    assert one.read_bytes() == two.read_bytes()
    assert sorted(file.name for file in tmp_path.glob("*.jsonl")) == ["one.jsonl", "two.jsonl"]


def test_a_line_is_what_trl_calls_the_standard_format(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    write_jsonl(file, GIVEN[1:2])
    row = json.loads(file.read_text())
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("🙂", "🙂yes", "no")


def test_a_file_of_another_program_is_read(tmp_path: Path) -> None:
    file = tmp_path / "theirs.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"prompt": "q", "chosen": "yes", "rejected": ""}\r\n\n{"prompt":"q","chosen":"a","rejected":"b"}'
    )
    first, second = read_jsonl(file, annotator="them")
    assert (first.prompt.text, first.chosen.text, first.rejected.text) == ("q", "yes", "")
    assert first.chosen.author == Author("dataset", "theirs.jsonl")
    assert first.chosen.ids is None
    assert first.annotator == "them"
    assert first.prompt == second.prompt


PAIR = '"prompt": "q", "chosen": "a", "rejected": "b"'
BAD_LINES = {
    '{"prompt": "q", "chosen": "yes"': "not JSON",
    "[1]": "not an object",
    '{"chosen": "yes", "rejected": "no"}': "prompt: missing",
    '{"prompt": null, "chosen": "yes", "rejected": "no"}': "prompt: expected text, got null",
    '{"prompt": 3, "chosen": "yes", "rejected": "no"}': "prompt: expected text, got 3",
    '{"prompt": "q", "chosen": null, "rejected": "no"}': "chosen: a preference without a winner",
    '{"prompt": "q", "chosen": "yes"}': "rejected: missing",
    '{"prompt": "q", "chosen": [], "rejected": "no"}': "chosen: expected text, got a list",
    '{"prompt": "q", "chosen": "no", "rejected": "no"}': "chosen equal to rejected",
    f'{{{PAIR}, "provenance": {{"weight": NaN}}}}': "not JSON: NaN",
    f'{{{PAIR}, "provenance": {{"weight": "1"}}}}': "weight: expected a finite number above 0",
    f'{{{PAIR}, "provenance": {{"chosen": 1}}}}': "provenance: must be an object",
    f'{{{PAIR}, "provenance": {{"chosen": {{"ids": [-1], "prompt_ids": []}}}}}}': "chosen: ids",
    f'{{{PAIR}, "provenance": {{"rejected": {{"author": ["robot", "x", null]}}}}}}': "rejected: author kind",
    "\udcff": "not UTF-8 at byte 1",
}


def test_every_bad_line_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    good = '{"prompt": "q", "chosen": "yes", "rejected": "no"}'
    file.write_bytes("\n".join([good, *BAD_LINES, good]).encode("utf-8", errors="surrogateescape"))
    with pytest.raises(DataError) as caught:
        read_jsonl(file)
    assert len(caught.value.problems) == len(BAD_LINES)
    for number, (problem, expected) in enumerate(zip(caught.value.problems, BAD_LINES.values(), strict=True), start=2):
        assert problem.startswith(f"{file}:{number}: {expected}"), problem


def test_one_line_may_have_several_problems(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": 1, "chosen": 2, "rejected": {}}')
    with pytest.raises(DataError) as caught:
        read_jsonl(file)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == ["prompt", "chosen", "rejected"]


def test_at_most_twenty_problems_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("{\n" * 1000)
    with pytest.raises(DataError) as caught:
        read_jsonl(file)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == f"{file}: and more after these 20"


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"empty\.jsonl: the file is empty"):
        read_jsonl(file)
    with pytest.raises(DataError, match="No such file"):
        read_jsonl(tmp_path / "absent.jsonl")
