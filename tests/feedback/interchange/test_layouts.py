"""Published sets are read in their own layouts: each judgement of a five-line file of each, whatever holds the rows."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.interchange import (
    LAYOUTS,
    Format,
    Reading,
    judgements_in,
    layouts_page,
    read_judgements,
    write_judgements,
)
from rlhf_env.feedback.interchange.layouts.registry import detected, layouts_of
from rlhf_env.feedback.judgements import Judgement
from rlhf_env.feedback.kinds import Comparison, CriteriaRating, Ranking, Rating, preferences_of

sys.path.insert(0, str(Path(__file__).parent))
from published_sets import PASSED_OVER, ROWS, SAID, answered, arena, asked, chat, conversation, pku, shp, webgpt

NAMES = [layout.name for layout in LAYOUTS]
SIGNS = {"first": ">", "second": "<", "tie": "=", "both bad": "both bad", "cannot say": "cannot say"}


def in_words(judgement: Judgement) -> str:
    """What a judgement says, in a line: criterion, annotator, texts, and how they compare."""
    who = re.sub(r"\b[0-9a-f]{8}/", "#/", judgement.annotator)
    if isinstance(judgement, CriteriaRating):
        scores = ", ".join(f"{name} {judgement.scores[name]}" for name in sorted(judgement.scores))
        return f"{who}: {judgement.response.text} {scores}"
    by = f"{judgement.criterion} by {who}"
    if isinstance(judgement, Rating):
        return f"{by}: {judgement.response.text} {judgement.score}"
    if isinstance(judgement, Ranking):
        placed = zip(judgement.responses, judgement.ranks, strict=True)
        return f"{by}: " + ", ".join(f"{response.text} {rank}" for response, rank in placed)
    assert isinstance(judgement, Comparison)
    margin = "" if judgement.margin is None else f" by {round(judgement.margin, 4):g}"
    weight = "" if judgement.weight == 1 else f" weighing {judgement.weight:.4f}"
    note = f" (note: {judgement.note})" if judgement.note else ""
    verdict = SIGNS[judgement.verdict]
    return f"{by}: {judgement.first.text} {verdict} {judgement.second.text}{margin}{weight}{note}"


def as_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def as_gzip(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def as_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        for row in rows:
            cells = {name: json.dumps(it) if isinstance(it, (list, dict)) else it for name, it in row.items()}
            table.writerow(cells)
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


WRITERS = {
    "f.jsonl": as_json_lines,
    "f.json": as_json,
    "f.jsonl.gz": as_gzip,
    "f.csv": as_csv,
    "f.parquet": as_parquet,
}


def named(judgements: list[Judgement], file: str) -> list[str]:
    return [
        in_words(judgement).replace(f"by {file}", "by f").replace(f"{file}:", "f:").replace(f"{file} #", "f #")
        for judgement in judgements
    ]


def test_every_layout_has_a_file_of_five_rows() -> None:
    assert list(ROWS) == list(SAID) and set(ROWS) == set(NAMES)
    assert {name: len(rows) for name, rows in ROWS.items()} == dict.fromkeys(ROWS, 5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["f.jsonl", "f.json", "f.jsonl.gz"])
def test_each_judgement_of_each_set(tmp_path: Path, name: str, file: str) -> None:
    reading = Reading(source=file)
    judgements = judgements_in(WRITERS[file](tmp_path / file, ROWS[name]), reading)
    assert named(judgements, file) == SAID[name]
    assert dict(reading.passed_over) == PASSED_OVER.get(name, {})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["f.csv", "f.parquet"])
def test_tables_say_the_same_as_json_lines(tmp_path: Path, name: str, file: str) -> None:
    rows = ROWS[name]
    if file == "f.parquet":  # a column is text or a list there, not both
        kinds = {key: type(value) for key, value in rows[0].items() if value is not None}
        rows = [row for row in rows if all(row[key] is None or type(row[key]) is kinds[key] for key in kinds)]
    lines = read_judgements(as_json_lines(tmp_path / "f.jsonl", rows), annotator="me")
    assert [in_words(it) for it in read_judgements(WRITERS[file](tmp_path / file, rows), annotator="me")] == [
        in_words(it) for it in lines
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_columns_does_not_matter(tmp_path: Path, name: str) -> None:
    rng = random.Random(0)
    rows = [dict(rng.sample(list(row.items()), len(row))) for row in ROWS[name]]
    again = read_judgements(as_json_lines(tmp_path / "f.jsonl", rows))
    assert named(again, "f.jsonl") == SAID[name]


@pytest.mark.parametrize("name", NAMES)
def test_no_row_of_a_set_is_taken_for_one_of_another(name: str) -> None:
    assert [[one.name for one in layouts_of(row)] for row in ROWS[name]] == [[name]] * 5


@pytest.mark.parametrize("name", NAMES)
def test_a_named_layout_reads_its_own_file_and_no_other(tmp_path: Path, name: str) -> None:
    for other in NAMES:
        file = as_json_lines(tmp_path / "f.jsonl", ROWS[other])
        if other == name:
            assert named(read_judgements(file, layout=name), "f.jsonl") == SAID[name]
        elif not set(next(it for it in LAYOUTS if it.name == name).known_by) <= ROWS[other][0].keys():
            with pytest.raises(DataError, match=rf"f\.jsonl:1: .*missing, and the layout {name} has"):
                read_judgements(file, layout=name)


def test_columns_of_two_layouts_are_refused_until_one_is_named(tmp_path: Path) -> None:
    row = {**shp("p", 1, 4, 2), **webgpt("q", 0.5)}
    file = as_json_lines(tmp_path / "both.jsonl", [row])
    with pytest.raises(
        DataError, match=r"both\.jsonl:1: this row has the columns of the layouts shp .* and webgpt .*--layout"
    ):
        read_judgements(file)
    (judgement,) = read_judgements(file, layout="webgpt")
    assert in_words(judgement) == "overall by both.jsonl: zero of q > one of q by 0.5"
    assert detected("x", shp("p", 1, 4, 2)) is not None


def test_a_row_of_another_layout_is_refused_by_its_line(tmp_path: Path) -> None:
    own = {"kind": "rating", "prompt": "q", "responses": ["a"], "answer": 3}
    for rows, says in (
        ([*ROWS["shp"], ROWS["webgpt"][0]], "f.jsonl:6: this row is in the layout webgpt, and the file began in shp"),
        ([*ROWS["webgpt"], own], "f.jsonl:6: question, answer_0, answer_1, score_0, score_1: missing"),
        ([ROWS["trl-pairs"][0], ROWS["shp"][0]], "f.jsonl:2: this row is in the layout shp, and the file began in"),
        ([own, ROWS["nectar"][0]], "f.jsonl:2: this row is in the layout nectar"),
    ):
        with pytest.raises(DataError) as caught:
            read_judgements(as_json_lines(tmp_path / "f.jsonl", rows))
        assert [says in str(problem) for problem in caught.value.problems] == [True]
    with pytest.raises(ConfigError, match="unknown layout 'shp2': it is one of hh-rlhf, summarize,"):
        read_judgements(tmp_path / "f.jsonl", layout="shp2")


# ---------------------------------------------------------------- what a line of words does not say


def test_who_wrote_and_what_was_asked(tmp_path: Path) -> None:
    def first(name: str, row: int = 0) -> Judgement:
        return read_judgements(as_json_lines(tmp_path / "f.jsonl", ROWS[name][row:]))[0]

    summary = first("summarize")
    assert summary.prompt.text == "SUBREDDIT: r/bread\n\nTITLE: title p0\n\nPOST: p0\n\nTL;DR:"
    assert [response.author.name for response in summary.responses] == ["sup4", "ref"]
    assert first("summarize", 4).prompt.text == "Article:\nnews\n\nTL;DR:"
    assert first("shp").responses[0].author.kind == "human"
    assert [one.author.name for one in first("ultrafeedback-argilla").responses] == ["m1", "m2"]
    assert first("nectar").prompt.meta["messages"] == chat("q0")
    assert first("nectar", 3).prompt.meta["messages"] == chat("q3", "yes?", "more")
    assert first("helpsteer2").prompt.meta["messages"] == chat("q0")
    assert first("kaggle-arena").prompt.meta["messages"] == chat("q0")
    assert first("wsdm").prompt.meta["messages"] == chat("p0")
    assert first("helpsteer2", 2).prompt.meta["messages"] == chat("hi", "yes?", "q1")
    assert first("helpsteer3").prompt.meta["messages"] == chat("Hello", "Hi", "p0")
    assert first("hh-rlhf", 4).prompt.meta["messages"] == chat("q4", "yes?", "more")
    battle = first("chatbot-arena")
    assert (battle.prompt.meta["messages"], battle.created) == (chat("q0"), "2023-04-24T15:53:11.100000+00:00")
    trees = read_judgements(as_json_lines(tmp_path / "f.jsonl", ROWS["oasst-trees"]))
    assert trees[2].prompt.meta["messages"] == chat("text t1", "text d", "text more")
    assert [(it.author.kind, it.author.name) for it in trees[0].responses] == [
        ("human", "user of a"),
        ("human", "user of b"),
        ("policy", "oasst-sft"),
    ]
    talk = read_judgements(as_json_lines(tmp_path / "f.jsonl", ROWS["prism-utterances"]))
    assert [it.prompt.meta["messages"] for it in talk] == [chat("q0")] * 3 + [chat("q0", "a", "q1")]


def test_several_people_of_one_row_are_nobody_of_another_row(tmp_path: Path) -> None:
    judgements = read_judgements(as_json_lines(tmp_path / "f.jsonl", ROWS["helpsteer2-preference"][:2]))
    assert len({judgement.annotator for judgement in judgements}) == 5


def test_nothing_answers_what_was_deleted(tmp_path: Path) -> None:
    first, second, *_ = json.loads(json.dumps(ROWS["oasst-trees"]))
    first["prompt"]["deleted"] = True
    second["prompt"]["replies"][0]["deleted"] = True  # and the ranking below it goes, too
    reading = Reading(source="f.jsonl")
    with pytest.raises(
        DataError, match="nobody has judged anything in it: passed over: trees whose first message was del"
    ):
        judgements_in(as_json_lines(tmp_path / "f.jsonl", [first, second]), reading)


def test_scores_of_one_turn_weigh_as_one_comparison(tmp_path: Path) -> None:
    judgements = read_judgements(as_json_lines(tmp_path / "f.jsonl", ROWS["prism-utterances"]))
    of_a_turn = [it for it in judgements if isinstance(it, Comparison) and it.group]
    assert len({it.group for it in of_a_turn}) == 1 and sum(it.weight for it in of_a_turn) == pytest.approx(1)
    pairs = list(preferences_of(judgements))
    assert [(pair.chosen.text, pair.rejected.text) for pair in pairs] == [("a", "b"), ("d", "b"), ("e", "c")]


def test_messages_of_a_tree_may_stand_in_any_order(tmp_path: Path) -> None:
    for seed in range(5):
        rows = random.Random(seed).sample(ROWS["oasst-messages"], 5)
        (judgement,) = read_judgements(as_json_lines(tmp_path / "f.jsonl", rows))
        assert isinstance(judgement, Ranking)
        assert {it.text: rank for it, rank in zip(judgement.responses, judgement.ranks, strict=True)} == {
            "text a": 1,
            "text b": 2,
            "text c": 3,
        }
    with pytest.raises(DataError, match=r"f\.jsonl:1: parent_id: no message 't0' in this file"):
        read_judgements(as_json_lines(tmp_path / "f.jsonl", [ROWS["oasst-messages"][0], *ROWS["oasst-messages"][2:]]))


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (shp("p", 2, 4, 2), "labels: expected true or false, got 2"),
        (shp("p", 0, 4, 2), "labels: prefers the comment with fewer votes, 2 against 4"),
        ({**shp("p", 1, 4, 2), "history": None}, "history: expected text, got null"),
        ({**shp("p", 1, 4, 2), "human_ref_B": "A of p"}, "chosen equal to rejected: there is no winner"),
        ({**webgpt("q", 0.5), "score_1": 0.5}, "score_0, score_1: 0.5 and 0.5 do not sum to 0"),
        ({**webgpt("q", 0.5), "question": {"id": 1}}, "question.full_text: missing"),
        (
            {**pku("q", 0, 0, (True, True)), "safer_response_id": -1},
            "safer_response_id: expected a whole number from 0 to 1",
        ),
        ({**ROWS["helpsteer2"][0], "verbosity": 5}, "verbosity: expected a whole number from 0 to 4, got 5"),
        ({**ROWS["helpsteer2"][4], "verbosity": [1]}, "lists of different lengths"),
        (
            {**ROWS["helpsteer2-preference"][0], "preference_strength": -100},
            "preference_strength: expected a whole number",
        ),
        (
            {**ROWS["nectar"][0], "answers": [{"answer": "a", "rank": None}]},
            "answers 1: rank: expected a number, got null",
        ),
        ({**ROWS["kaggle-arena"][0], "winner_tie": 1}, "one of them must be 1, they say model_a, tie"),
        ({**ROWS["kaggle-arena"][0], "response_b": [None]}, "response_b: expected a list with one text for each turn"),
        ({**ROWS["mt-bench"][0], "turn": 3}, "turn: expected a whole number from 1 to 2, got 3"),
        (arena("model_a", "j", chat("q", "a"), chat("other", "b")), "they do not begin with the same question"),
        ({**ROWS["wsdm"][0], "winner": "tie"}, "winner: 'tie' is none of model_a, model_b"),
        ({**ROWS["summarize"][0], "choice": 2}, "choice: expected a whole number from 0 to 1, got 2"),
        ({**ROWS["summarize"][0], "summaries": []}, "summaries: expected 2, got 0"),
        (
            {**ROWS["ultrafeedback-binarized"][0], "score_rejected": 9.0},
            "score_chosen: 8.5 is below score_rejected, 9.0",
        ),
        (
            conversation("c", asked(0, "q"), answered(0, "a", 101, True)),
            "conversation_history 2: score: expected a whole number from 1 to 100, got 101",
        ),
        ({**ROWS["prism-utterances"][0], "if_chosen": "yes"}, "if_chosen: expected true or false, got 'yes'"),
        (
            {**ROWS["oasst-trees"][0], "prompt": {**ROWS["oasst-trees"][0]["prompt"], "role": "system"}},
            "message 't0': role: 'system' is none of prompter, assistant",
        ),
    ],
)
def test_a_wrong_row_is_refused_by_its_line_and_its_column(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    (layout,) = layouts_of(row)
    file = as_json_lines(tmp_path / "f.jsonl", [*ROWS[layout.name][:1], row])
    if layout.name == "prism-utterances":
        file = as_json_lines(tmp_path / "f.jsonl", [*ROWS[layout.name][1:2], row])
    with pytest.raises(DataError) as caught:
        read_judgements(file)
    assert [
        problem for problem in caught.value.problems if str(problem).startswith(f"{file}:2: ") and says in str(problem)
    ]


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    good, nobody = ROWS["shp"][0], {**ROWS["shp"][0], "history": None}
    equal = {**ROWS["shp"][0], "human_ref_B": "A of p0"}
    file = as_json_lines(tmp_path / "f.jsonl", [good, equal, nobody, equal, nobody, equal])
    reading = Reading(source="f.jsonl", skip=True)
    assert len(judgements_in(file, reading)) == 1
    assert dict(reading.passed_over) == {
        f"lines that cannot be read, the first: {file}:2: chosen equal to rejected: there is no winner": 3,
        f"lines that cannot be read, the first: {file}:3: history: expected text, got null": 2,
    }


def test_columns_that_a_layout_does_not_know_are_counted(tmp_path: Path) -> None:
    reading = Reading(source="f.jsonl")
    judgements_in(as_json_lines(tmp_path / "f.jsonl", [{**row, "mood": 1} for row in ROWS["shp"]]), reading)
    assert dict(reading.passed_over) == {"column 'mood'": 5}


def test_the_python_list_of_a_table_is_refused_with_what_to_do(tmp_path: Path) -> None:
    rows = [{**row, "question": repr(row["question"])} for row in ROWS["webgpt"]]
    with pytest.raises(DataError, match=r"f\.csv:2: question: a list or an object in a table must be JSON"):
        read_judgements(as_csv(tmp_path / "f.csv", rows))


@pytest.mark.parametrize("name", NAMES)
def test_damage_of_any_kind_is_a_data_error(tmp_path: Path, name: str) -> None:
    """Any one value put wrong: the row is refused in our words, or read as something else that makes sense."""
    rng = random.Random(1)

    def places(value: Any) -> list[tuple[Any, Any]]:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [
            place
            for key, inner in pairs
            for place in [(value, key), *(places(inner) if isinstance(inner, (dict, list)) else [])]
        ]

    for _ in range(60):
        rows = json.loads(json.dumps(ROWS[name]))
        holder, key = rng.choice(places(rng.choice(rows)))
        holder[key] = rng.choice([None, 7, -1.5, True, "", "x", [], {}, [[]], [{}], {"a": 1}, ["x", None], {"a": [1]}])
        with contextlib.suppress(DataError):
            read_judgements(as_json_lines(tmp_path / "f.jsonl", rows))


# ---------------------------------------------------------------- a part of a file


def test_the_first_rows_and_a_sample_of_all(tmp_path: Path) -> None:
    file = as_json_lines(tmp_path / "f.jsonl", [shp(f"p{n}", 1, 4, 2) for n in range(50)] + [{"broken": 1}])
    prompts = [it.prompt.text for it in judgements_in(file, Reading(source="f", limit=3))]
    assert prompts == ["post p0", "post p1", "post p2"]
    drawn = [
        [it.prompt.text for it in judgements_in(file, Reading(source="f", sample=10, seed=seed, skip=True))]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) in (9, 10)
    assert drawn[0] == sorted(drawn[0], key=lambda text: int(text.removeprefix("post p")))
    told: list[int] = []
    judgements_in(file, Reading(source="f", limit=3, tell=told.append))
    assert told == [1, 2, 3]


def test_one_criterion_of_two(tmp_path: Path) -> None:
    file = as_json_lines(tmp_path / "f.jsonl", ROWS["pku"])
    reading = Reading(source="f.jsonl", criteria=("safety",))
    assert [in_words(it) for it in judgements_in(file, reading)] == [
        it.replace(" f:", " f.jsonl:") for it in SAID["pku"] if it.startswith("safety")
    ]
    assert dict(reading.passed_over) == {
        "judgements by the criterion 'helpfulness'": 5,
        "judgements by the criterion 'is safe'": 10,
    }
    file = as_json_lines(tmp_path / "f.jsonl", ROWS["helpsteer2"][:1])
    (rating,) = judgements_in(file, Reading(source="f.jsonl", criteria=("helpfulness", "coherence")))
    assert in_words(rating) == "f.jsonl: a coherence 5, helpfulness 5"
    with pytest.raises(DataError, match="nothing was judged by the criterion 'kindness'; it has 'coherence'"):
        judgements_in(file, Reading(source="f.jsonl", criteria=("kindness",)))


def test_the_page_of_layouts_is_what_the_readers_declare() -> None:
    page = (Path(__file__).parents[3] / "docs" / "preference-layouts.md").read_text(encoding="utf-8")
    assert page == layouts_page(), "rlhf-env preferences layouts --markdown > docs/preference-layouts.md"
    for layout in LAYOUTS:
        columns = {column.name.partition(".")[0] for column in layout.columns}
        assert set(layout.known_by) <= columns
        named = {source.strip() for column in layout.columns for source in column.source.split(",")}
        assert named - {"from memory", "not checked"} <= layout.sources.keys(), layout.name


@pytest.mark.parametrize("format", ["jsonl", "csv", "argilla", "label-studio"])
def test_what_a_set_says_comes_back_from_an_export(tmp_path: Path, format: Format) -> None:
    given = [
        it for name, rows in ROWS.items() for it in read_judgements(as_json_lines(tmp_path / f"{name}.jsonl", rows))
    ]
    file = tmp_path / f"out.{format if format in ('jsonl', 'csv') else 'json'}"
    write_judgements(file, given, format)
    assert read_judgements(file) == given


def test_a_sequence_of_objects_may_be_kept_by_its_columns(tmp_path: Path) -> None:
    """As `datasets` keeps what it calls a Sequence."""
    by_column = {"text": ["a", "b"], "policy": ["m1", "m2"], "note": [None, "short"]}
    row = {**ROWS["summarize"][0], "summaries": by_column, "extra": None}
    (judgement,) = read_judgements(as_json_lines(tmp_path / "f.jsonl", [row]))
    assert in_words(judgement) == "overall by w1: a < b (note: of summary 2: short)"
    row["summaries"] = {**by_column, "text": ["a"]}
    with pytest.raises(DataError, match=r"f\.jsonl:1: summaries: its columns are not of one length"):
        read_judgements(as_json_lines(tmp_path / "f.jsonl", [row]))


def test_damaged_gzip(tmp_path: Path) -> None:
    file = as_gzip(tmp_path / "f.jsonl.gz", ROWS["shp"])
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"f\.jsonl\.gz: begins as gzip and is damaged"):
        read_judgements(file)
