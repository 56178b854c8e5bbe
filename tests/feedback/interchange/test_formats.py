"""Every format gives back exactly what it was given, reads what other programs write, and refuses the rest whole."""

from __future__ import annotations

import copy
import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_env.errors import ConfigError, DataError
from rlhf_env.feedback.interchange import FORMATS, Format, read_judgements, write_judgements
from rlhf_env.feedback.judgements import Author, Judgement, Response
from rlhf_env.feedback.kinds import Comparison, CriteriaRating, Ranking, Rating, preferences_of
from rlhf_env.feedback.store.store import PreferenceStore
from rlhf_env.types import Prompt

SFT, PERSON = Author("policy", "sft", 0.7), Author("human", "Zoë")
DANGEROUS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "'=1+1", "''", "'", '=HYPERLINK("x")', "a,b\n=c"]
ODD = ["", "🙂", "nul \0", "line\u2028separator\r\n", '"quoted"', "-1", "'"]


def one_of_each(text: str = "", *, surrogate: bool = False) -> list[Judgement]:
    text += "\ud800" if surrogate else ""
    prompt = Prompt("p" + text, "q" + text, {"level": 1, "tags": ["a", None]})
    a = Response(text + "yes", SFT, ids=(7, 2), prompt_ids=(1,), finish_reason="stop")
    b, c = Response(text, PERSON), Response("no" + text, PERSON)
    when: dict[str, Any] = {"created": "2024-05-01T10:00:00.123456+00:00", "weight": 1 / 3, "seconds": 2.5}
    return [
        Comparison(prompt, a, b, "second", "ann", "kind", **when),
        Comparison(prompt, b, c, "tie", "ann" + text),
        Comparison(prompt, a, c, "cannot say", "bob", seconds=0.1),
        Comparison(prompt, a, c, "first", "bob", group="ranked"),
        Rating(prompt, a, 4, "ann", **when),
        Rating(prompt, b, 3, "bob"),
        Ranking(prompt, (c, a, b), (2, 1, 2), "ann", **when),
        Ranking(prompt, (c, a, b), (3, 1, 2), "bob"),
        CriteriaRating(prompt, b, {"helpful": 4, "harmless": 5}, "ann", **when),
    ]


SUFFIX: dict[Format, str] = {"csv": ".csv", "datasets": "", "argilla": ".json", "label-studio": ".json"}
WHOLE: list[Format] = ["jsonl", "csv", "argilla", "label-studio"]


def through(folder: Path, judgements: list[Judgement], format: Format) -> list[Judgement]:
    file = folder / f"file{SUFFIX.get(format, '.jsonl')}"
    write_judgements(file, judgements, format)
    assert [path.name for path in folder.iterdir()] == [file.name]
    return read_judgements(file)


@pytest.mark.parametrize("text", ["", *ODD, *DANGEROUS])
@pytest.mark.parametrize("format", WHOLE)
def test_all_kinds_come_back_exactly(tmp_path: Path, format: Format, text: str) -> None:
    assert through(tmp_path, one_of_each(text), format) == one_of_each(text)


@pytest.mark.parametrize("format", WHOLE)
def test_lone_surrogates_come_back(tmp_path: Path, format: Format) -> None:
    assert through(tmp_path, one_of_each(surrogate=True), format) == one_of_each(surrogate=True)


@pytest.mark.parametrize("text", ["", "🙂", "nul \0", "a\r\nb"])
@pytest.mark.parametrize("format", ["trl", "trl-conversational", "datasets"])
def test_pairs_come_back_exactly(tmp_path: Path, format: Format, text: str) -> None:
    if format == "datasets":
        pytest.importorskip("datasets")
    pairs = [Comparison.of(it) for it in preferences_of(one_of_each(text))]
    assert len(pairs) > 6
    assert through(tmp_path, one_of_each(text), format) == pairs


def test_unpaired_rows_come_back_as_pairs_and_ratings(tmp_path: Path) -> None:
    given = one_of_each()
    back = through(tmp_path, given, "trl-unpaired")
    rankings = [Comparison.of(it) for ranking in given if isinstance(ranking, Ranking) for it in ranking.preferences]
    scores = given[8].ratings  # type: ignore[union-attr]
    assert back == [given[0], given[3], given[4], *rankings, *scores]
    rows = [json.loads(line) for line in (tmp_path / "file.jsonl").read_text().splitlines()]
    assert {(row["completion"], row["label"]) for row in rows[:2]} == {("", True), ("yes", False)}
    assert all(type(row["label"]) is bool for row in rows)


@pytest.mark.parametrize("format", FORMATS)
def test_a_store_takes_its_own_export_as_nothing_new(tmp_path: Path, format: Format) -> None:
    if format == "datasets":
        pytest.importorskip("datasets")
    given = one_of_each()
    if format not in WHOLE:
        given = [it for it in given if isinstance(it, Comparison) and it.preference]
    with PreferenceStore(tmp_path / "store.sqlite") as store:
        assert store.add(given) == len(given)
        kept = list(store.judgements())
        folder = tmp_path / "out"
        folder.mkdir()
        assert store.add(through(folder, kept, format)) == 0
        assert list(store.judgements()) == kept


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    """S20."""
    for text in DANGEROUS:
        write_judgements(tmp_path / "file.csv", one_of_each(text), "csv")
        with (tmp_path / "file.csv").open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]


# ---------------------------------------------------------------- files of other programs

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Colour of the sky?"}]
BLUE, GREEN = [{"role": "assistant", "content": "Blue."}], [{"role": "assistant", "content": "Green."}]


def written(file: Path, content: Any) -> Path:
    lines = content if isinstance(content, list) and file.suffix == ".jsonl" else [content]
    file.write_text("\n".join(json.dumps(line) for line in lines))
    return file


def test_conversations_of_trl(tmp_path: Path) -> None:
    explicit = {"prompt": CHAT, "chosen": BLUE, "rejected": GREEN, "score_chosen": 9}
    implicit = {"chosen": CHAT + BLUE, "rejected": CHAT + GREEN}
    unpaired = {"prompt": CHAT, "completion": GREEN, "label": False}
    one, two, three = read_judgements(written(tmp_path / "theirs.jsonl", [explicit, implicit, unpaired]))
    assert isinstance(one, Comparison) and isinstance(three, Rating)
    assert one.prompt.text == "System: Be brief.\nUser: Colour of the sky?\nAssistant:"
    assert one.prompt.meta == {"messages": CHAT}
    assert one.preference and (one.preference.chosen.text, one.preference.rejected.text) == ("Blue.", "Green.")
    assert one.prompt == two.prompt == three.prompt
    assert (three.response.text, three.score, three.annotator) == ("Green.", 1, "theirs.jsonl")
    write_judgements(tmp_path / "again.jsonl", [one], "trl-conversational")
    again = json.loads((tmp_path / "again.jsonl").read_text())
    assert (again["prompt"], again["chosen"], again["rejected"]) == (CHAT, BLUE, GREEN)


def test_csv_of_trl(tmp_path: Path) -> None:
    file = tmp_path / "theirs.csv"
    file.write_text('prompt,chosen,rejected\r\nq,"a\n1",b\r\n\r\n')
    (made,) = read_judgements(file, annotator="them")
    assert isinstance(made, Comparison) and made.preference
    assert (made.preference.chosen.text, made.annotator) == ("a\n1", "them")
    file.write_text("prompt,completion,label\nq,a,True\nq,b,0\nq,c,maybe\n")
    with pytest.raises(DataError, match=r"theirs\.csv:4: label: expected true or false, got \"maybe\""):
        read_judgements(file)


def test_argilla_as_its_users_write_it(tmp_path: Path) -> None:
    fields = {"instruction": "q", "response_1": "a", "response_2": "b"}

    def record(**responses: Any) -> dict[str, Any]:
        return {"id": "1", "fields": fields, "metadata": {}, "suggestions": {}, "responses": responses, "vectors": {}}

    def said(value: Any, who: str = "u1", **more: Any) -> dict[str, Any]:
        return {"value": value, "user_id": who, **more}

    file = written(
        tmp_path / "records.json",
        [
            record(preference=[said("response_2"), said("tie", "u2"), said("response_1", "u3", status="draft")]),
            record(order=[said(["response_2", "response_1"])]),
            record(order=[said([{"value": "response_2", "rank": 1}, {"value": "response_1", "rank": 1}])]),
            {**record(), "fields": {"prompt": "q", "response": "a"}, "responses": {"rating": [said(5)]}},
            {
                **record(),
                "fields": {"prompt": "q", "response": "a"},
                "responses": {"kind": [said(2)], "true": [said(4)]},
            },
        ],
    )
    first, tie, ranked, tied, rated, scored = read_judgements(file)
    assert isinstance(first, Comparison) and isinstance(tie, Comparison) and isinstance(rated, Rating)
    assert isinstance(ranked, Ranking) and isinstance(tied, Ranking) and isinstance(scored, CriteriaRating)
    assert (first.verdict, first.annotator, first.prompt.text) == ("second", "argilla user u1", "q")
    assert (tie.verdict, tie.annotator) == ("tie", "argilla user u2")
    assert (ranked.ranks, tied.ranks) == ((2, 1), (1, 1))
    assert (rated.score, scored.scores) == (5, {"kind": 2, "true": 4})


def test_more_answers_to_a_record_of_ours(tmp_path: Path) -> None:
    """Our export, annotated there by somebody else: provenance of the texts stays, the new vote is theirs."""
    mine = one_of_each()[0]
    write_judgements(tmp_path / "ours.json", [mine], "argilla")
    (record,) = json.loads((tmp_path / "ours.json").read_text())
    record["responses"]["preference"].append({"value": "response_1", "user_id": "u2"})
    one, two = read_judgements(written(tmp_path / "more.json", [record]))
    assert one == mine
    assert isinstance(two, Comparison)
    assert (two.responses, two.prompt, two.criterion) == (mine.responses, mine.prompt, "kind")
    assert (two.verdict, two.annotator, two.weight, two.seconds) == ("first", "argilla user u2", 1.0, None)


def test_label_studio_as_its_users_write_it(tmp_path: Path) -> None:
    def result(tag: str, kind: str, value: Any, about: str = "text1,text2") -> dict[str, Any]:
        return {"id": "x", "from_name": tag, "to_name": about, "type": kind, "value": value}

    def annotation(*results: Any, who: Any = 3, **more: Any) -> dict[str, Any]:
        return {"id": 1, "completed_by": who, "result": list(results), "was_cancelled": False, **more}

    pair = {"prompt": "q", "text1": "a", "text2": "b"}
    items = [{"id": "x", "title": "", "body": "a"}, {"id": "y", "title": "", "body": "b"}]
    one = {"prompt": "q", "response": "a"}
    person = {"id": 7, "email": "zoe@example.org"}
    tasks = [
        {
            "id": 1,
            "data": pair,
            "annotations": [
                annotation(result("pw", "pairwise", {"selected": "right"}), lead_time=4.2, created_at="2024-01-01"),
                annotation(result("pw", "pairwise", {"selected": "left"}), who=person),
                annotation(result("pw", "pairwise", {"selected": "left"}), was_cancelled=True),
                annotation(result("un", "choices", {"choices": ["cannot say"]})),
            ],
        },
        {
            "id": 2,
            "data": {"prompt": "q", "items": items},
            "annotations": [annotation(result("rank", "ranker", {"ranker": {"rank": ["y", "x"]}}, "items"))],
        },
        {"id": 3, "data": one, "annotations": [annotation(result("rating", "rating", {"rating": 4}, "response"))]},
        {
            "id": 4,
            "data": one,
            "annotations": [
                annotation(
                    result("kind", "rating", {"rating": 1}, "response"),
                    result("true", "rating", {"rating": 5}, "response"),
                )
            ],
        },
    ]
    right, left, unsure, ranked, rated, scored = read_judgements(written(tmp_path / "tasks.json", tasks))
    assert isinstance(right, Comparison) and isinstance(left, Comparison) and isinstance(unsure, Comparison)
    assert isinstance(ranked, Ranking) and isinstance(rated, Rating) and isinstance(scored, CriteriaRating)
    assert (right.verdict, right.seconds, right.created) == ("second", 4.2, "2024-01-01")
    assert (left.verdict, left.annotator, unsure.verdict) == ("first", "label-studio user 7", "cannot say")
    assert (ranked.ranks, rated.score, scored.scores) == ((2, 1), 4, {"kind": 1, "true": 5})


# ---------------------------------------------------------------- what is wrong

GOOD = '{"prompt": "q", "chosen": "yes", "rejected": "no"}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"kind": "guess", "prompt": "q", "responses": [], "answer": 1}', "kind: 'guess' is none of"),
        ('{"kind": "rating", "prompt": "q"}', "responses: missing"),
        ('{"kind": "rating", "prompt": "q", "responses": ["a", "b"], "answer": 1}', "responses: a rating has 1, got 2"),
        ('{"kind": "rating", "prompt": "q", "responses": ["a"], "answer": 9}', "score: expected a whole number"),
        ('{"kind": "ranking", "prompt": "q", "responses": ["a", null], "answer": [1, 2]}', "response 2: expected text"),
        ('{"prompt": "q", "completion": "a"}', "label: missing"),
        ('{"prompt": "q", "completion": "a", "label": 1}', "label: expected true or false, got 1"),
        ('{"prompt": [], "completion": "a", "label": true}', "prompt: expected text, or messages"),
        ('{"chosen": [{"role": "user", "content": "a"}], "rejected": []}', "chosen, rejected: without a prompt"),
        (
            '{"prompt": "q", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"}',
            "chosen: expected a message",
        ),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_taken(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join([GOOD, line, GOOD]))
    with pytest.raises(DataError) as caught:
        read_judgements(file)
    assert caught.value.problems[0].startswith(f"{file}:2: {says}")


def test_bad_files(tmp_path: Path) -> None:
    for name, content, says in [
        ("a.csv", "kind,prompt\nrating,q,extra\n", r"a\.csv:2: 3 fields, the header has 2"),
        ("b.csv", "prompt,prompt\nq,q\n", r"b\.csv:1: more than one column is named 'prompt'"),
        ("c.csv", 'prompt,chosen,rejected\n"q,a,b\n', r"c\.csv:2: not CSV"),
        ("d.csv", "", r"d\.csv: the file is empty"),
        ("e.json", "{}", r"e\.json: expected a list"),
        ("f.json", "[", r"f\.json: not JSON"),
        ("g.json", "[1]", r"g\.json: record 1: not an object"),
        ("h.json", '[{"annotations": []}]', r"h\.json: record 1: not a task with data"),
        ("i.json", '[{"fields": {}, "responses": {}}]', r"nobody has judged"),
        ("j.txt", "q", r"judgements come as"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=says):
            read_judgements(tmp_path / name)
    with pytest.raises(ConfigError, match="format: 'xml' is none of jsonl"):
        write_judgements(tmp_path / "x.xml", [], "xml")  # type: ignore[arg-type]


def test_a_hundred_bad_rows_are_twenty_problems(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("prompt,chosen,rejected\n" + "q,a,a\n" * 100)
    with pytest.raises(DataError) as caught:
        read_judgements(tmp_path / "bad.csv")
    assert len(caught.value.problems) == 21
    assert caught.value.problems[19].startswith(f"{tmp_path / 'bad.csv'}:21: chosen equal to rejected")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, (dict, list)):
            yield from _places(inner)


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("csv", "datasets")])
def test_damage_of_any_kind_is_a_data_error(tmp_path: Path, format: Format) -> None:
    """Any one value of a file put wrong: it is refused in our words, or read as something else that makes sense."""
    file = tmp_path / f"file{SUFFIX.get(format, '.jsonl')}"
    write_judgements(file, one_of_each(), format)
    rows = json.loads(file.read_text()) if file.suffix == ".json" else list(map(json.loads, file.open()))
    for row in rows:  # JSON in a text is a text: damage it too
        for holder in (row.get("metadata", {}), row.get("data", {})):
            if "provenance" in holder:
                holder["provenance"] = json.loads(holder["provenance"])
    rng, refused = random.Random(0), 0
    for _ in range(200):
        row = copy.deepcopy(rng.choice(rows))
        holder, key = rng.choice(list(_places(row)))
        holder[key] = rng.choice([None, 7, -1.5, True, "", "x", [], {}, [[]], [{}], {"a": 1}, ["x", None]])
        for outer in (row.get("metadata"), row.get("data")):
            if isinstance(outer, dict) and "provenance" in outer:
                outer["provenance"] = json.dumps(outer["provenance"])
        file.write_text(json.dumps([row] if file.suffix == ".json" else row))
        try:
            read_judgements(file)
        except DataError:
            refused += 1
    assert refused > 50
